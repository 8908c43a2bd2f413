"""California housing from a local table, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.core.errors import InputError
from fedsim.data.california import CaliforniaHousing


def table(folder: Path, **columns: object) -> Path:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"MedInc": random.normal(3, 2, 50), "HouseAge": random.normal(20, 5, 50)})
    frame["MedHouseVal"] = np.linspace(0.2, 5.00001, 50)
    folder.mkdir()
    frame.assign(**columns).to_parquet(folder / "train.parquet")
    return folder


def test_a_fifth_is_held_out_and_targets_are_divided_by_their_cap(tmp_path: Path) -> None:
    table(tmp_path / "california")
    data = CaliforniaHousing(path="california").load(4, 0, tmp_path)
    assert (data.train_x.shape, data.test_x.shape) == ((40, 2), (10, 2))
    assert data.num_classes is None
    both = np.sort(np.concatenate([data.train_y, data.test_y]))
    assert both == pytest.approx(np.linspace(0.2, 5.00001, 50) / 5.00001, rel=1e-6)
    assert np.abs(data.train_x.numpy().mean(0)).max() < 1e-6
    raw = CaliforniaHousing(path="california", target_scale=1.0, normalize="none").load(4, 1, tmp_path)
    assert raw.train_y.numpy() == pytest.approx(5.00001 * data.train_y.numpy(), rel=1e-6)


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"path: no folder .*nowhere; this command makes it: python -c .*to_parquet"):
        CaliforniaHousing(path="nowhere").load(4, 0, tmp_path)


def test_the_command_is_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the download, which is replaced: the text between the quotes makes the folder that was missing."""
    from sklearn import datasets

    with pytest.raises(InputError) as caught:
        CaliforniaHousing(path="made").load(4, 0, tmp_path)
    code = str(caught.value).split('python -c "')[1].rstrip('"')
    frame = pd.read_parquet(table(tmp_path / "source") / "train.parquet")
    fetched = type("Bunch", (), {"frame": frame})
    monkeypatch.setattr(datasets, "fetch_california_housing", lambda as_frame: fetched if as_frame else None)
    exec(compile(code, "command", "exec"), {})
    assert len(CaliforniaHousing(path="made").load(4, 0, tmp_path).train_y) == 40


def test_a_table_without_the_target_is_refused(tmp_path: Path) -> None:
    folder = table(tmp_path / "other")
    pd.read_parquet(folder / "train.parquet").rename(columns={"MedHouseVal": "price"}).to_parquet(
        folder / "train.parquet"
    )
    with pytest.raises(InputError, match="MedHouseVal"):
        CaliforniaHousing(path="other").load(4, 0, tmp_path)


def test_no_network_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import datasets

    def offline() -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "fetch_california_housing", offline)
    with pytest.raises(InputError, match=r"cannot download the table \(OSError: no route to host\).*to_parquet"):
        CaliforniaHousing().load(4, 0, tmp_path)
