"""Compression and attacks that would do nothing, or what they cannot, are refused before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.job import RunFacts
from fedsim.messages.compressor import Compressor
from fedsim.messages.compressors import QSGD

FORM = {"delta": torch.zeros(1, 4), "norm": torch.zeros(1, 1)}


def _refused(folder: Path, key: str, **sections: Any) -> str:
    file = folder / "q.npz"
    np.savez(file, A=np.ones((3, 2)), b=np.ones((3, 2)), x0=np.zeros(2))
    base = {"data": {"dataset": "quadratic", "file": str(file)}, "algorithm": {"name": "fedavg", "lr": 0.1}}
    run = {"rounds": 3, "device": "cpu", "dtype": "float32"}
    with pytest.raises(InputError) as caught:
        fedsim.run({**base, "run": run, **sections}, out=folder / "run")
    assert not (folder / "run").exists()
    assert key in str(caught.value)
    return str(caught.value)


def test_keys_that_name_nothing(tmp_path: Path) -> None:
    found = _refused(tmp_path, "compression.keys", compression={"name": "natural", "keys": []})
    assert "compresses nothing; allowed: delta" in found


def test_keys_that_name_a_number(tmp_path: Path) -> None:
    nova = {"name": "fednova", "lr": 0.1}
    found = _refused(tmp_path, "compression.keys", algorithm=nova, compression={"name": "natural", "keys": ["norm"]})
    assert "found 'norm', allowed: d" in found


@pytest.mark.parametrize("levels", [2**24 + 1, 2**31 - 1])
def test_levels_that_float32_does_not_hold(levels: int, tmp_path: Path) -> None:
    found = _refused(tmp_path, "compression.levels", compression={"name": "qsgd", "levels": levels})
    assert f"found {levels}" in found
    assert "allowed: at most 16777216" in found


def test_levels_that_fit() -> None:
    QSGD(levels=2**24).check(FORM, RunFacts(0, 3))
    QSGD(levels=2**31 - 1).check({"delta": FORM["delta"].double()}, RunFacts(0, 3))


@dataclass(frozen=True, kw_only=True)
class _Miscounting(Compressor):
    found: Any = -5

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        return v

    def bits(self, d: int, number: int) -> int:
        return self.found  # type: ignore[no-any-return]


@pytest.mark.parametrize("found", [-5, 12.5, 12.0, None])
def test_what_is_no_number_of_bits(found: Any) -> None:
    with pytest.raises(InputError, match=rf"_Miscounting says that 4 numbers take {found} bits"):
        _Miscounting(found=found).check(FORM, RunFacts(0, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("contractive", [False, True])
@pytest.mark.parametrize("levels", [1, 15, 2**24])
def test_sizes_whose_squares_are_no_numbers(levels: int, contractive: bool, dtype: torch.dtype) -> None:
    """Times a power of two, QSGD makes that many times as much: nothing overflows or vanishes."""
    part = QSGD(levels=levels, contractive=contractive)
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(5, 8, generator=generator, dtype=dtype)
    u = torch.rand(5, 8, generator=generator, dtype=dtype)
    for power in (100.0, -100.0) if dtype == torch.float32 else (900.0, -900.0):
        much = v * 2.0**power
        found = part(much, u)
        assert torch.equal(found, part(v, u) * 2.0**power)
        assert torch.equal(part.unpack(part.pack(much, u), much, u), found)


def test_what_is_not_finite_stays_so() -> None:
    v = torch.tensor([[1.0, torch.inf], [1e30, 1e30], [1.0, torch.nan]])
    found = QSGD(levels=3)(v, torch.full_like(v, 0.5))
    assert found.isfinite().all(-1).tolist() == [False, True, False]
