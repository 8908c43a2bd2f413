"""Rows as a reader found them, before labels are numbered, rows held out and features scaled.

All readers end here, so that what follows is decided in one place: by the rows themselves, or, on a machine that brings
data of its own to a run of many, by the lists of the machine that leads the run (`agreed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.data.labels import Value
from fedsim.data.splits import Action, Normalize, Split, Stats, Task, targets


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The splits of a set, and the keys that say what is made of them.

    Parameters
    ----------
    train, test : as read; no test rows where the set has no split of them.
    task, num_classes, classes, ignore_index : see :func:`fedsim.data.splits.targets`.
    fraction : the share that is held out where there is no test split (default 0.2).
    top, stats : see :func:`fedsim.data.splits.scaled`.
    action : what fills the missing values of a table.
    ready : labels are numbers already, and `Split.labels` says of what.
    about_input, about_target : what else people should know of inputs and targets, as JSON.
    """

    name: str
    train: Split
    test: Split | None = None
    normalize: Normalize = "none"
    limit: int | None = None
    task: Task | None = None
    num_classes: int | None = None
    classes: Sequence[Value] | None = None
    ignore_index: int | None = None
    fraction: float | None = None
    top: float | None = None
    stats: Stats | None = None
    action: Action = "refuse"
    ready: bool = False
    about_input: Mapping[str, Any] = field(default_factory=dict)
    about_target: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learns_scaling(self) -> bool:
        """Whether features are scaled by statistics of the training rows, not by numbers that everybody knows."""
        if self.normalize == "none" or self.train.x.dtype.kind not in "fu":
            return False
        if self.train.columns and all(c.categories is not None for c in self.train.columns):
            return False
        known = self.stats is not None and self.train.x.ndim == 4 and self.train.x.shape[1] == len(self.stats[0])
        return self.top is None if self.normalize == "unit" else not known

    def numbered(self) -> tuple[Split, Split | None]:
        """Both splits with their labels numbered as found, or as the keys say."""
        if self.ready:
            return self.train, self.test
        return targets(self.train, self.test, self.task, self.num_classes, self.classes, self.ignore_index)
