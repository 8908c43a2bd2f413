"""Data that cannot be used: what is said, and about which key."""

from __future__ import annotations

import gzip
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import idx_bytes, idx_folder_in, image_folder_in, load, pictures, save_quadratic, write_images

from fedsim.core.errors import InputError
from fedsim.data.splits import Split, divide, rows_of


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file per way to be wrong."""
    tmp_path = tmp_path_factory.mktemp("broken")
    image_folder_in(tmp_path)
    idx_folder = idx_folder_in(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, drop in (("only-train", "test.parquet"), ("no-train", None)):
        (tmp_path / name).mkdir()
        if drop:
            write_images(tmp_path / name / "train.parquet", list(pictures(3)), [0, 1, 2])
    (tmp_path / "text.parquet").write_text("this is no parquet file")
    for name, images, labels in (
        ("sizes", [pictures(1)[0], pictures(1, (6, 6))[0]], [0, 1]),
        ("undecodable", [b"not a picture", pictures(1)[0]], [0, 1]),
        ("negative", list(pictures(2)), [0, -1]),
        ("eleven", list(pictures(2)), [0, 10]),
    ):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            write_images(tmp_path / name / f"{split}.parquet", images, labels)
    (tmp_path / "t.csv").write_text("a,b,name,label,price\n" + "".join(f"{i},{i},x,{i % 2},{i}.5\n" for i in range(10)))
    (tmp_path / "nan.csv").write_text("a,label\n1,0\n,1\n3,1\n4,0\n")
    (tmp_path / "nolabel.csv").write_text("a,label\n1,0\n2,\n3,1\n4,0\n")
    (tmp_path / "vast.csv").write_text("a,price\n" + "".join(f"{i},{'1e39' if i == 2 else i / 4}\n" for i in range(9)))
    (tmp_path / "header.csv").write_text("a,label\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "huge.csv").write_text("a,label\n1,0\n2,1000000\n3,1\n")
    save = lambda name, **arrays: np.savez(tmp_path / f"{name}.npz", **arrays)  # noqa: E731
    save("lacking", x_train=np.ones((3, 2)), y_train=np.zeros(3, int))
    save("lengths", x=np.ones((3, 2)), y=np.zeros(4, int))
    save("flat", x=np.ones(3), y=np.zeros(3, int))
    save("infinite", x=np.full((3, 2), np.inf), y=np.zeros(3, int))
    save("rows", x_train=np.ones((3, 2)), y_train=np.zeros(3, int), x_test=np.ones((3, 4)), y_test=np.zeros(3, int))
    save("objects", x=np.array([[{}], [1]], dtype=object), y=np.zeros(2, int))
    save("strings", x=np.array([["a"], ["b"]]), y=np.zeros(2, int))
    save("floats", x=np.ones((4, 2)), y=np.array([0.5, 1.0, 2.0, 3.0]))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "flat.npz").read_bytes()[:100])
    for name, change in (
        ("magic", lambda b: b"\0\0\x09\3" + b[4:]),
        ("cut", lambda b: b[:-5]),
        ("short", lambda b: b[:9]),
    ):
        (tmp_path / f"idx-{name}").mkdir()
        for file in idx_folder.iterdir():
            (tmp_path / f"idx-{name}" / file.name).write_bytes(file.read_bytes())
        images = tmp_path / f"idx-{name}" / "train-images-idx3-ubyte"
        images.write_bytes(change(images.read_bytes()))
    (tmp_path / "idx-counts").mkdir()
    for file in idx_folder.iterdir():
        (tmp_path / "idx-counts" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "idx-counts" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(5))))
    return tmp_path


CSV = {"dataset": "csv", "path": "t.csv"}
BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"dataset": "mnst"}, "dataset", r"unknown dataset 'mnst' \(did you mean 'mnist'\?\)"),
    ({"dataset": "mnist", "pth": "x"}, "pth", "unknown key.*path"),
    ({"dataset": "mnist", "limit": 0}, "limit", "found 0.*greater than 0"),
    ({"dataset": "digits", "normalize": "max"}, "normalize", "found 'max'.*'standard', 'unit' or 'none'"),
    ({"dataset": "csv", "target": "y"}, "path", "missing"),
    ({"dataset": "mnist"}, "path", "cannot load 'ylecun/mnist' from the hub.*give 'path:'"),
    ({"dataset": "hub", "hub": "./images"}, "hub", "owner/name"),
    ({"dataset": "mnist", "path": "imges"}, "path", r"no file or folder .*imges \(did you mean 'images'"),
    ({"dataset": "mnist", "path": "nowhere/images"}, "path", "not even the folder"),
    ({"dataset": "mnist", "path": "empty"}, "path", "no train.*found there: nothing"),
    ({"dataset": "mnist", "path": "only-train"}, "path", "no test"),
    ({"dataset": "cifar10", "path": "images"}, "path", "unknown column .*'img'.*allowed: image, label"),
    ({"dataset": "mnist", "path": "sizes"}, "path", r"row 1 has shape \(6, 6\), row 0 has \(5, 4\)"),
    ({"dataset": "mnist", "path": "undecodable"}, "path", "cannot decode the image of row 0"),
    ({"dataset": "mnist", "path": "negative"}, None, "found label -1"),
    ({"dataset": "mnist", "path": "eleven"}, None, "found label 10 with 10 classes"),
    ({"dataset": "hub", "hub": "a/b", "path": "images", "y_column": "labl"}, "y_column", "did you mean 'label'"),
    ({"dataset": "hub", "hub": "a/b", "path": "images", "test_split": "valid"}, "test_split", "no valid"),
    ({"dataset": "parquet", "path": "text.parquet", "target": "y"}, "path", "cannot read .* as parquet"),
    ({"dataset": "parquet", "path": "images", "target": "label", "image": "label"}, "image", "holds no images"),
    (
        {"dataset": "parquet", "path": "images", "target": "label", "image": "image", "features": ["a"]},
        "features",
        "both",
    ),
    ({"dataset": "parquet", "path": "images", "target": "label", "features": ["image"]}, "features", "not numeric"),
    (
        {"dataset": "parquet", "path": "images", "target": "label", "test_fraction": 0.1},
        "test_fraction",
        "one of the two",
    ),
    (CSV | {"target": "lable"}, "target", "did you mean 'label'.*allowed: a, b, name, label, price"),
    (CSV | {"target": "label"}, "features", "'name' .* is not numeric .*'x'"),
    (CSV | {"target": "label", "features": ["a", "c"]}, "features", "unknown feature column .*'c'"),
    (CSV | {"target": "label", "features": []}, "features", "no feature columns"),
    (CSV | {"target": "price", "features": ["a"], "task": "classification"}, "task", r"float64 \(first 0.5\)"),
    (CSV | {"target": "name", "features": ["a"], "task": "regression"}, "task", "not numbers"),
    (CSV | {"target": "price", "features": ["a"], "num_classes": 3}, "num_classes", "regression"),
    (CSV | {"target": "label", "features": ["a"], "num_classes": 1}, None, "found label 1 with 1 classes"),
    (CSV | {"target": "label", "features": ["a"], "test_fraction": 1.0}, "test_fraction", "less than 1"),
    (
        CSV | {"target": "label", "features": ["a"], "test_fraction": 0.01},
        None,
        "found 0.01 of 10 rows for testing, which is none of them: each of the . classes gives its share",
    ),
    ({"dataset": "csv", "path": "nan.csv", "target": "label"}, "missing", "'a' .* nan in row 1"),
    ({"dataset": "csv", "path": "nolabel.csv", "target": "label"}, None, "target of row 1 is nan"),
    ({"dataset": "csv", "path": "vast.csv", "target": "price"}, None, r"target of row 2 is 1e\+39; .* 3.4e\+38"),
    ({"dataset": "csv", "path": "header.csv", "target": "label"}, None, "has no rows"),
    ({"dataset": "csv", "path": "nothing.csv", "target": "label"}, "path", "cannot read"),
    ({"dataset": "csv", "path": "images", "target": "label"}, "path", "cannot read"),
    (
        {"dataset": "csv", "path": "huge.csv", "target": "label"},
        None,
        "0.2 of 3 rows .* 3 classes .* than 1 row;.* task: regression",
    ),
    ({"dataset": "npz", "path": "lacking.npz"}, "path", "no array x_test"),
    ({"dataset": "npz", "path": "lengths.npz"}, "path", r"x has shape \[3, 2\] and y \[4\]"),
    ({"dataset": "npz", "path": "flat.npz"}, "path", r"x has shape \[3\]"),
    ({"dataset": "npz", "path": "infinite.npz"}, "path", "not finite"),
    ({"dataset": "npz", "path": "rows.npz"}, "path", r"shape \[2\], of x_test \[4\]"),
    ({"dataset": "npz", "path": "objects.npz"}, "path", "cannot read .* as npz"),
    ({"dataset": "npz", "path": "strings.npz"}, "path", "allowed: numbers"),
    ({"dataset": "npz", "path": "floats.npz", "task": "classification"}, "task", "float64"),
    ({"dataset": "npz", "path": "cut.npz"}, "path", "cannot read"),
    ({"dataset": "idx", "path": "empty"}, "path", "no train-images-idx3-ubyte"),
    ({"dataset": "idx", "path": "idx-magic"}, "path", "wrong IDX magic 00000903; allowed: 00000803"),
    ({"dataset": "idx", "path": "idx-cut"}, "path", r"shape \(6, 5, 4\) needs 136 bytes, found 131"),
    ({"dataset": "idx", "path": "idx-short"}, "path", "only 9 bytes"),
    ({"dataset": "idx", "path": "idx-counts"}, "path", "6 train images but 5 train labels"),
    ({"dataset": "synthetic", "alpha": 1, "beta": 1}, "clients", "missing"),
    ({"dataset": "synthetic", "iid": True, "alpha": 1.0, "clients": 3}, "alpha", "found 1.0 with iid"),
    ({"dataset": "synthetic", "beta": 1.0, "clients": 3}, "alpha", "missing"),
    ({"dataset": "synthetic", "alpha": -1.0, "beta": 1.0}, "alpha", "found -1.0"),
    ({"dataset": "synthetic", "alpha": 1.0, "beta": 1.0, "max_samples": 5}, "max_samples", "found 5"),
]


@pytest.mark.parametrize(
    "section, key, message", BAD, ids=[f"{i}-{s['dataset']}-{k}" for i, (s, k, _) in enumerate(BAD)]
)
def test_bad_input(broken: Path, section: dict[str, Any], key: str | None, message: str) -> None:
    section = dict(section)
    clients = section.pop("clients", None)
    with pytest.raises(InputError, match=message) as caught:
        load(broken, clients, **section)
    assert caught.value.problems[0].key == key


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"A": None}, "unknown array .*'A'; allowed: b"),
        ({"A": np.ones((3, 3))}, r"A has shape \[3, 3\] .*\[3, 2, 2\] or \[3, 2\]"),
        ({"A": np.array([[[1, 1e-6], [0, 1]]] * 3)}, r"A\[0\] is not symmetric"),
        ({"A": np.full((3, 2), np.nan)}, r"A\[0, 0\] is nan"),
        ({"b": np.ones(3)}, r"b has shape \[3\]"),
        ({"b": np.ones((0, 2)), "A": np.ones((0, 2))}, r"b has shape \[0, 2\]"),
        ({"x0": np.ones(3)}, r"x0 has shape \[3\]; allowed: \[2\]"),
        ({"p": np.array([1, 0, 1])}, r"p\[1\] is 0.0"),
        ({"p": np.ones(2)}, r"p has shape \[2\]"),
        ({"b": np.array([["x"] * 2] * 3)}, "allowed: numbers"),
    ],
)
def test_bad_quadratic(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(save_quadratic(tmp_path, **changed), dataset="quadratic", file="q.npz")
    assert caught.value.problems[0].key == "file"


def test_quadratic_with_other_clients(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found 4, but q\.npz describes 3") as caught:
        load(save_quadratic(tmp_path), 4, dataset="quadratic", file="q.npz")
    assert caught.value.problems[0].key == "clients"


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("kind", ["rows", "classes", "ids"])
def test_a_fraction_that_divides_nothing_says_why_and_what_would(kind: str, fraction: float) -> None:
    """Whatever is said to be allowed is: both ends of it, and nothing below."""
    for largest in (1, 2, 3, 7):
        groups = np.repeat(np.arange(4), largest)
        split = Split(np.zeros((len(groups), 2)), np.zeros(len(groups)))
        if kind == "classes":
            split = replace(split, y=groups, classes=4)
        elif kind == "ids":
            split = replace(split, ids=groups)
        else:
            split = rows_of(split, slice(largest))
        try:
            train, test = divide(split, fraction)
        except InputError as error:
            said = str(error)
        else:
            assert min(len(train.y), len(test.y)) > 0
            continue
        assert said.startswith(f"found {fraction:g} of {len(split.y)} rows for testing")
        assert (f"each of the 4 {kind}" in said) == (kind != "rows")
        assert ("task: regression" in said) == (kind == "classes")
        allowed = re.search(r"more than (\S+) and less than ([\d.]+)", said)
        assert (allowed is None) == (largest == 1)
        if allowed is not None:
            low, high = map(float, allowed.groups())
            assert not low < fraction < high
            for inside in (low + 1e-6, (low + high) / 2, high - 1e-6):
                assert all(len(part.y) for part in divide(split, inside))
