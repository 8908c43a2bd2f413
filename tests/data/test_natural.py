"""Natural partitions: flwr-datasets' divisions by a column, with the clients' names, for every kind of file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from data_makers import pictures, png

from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.data.division import divided

N = 90
DRAW = np.random.default_rng(3)
HOSPITALS = np.array(["hôpital A", "H-D", "病院 C", "10", "9"])[DRAW.integers(0, 5, N)]
USERS = DRAW.integers(3, 14, N)
X, Y = DRAW.normal(size=(N, 3)), DRAW.integers(0, 2, N)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def by(base: Path, section: dict[str, Any], partition: dict[str, Any], clients: int | None = None) -> tuple[Any, Any]:
    scheme = part_from("partition", "scheme", partition)
    data = part_from("dataset", "dataset", section).load_by(partition["partition_by"], clients, 0, base)
    return data, divided(scheme, data, clients, 0)


def frame(ids: np.ndarray) -> pandas.DataFrame:
    return pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "who": ids, "label": Y})


def _csv(folder: Path, ids: np.ndarray) -> dict[str, Any]:
    frame(ids).to_csv(folder / "d.csv", index=False)
    return {"dataset": "csv", "path": "d.csv", "target": "label"}


def _parquet(folder: Path, ids: np.ndarray) -> dict[str, Any]:
    frame(ids).to_parquet(folder / "d.parquet")
    return {"dataset": "parquet", "path": "d.parquet", "target": "label"}


def _hub(folder: Path, ids: np.ndarray) -> dict[str, Any]:
    return {**_parquet(folder, ids), "dataset": "hub", "hub": "a/b", "target": None}


def _npz(folder: Path, ids: np.ndarray) -> dict[str, Any]:
    np.savez(folder / "d.npz", x=X, y=Y, who=ids)
    return {"dataset": "npz", "path": "d.npz"}


def _images(folder: Path, ids: np.ndarray) -> dict[str, Any]:
    import datasets

    kind = "string" if ids.dtype.kind == "U" else "int64"
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "who": datasets.Value(kind)}
    )
    rows = {"image": [{"bytes": png(p), "path": None} for p in pictures(N)], "label": Y.tolist(), "who": ids.tolist()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return {"dataset": "hub", "hub": "a/b", "path": "."}


READERS = {"csv": _csv, "parquet": _parquet, "hub": _hub, "npz": _npz, "images": _images}


@pytest.mark.parametrize("ids", [HOSPITALS, USERS], ids=["text", "numbers"])
@pytest.mark.parametrize("reader", READERS)
def test_one_client_per_value_of_a_column(tmp_path: Path, reader: str, ids: np.ndarray) -> None:
    section = {k: v for k, v in READERS[reader](tmp_path, ids).items() if v is not None}
    data, division = by(tmp_path, section, {"scheme": "natural_id", "partition_by": "who"})
    assert list(division.names) == [str(v) for v in np.unique(ids)]
    assert sorted(np.concatenate(division.rows)) == list(range(len(data.train_y)))
    for name, rows, tested in zip(division.names, division.rows, division.test_samples, strict=True):
        own = int((ids.astype(str) == name).sum())
        assert {str(v) for v in data.ids[rows]} == {name}
        assert len(rows) + tested == own  # the same ids in train and test
        assert tested == min(round(0.2 * own), own - 1)
    assert data.train_x[0].numel() == (20 if reader == "images" else 3)  # the column is no feature
    assert division.record()["names"] == list(division.names)


@pytest.mark.parametrize(
    "keys",
    [
        {"scheme": "natural_id"},
        *(
            {"scheme": "grouped_natural_id", "group_size": size, "mode": mode, "sort_unique_ids": sort}
            for size, mode in ((3, "allow-smaller"), (20, "allow-smaller"), (3, "allow-bigger"), (4, "drop-reminder"))
            for sort in (False, True)
        ),
        {"scheme": "grouped_natural_id", "group_size": 1, "mode": "strict"},
    ],
    ids=lambda k: "-".join(map(str, k.values())),
)
def test_divisions_are_those_of_flwr_datasets(tmp_path: Path, keys: dict[str, Any]) -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import datasets
    import flwr_datasets.partitioner as fl

    data, division = by(tmp_path, _npz(tmp_path, USERS), {**keys, "partition_by": "who"})
    kind = fl.NaturalIdPartitioner if keys["scheme"] == "natural_id" else fl.GroupedNaturalIdPartitioner
    theirs = kind("who", **{k: v for k, v in keys.items() if k != "scheme"})
    theirs.dataset = datasets.Dataset.from_dict({"who": data.ids.tolist(), "row": list(range(len(data.ids)))})
    assert len(division.rows) == theirs.num_partitions
    for i, rows in enumerate(division.rows):
        assert rows.tolist() == theirs.load_partition(i)["row"]


def test_text_that_is_numbers_is_sorted_as_numbers(tmp_path: Path) -> None:
    section = _csv(tmp_path, USERS)
    _, division = by(tmp_path, section, {"scheme": "natural_id", "partition_by": "who"})
    assert list(division.names) == [str(n) for n in range(3, 14)]
    _csv(tmp_path, np.array([f"{n:03d}" for n in USERS]))
    _, division = by(tmp_path, section, {"scheme": "natural_id", "partition_by": "who"})
    assert division.names[0] == "003"  # the name that the file has


def test_ids_of_given_splits(tmp_path: Path) -> None:
    ids = np.array([5, 5, 6, 7]), np.array([6, 5, 5, 9])
    arrays = {"x_train": X[:4], "y_train": Y[:4], "x_test": X[:4], "y_test": Y[:4]}
    np.savez(tmp_path / "d.npz", **arrays, user_train=ids[0], user_test=ids[1])
    section = {"dataset": "npz", "path": "d.npz", "num_classes": 2}
    _, division = by(tmp_path, section, {"scheme": "natural_id", "partition_by": "user"})
    assert [r.tolist() for r in division.rows] == [[0, 1], [2], [3]]
    assert division.test_samples.tolist() == [2, 1, 0]
    assert division.notes == ("1 values of 'user' are of test rows alone and of no client: 9",)


def test_groups_have_names(tmp_path: Path) -> None:
    section = _npz(tmp_path, USERS)
    keys = {"scheme": "grouped_natural_id", "partition_by": "who", "sort_unique_ids": True}
    _, division = by(tmp_path, section, {**keys, "group_size": 2})
    assert division.names[0] == "3+4"
    _, division = by(tmp_path, section, {**keys, "group_size": 5})
    assert division.names[0] == "3 and 4 more"
    assert division.ids[0] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "section, partition, clients, key, message",
    [
        ("csv", {"partition_by": "ward"}, None, "partition.partition_by", "unknown column .*'ward'"),
        ("csv", {"partition_by": "label"}, None, "partition.partition_by", "unknown column .*'label'"),
        ("npz", {"partition_by": "ward"}, None, "partition.partition_by", "no array ward.*found: x"),
        ("csv", {"partition_by": "who"}, 4, "clients", "found 4, but column 'who' makes 5; allowed: 5, or left out"),
        ("digits", {"partition_by": "who"}, None, "partition.partition_by", "this data set has no columns"),
        ("csv", {"scheme": "grouped_natural_id", "group_size": 9, "mode": "strict"}, None, "partition.group_size", "9"),
        ("csv", {"scheme": "grouped_natural_id", "group_size": 2, "mode": "strict"}, None, "partition.group_size",
         "does not divide the column's 5 values"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_said(
    tmp_path: Path, section: str, partition: dict[str, Any], clients: int | None, key: str, message: str
) -> None:
    data = {"dataset": section} if section == "digits" else READERS[section](tmp_path, HOSPITALS)
    with pytest.raises(InputError, match=message) as caught:
        by(tmp_path, data, {"scheme": "natural_id", "partition_by": "who", **partition}, clients)
    assert caught.value.problems[0].key == key


def test_a_row_without_an_id_is_refused(tmp_path: Path) -> None:
    frame(HOSPITALS).assign(who=["", *HOSPITALS[1:]]).to_csv(tmp_path / "d.csv", index=False)
    section = {"dataset": "csv", "path": "d.csv", "target": "label"}
    with pytest.raises(InputError, match=r"column 'who' of .* no value in row 0 \(line 2\)"):
        by(tmp_path, section, {"scheme": "natural_id", "partition_by": "who"})
