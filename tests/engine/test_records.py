"""What a run directory says of the very beginning, and who may read it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.types import agree

GRAPH: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 7, "limit": 300},
    "model": {"name": "mlp", "hidden": [13]},
    "algorithm": {"name": "dpsgd", "lr": 0.1, "batch_size": 10},
    "topology": {"graph": "ring"},
    "run": {"rounds": 2, "eval_every": 1, "device": "cpu", "threads": 1},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["vectorized", pytest.param("ray", marks=pytest.mark.ray)])
def test_nodes_that_all_have_one_model_are_at_distance_zero(
    backend: str, dtype: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if backend == "ray":
        request.getfixturevalue("ray_session")
    where = {"name": "ray", "actors": 2} if backend == "ray" else {"name": "vectorized"}
    run = fedsim.run({**GRAPH, "backend": where, "run": {**GRAPH["run"], "dtype": dtype}}, out=tmp_path / "run")
    found = run.metrics["consensus_distance"].tolist()
    assert found[0] == 0.0
    assert min(found[1:]) > 0


def test_rows_agree_or_not() -> None:
    rows = torch.full((7, 3), 0.1)
    assert agree(rows)
    rows[3, 1] = torch.nextafter(rows[3, 1], torch.tensor(1.0))
    assert not agree(rows)
    assert not agree(torch.full((2, 2), float("nan")))


@pytest.mark.skipif(os.name == "nt", reason="other rights")
def test_everything_in_a_run_directory_is_as_readable_as_the_rest(tmp_path: Path) -> None:
    for number, mask in enumerate((0o022, 0o077, 0o002)):
        before = os.umask(mask)
        try:
            folder = fedsim.run(GRAPH, out=tmp_path / str(number)).dir
        finally:
            os.umask(before)
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in folder.rglob("*") if file.is_file()}
        assert "params.safetensors" in modes
        assert set(modes.values()) == {oct(0o666 & ~mask)}


@pytest.mark.parametrize("wrong", [{"progress": "yes"}, {"progress": 3}, {"out": 3}, {"out": ""}, {"out": b"here"}])
def test_a_wrong_argument_of_run_is_named(
    wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name}: found {value!r}, allowed: "):
        fedsim.run(GRAPH, **wrong)
    assert list(tmp_path.iterdir()) == []
