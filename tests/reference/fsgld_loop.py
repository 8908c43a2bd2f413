"""FSGLD the obvious way: one chain at a time, one shard at a time, numpy, following the paper's equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def chain(
    x: Array,
    visits: Sequence[int],
    steps: int,
    h: float,
    grad_log_likelihood: Callable[[int, int, int, Array], Array],
    f: Sequence[float],
    surrogates: Sequence[tuple[Array, Array]] | None,
    prior: float = 1.0,
    temperature: float = 1.0,
    exploration: float = 1.0,
    noise: Callable[[int, int], Any] = lambda _, __: 0.0,
) -> list[Array]:
    """The states at the ends of the visits.

    Parameters
    ----------
    grad_log_likelihood : of shard s in visit v at step k: an unbiased estimate of ``grad log p(x_s | x)``.
    surrogates : precision matrix and mean of each q_s (None: DSGLD).
    noise : standard normal numbers ``[d]`` of a visit and a step.
    """
    ends = []
    for v, s in enumerate(visits):
        for k in range(steps):
            drift = -prior * x + grad_log_likelihood(s, v, k, x) / f[s]
            if surrogates is not None:
                grad_log_q = [precision @ (mean - x) for precision, mean in surrogates]
                drift = drift + exploration * (sum(grad_log_q) - grad_log_q[s] / f[s])
            x = x + h / 2 * drift + np.sqrt(h * temperature) * noise(v, k)
        ends.append(x)
    return ends


def handed_over(means: Array, a: float, steps: int, noise: float) -> float:
    """Variance at hand-over of a chain in one dimension that goes to shard s, towards ``means[s]``, at rate a a step.

    `noise` is its stationary variance with one shard.
    """
    return float(means.var() * (1 - a**steps) / (1 + a**steps) + noise)
