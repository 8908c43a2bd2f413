"""CSV files as people bring them: separators, encodings, missing headers and values, categories, row numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from data_makers import load

from fedsim.core.errors import InputError

N = 60
DRAW = np.random.default_rng(2)
AGE, HOURS = DRAW.integers(18, 80, N).astype(float), DRAW.normal(40, 8, N)
SCHOOL = np.array(["École", "Masters", "HS-grad"])[DRAW.integers(0, 3, N)]
PAY = np.where(HOURS > 40, ">50K", "<=50K")
FRAME = pandas.DataFrame({"age": AGE, "school": SCHOOL, "hours": HOURS, "pay": PAY})
ALL = {"dataset": "csv", "path": "d.csv", "target": "pay"}


def write(folder: Path, frame: pandas.DataFrame = FRAME, file: str = "d.csv", **how: Any) -> None:
    frame.to_csv(folder / file, index=how.pop("index", False), **how)


def same(folder: Path, **section: Any) -> None:
    """What is read with these keys is what the plain file holds."""
    write(folder, file="plain.csv")
    expected = load(folder, **{**ALL, "path": "plain.csv"}, categorical=["school"])
    found = load(folder, **{**ALL, "categorical": ["school"], **section})
    assert np.array_equal(found.train_x, expected.train_x)
    assert np.array_equal(found.test_y, expected.test_y)
    assert {**found.about, "dataset": ""} == {**expected.about, "dataset": ""}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators(tmp_path: Path, separator: str) -> None:
    write(tmp_path, sep=separator)
    same(tmp_path, separator=separator)


def test_whitespace(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(FRAME.to_string(index=False))
    found = load(tmp_path, **ALL, separator="whitespace", categorical=["school"])
    assert found.train_x.shape == (48, 5)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, encoding=encoding)
    same(tmp_path, encoding=encoding)


def test_a_file_without_a_header_line(tmp_path: Path) -> None:
    write(tmp_path, header=False)
    same(tmp_path, names=list(FRAME.columns))
    with pytest.raises(InputError, match=r"unknown column .*'pay'.*'names: \[\.\.\.\]' names the columns") as caught:
        load(tmp_path, **ALL)
    assert caught.value.problems[0].key == "target"
    with pytest.raises(InputError, match="'names:' has too few names"):
        load(tmp_path, **ALL, names=["age", "school", "pay"])
    with pytest.raises(InputError, match="found 5 names, but the last column has no value") as caught:
        load(tmp_path, **ALL, names=[*FRAME.columns, "more"])
    assert caught.value.problems[0].key == "names"


def test_categories_become_one_hot_columns(tmp_path: Path) -> None:
    write(tmp_path)
    d = load(tmp_path, **ALL, categorical=["school"])
    assert (d.train_x.shape, d.test_x.shape) == ((48, 5), (12, 5))
    spread = d.train_x[:, 1:4].numpy()
    assert set(np.unique(spread)) == {0.0, 1.0}
    assert np.array_equal(spread.sum(1), np.ones(48))
    columns = d.about["input"]["columns"]
    assert [c["name"] for c in columns] == ["age", "school", "hours"]
    assert columns[1]["categories"] == ["HS-grad", "Masters", "École"]
    age = d.train_x[:, 0].double() * columns[0]["scale"] + columns[0]["shift"]
    assert np.allclose(sorted(age.round().tolist()), sorted(age.tolist()), atol=1e-4)
    same_school = SCHOOL[np.isin(np.arange(N), np.flatnonzero(~_held(d)))]
    assert (spread.argmax(1) == np.searchsorted(["HS-grad", "Masters", "École"], same_school)).all()


def _held(d: Any) -> np.ndarray:
    """Which rows of the file are for testing, by their hours."""
    column = d.about["input"]["columns"][2]
    hours = d.test_x[:, 4].double().numpy() * column["scale"] + column["shift"]
    return np.abs(HOURS[:, None] - hours[None]).min(1) < 1e-4


def test_a_test_file_and_values_that_training_has_not(tmp_path: Path) -> None:
    write(tmp_path)
    other = FRAME.iloc[:10].assign(school=["PhD", *SCHOOL[1:10]])
    write(tmp_path, other, "t.csv")
    d = load(tmp_path, **ALL, test_path="t.csv", categorical=["school"])
    assert (len(d.train_y), len(d.test_y)) == (60, 10)
    assert d.test_x[:, 1:4].sum(1).tolist() == [0.0] + [1.0] * 9
    assert any("1 test rows have values that the training file has not (PhD)" in note for note in d.notes)


@pytest.mark.parametrize("values, text", [(None, ""), (None, "NA"), (["?"], "?"), (["-1", "?"], "?")])
@pytest.mark.parametrize("action", ["drop", "mean", "most_frequent"])
def test_missing_values(tmp_path: Path, action: str, values: list[str] | None, text: str) -> None:
    frame = FRAME.astype({"age": object}).copy()
    frame.loc[[3, 7, 20], "age"] = text
    frame.loc[[5], "school"] = text
    write(tmp_path, frame)
    with pytest.raises(InputError, match=r"'age' .*row 3 \(line 5\)"):
        load(tmp_path, **ALL, categorical=["school"])
    missing: Any = action if values is None else {"action": action, "values": values}
    d = load(tmp_path, **ALL, categorical=["school"], missing=missing)
    rows = len(d.train_y) + len(d.test_y)
    assert rows == (56 if action == "drop" else 60)
    assert bool(d.train_x.isfinite().all())
    if action == "drop":
        assert d.notes == (f"4 of {N} rows of d.csv lack a value and are left out",)
        return
    age, school = d.about["input"]["columns"][:2]
    there = np.delete(AGE, [3, 7, 20])
    assert min(there) <= age["fill"] <= max(there)
    if action == "mean":
        train = np.delete(AGE, [3, 7, 20, *np.flatnonzero(_held(d)).tolist()])
        assert abs(age["fill"] - train.mean()) < 1e-4
    assert school["fill"] in ("HS-grad", "Masters", "École")
    assert "column 'age': 3 missing values are filled in" in d.notes


def test_a_missing_target_is_dropped_or_refused(tmp_path: Path) -> None:
    write(tmp_path, FRAME.assign(pay=[None, *PAY[1:]]))
    keys = {**ALL, "features": ["age"]}
    with pytest.raises(InputError, match=r"the target of row 0 is nan \(line 2\)"):
        load(tmp_path, **keys, missing="mean")
    assert len(load(tmp_path, **keys, missing="drop").train_y) == 47


def test_texts_that_are_no_missing_values(tmp_path: Path) -> None:
    write(tmp_path, FRAME.assign(school=["None", "NA", *SCHOOL[2:]]))
    with pytest.raises(InputError, match=r"'school' .* no value in row 0 \(line 2\)"):
        load(tmp_path, **ALL, categorical=["school"])
    d = load(tmp_path, **ALL, categorical=["school"], missing={"values": []})
    assert d.about["input"]["columns"][1]["categories"] == ["HS-grad", "Masters", "NA", "None", "École"]


def test_row_numbers_that_pandas_wrote_are_no_feature(tmp_path: Path) -> None:
    numbers = FRAME.drop(columns="school")
    write(tmp_path, numbers, index=True)
    with pytest.raises(InputError, match=r"'Unnamed: 0' .*row numbers that pandas wrote.*index=False") as caught:
        load(tmp_path, **ALL)
    assert caught.value.problems[0].key == "features"
    assert load(tmp_path, **ALL, features=["age", "hours"]).train_x.shape == (48, 2)
    numbers.sample(frac=1.0, random_state=0).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"'__index_level_0__' .*row numbers"):
        load(tmp_path, dataset="parquet", path="d.parquet", target="pay")
    text = (tmp_path / "d.csv").read_text().split("\n", 1)
    (tmp_path / "d.csv").write_text(text[0].removeprefix(",") + "\n" + text[1])
    with pytest.raises(InputError, match="the header has fewer names than the rows cells"):
        load(tmp_path, **ALL)


@pytest.mark.parametrize("action", ["refuse", "mean"])
def test_the_cell_that_is_no_number_is_named(tmp_path: Path, action: str) -> None:
    lines = [",".join(map(str, row)) for row in zip(AGE, HOURS, PAY, strict=True)]
    lines[2] = f'"?",{HOURS[2]},{PAY[2]}'
    lines[0] = f'{AGE[0]},{HOURS[0]},"two\nlines"'
    (tmp_path / "d.csv").write_text("age,hours,pay\n\n" + "\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"column 'age' of .*d.csv: found '\?' in row 2 \(line 6\)"):
        load(tmp_path, **ALL, missing=action)


@pytest.mark.parametrize(
    "content, section, key, message",
    [
        ("a;b;pay\n1;2;x\n", {}, "separator", "has one column, 'a;b;pay'; is its separator ';'"),
        ("a,pay\n1,x\n", {"separator": ";;"}, "separator", "found ';;'; allowed: one character, or 'whitespace'"),
        ("a,pay\n1,x\n", {"encoding": "klingon"}, "encoding", "found 'klingon'; allowed"),
        (b"a,pay\n\xe9,x\n", {}, "encoding", "byte 0xe9 at place"),
        ("a,pay\n1,x\n2,y,7\n", {}, "path", "cannot read .*Expected 2 fields in line 3, saw 3"),
        (b"\x1f\x8b\x08garbage", {}, "encoding", "cannot read"),
        ("a,pay\n1,x\n", {"categorical": ["b"]}, "categorical", "unknown feature column .*'b'"),
        ("a,pay\n1,x\n", {"missing": "ignore"}, "missing", "'refuse', 'drop', 'mean' or 'most_frequent'"),
        ("a,pay\n,x\n,y\n", {"missing": "drop"}, "missing", "every row .* lacks a value"),
        ("a,pay\n" + ",x\n,y\n" * 9, {"missing": "mean"}, "features", "'a' has no value in the training rows"),
        ("a,pay\n1e999,x\n2,y\n", {}, "features", r"has inf in row 0 \(line 2\)"),
        ("a,pay\n1,x\n", {"target": ["pay", "pay"]}, "target", "one or several different columns"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, content: str | bytes, section: dict[str, Any], key: str, message: str
) -> None:
    (tmp_path / "d.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, **{**ALL, **section})
    assert (caught.value.problems[0].key or "").startswith(key)


def test_several_targets_of_a_regression(tmp_path: Path) -> None:
    write(tmp_path)
    d = load(tmp_path, **{**ALL, "target": ["age", "hours"]}, features=["school"], categorical=["school"])
    assert (d.train_y.shape, d.num_classes) == ((48, 2), None)
    assert d.about["target"]["columns"] == ["age", "hours"]


def test_parquet_has_the_same_keys(tmp_path: Path) -> None:
    write(tmp_path)
    FRAME.to_parquet(tmp_path / "d.parquet")
    expected = load(tmp_path, **ALL, categorical=["school"])
    for section in (
        {"dataset": "parquet", "path": "d.parquet", "target": "pay"},
        {"dataset": "hub", "hub": "a/b", "path": "d.parquet", "y_column": "pay"},
    ):
        found = load(tmp_path, **section, categorical=["school"])
        assert np.array_equal(found.train_x, expected.train_x)
        assert found.about["input"] == expected.about["input"]
    broken = FRAME.assign(age=[np.nan, *AGE[1:]], school=[None, *SCHOOL[1:]])
    broken.to_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"'age' .*has nan in row 0: a value is missing there"):
        load(tmp_path, dataset="parquet", path="d.parquet", target="pay", categorical=["school"])
    filled = load(tmp_path, dataset="parquet", path="d.parquet", target="pay", categorical=["school"], missing="mean")
    assert bool(filled.train_x.isfinite().all())
