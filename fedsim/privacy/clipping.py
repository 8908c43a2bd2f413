"""How much one protected unit can move what is released."""

from __future__ import annotations

import numpy as np

from fedsim.core.arrays import Floats, Ints


def max_coefficient(weights: Floats, sizes: Ints | None = None) -> float:
    """The largest weight of one unit in ``sum_p w_p m_p``.

    Of one example, ``max_p w_p / n_p``, where m_p is the mean over client p's n_p examples (`sizes`); of one client,
    ``max_p w_p``, without `sizes`.
    """
    return float(np.max(weights if sizes is None else weights / sizes))


def sensitivity(clip: float, coefficient: float, adjacency: str) -> float:
    """L2 sensitivity of a sum of vectors of norm at most `clip`, one unit's weighing at most `coefficient`.

    Replacing a unit takes one such vector out and puts another one in, ``2 C a``; adding or removing it, ``C a``, holds
    only where the sum is divided by a public constant and never by a count of the data.
    """
    return (2.0 if adjacency == "replace-one" else 1.0) * clip * coefficient
