"""Column-stochastic mixing: every node divides what it has among those that it sends to, and itself."""

from __future__ import annotations

import numpy as np

from fedsim.core.arrays import Bools
from fedsim.core.libraries import sparse
from fedsim.graphs.mixing_matrix import BaseMixing


class PushMixing(BaseMixing):
    """A matrix whose columns sum to 1 in every round: what a lost message would have carried, its sender keeps."""

    def realised(self, fired: Bools) -> sparse.csr_array:
        """``p_ij = c_ij`` where the link from j to i fired, ``p_jj = 1 - sum_i p_ij``."""
        if fired.all():
            return self.matrix
        active = fired[self.entry_links]
        data, keep = self._data.copy(), np.ones(len(self._data), dtype=bool)
        lost = np.bincount(self._columns[self._off], np.where(active, 0.0, data[self._off]), minlength=self.n)
        keep[self._off] = active
        own = np.flatnonzero(~self._off)
        data[own] += lost[self._columns[own]]
        starts = np.concatenate([[0], np.cumsum(np.bincount(self._rows[keep], minlength=self.n))])
        return sparse.csr_array((data[keep], self._columns[keep], starts), shape=(self.n, self.n))
