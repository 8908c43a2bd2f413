"""Every reader x every type of label: the same rows give the same classes, with the names that the file has."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from data_makers import idx_bytes, load, pictures, png

from fedsim.core.errors import InputError
from fedsim.data.labels import Classes, number_labels

N = 40
WHICH = np.random.default_rng(5).integers(0, 3, N)
WHICH[:6] = [0, 1, 2, 2, 1, 0]
TWO = WHICH % 2


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


LABELS: dict[str, tuple[Any, list[str], Any]] = {  # how the file holds them, their names, their values
    "text": (np.array(["cat", "dog", "éléphant"])[WHICH], ["cat", "dog", "éléphant"], ["cat", "dog", "éléphant"]),
    "bool": (TWO.astype(bool), ["False", "True"], [False, True]),
    "from zero": (WHICH, ["0", "1", "2"], [0, 1, 2]),
    "from one": (WHICH + 1, ["1", "2", "3"], [1, 2, 3]),
    "gaps": (WHICH * 100 + 3, ["3", "103", "203"], [3, 103, 203]),
    "signs": (2 * TWO - 1, ["-1", "1"], [-1, 1]),
    "whole floats": (WHICH.astype(float), ["0", "1", "2"], [0, 1, 2]),
    "float signs": (2.0 * TWO - 1, ["-1", "1"], [-1, 1]),
    "bytes": (WHICH.astype(np.uint8), ["0", "1", "2"], [0, 1, 2]),
    "one-hot": (np.eye(3, dtype=int)[WHICH], ["0", "1", "2"], [0, 1, 2]),
    "float one-hot": (np.eye(3)[WHICH], ["0", "1", "2"], [0, 1, 2]),
    "column": (WHICH[:, None] + 1, ["1", "2", "3"], [1, 2, 3]),
    "class label": (WHICH, ["zero", "one", "two"], [0, 1, 2]),
}
X = np.random.default_rng(0).normal(size=(N, 2))
IMAGES = pictures(N)


def _csv(folder: Path, _name: str, y: np.ndarray) -> dict[str, Any]:
    frame = pandas.DataFrame(X, columns=["u", "v"])
    target: Any = "y"
    if y.ndim == 2 and y.shape[1] > 1:
        target = [f"is {k}" for k in range(y.shape[1])]
        frame[target] = y
    else:
        frame["y"] = y.reshape(-1)
    frame.to_csv(folder / "d.csv", index=False)
    return {"dataset": "csv", "path": "d.csv", "target": target}


def _features(name: str, y: np.ndarray) -> Any:
    import datasets

    if name == "class label":
        return datasets.ClassLabel(names=["zero", "one", "two"])
    kind = {"U": "string", "b": "bool", "f": "float64"}.get(y.dtype.kind, str(y.dtype))
    value = datasets.Value(kind)
    return datasets.Sequence(value) if y.ndim == 2 else value


def _table(folder: Path, name: str, y: np.ndarray) -> None:
    import datasets

    features = datasets.Features(
        {"u": datasets.Value("float64"), "v": datasets.Value("float64"), "label": _features(name, y)}
    )
    rows = {"u": X[:, 0].tolist(), "v": X[:, 1].tolist(), "label": y.tolist()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))


def _parquet(folder: Path, name: str, y: np.ndarray) -> dict[str, Any]:
    _table(folder, name, y)
    return {"dataset": "parquet", "path": "train.parquet", "target": "label"}


def _hub(folder: Path, name: str, y: np.ndarray) -> dict[str, Any]:
    _table(folder, name, y)
    return {"dataset": "hub", "hub": "some/set", "path": "."}


def _image_parquet(folder: Path, name: str, y: np.ndarray) -> dict[str, Any]:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": _features(name, y)})
    rows = {"image": [{"bytes": png(i), "path": None} for i in IMAGES], "label": y.tolist()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return {"dataset": "parquet", "path": ".", "target": "label"}


def _image_hub(folder: Path, name: str, y: np.ndarray) -> dict[str, Any]:
    return {**_image_parquet(folder, name, y), "dataset": "hub", "hub": "some/set", "target": None}


def _npz(folder: Path, _name: str, y: np.ndarray) -> dict[str, Any]:
    np.savez(folder / "d.npz", x=X, y=y)
    return {"dataset": "npz", "path": "d.npz"}


def _idx(folder: Path, _name: str, y: np.ndarray) -> dict[str, Any]:
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14, "b1": 8}
    kind = {"i8": "i2"}.get(y.dtype.str[1:], y.dtype.str[1:])
    stored = y.astype(">u1" if kind == "b1" else f">{kind}")
    head = struct.pack(f">4B{y.ndim}I", 0, 0, codes[kind], y.ndim, *y.shape)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
        (folder / f"{prefix}-labels-idx{y.ndim}-ubyte").write_bytes(head + stored.tobytes())
    return {"dataset": "idx", "path": "."}


READERS: dict[str, Callable[[Path, str, np.ndarray], dict[str, Any]]] = {
    "csv": _csv,
    "parquet": _parquet,
    "hub": _hub,
    "images in parquet": _image_parquet,
    "images of a hub set": _image_hub,
    "npz": _npz,
    "idx": _idx,
}
CANNOT_HOLD = {("idx", "text")}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_numbers_every_kind_of_label_alike(tmp_path: Path, reader: str, label: str) -> None:
    if (reader, label) in CANNOT_HOLD:
        pytest.skip("the format has no text")
    y, names, values = LABELS[label]
    section = READERS[reader](tmp_path, label, y)
    if reader == "csv" and label == "bytes":
        y = y.astype(int)
    if label == "class label" and reader not in ("csv", "npz", "idx"):
        values = [0, 1, 2]
    elif label == "class label":
        names = ["0", "1", "2"]  # these formats have no names of classes
    if reader == "csv" and label in ("one-hot", "float one-hot"):
        names = [f"is {name}" for name in names]
    if reader == "idx" and label == "bool":
        names, values = ["0", "1"], [0, 1]
    if reader != "idx":
        section |= {"task": "classification"}
    expected = np.unique(np.asarray(y).argmax(1) if label.endswith("one-hot") else y.reshape(-1), return_inverse=True)[
        1
    ]
    found = []
    for _ in range(2):  # the second time from the cache, where there is one
        d = load(tmp_path, **{k: v for k, v in section.items() if v is not None})
        whole = np.concatenate([d.train_y, d.test_y]) if reader != "idx" else d.train_y.numpy()
        assert sorted(whole.tolist()) == sorted(expected.tolist())
        assert d.num_classes == len(names)
        assert d.class_names == names
        assert d.about["target"]["labels"] == values
        json.dumps(d.about)
        found.append(d)
    assert np.array_equal(found[0].train_y, found[1].train_y)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("label", LABELS)
def test_the_cache_never_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    y = LABELS[label][0]
    section = _image_parquet(tmp_path, label, y) | {"task": "classification"}
    kept = [load(tmp_path, **section) for _ in range(2)]
    monkeypatch.setenv("FEDSIM_CACHE", "off")
    without = load(tmp_path, **section)
    for d in kept:
        assert np.array_equal(d.train_y, without.train_y)
        assert np.array_equal(d.train_x, without.train_x)
        assert d.about == without.about


def test_a_cache_that_cannot_keep_something_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = _image_parquet(tmp_path, "from zero", WHICH)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert load(tmp_path, **section).num_classes == 3
    assert list((tmp_path / "cache").iterdir()) == []

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path, **section)
    assert list((tmp_path / "cache").iterdir()) == []


def test_floats_without_a_task_are_regression(tmp_path: Path) -> None:
    d = load(tmp_path, **_csv(tmp_path, "", WHICH.astype(float)))
    assert d.num_classes is None
    assert d.about["target"]["task"] == "regression"


def test_numbers_of_classes_that_are_known() -> None:
    numbers, classes = number_labels([np.array([0, 2])], 5)
    assert (numbers[0].tolist(), len(classes)) == ([0, 2], 5)
    numbers, classes = number_labels([np.array([1, 2]), np.array([3])], 3)
    assert ([n.tolist() for n in numbers], classes.values) == ([[0, 1], [2]], (1, 2, 3))
    numbers, classes = number_labels([np.array(["b", "a"])], order=["b", "a"])
    assert (numbers[0].tolist(), classes.names) == ([0, 1], ("b", "a"))
    numbers, classes = number_labels([np.array([1, -1])], order=[1, -1])
    assert (numbers[0].tolist(), classes.names) == ([0, 1], ("1", "-1"))


@pytest.mark.parametrize(
    "ys, keys, message",
    [
        ([[0.5, 1.0]], {}, "float64 .first 0.5"),
        ([[[0, 1], [1, 1]]], {}, r"row 1 is \[1, 1\]; allowed for classification: .N., or one-hot"),
        ([[0, 7]], {"num_classes": 3}, "found label 7 with 3 classes"),
        ([[-1, 0]], {"known": Classes.given(2)}, "found label -1"),
        ([["a", "b", "c"]], {"num_classes": 2}, "found 3 different labels with 2 classes"),
        ([["a", "x"]], {"order": ["a", "b"]}, "found label 'x'; allowed: a, b"),
        ([["a"], [1]], {}, "numbers in one split and text in the other"),
        ([[0, 1]], {"order": [0, 0]}, "found a class twice"),
        ([[0, 1]], {"num_classes": 10**8}, "at most 1,000,000"),
        ([[1e300, 1.0]], {}, "not whole in row 0"),
    ],
)
def test_labels_that_are_refused(ys: list[Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        number_labels([np.array(y) for y in ys], **keys)


def test_mixed_labels_name_the_row(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"u": [1.0, 2.0, 3.0], "y": np.array(["a", 3, "b"], dtype=object)})
    frame = pandas.concat([frame] * 5)
    frame.to_csv(tmp_path / "mixed.csv", index=False)  # text in the file: '3' is a label like others
    assert load(tmp_path, dataset="csv", path="mixed.csv", target="y").class_names == ["3", "a", "b"]
    from fedsim.data.labels import plain

    with pytest.raises(InputError, match=r"row 1 holds 3 .int., row 0 'a' .str."):
        plain(frame.y.to_numpy())
