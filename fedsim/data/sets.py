"""Data sets: what the clients' rows are taken from.

A registered data set is a part whose ``load`` gives a :class:`Dataset` (tensors of all rows; clients are index lists
into them) or a :class:`Quadratic` (no data, the objective itself). Sets that people bring are in `own`, formulas in
`synthetic`.
"""

from __future__ import annotations

import gzip
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.arrays import Array, Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.limits import check_room
from fedsim.core.registry import Part, register
from fedsim.core.tokens import Tokens, compact
from fedsim.core.types import Count, NonNegative
from fedsim.data import files, synthetic
from fedsim.data.labels import FOUND, MOST_CLASSES, Classes
from fedsim.data.pixels import PixelRange, pixel_range
from fedsim.data.rows import Rows
from fedsim.data.splits import (
    Action,
    Normalize,
    Scaling,
    Split,
    Stats,
    divide,
    encoded,
    lost_classes,
    rows_of,
    scaled,
    told,
)

DEFAULT_TEST_FRACTION = 0.2

LEARNT, THE_SET, THE_CLIENTS = "statistics_of", "training rows", "all clients' training rows"
"""In `Dataset.about`, under ``input``: whose statistics scale the features, where statistics do."""

Categories = Mapping[str, Sequence[str]]
"""The values of categorical columns, in the order of their one-hot columns."""
ClassCount = Annotated[int, Field(gt=0, le=MOST_CLASSES)]


@dataclass(frozen=True)
class Dataset:
    """All rows of a set.

    Attributes
    ----------
    train_x, test_x
        float32 ``[N, *shape]``, or integers of any type where the inputs are token ids, which a model sees as int64;
        images are ``[N, C, H, W]``.
    train_y, test_y
        int64 ``[N]`` (classification) or float32 ``[N]`` or ``[N, k]`` (regression); int64 ``[N, positions]`` where
        there is a class at every position, -100 where none is to be predicted.
    num_classes
        None for regression.
    clients
        Rows of train per client where the data come already divided, else None.
    importance
        ``[clients]`` weights of the clients' losses where the data prescribe them, else None.
    ids, test_ids
        ``[N]`` whose row it is, where the data were loaded by a column.
    about
        What turns a row of the file into an input and a class number into a name (``data.json`` of a run); see
        :func:`about`.
    notes
        What people should know about how the data were read.
    pixels
        What black and white are in the inputs, where they are images of a known range, else None.
    tokens
        What integers stand for; None: what they show (see :func:`fedsim.data.tokenized.tokens_of`).
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int | None
    clients: list[Array] | None = None
    importance: Array | None = None
    ids: Array | None = None
    test_ids: Array | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pixels: PixelRange | None = None
    tokens: Tokens | None = None

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the labels have some."""
        names = self.about.get("target", {}).get("classes")
        return None if names is None else list(names)


@dataclass(frozen=True)
class Quadratic:
    """Client i minimises ``0.5 (x - b_i)^T A_i (x - b_i)``; all tensors float64.

    Attributes
    ----------
    A
        ``[n, d, d]``, or the diagonals ``[n, d]``.
    b, x0, p
        ``[n, d]``; initial point ``[d]``; client importance ``[n]``, summing to 1.
    noise
        Standard deviation of the Gaussian noise on each coordinate of a gradient; 0 = exact gradients.
    """

    A: Tensor
    b: Tensor
    x0: Tensor
    p: Tensor
    noise: float = 0.0


class DatasetPart(Part):
    """Base class of registered data sets."""

    natural: ClassVar[str | None] = None
    """The column whose values are the clients where a scenario has neither `clients` nor a `partition`."""

    @abstractmethod
    def load(self, clients: int | None, seed: int, base: Path) -> Dataset | Quadratic:
        """Read or make the data.

        Parameters
        ----------
        clients
            The scenario's ``data.clients``; None where it has none. Only sets that come divided use it.
        seed
            Only made data depend on it: files, and their division into train and test, are the same for all seeds.
        base
            The folder that relative paths are relative to.

        Raises
        ------
        InputError
            A file is missing or unreadable, or its content cannot be used.
        """

    def load_by(self, column: str, clients: int | None, seed: int, base: Path) -> Dataset:
        """The same with `ids` and `test_ids`, the values of a column (of npz: an array) that is no feature.

        Raises
        ------
        InputError
            As `load`; or the data have no such column.
        """
        raise InputError(
            f"found {column!r}, but this data set has no columns; allowed: csv, parquet, hub, npz and the named sets",
            key="partition.partition_by",
        )

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows | None:
        """The rows as they are read, which other machines' lists may number and scale; None where the set makes more
        of them than `Rows` knows of.

        Parameters
        ----------
        ids
            The column of whose rows they are, where that is wanted.
        categories
            The values of categorical columns where they do not follow from these rows.
        """
        return None


@dataclass(frozen=True)
class Columned(DatasetPart):
    """Base of data sets whose rows come with columns."""

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        return self._load(base, None)

    def load_by(self, column: str, clients: int | None, seed: int, base: Path) -> Dataset:
        return self._load(base, column)

    def _load(self, base: Path, ids: str | None) -> Dataset:
        """The rows, with the column `ids` of whose they are where that is wanted; here, what `rows` gives."""
        found = self.rows(base, ids)
        assert found is not None
        return made_of(found)


@register.dataset("digits")
@dataclass(frozen=True)
class Digits(DatasetPart):
    """scikit-learn's bundled 8 x 8 digits (1,797 images, 10 classes), a fixed stratified fifth of them for testing."""

    normalize: Normalize = "unit"
    limit: Count | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        images, target = _digits()
        whole = Split(images[:, None].astype(np.float32), target.copy(), 10)
        return made_of(Rows(name="digits", train=whole, normalize=self.normalize, limit=self.limit, top=16.0))


@cache
def _digits() -> tuple[Floats, Ints]:
    """Images ``[1797, 8, 8]`` and labels, read once: scikit-learn keeps them in a file of text.

    The file is read as scikit-learn reads it, without importing scikit-learn, which would take longer than the whole
    quickstart; where a version keeps it elsewhere, scikit-learn is asked.
    """
    found = find_spec("sklearn")
    for folder in (found.submodule_search_locations if found is not None else None) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                table = np.loadtxt(lines, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


@register.dataset("synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic(DatasetPart):
    """Synthetic(alpha, beta), divided among ``data.clients``: see :func:`fedsim.data.synthetic.synthetic_client`.

    `iid`: one model for all clients, for which alpha and beta are 0 or left out. `max_samples` caps the lognormal
    sample sizes.
    """

    alpha: NonNegative | None = None
    beta: NonNegative | None = None
    iid: bool = False
    dimension: Annotated[int, Field(gt=0, le=1_000_000)] = 60
    num_classes: Annotated[int, Field(ge=2, le=MOST_CLASSES)] = 10
    max_samples: Annotated[int, Field(ge=10)] | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        if clients is None:
            raise InputError("missing; synthetic data are made per client, give their number", key="clients")
        least = 8 * self.dimension
        check_room(clients * 50 * least, f"{clients:,} clients with 50 samples each", "clients")
        check_room(self.num_classes * least, f"a model of {self.dimension} x {self.num_classes} weights", "dimension")
        for key, value in (("alpha", self.alpha), ("beta", self.beta)):
            if value is None and not self.iid:
                raise InputError("missing; allowed: a number >= 0, or iid: true", key=key)
            if value and self.iid:
                raise InputError(f"found {value} with iid: true; allowed: 0 or left out", key=key)
        x, y, test_x, test_y, rows = synthetic.synthetic(
            clients,
            self.alpha or 0.0,
            self.beta or 0.0,
            self.iid,
            self.dimension,
            self.num_classes,
            self.max_samples,
            seed,
        )
        train, test = Split(x, y, self.num_classes), Split(test_x, test_y, self.num_classes)
        return replace(made("synthetic", train, test, "none", None), clients=rows)


@register.dataset("quadratic")
@dataclass(frozen=True, kw_only=True)
class QuadraticFile(DatasetPart):
    """Quadratic objectives from an npz `file`: see :func:`fedsim.data.synthetic.read_quadratic`."""

    file: str
    noise: NonNegative = 0.0

    def load(self, clients: int | None, seed: int, base: Path) -> Quadratic:
        arrays = synthetic.read_quadratic(files.find(self.file, base, key="file"))
        n = len(arrays["b"])
        if clients not in (None, n):
            raise InputError(f"found {clients}, but {self.file} describes {n}; allowed: {n} or left out", key="clients")
        return Quadratic(
            **{name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, noise=self.noise
        )


def made_of(rows: Rows, given: Scaling | None = None) -> Dataset:
    """The data set of `rows`, a share of which is held out where there is no test split.

    `given` is the scaling where it does not follow from these rows.
    """
    train, test = rows.numbered()
    if test is None:
        train, test = divide(train, rows.fraction or DEFAULT_TEST_FRACTION)
    return finished(rows, train, test, given)


def finished(rows: Rows, train: Split, test: Split, given: Scaling | None = None) -> Dataset:
    """The data set of two splits whose labels are numbers, with what `rows` says of them."""
    found = made(rows.name, train, test, rows.normalize, rows.limit, rows.top, rows.stats, rows.action, given)
    learnt = {LEARNT: THE_CLIENTS if given else THE_SET} if rows.learns_scaling else {}
    more = {"input": {**rows.about_input, **learnt}, "target": rows.about_target}
    return replace(found, about={**found.about, **{k: {**found.about[k], **v} for k, v in more.items()}})


def replace_classes(split: Split, count: int) -> Split:
    """The split of a set that is known to have that many classes."""
    return (
        split
        if split.labels is not None and len(split.labels) == count
        else replace(split, labels=Classes.given(count))
    )


def made(
    name: str,
    train: Split,
    test: Split,
    normalize: Normalize,
    limit: int | None,
    top: float | None = None,
    stats: Stats | None = None,
    action: Action = "refuse",
    given: Scaling | None = None,
) -> Dataset:
    """Tensors of two splits, their first `limit` rows.

    Parameters
    ----------
    top, stats
        See :func:`fedsim.data.splits.scaled`.
    action
        What fills the missing values of a table.
    given
        Shift and scale where they do not follow from these rows.
    """
    everything, (train, test) = train, (rows_of(s, slice(limit)) for s in (train, test))
    notes, scaling = [*told(train, test), *lost_classes(everything, train)], Scaling()
    whole = all(s.x.dtype == np.int64 or (s.tokens is not None and s.x.dtype.kind in "iu") for s in (train, test))
    if whole:
        inputs: dict[str, Any] = {"kind": "integers"}
        train_x, test_x = compact(train.x), compact(test.x)
    elif train.columns and (action != "refuse" or any(c.categories is not None for c in train.columns)):
        train_x, test_x, columns = encoded(train, test, normalize, action, given)
        inputs = {"kind": "table", "columns": columns}
    else:
        train_x, test_x, scaling = scaled(train.x, test.x, normalize, top, stats, given)
        inputs = {"kind": "images" if top is not None else "numbers", **scaling.record()}
        if train.columns:
            inputs = {"kind": "table", "columns": scaling.columns([c.name for c in train.columns])}
    inputs |= {"shape": list(train_x.shape[1:]), "type": "int64" if whole else str(train_x.dtype)}
    about = {"dataset": name, "input": inputs, "target": _about_target(train), "notes": notes}
    train_y, test_y = (torch.from_numpy(np.array(s.y)) for s in (train, test))
    return Dataset(
        name, torch.from_numpy(np.ascontiguousarray(train_x)), train_y, torch.from_numpy(np.ascontiguousarray(test_x)),
        test_y, train.classes, ids=train.ids, test_ids=test.ids, about=about, notes=tuple(notes),
        pixels=None if top is None or whole else pixel_range(scaling, top), tokens=train.tokens,
    )  # fmt: skip


def described(data: Dataset) -> dict[str, Any]:
    """`Dataset.about`; of a set of somebody's own that says nothing of itself, what its tensors show."""
    x, y = data.train_x, data.train_y
    kind = str(x.dtype).removeprefix("torch.") if x.is_floating_point() else "int64"
    inputs = {"kind": "numbers", "shape": list(x.shape[1:]), "type": kind}
    target = _about_target(Split(x.numpy(), y.numpy(), data.num_classes))
    found = {"dataset": data.name, "input": inputs, "target": target, "notes": list(data.notes), **data.about}
    return {**found, "input": {**inputs, **found["input"]}, "target": {**target, **found["target"]}}


def _about_target(train: Split) -> dict[str, Any]:
    """What the model's outputs are."""
    if train.classes is None:
        return {
            "task": "regression",
            "columns": list(train.target),
            "values": 1 if train.y.ndim == 1 else train.y.shape[1],
        }
    labels = train.labels or Classes.given(train.classes)
    how = FOUND if labels.found else "as given"
    every = {"positions": train.y.shape[1]} if train.y.ndim > 1 else {}
    return {
        "task": "classification", "columns": list(train.target), "classes": list(labels.names),
        "labels": list(labels.values), "numbering": how, **every,
    }  # fmt: skip
