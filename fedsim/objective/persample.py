"""Which samples of a minibatch are differentiated together where every sample's own gradient is needed.

Per-sample gradients of b samples are b vectors of d numbers. They are made, clipped and added up part by part, so that
memory stays bounded; only sums leave a part, so that how samples fall into parts does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fedsim.core.arrays import Ints

_CPU_FLOATS = 2**23
_GPU_SHARE = 0.2  # of the memory that is free
_EVEN = 64  # rows whose numbers of samples differ by less are padded to the same length


def budget(device: torch.device, dtype: torch.dtype) -> int:
    """Numbers of `dtype` that one part may hold: what stays near a CPU's cache, or a share of a GPU's free memory."""
    if device.type != "cuda":
        return _CPU_FLOATS
    free, _ = torch.cuda.mem_get_info(device)
    return int(_GPU_SHARE * free) // dtype.itemsize


def parts(counts: Ints, per_sample: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each part of a ragged minibatch, ``counts[i]`` samples in row i.

    A part holds at most `limit` numbers, `per_sample` for each sample, and little padding: neighbouring rows of similar
    length, or a piece of one row. Rows without samples are in no part.
    """
    most = max(limit // per_sample, 1)
    row, m = 0, len(counts)
    while row < m:
        end, low, high = row + 1, int(counts[row]), int(counts[row])
        while end < m:
            low, high = min(low, int(counts[end])), max(high, int(counts[end]))
            if high > 2 * low + _EVEN or (end + 1 - row) * high > most:
                break
            end += 1
        widest = int(counts[row:end].max())
        for column in range(0, widest, most):
            yield slice(row, end), slice(column, min(column + most, widest))
        row = end
