"""Image sets that people know by name, from the hub or a folder of its parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count
from fedsim.data.parquet import read_splits, sources
from fedsim.data.sets import Dataset, DatasetPart, made, replace_classes
from fedsim.data.splits import Normalize, Stats, targets
from fedsim.data.tables import Wanted


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
        return self._load(base, None)

    def load_by(self, column: str, clients: int | None, seed: int, base: Path) -> Dataset:
        return self._load(base, column)

    def _load(self, base: Path, ids: str | None) -> Dataset:
        found = sources(self.path, base, self.hub, None, ("train", "test"))
        if "test" not in found:
            raise InputError(
                f"no test*.parquet in {self.path}; allowed: a folder with train*.parquet and test*.parquet", "path"
            )
        image, label = self.columns
        wanted = Wanted(None, label, ("path", "path"), ids=ids)
        train, test = (replace_classes(s, self.classes) for s in read_splits(found.values(), wanted, image))
        train, checked = targets(train, test, "classification", None)
        assert checked is not None
        name = self.hub.rpartition("/")[2]
        return made(name, train, checked, self.normalize, self.limit, top=255.0, stats=self.stats)


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
