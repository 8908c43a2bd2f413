"""Arrays of a program are one file, however many processes write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
