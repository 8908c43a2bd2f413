"""Rows of one machine in the form of another's: classes, columns and categories go by name, scales by all rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from fedsim.core.errors import InputError
from fedsim.data.agreed import Mine, Moments, categories_of, features_of, lists_of, mapped, merged, scaling_of
from fedsim.data.labels import Classes
from fedsim.data.own import Csv
from fedsim.data.rows import Rows
from fedsim.data.sets import made_of
from fedsim.data.splits import Split

HERE = {"size": [1.0, 2.0, 3.0, 4.0], "hue": ["red", "blue", "red", "blue"], "kind": ["emu", "cat", "dog", "cat"]}


def table(folder: Path, columns: Mapping[str, Any], name: str = "mine.csv", **keys: Any) -> Csv:
    pandas.DataFrame(dict(columns)).to_csv(folder / name, index=False)
    return Csv(path=str(folder / name), target="kind", categorical=["hue"], **keys)


@pytest.fixture
def lists(tmp_path: Path) -> Mapping[str, Any]:
    server = {k: v * 5 for k, v in HERE.items()}
    return lists_of(made_of(table(tmp_path, server, "server.csv").rows(tmp_path)).about)


def read(part: Csv, folder: Path, lists: Mapping[str, Any], fraction: float = 0.0) -> Mine:
    return mapped(part.rows(folder, None, categories_of(lists)), lists, fraction)


def test_names_decide_not_places(tmp_path: Path, lists: Mapping[str, Any]) -> None:
    turned = {"kind": ["dog", "cat"], "hue": ["red", "red"], "size": [7.0, 8.0]}
    mine = read(table(tmp_path, turned), tmp_path, lists)
    assert mine.train.y.tolist() == [1, 0]  # of cat, dog, emu
    assert mine.train.x.tolist() == [[7.0, 1.0], [8.0, 1.0]]  # of blue, red
    assert len(mine.test.y) == 0  # all rows train


def test_a_share_is_held_out_where_that_is_said(tmp_path: Path, lists: Mapping[str, Any]) -> None:
    mine = read(table(tmp_path, {k: v * 5 for k, v in HERE.items()}), tmp_path, lists, 0.2)
    assert (len(mine.train.y), len(mine.test.y)) == (16, 4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a label": ({**HERE, "kind": ["cat", "cow", "cat", "cat"]}, "classes: found label 'cow'; allowed: cat, dog, emu"),
    "numbers for text": ({**HERE, "kind": [0, 1, 2, 1]}, "classes: found label 0; allowed: cat, dog, emu"),
    "a category": ({**HERE, "hue": ["red", "pink", "red", "red"]}, "'hue' .* has the value 'pink'; allowed: blue, red"),
    "a column more": (
        {**HERE, "age": [1, 2, 3, 4]},
        "found the column 'age', which the server's data have not",
    ),
    "a column less": ({k: v for k, v in HERE.items() if k != "size"}, "features: found the columns hue and no 'size'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_lists_do_not_know_is_refused_by_name(name: str, tmp_path: Path, lists: Mapping[str, Any]) -> None:
    columns, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        read(table(tmp_path, columns), tmp_path, lists)


def test_missing_values_are_filled_as_at_the_server(tmp_path: Path, lists: Mapping[str, Any]) -> None:
    holes = {**HERE, "size": [1.0, None, 3.0, 4.0]}
    with pytest.raises(InputError, match="missing: column 'size' has no value in row 1, and the server's data"):
        read(table(tmp_path, holes, missing="mean"), tmp_path, lists)
    server = {**{k: v * 5 for k, v in HERE.items()}, "size": [5.0] * 19 + [None]}
    filled = lists_of(made_of(table(tmp_path, server, "holes.csv", missing="mean").rows(tmp_path)).about)
    mine = read(table(tmp_path, holes, missing="mean"), tmp_path, filled)
    assert mine.train.x[:, 0].tolist() == [1.0, 5.0, 3.0, 4.0]


def test_classes_that_files_name_in_their_own_order_go_by_name() -> None:
    x, y = np.zeros((3, 2), np.float32), np.array([0, 1, 2])
    theirs = {"input": {"kind": "numbers"}, "target": {"task": "classification", "labels": [0, 1, 2]}}
    theirs["target"]["classes"] = ["emu", "dog", "cat"]

    def numbers(names: list[str] | None) -> list[int]:
        labels = None if names is None else Classes.given(3, names)
        return list(mapped(Rows(name="r", train=Split(x, y, labels=labels)), theirs, 0.0).train.y)

    assert numbers(["cat", "dog", "emu"]) == [2, 1, 0]
    assert numbers(None) == [0, 1, 2]  # integers as they are, as in the server's file
    with pytest.raises(InputError, match="found label 'cow'; allowed: emu, dog, cat"):
        numbers(["cat", "dog", "cow"])
    theirs["target"] |= {"classes": ["0", "1", "2"]}
    assert numbers(["2", "0", "1"]) == [2, 0, 1]  # by what is written
    for y[:], message in (([0, -1, 1], "found label -1"), ([0, 1, 3], "found label 3 with 3 classes")):
        with pytest.raises(InputError, match=message):
            numbers(["2", "0", "1"])
    y[:], theirs["target"]["classes"] = [0, 1, 2], ["emu", "dog", "cat"]
    theirs["target"] |= {"labels": ["emu", "dog", "cat"]}
    assert numbers(["cat", "dog", "emu"]) == [2, 1, 0]
    with pytest.raises(InputError, match="found label 0; allowed: emu, dog, cat"):
        numbers(None)


@pytest.mark.parametrize("mode", ["standard", "unit"])
@pytest.mark.parametrize("shape", [(5,), (3, 2), (3, 4, 2), (3, 2, 2, 2)])
def test_moments_of_parts_scale_as_the_pooled_rows(mode: Any, shape: tuple[int, ...]) -> None:
    """Also far from 0, where sums of squares alone would lose the digits."""
    random = np.random.default_rng(4)
    parts = [(1e4 + random.normal(size=(n, *shape))).astype(np.float32) for n in (2, 30, 7)]
    parts[1][..., 0] = 3.25

    def mine(x: Any) -> Mine:
        rows = Rows(name="r", train=Split(x, np.zeros(len(x))), normalize=mode, top=255.0 if len(shape) == 3 else None)
        return Mine(rows, rows.train, rows.train)

    pooled = np.concatenate(parts)
    scaled = pooled / np.float32(255) if len(shape) == 3 else pooled
    axes = (0, 2, 3) if len(shape) == 3 else (0,)
    whole = merged([Moments.read(Moments.of(mine(x)).arrays()) for x in parts])
    found = scaling_of(whole, mode, features_of({}, shape))
    wide = scaled.astype(np.float64)
    shift = wide.min(axes) if mode == "unit" else wide.mean(axes)
    scale = np.ptp(wide, axes) if mode == "unit" else wide.std(axes)
    assert found.shift is not None
    assert found.scale is not None
    np.testing.assert_allclose(found.shift.ravel(), shift.ravel(), rtol=1e-12)
    np.testing.assert_allclose(found.scale.ravel(), np.where(scale > 0, scale, 1).ravel(), rtol=1e-12)
    assert np.broadcast_shapes(found.shift.shape, pooled.shape) == pooled.shape
    np.testing.assert_allclose((wide - found.shift).mean(axes), (wide.mean(axes) - shift), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"squares": np.array([-1.0, 1.0])}, "statistics that no rows have"),
        ({"low": np.array([5.0, 0.0])}, "statistics that no rows have"),
        ({"count": np.array([0.0])}, "of no rows"),
        ({"mean": np.array([np.nan, 0.0])}, "not finite"),
        ({"mean": np.array([1.0])}, "different lengths"),
        ({"more": np.array([1.0])}, "found the statistics"),
        ({"mean": np.array([1.0, 1.0], np.float32)}, "of float64"),
    ],
)
def test_statistics_that_no_rows_give_are_refused(changed: dict[str, Any], message: str) -> None:
    said = Moments(4, np.ones(2), np.ones(2), np.zeros(2), np.full(2, 2.0)).arrays()
    Moments.read(said)
    with pytest.raises(ValueError, match=message):
        Moments.read(said | changed)
    other = replace(Moments.read(said), mean=np.ones(3))
    with pytest.raises(ValueError, match="different numbers of features"):
        merged([Moments.read(said), other])
