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


X, Y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ((np.ma.masked_greater(X, 9.0), Y), r"x: found 2 masked value\(s\)"),
        ((X, np.ma.masked_equal(Y, 1)), r"y: found 3 masked value\(s\)"),
        ((X, Y, np.ma.masked_equal(Y, 1)), r"clients: found 3 masked value\(s\)"),
        ((np.where(X == 3.0, np.nan, X), Y), r"x: found nan at \[1, 1\]; allowed: finite numbers"),
        ((X, np.where(Y == 1, np.inf, 0.0)), r"y: found inf at \[1\]"),
        ((X, Y, np.where(Y == 1, np.nan, 0.0)), r"clients: found nan at \[1\]"),
        ((X.astype(str), Y), "x: found words; allowed: numbers"),
        ((np.float64(3.0), np.int64(1)), r"x: found shape \[\]; allowed: at least one row"),
        ((X[:0], Y[:0]), r"x: found shape \[0, 2\]; allowed: at least one row"),
        ((X, Y, np.array(2)), r"clients: found shape \[\]"),
    ],
)
def test_values_that_are_no_data_are_refused_before_anything_is_written(
    arrays: tuple[Any, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        from_arrays(**dict(zip(("x", "y", "clients"), arrays, strict=False)), folder=tmp_path / "arrays")
    assert not (tmp_path / "arrays").exists()
