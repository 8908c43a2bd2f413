"""Arrays of a program are one file, however many processes write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.data import from_arrays


def test_two_may_write_the_same_arrays_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1])
    whole = np.savez

    def meanwhile(*args: Any, **arrays: Any) -> None:
        monkeypatch.setattr(np, "savez", whole)
        from_arrays(x, y, folder=tmp_path)  # another one begins later and is through before
        whole(*args, **arrays)

    monkeypatch.setattr(np, "savez", meanwhile)
    file = from_arrays(x, y, folder=tmp_path)["path"]
    assert [str(f) for f in tmp_path.iterdir()] == [file]
    np.testing.assert_array_equal(np.load(file)["x"], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_every_type_of_numbers_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    x, y = torch.arange(12, dtype=dtype).reshape(6, 2), torch.arange(6) % 2
    section = from_arrays(x, y, 2, folder=tmp_path)
    assert np.array_equal(np.load(section["path"])["x"].astype(np.float64), x.double().numpy())


@pytest.mark.parametrize("x", [torch.ones(6, 2).to_sparse(), torch.ones(6, 2).to(torch.float8_e4m3fn)], ids=str)
def test_tensors_that_are_no_arrays_are_refused(x: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x: found a tensor of type float.*; allowed: dense, of numbers"):
        from_arrays(x, torch.arange(6) % 2, 2, folder=tmp_path)
    assert not list(tmp_path.iterdir())
