"""Image sets that people know by name, from the hub or a folder of its parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count
from fedsim.data.parquet import read_splits, sources
from fedsim.data.rows import Rows
from fedsim.data.sets import Categories, Columned, replace_classes
from fedsim.data.splits import Normalize, Stats
from fedsim.data.tables import Wanted


@dataclass(frozen=True)
class _Named(Columned):
    """A known image set, from `path` (a folder with train*.parquet and test*.parquet as on the hub) or the hub."""

    path: str | None = None
    normalize: Normalize = "standard"
    limit: Count | None = None

    hub: ClassVar[str]
    columns: ClassVar[tuple[str, str]]
    classes: ClassVar[int]
    stats: ClassVar[Stats | None]
    divided: ClassVar[bool] = True
    """Whether the set has a test split; else a share of the rows is held out."""

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        names = ("train", "test") if self.divided or self.path is not None else ("train",)
        found = sources(self.path, base, self.hub, None, names)
        if self.divided and "test" not in found:
            raise InputError(
                f"no test*.parquet in {self.path}; allowed: a folder with train*.parquet and test*.parquet", "path"
            )
        image, label = self.columns
        wanted = Wanted(None, label, ("path", "path"), ids=ids)
        train, *others = (replace_classes(s, self.classes) for s in read_splits(found.values(), wanted, image))
        return Rows(
            name=self.hub.rpartition("/")[2], train=train, test=others[0] if others else None,
            normalize=self.normalize, limit=self.limit, task="classification", top=255.0, stats=self.stats,
        )  # fmt: skip


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


@register.dataset("femnist")
@dataclass(frozen=True)
class Femnist(_Named):
    """LEAF's FEMNIST (hub name flwrlabs/femnist): 28 x 28 grey images of 62 digits and letters by 3,597 writers.

    A writer is a client where the scenario does not say otherwise. Without test*.parquet a fifth of each writer's rows
    is held out.
    """

    natural: ClassVar[str | None] = "writer_id"
    hub = "flwrlabs/femnist"
    columns = ("image", "character")
    classes = 62
    stats = None
    divided = False
