"""Data sets: what the clients' rows are taken from.

A registered data set is a part whose ``load`` gives a :class:`Dataset` (tensors of all rows; clients are index lists
into them) or a :class:`Quadratic` (no data, the objective itself). Reading files is in `files`, formulas are
in ``synthetic.py``.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.registry import Part, register
from fedsim.core.types import Count, NonNegative
from fedsim.data import files, synthetic
from fedsim.data.splits import Normalize, Split, Stats, Task, divide, scaled, targets

_Share = Annotated[float, Field(gt=0, lt=1)]

DEFAULT_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Dataset:
    """All rows of a set.

    Attributes
    ----------
    train_x, test_x
        float32 ``[N, *shape]``; images are ``[N, C, H, W]``.
    train_y, test_y
        int64 ``[N]`` (classification) or float32 ``[N]`` or ``[N, k]`` (regression).
    num_classes
        None for regression.
    clients
        Rows of train per client where the data come already divided, else None.
    importance
        ``[clients]`` weights of the clients' losses where the data prescribe them, else None.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int | None
    clients: list[Array] | None = None
    importance: Array | None = None


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


@register.dataset("digits")
@dataclass(frozen=True)
class Digits(DatasetPart):
    """scikit-learn's bundled 8 x 8 digits (1,797 images, 10 classes), a fixed stratified fifth of them for testing."""

    normalize: Normalize = "unit"
    limit: Count | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        from sklearn.datasets import load_digits

        digits = load_digits()
        whole = Split(digits.images[:, None].astype(np.float32), digits.target, 10)
        train, test = divide(whole, DEFAULT_TEST_FRACTION)
        return _dataset("digits", train, test, self.normalize, self.limit, top=16.0)


@dataclass(frozen=True)
class _Named(DatasetPart):
    """A known image set, from `path` (a folder with train*.parquet and test*.parquet as on the hub) or the hub."""

    path: str | None = None
    normalize: Normalize = "standard"
    limit: Count | None = None

    hub: ClassVar[str]
    columns: ClassVar[tuple[str, str]]
    classes: ClassVar[int]
    stats: ClassVar[Stats]

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        sources = files.sources(self.path, base, self.hub, None, ("train", "test"))
        if "test" not in sources:
            raise InputError(
                f"no test*.parquet in {self.path}; allowed: a folder with train*.parquet and test*.parquet", "path"
            )
        train, test = (files.read_images(sources[s], *self.columns, keys=("path", "path")) for s in ("train", "test"))
        train, checked = targets(train, test, "classification", self.classes)
        assert checked is not None
        name = self.hub.rpartition("/")[2]
        return _dataset(name, train, checked, self.normalize, self.limit, top=255.0, stats=self.stats)


@register.dataset("mnist")
@dataclass(frozen=True)
class Mnist(_Named):
    """MNIST (hub name ylecun/mnist): 60,000 + 10,000 grey images of 28 x 28, 10 digits."""

    hub = "ylecun/mnist"
    columns = ("image", "label")
    classes = 10
    stats = ((0.1307,), (0.3081,))


@register.dataset("fashion_mnist")
@dataclass(frozen=True)
class FashionMnist(_Named):
    """Fashion-MNIST (hub name zalando-datasets/fashion_mnist): 60,000 + 10,000 grey images of 28 x 28, 10 articles."""

    hub = "zalando-datasets/fashion_mnist"
    columns = ("image", "label")
    classes = 10
    stats = ((0.2860,), (0.3530,))


@register.dataset("cifar10")
@dataclass(frozen=True)
class Cifar10(_Named):
    """CIFAR-10 (hub name uoft-cs/cifar10): 50,000 + 10,000 colour images of 32 x 32, 10 classes."""

    hub = "uoft-cs/cifar10"
    columns = ("img", "label")
    classes = 10
    stats = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@register.dataset("cifar100")
@dataclass(frozen=True)
class Cifar100(_Named):
    """CIFAR-100 (hub name uoft-cs/cifar100): 50,000 + 10,000 colour images of 32 x 32, 100 fine classes."""

    hub = "uoft-cs/cifar100"
    columns = ("img", "fine_label")
    classes = 100
    stats = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


@dataclass(frozen=True, kw_only=True)
class _General(DatasetPart):
    """What the readers of users' own data share.

    `task` None: float targets are regression, others classification (text labels are numbered in sorted order).
    `test_fraction`: share of the rows held out where there is no test split (0.2 if not given; the same rows for all
    seeds, stratified for classification). `normalize`: features are standardised (or scaled to [0, 1]) with the train
    split's statistics, images per channel.
    """

    test_fraction: _Share | None = None
    task: Task | None = None
    num_classes: Count | None = None
    normalize: Normalize = "standard"
    limit: Count | None = None

    def _finish(self, name: str, train: Split, test: Split | None) -> Dataset:
        if test is not None and self.test_fraction is not None:
            raise InputError(
                "found test_fraction, but the data have a test split; allowed: one of the two", key="test_fraction"
            )
        train, test = targets(train, test, self.task, self.num_classes)
        if test is None:
            train, test = divide(train, self.test_fraction or DEFAULT_TEST_FRACTION)
        top = 255.0 if train.x.dtype == np.uint8 else None
        return _dataset(name, train, test, self.normalize, self.limit, top)


@register.dataset("hub")
@dataclass(frozen=True, kw_only=True)
class Hub(_General):
    """Any set of the hub (`hub`: owner/name) with images or numeric features.

    `path`: a local folder of its parquet files instead.
    `x_column`: the image column (default: the only one), or a list of feature columns (default: all but `y_column`).
    """

    hub: str
    path: str | None = None
    subset: str | None = None
    x_column: str | list[str] | None = None
    y_column: str = "label"
    train_split: str = "train"
    test_split: str = "test"

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.hub):
            raise InputError(f"found {self.hub!r}; allowed: owner/name", key="hub")
        names = (self.train_split,) if self.test_fraction is not None else (self.train_split, self.test_split)
        sources = files.sources(self.path, base, self.hub, self.subset, names)
        if self.test_split in names and self.test_split not in sources and self.test_split != "test":
            raise InputError(f"no {self.test_split}*.parquet in {self.path}", key="test_split")
        splits = [
            files.read_columns(s, self.x_column, self.y_column, ("x_column", "y_column")) for s in sources.values()
        ]
        return self._finish(self.hub, splits[0], splits[1] if len(splits) > 1 else None)


@register.dataset("parquet")
@dataclass(frozen=True, kw_only=True)
class Parquet(_General):
    """Local parquet files with an `image` column or numeric `features` (default: the image, else all but `target`).

    `path`: a folder with train*.parquet (and test*.parquet), or one file.
    """

    path: str
    target: str
    image: str | None = None
    features: list[str] | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        if self.image is not None and self.features is not None:
            raise InputError("found both image and features; allowed: one of the two", key="features")
        sources = files.sources(self.path, base, None, None, ("train", "test"))
        x_key = "image" if self.image else "features"
        splits = [
            files.read_columns(s, self.image or self.features, self.target, (x_key, "target")) for s in sources.values()
        ]
        return self._finish(Path(self.path).stem, splits[0], splits[1] if len(splits) > 1 else None)


@register.dataset("idx")
@dataclass(frozen=True, kw_only=True)
class Idx(DatasetPart):
    """A folder with the four IDX files of MNIST and its kin (``train-images-idx3-ubyte``, ...; .gz allowed)."""

    path: str
    num_classes: Count | None = None
    normalize: Normalize = "standard"
    limit: Count | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        splits = files.read_idx(files.find(self.path, base))
        train, test = targets(splits["train"], splits["test"], "classification", self.num_classes)
        assert test is not None
        return _dataset(Path(self.path).name, train, test, self.normalize, self.limit, top=255.0)


@register.dataset("csv")
@dataclass(frozen=True, kw_only=True)
class Csv(_General):
    """A CSV file with a header line: the `target` column and numeric `features` (default: all other columns)."""

    path: str
    target: str
    features: list[str] | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        file = files.find(self.path, base)
        return self._finish(
            file.stem, files.read_table(files.read_csv(file), self.features, self.target, str(file)), None
        )


@register.dataset("npz")
@dataclass(frozen=True, kw_only=True)
class Npz(_General):
    """Arrays x_train, y_train, x_test, y_test, or x, y (then a share is held out).

    x is ``[N, *shape]``, images ``[N, C, H, W]``; y is ``[N]``, or ``[N, k]`` for regression.
    Values are taken as they are unless `normalize` says otherwise (uint8 arrays count as images with values up to 255).
    """

    path: str
    normalize: Normalize = "none"

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        file = files.find(self.path, base)
        splits = files.read_arrays(file)
        return self._finish(file.stem, splits[0], splits[1] if len(splits) > 1 else None)


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
    dimension: Count = 60
    num_classes: Annotated[int, Field(ge=2)] = 10
    max_samples: Annotated[int, Field(ge=10)] | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        if clients is None:
            raise InputError("missing; synthetic data are made per client, give their number", key="clients")
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
        made = _dataset("synthetic", train, test, "none", None, None)
        return Dataset(made.name, made.train_x, made.train_y, made.test_x, made.test_y, self.num_classes, clients=rows)


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


def finished(name: str, whole: Split, normalize: Normalize, limit: int | None) -> Dataset:
    """The data set made of one table of rows, a share of them held out."""
    train, test = divide(whole, DEFAULT_TEST_FRACTION)
    return _dataset(name, train, test, normalize, limit, None)


def _dataset(
    name: str,
    train: Split,
    test: Split,
    normalize: Normalize,
    limit: int | None,
    top: float | None,
    stats: Stats | None = None,
) -> Dataset:
    """Tensors of two splits, their first `limit` rows."""
    train_x, test_x = scaled(train.x[:limit], test.x[:limit], normalize, top, stats)
    train_y, test_y = (torch.from_numpy(np.array(s.y[:limit])) for s in (train, test))
    return Dataset(name, torch.from_numpy(train_x), train_y, torch.from_numpy(test_x), test_y, train.classes)
