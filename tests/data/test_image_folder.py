"""Folders of images, whose names are the classes: the rows of the same images in one parquet file, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from data_makers import pictures, png

from fedsim.core.errors import InputError
from fedsim.core.registry import lookup
from fedsim.data.sets import Dataset

KINDS = ("newt", "bear", "crow")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def write(folder: Path, each: int = 5, shape: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> Path:
    """`each` images of every kind; the file of number i is `i.png`."""
    for k, kind in enumerate(KINDS):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pictures(each, shape, seed=10 * seed + k)):
            (folder / kind / f"{i}.png").write_bytes(png(image))
    return folder


def load(folder: Path, **keys: Any) -> Dataset:
    made = lookup("dataset", "image_folder")(path=folder.name, **keys).load(2, 0, folder.parent)
    assert isinstance(made, Dataset)
    return made


def as_parquet(folder: Path, file: Path) -> None:
    found = sorted(folder.glob("*/*.png"))
    rows = {"image": [{"bytes": f.read_bytes(), "path": None} for f in found], "kind": [f.parent.name for f in found]}
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.Value("string")})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))


@pytest.mark.parametrize("divided", [False, True], ids=["held-out", "train-and-test"])
@pytest.mark.parametrize("normalize", ["standard", "unit"])
def test_it_is_the_parquet_file_of_the_same_images(divided: bool, normalize: str, tmp_path: Path) -> None:
    root, packed = tmp_path / "zoo", tmp_path / "packed"
    packed.mkdir()
    for s, split in enumerate(("train", "test") if divided else ("",)):
        as_parquet(write(root / split, seed=s), packed / f"{split or 'train'}.parquet")
    other = lookup("dataset", "parquet")(path="packed", target="kind", normalize=normalize).load(2, 0, tmp_path)
    for _ in range(2):  # the second time from the cache
        found = load(root, normalize=normalize)
        assert found.class_names == sorted(KINDS)
        assert found.train_x.shape[1:] == (3, 5, 4)
        for name in ("train_x", "train_y", "test_x", "test_y"):
            assert torch.equal(getattr(found, name), getattr(other, name))
    assert len(list((tmp_path / "cache").iterdir())) == (4 if divided else 2)


def test_classes_say_their_order_and_what_is_no_image_is_told(tmp_path: Path) -> None:
    root = write(tmp_path / "zoo", shape=(5, 4))
    (root / "bear" / "notes.txt").write_text("big")
    (root / "crow" / ".DS_Store").write_text("")
    (root / "toad").mkdir()
    found = load(root, classes=["newt", "crow", "bear"])
    assert found.class_names == ["newt", "crow", "bear"]
    assert found.train_x.shape[1] == 1
    assert len(found.train_x) + len(found.test_x) == 15
    notes = " ".join(found.notes)
    assert "1 files of" in notes
    assert "first: notes.txt" in notes
    assert "without images are no classes: toad" in notes


def _other_size(root: Path) -> None:
    (root / "crow" / "9.png").write_bytes(png(pictures(1, (6, 4, 3))[0]))


def _damaged(root: Path) -> None:
    (root / "crow" / "2.png").write_bytes(b"\x89PNG\r\n")


def _empty(root: Path) -> None:
    (root / "crow/2.png").write_bytes(b"")


def _stray(root: Path) -> None:
    (root / "lost.jpg").write_bytes(b"")


def _beside(root: Path) -> None:
    (root / "train" / "bear").mkdir(parents=True)


def _nothing(root: Path) -> None:
    for file in root.glob("*/*.png"):
        file.unlink()


def test_a_limit_that_leaves_classes_out_is_told(tmp_path: Path) -> None:
    """Images are sorted by class: of the first ones, few are of all."""
    folder = write(tmp_path / "zoo")
    assert load(folder, limit=5).notes == ("limit keeps training rows of 2 of the 3 classes that they have",)
    assert load(folder, limit=9).notes == ()
    assert load(folder).notes == ()


@pytest.mark.parametrize(
    "spoil,key,message",
    [
        (_other_size, "path", r"image of crow/9\.png has shape \(6, 4\), bear/0\.png has \(5, 4\); one size is needed"),
        (_empty, "path", r"the image of crow/2\.png is empty"),
        (_damaged, "path", r"cannot decode the image of crow/2\.png"),
        (_stray, "path", r"found the image lost\.jpg in .*zoo itself; allowed: images in a folder for each class"),
        (_beside, "path", r"found the folder 'bear' beside train in .*zoo; allowed: train, test"),
        (_nothing, "path", r"no images in folders of .*zoo; .* found there: bear, crow, newt"),
    ],
)
def test_what_is_no_such_folder_is_refused(spoil: Any, key: str, message: str, tmp_path: Path) -> None:
    root = write(tmp_path / "zoo", each=3)
    spoil(root)
    with pytest.raises(InputError, match=message) as caught:
        load(root)
    assert caught.value.problems[0].key == key


def test_keys_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    for split in ("train", "test"):
        write(root / split, each=2)
    with pytest.raises(InputError, match="found test_fraction, but the data have a test split"):
        load(root, test_fraction=0.5)
    (tmp_path / "one.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    with pytest.raises(InputError, match=r"found the file .*one\.png; allowed: a folder with a folder for each class"):
        load(tmp_path / "one.png")
    with pytest.raises(InputError, match="this data set has no columns"):
        lookup("dataset", "image_folder")(path="zoo").load_by("site", 2, 0, tmp_path)
