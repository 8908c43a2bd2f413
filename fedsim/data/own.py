"""Data that people bring: sets of the hub, parquet, CSV, npz and IDX files.

Whatever the reader, the same happens next: labels are numbered in one place (`labels`), test rows are held out where
there are none, and the training rows decide how features are encoded and scaled (`splits`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count
from fedsim.data import files
from fedsim.data.arrays import read_arrays, read_idx
from fedsim.data.labels import Value
from fedsim.data.parquet import read_splits, sources
from fedsim.data.rows import Rows
from fedsim.data.sets import Categories, ClassCount, Columned, Dataset, DatasetPart, made_of
from fedsim.data.splits import Action, Normalize, Split, Task
from fedsim.data.tables import Lines, Missing, Wanted, read_csv, table_split

_Share = Annotated[float, Field(gt=0, lt=1)]
_Columns = str | Annotated[list[str], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Own(Columned):
    """What the readers of users' own data share.

    `task` None: float targets are regression, others classification. Labels of any kind are classes: text, true and
    false, whole numbers, one-hot rows; the distinct ones are numbered in sorted order, or as `classes` lists them.
    `num_classes`: labels 0, 1, ... are classes as they are. ``task: tokens``: targets are token ids, one per row or one
    at every position; `num_classes` is then how many tokens there are, and those that are `ignore_index` do not count.
    `test_fraction`: share of the rows held out where there is no test split (0.2 if not given; the same rows for all
    seeds, stratified for classification). `normalize`: features are standardised (or scaled to [0, 1]) with the train
    split's statistics, images per channel.
    """

    test_fraction: _Share | None = None
    task: Task | None = None
    num_classes: ClassCount | None = None
    classes: list[Value] | None = None
    ignore_index: int | None = None
    normalize: Normalize = "standard"
    limit: Count | None = None

    def _rows(self, name: str, splits: list[Split], top: float | None = None, action: Action = "refuse") -> Rows:
        train, test = splits[0], splits[1] if len(splits) > 1 else None
        if test is not None and self.test_fraction is not None:
            raise InputError(
                "found test_fraction, but the data have a test split; allowed: one of the two", key="test_fraction"
            )
        if self.task == "tokens":
            train, test = _bytes(train), None if test is None else _bytes(test)
        if train.x.dtype == np.int64 and self.normalize not in ("none", _default(self, "normalize")):
            raise InputError(
                f"found {self.normalize} for inputs that are integers, which stay as they are (tokens, say); "
                "allowed: none, or an array of floats",
                key="normalize",
            )
        return Rows(
            name=name, train=train, test=test, normalize=self.normalize, limit=self.limit, task=self.task,
            num_classes=self.num_classes, classes=self.classes, ignore_index=self.ignore_index,
            fraction=self.test_fraction, top=255.0 if train.x.dtype == np.uint8 else top, action=action,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OwnTable(Own):
    """`categorical`: feature columns that become one-hot columns; their values are those of the training file.

    `missing`: what counts as missing and what is done about it: ``refuse``, ``drop``, ``mean``, ``most_frequent``, or
    ``{action: ..., values: [...]}``.
    """

    categorical: list[str] | None = None
    missing: Missing | Action = "refuse"

    @property
    def lacking(self) -> Missing:
        return self.missing if isinstance(self.missing, Missing) else Missing(action=self.missing)

    def _wanted(
        self,
        features: list[str] | None,
        target: str | list[str],
        keys: tuple[str, str],
        ids: str | None,
        known: Categories | None,
    ) -> Wanted:
        return Wanted(features, target, keys, self.categorical or (), self.lacking, ids, known or {})


@register.dataset("hub")
@dataclass(frozen=True, kw_only=True)
class Hub(OwnTable):
    """Any set of the hub (`hub`: owner/name) with images or numeric features.

    `hub`: its name there, owner/name. `path`: a local folder of its parquet files instead. `subset`: which of its
    configurations. `train_split`, `test_split`: what its splits are called.
    `y_column`: the column to predict, or the list of its one-hot columns or of a regression's targets.
    `x_column`: the image column (default: the only one), or a list of feature columns (default: all but `y_column`).
    """

    hub: str
    path: str | None = None
    subset: str | None = None
    x_column: str | list[str] | None = None
    y_column: _Columns = "label"
    train_split: str = "train"
    test_split: str = "test"

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.hub):
            raise InputError(f"found {self.hub!r}; allowed: owner/name", key="hub")
        names = (self.train_split,) if self.test_fraction is not None else (self.train_split, self.test_split)
        found = sources(self.path, base, self.hub, self.subset, names)
        if self.test_split in names and self.test_split not in found and self.test_split != "test":
            raise InputError(f"no {self.test_split}*.parquet in {self.path}", key="test_split")
        first = next(iter(found.values()))
        image = self.x_column if isinstance(self.x_column, str) and self.x_column in first.images() else None
        features = [self.x_column] if isinstance(self.x_column, str) else self.x_column
        wanted = self._wanted(None if image else features, self.y_column, ("x_column", "y_column"), ids, categories)
        splits = read_splits(found.values(), wanted, image)
        return self._rows(self.hub, splits, action=self.lacking.action)


@register.dataset("parquet")
@dataclass(frozen=True, kw_only=True)
class Parquet(OwnTable):
    """Local parquet files with an `image` column or `features` (default: the image, else all but `target`).

    `path`: a folder with train*.parquet (and test*.parquet), or one file.
    `target`: the column to predict, or the list of its one-hot columns or of a regression's targets.
    `image`: the column of images. `features`: the columns it is predicted from.
    """

    path: str
    target: _Columns
    image: str | None = None
    features: list[str] | None = None

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        if self.image is not None and self.features is not None:
            raise InputError("found both image and features; allowed: one of the two", key="features")
        found = sources(self.path, base, None, None, ("train", "test"))
        keys = ("image" if self.image else "features", "target")
        splits = read_splits(
            found.values(), self._wanted(self.features, self.target, keys, ids, categories), self.image
        )
        return self._rows(Path(self.path).stem, splits, action=self.lacking.action)


@register.dataset("csv")
@dataclass(frozen=True, kw_only=True)
class Csv(OwnTable):
    """A CSV file: the `target` column (or one-hot columns) and `features` (default: all other columns).

    `path`: the file with the training rows.
    `target`: the column to predict, or the list of its one-hot columns or of a regression's targets.
    `features`: the columns it is predicted from (default: all others).
    `names`: the columns of a file without a header line. `separator`: one character, or ``whitespace``. `encoding`: the
    text's. `test_path`: a second file with the test rows.
    """

    path: str
    target: _Columns
    features: list[str] | None = None
    separator: str = ","
    encoding: str = "utf-8"
    names: Annotated[list[str], Field(min_length=2)] | None = None
    test_path: str | None = None

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        found = [files.find(self.path, base)]
        if self.test_path is not None:
            found.append(files.find(self.test_path, base, "test_path"))
        wanted = self._wanted(self.features, self.target, ("features", "target"), ids, categories)
        texts = [*wanted.categorical, *([ids] if ids is not None and ids not in (self.features or ()) else [])]
        splits: list[Split] = []
        for file in found:
            frame = read_csv(file, self.separator, self.encoding, self.names, texts, self.lacking)
            lines = Lines(file, self.separator, self.encoding, self.names is None)
            try:
                splits.append(table_split(frame, wanted, str(file), splits[0] if splits else None, lines))
            except InputError as error:
                raise self._hinted(error, [str(c) for c in frame.columns]) from None
        return self._rows(found[0].stem, splits, action=self.lacking.action)

    def _hinted(self, error: InputError, columns: list[str]) -> InputError:
        """The problem, with the way out for a file whose header is missing."""
        problem = error.problems[0]
        numbers = sum(bool(re.fullmatch(r"[-+.\deE]+(\.\d+)?", c.strip())) for c in columns)
        if problem.key != "target" or self.names is not None or not numbers:
            return error
        hint = "; the first line looks like data: 'names: [...]' names the columns of a file without a header line"
        return InputError([replace(problem, message=problem.message + hint)])


@register.dataset("npz")
@dataclass(frozen=True, kw_only=True)
class Npz(Own):
    """Arrays x_train, y_train, x_test, y_test, or x, y (then a share is held out).

    x is ``[N, *shape]``, images ``[N, C, H, W]``; y is ``[N]``, one-hot ``[N, k]``, or ``[N, k]`` for regression.
    Values are taken as they are unless `normalize` says otherwise (uint8 arrays count as images with values up to 255;
    other integers stay integers and are never scaled).
    """

    path: str
    normalize: Normalize = "none"

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        file = files.find(self.path, base)
        return self._rows(file.stem, read_arrays(file, ids))


@register.dataset("idx")
@dataclass(frozen=True, kw_only=True)
class Idx(DatasetPart):
    """A folder with the four IDX files of MNIST and its kin (``train-images-idx3-ubyte``, ...; .gz allowed)."""

    path: str
    num_classes: ClassCount | None = None
    classes: list[Value] | None = None
    normalize: Normalize = "standard"
    limit: Count | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        return made_of(self.rows(base))

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        splits = read_idx(files.find(self.path, base))
        return Rows(
            name=Path(self.path).name, train=splits["train"], test=splits["test"], normalize=self.normalize,
            limit=self.limit, task="classification", num_classes=self.num_classes, classes=self.classes, top=255.0,
        )  # fmt: skip


def _bytes(split: Split) -> Split:
    """Rows of bytes are tokens where targets are tokens; images of bytes stay images."""
    return replace(split, x=split.x.astype(np.int64)) if split.x.dtype == np.uint8 and split.x.ndim == 2 else split


def _default(part: Own, name: str) -> object:
    return next(f.default for f in fields(part) if f.name == name)
