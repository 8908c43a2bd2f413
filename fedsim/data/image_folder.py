"""Image files in folders that name their classes: ``cat/1.png``, ``dog/7.jpg``, the layout that many tools write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count
from fedsim.data import files
from fedsim.data.cache import cached
from fedsim.data.labels import Value
from fedsim.data.parquet import decode_images
from fedsim.data.rows import Rows
from fedsim.data.sets import Categories, Dataset, DatasetPart, made_of
from fedsim.data.splits import Normalize, Split

_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2", ".avif",
)  # fmt: skip
_CACHE_VERSION = 1
_SPLITS = ("train", "test")


@register.dataset("image_folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(DatasetPart):
    """A folder with a folder of image files for each class; or with ``train`` and ``test`` folders of such folders.

    All images have one size. They are grey or in colour as the first one is. Files whose names do not end like an
    image's are left out, as are hidden ones.

    Parameters
    ----------
    test_fraction : the share of each class that is held out where there is no ``test`` folder (0.2 if not given).
    classes : the names of the folders in the order of their classes (default: sorted).
    normalize : with the training images' statistics per channel, or pixels in [0, 1] (``unit``).
    limit : keep the first that many rows of each split, which are sorted by class.
    """

    path: str
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    classes: list[Value] | None = None
    normalize: Normalize = "standard"
    limit: Count | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        return made_of(self.rows(base))

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        root = files.find(self.path, base)
        if not root.is_dir():
            raise InputError(f"found the file {root}; allowed: a folder with a folder for each class", key="path")
        try:
            splits = [_read(folder) for folder in _split_folders(root)]
        except OSError as error:
            raise InputError(f"cannot read {root} ({error})", key="path") from None
        if len(splits) > 1 and self.test_fraction is not None:
            raise InputError(
                "found test_fraction, but the data have a test split; allowed: one of the two", key="test_fraction"
            )
        return Rows(
            name=root.name, train=splits[0], test=splits[1] if len(splits) > 1 else None, normalize=self.normalize,
            limit=self.limit, task="classification", classes=self.classes, fraction=self.test_fraction, top=255.0,
        )  # fmt: skip


def _split_folders(root: Path) -> list[Path]:
    """The folders of the splits, that of the training images first; `root` itself where it has no ``train``."""
    names = [folder.name for folder in _folders(root)]
    if "train" not in names:
        return [root]
    if foreign := [name for name in names if name not in _SPLITS]:
        raise InputError(f"found the folder '{foreign[0]}' beside train in {root}; allowed: train, test", key="path")
    return [root / name for name in _SPLITS if name in names]


def _read(folder: Path) -> Split:
    """The images of all classes, classes in the order of their names, and images in that of theirs."""
    found: list[tuple[str, Path]] = []
    other: list[Path] = []
    for label in _folders(folder):
        for file in _files(label):
            if file.suffix.lower() in _ENDINGS:
                found.append((label.name, file))
            else:
                other.append(file)
    if stray := [p.name for p in sorted(folder.iterdir()) if p.is_file() and p.suffix.lower() in _ENDINGS]:
        raise InputError(
            f"found the image {stray[0]} in {folder} itself; allowed: images in a folder for each class", key="path"
        )
    if not found:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise InputError(
            f"no images in folders of {folder}; allowed: a folder for each class with files that end in "
            f"{', '.join(_ENDINGS)}; found there: {there}", key="path",
        )  # fmt: skip

    def decode() -> dict[str, Array]:
        encoded = (file.read_bytes() for _, file in found)
        names = [str(file.relative_to(folder)) for _, file in found]
        x = decode_images(encoded, str(folder), len(found), names.__getitem__)
        return {"x": x, "y": np.array([label for label, _ in found])}

    states = [(str(file), state.st_size, state.st_mtime_ns) for _, file in found for state in [file.stat()]]
    arrays = cached(["image_folder", _CACHE_VERSION, str(folder), states], decode)
    notes = [f"{len(other)} files of {folder} are no images by their names (first: {other[0].name})"] if other else []
    if empty := [f.name for f in _folders(folder) if f.name not in {label for label, _ in found}]:
        notes.append(f"folders of {folder} without images are no classes: {', '.join(empty)}")
    return Split(arrays["x"], arrays["y"], notes=tuple(notes))


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones, sorted."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))
