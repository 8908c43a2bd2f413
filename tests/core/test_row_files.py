"""Files of tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

import fedsim
from fedsim.core.row_files import write_tensors


def test_tensors_that_share_their_memory_are_written_each(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    tensors = {"a": x, "b": x, "c": x[1:4], "d": x.view(2, 3).T}
    write_tensors(tmp_path / "f.safetensors", tensors)
    found = load_file(tmp_path / "f.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) for k, v in tensors.items())


def test_a_state_may_have_one_tensor_under_two_names(tmp_path: Path) -> None:
    """As that of DIFF2 with variance reduction has after its first round."""
    made = {
        "data": {"dataset": "digits", "clients": 3, "limit": 60},
        "model": {"name": "linear"},
        "algorithm": {"name": "diff2_bvr", "lr": 0.1, "clip_norm": 1.0, "difference_clip": 1.0},
        "run": {"rounds": 1, "eval_samples": 10},
    }
    fedsim.run(made, out=tmp_path / "run")
    made["run"]["rounds"] = 2  # type: ignore[index]
    whole = fedsim.run(made, out=tmp_path / "whole")
    assert torch.equal(fedsim.run(made, out=tmp_path / "run", resume=True).params, whole.params)
