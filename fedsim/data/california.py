"""California housing: the 1990 census table behind scikit-learn's ``fetch_california_housing``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count, Positive
from fedsim.data.parquet import read_splits, sources
from fedsim.data.rows import Rows
from fedsim.data.sets import Categories, Dataset, DatasetPart, made_of
from fedsim.data.splits import Column, Normalize, Split
from fedsim.data.tables import Wanted

_TARGET = "MedHouseVal"
_FETCH = (
    'python -c "from sklearn.datasets import fetch_california_housing as fetch; from pathlib import Path; '
    "p = Path('{0}'); p.mkdir(parents=True, exist_ok=True); "
    "fetch(as_frame=True).frame.to_parquet(p / 'train.parquet')\""
)


@register.dataset("california_housing")
@dataclass(frozen=True, kw_only=True)
class CaliforniaHousing(DatasetPart):
    """Regression: 20,640 districts of California, 8 features, the median house value.

    `path`: a folder with train.parquet; without it scikit-learn downloads the table once and keeps it. One row in five
    is held out, the same for every seed. `target_scale` divides the targets, which are in units of $100,000 and were
    capped at 5.00001 by the census: a number known without looking at the data.
    """

    path: str | None = None
    normalize: Normalize = "standard"
    target_scale: Positive = 5.00001
    limit: Count | None = None

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        return made_of(self.rows(base))

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        whole = self._downloaded() if self.path is None else self._local(self.path, base)
        scale = np.float32(self.target_scale)
        return Rows(
            name="california_housing", train=replace(whole, y=whole.y.astype(np.float32) / scale),
            normalize=self.normalize, limit=self.limit, task="regression", about_target={"multiply": float(scale)},
        )  # fmt: skip

    def _local(self, path: str, base: Path) -> Split:
        folder = (base / Path(path).expanduser()).resolve()
        if not folder.exists():
            raise InputError(f"no folder {folder}; this command makes it: {_FETCH.format(folder)}", key="path")
        found = sources(path, base, None, None, ("train",))
        return read_splits(found.values(), Wanted(None, _TARGET, ("path", "path")))[0]

    def _downloaded(self) -> Split:
        from sklearn.datasets import fetch_california_housing

        try:
            table = fetch_california_housing()
        except Exception as error:  # without a network this fails in many ways
            raise InputError(
                f"scikit-learn cannot download the table ({type(error).__name__}: {error}); where there is a network, "
                f"this command makes a folder for data.path: {_FETCH.format('data/california_housing')}"
            ) from None
        columns = tuple(Column(name) for name in table.feature_names)
        return Split(table.data.astype(np.float32), table.target, columns=columns, target=(_TARGET,))
