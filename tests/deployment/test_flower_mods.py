"""Mods around the ClientApp: those of Flower's that look go with it, those that expect a model in an answer do not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_loopback import Deployment

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.client import make_client_app

pytest.importorskip("flwr")
N = 3
SECTIONS: dict[str, Any] = {
    "data": {"dataset": "synthetic", "iid": True, "clients": N},
    "model": {"name": "linear"},
    "algorithm": {"name": "scaffold", "lr": 0.1, "local_steps": 2},
    "run": {"rounds": 2, "dtype": "float64", "device": "cpu"},
}


def test_flowers_mods_run_around_every_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from flwr.clientapp.mod import arrays_size_mod, message_size_mod

    seen: list[str] = []

    def mine(message: Any, context: Any, call_next: Any) -> Any:
        seen.append(message.metadata.message_type)
        return call_next(message, context)

    simulated = fedsim.run(SECTIONS, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", SECTIONS, N)
    app.grid.mods = [mine, message_size_mod, arrays_size_mod]
    with caplog.at_level(logging.INFO, "flwr"):
        deployed = app.run()
    assert torch.equal(deployed.params, simulated.params)
    assert sorted(seen) == ["query.hello"] * N + ["train"] * 2 * N
    sizes = [r.getMessage() for r in caplog.records if "Total array elements sent" in r.getMessage()]
    assert len(sizes) == 3 * N
    assert len([r for r in caplog.records if "Outgoing message size" in r.getMessage()]) == 3 * N


@pytest.mark.parametrize("name", ["LocalDpMod", "fixedclipping_mod", "adaptiveclipping_mod", "secaggplus_mod"])
def test_mods_of_flower_that_do_not_go_with_it_are_refused(name: str, tmp_path: Path) -> None:
    """Some answer with an error that reaches nobody, so that a server would wait; others would seem to protect."""
    from flwr.client import mod

    found = getattr(mod, name)
    with pytest.raises(InputError, match=f"mods: found {name}, wh"):
        make_client_app(tmp_path / "scenario.yaml", [found(1.0, 1.0, 1.0, 1e-5) if name == "LocalDpMod" else found])


def test_what_a_mod_spoils_is_not_used(tmp_path: Path) -> None:
    from flwr.app import Array, ArrayRecord

    def cut(message: Any, context: Any, call_next: Any) -> Any:
        answer = call_next(message, context)
        if message.metadata.message_type == "train":
            arrays = {k: Array(v.numpy()[:, :-1]) for k, v in answer.content["arrays"].items()}
            answer.content["arrays"] = ArrayRecord(arrays)
        return answer

    app = Deployment(tmp_path / "app", SECTIONS, N, **{"on-failure": "stop"})
    app.grid.mods = [cut]
    with pytest.raises(RunError, match="expected \\[1, 610\\]"):
        app.run()
