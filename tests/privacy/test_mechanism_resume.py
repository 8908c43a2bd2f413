"""Private runs continue bit for bit, with what they have spent and what their mechanism keeps."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import killed_runs
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.run_directory import read_jsonl

CASES = {name: killed_runs.CASES[name] for name in ("dp_sgd", "dp_fedavg", "dp_ftrl", "local_dp", "decor", "muffliato")}
CASES["dp_ftrl"] = (killed_runs.SERVER, {"epsilon": 1.0, "clip_norm": 0.5, "restart_every": 4})


def scenario(name: str, **run: Any) -> dict[str, Any]:
    base, keys = CASES[name]
    settings = {"rounds": 7, "eval_every": 3, "device": "cpu", "trace": True, **run}
    return {**base, "privacy": {"mechanism": name, **keys}, "run": settings}


def rows(run: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(run.dir / "metrics.jsonl")]


@pytest.mark.parametrize("name", CASES)
def test_resumed_equals_unbroken(name: str, tmp_path: Path) -> None:
    def interrupt(number: int, _row: object) -> None:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)

    unbroken = fedsim.run(scenario(name), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(scenario(name), out=tmp_path / "parts", progress=interrupt)
    resumed = fedsim.run(scenario(name), out=tmp_path / "parts", resume=True)
    assert torch.equal(resumed.params, unbroken.params)
    assert rows(resumed) == rows(unbroken)
    assert (resumed.dir / "privacy.json").read_text() == (unbroken.dir / "privacy.json").read_text()
    chunked = fedsim.run(scenario(name, chunk_rows=3), out=tmp_path / "chunks")
    assert (chunked.params - unbroken.params).abs().max() < 1e-4


def test_noise_that_was_made_for_some_rounds_serves_no_others(tmp_path: Path) -> None:
    privacy = {"mechanism": "dp_ftrl", "noise_multiplier": 1.0, "clip_norm": 0.5}
    fedsim.run({**scenario("dp_ftrl"), "privacy": privacy}, out=tmp_path)
    longer = {**scenario("dp_ftrl", rounds=9), "privacy": privacy}
    with pytest.raises(InputError, match=r"run\.rounds"):
        fedsim.run(longer, out=tmp_path, resume=True)
