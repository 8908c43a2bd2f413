"""Which of its own samples a client takes in a step: a keyed draw, and several rounds of it at once where they are few.

A draw is a function of its key alone, so that those of later rounds may be made now. In a round of small minibatches
numpy's calls cost more than the arithmetic in them: many rounds drawn together cost little more than one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedsim.core import rng
from fedsim.core.arrays import Bools, Ints

_NUMBERS = 2**14  # of several rounds that are drawn together
_ROUNDS = 32


class _Drawn(NamedTuple):
    """What was asked for last, and drawn ahead: positions ``[rounds, m, steps, width]`` of round `first` and later.

    There are none where one round was drawn alone, which is large or may be the last: it would only take memory.
    """

    clients: Ints
    sizes: Ints
    how: tuple[int, int, int, bool]
    first: int
    end: int
    positions: Ints
    valid: Bools


class Positions:
    """Positions of minibatches among their clients' samples.

    It remembers what it drew last. Who asks for the same clients in the round after is taken to go on so.
    """

    def __init__(self) -> None:
        self._last: _Drawn | None = None  # replaced as a whole, for several threads may ask

    def of(
        self, seed: int, clients: Ints, sizes: Ints, rounds: Ints, steps: int, width: int, epochs: bool
    ) -> tuple[Ints, Bools]:
        """Positions, and whether they count, ``[m, steps, width]``; nobody may change them.

        Parameters
        ----------
        sizes : samples of each client, ``[m]``.
        epochs : whether a client's minibatches go once through its samples before one comes again; else each is drawn
            by itself.
        """
        how, number, last = (seed, steps, width, epochs), int(rounds[0]), self._last
        if not (rounds == number).all():
            positions, valid = _draw(seed, clients, sizes, rounds[None], steps, width, epochs)
            return positions[0], valid
        coming = 1
        if last is not None and last.how == how and _same(last.clients, clients) and _same(last.sizes, sizes):
            if len(last.positions) and last.first <= number < last.end:
                return last.positions[number - last.first], last.valid
            if number == last.end:
                coming = max(1, min(_ROUNDS, _NUMBERS // max(1, len(clients) * steps * width)))
        later = (number + np.arange(coming))[:, None]
        positions, valid = _draw(seed, clients, sizes, later, steps, width, epochs)
        ahead, end = positions if coming > 1 else positions[:0].copy(), number + coming
        self._last = _Drawn(clients.copy(), sizes.copy(), how, number, end, ahead, valid)
        return positions[0], valid


def _same(one: Ints, other: Ints) -> bool:
    return len(one) == len(other) and bool((one == other).all())


def _draw(
    seed: int, clients: Ints, sizes: Ints, rounds: Ints, steps: int, width: int, epochs: bool
) -> tuple[Ints, Bools]:
    """Of `rounds` ``[k, m]`` or ``[k, 1]`` the positions ``[k, m, steps, width]``, and whether they count."""
    size, step, slot = sizes[:, None, None], np.arange(steps)[:, None], np.arange(width)
    if epochs:
        per_epoch = -(-size // width)
        epoch, position = step // per_epoch, (step % per_epoch) * width + slot
    else:
        epoch, position = step, np.broadcast_to(slot, (1, 1, width))
    valid = np.broadcast_to(position < size, (len(clients), steps, width))
    keys = rng.key(seed, "batch", clients[:, None, None], rounds[:, :, None, None], epoch)
    return rng.permute(keys, np.minimum(position, size - 1), size), valid
