"""PowerSGD as its two exchanges: every client sends its own factors, and nothing else reaches the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def powersgd(
    grad: Callable[[int, Array], Array],
    x: Array,
    p: Array,
    shapes: Sequence[Sequence[int]],
    firsts: Sequence[Array],
    rounds: int,
    lr: float,
    server_lr: float = 1.0,
    steps: int = 1,
) -> tuple[Array, int]:
    """The model after `rounds`, and how many numbers all clients sent.

    A matrix whose factors are smaller than itself begins with the next of `firsts`, Q ``[b, r]``.
    """
    rank, n, sent = firsts[0].shape[1], len(p), 0
    starts = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
    parts = [(slice(i, j), (s[0], (j - i) // s[0])) for i, j, s in zip(starts, starts[1:], shapes, strict=False)]
    low = [len(s) > 1 and rank * sum(form) < form[0] * form[1] for s, (_, form) in zip(shapes, parts, strict=True)]
    given = iter(firsts)
    Q = [next(given) if small else None for small in low]
    errors = np.zeros((n, len(x)))
    for _ in range(rounds):
        changes = []
        for i in range(n):
            y = x.copy()
            for _ in range(steps):
                y = y - lr * grad(i, y)
            changes.append(y - x)
        step = np.zeros_like(x)
        for number, (place, form) in enumerate(parts):
            if not low[number]:
                step[place] = sum(p[i] * changes[i][place] for i in range(n))
                sent += n * step[place].size
                continue
            M = [(changes[i] + errors[i])[place].reshape(form) for i in range(n)]
            Ps = [m @ Q[number] for m in M]  # the first exchange
            P = np.linalg.qr(sum(p[i] * Ps[i] for i in range(n)))[0]
            Qs = [m.T @ P for m in M]  # the second
            Q[number] = sum(p[i] * Qs[i] for i in range(n))
            sent += n * (Ps[0].size + Qs[0].size)
            decoded = P @ Q[number].T
            for i in range(n):
                errors[i][place] = (M[i] - decoded).ravel()
            step[place] = decoded.ravel()
        x = x + server_lr * step
    return x, sent
