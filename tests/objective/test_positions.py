"""Minibatches drawn ahead are those that are drawn one round at a time."""

from typing import Any

import numpy as np
import pytest

from fedsim.core import rng
from fedsim.objective import positions
from fedsim.objective.positions import Positions

CLIENTS = np.array([4, 2, 9, 7, 30])
SIZES = np.array([5, 40, 33, 1, 100])


def asked(drawn: Positions, number: int, epochs: bool, seed: int = 3, steps: int = 5, few: int = 5) -> tuple[Any, Any]:
    clients, sizes = CLIENTS[:few], SIZES[:few]
    return drawn.of(seed, clients, sizes, np.full(len(clients), number), steps, 4, epochs)


@pytest.mark.parametrize("epochs", [False, True])
def test_rounds_ahead_are_the_same_draws(epochs: bool) -> None:
    drawn = Positions()
    for number in [*range(1, 40), 80, 81, 82, 83, 3, 4, 2, 900]:
        found, valid = asked(drawn, number, epochs)
        alone, wanted = asked(Positions(), number, epochs)
        assert np.array_equal(found, alone)
        assert np.array_equal(valid, wanted)
        assert found.shape == valid.shape == (5, 5, 4)
        assert (found < SIZES[:, None, None]).all()


def test_what_is_kept_is_of_one_question() -> None:
    """Another seed, other clients, other data, other work: nothing that is kept is taken for it."""
    drawn = Positions()
    for number in (1, 2, 3):
        asked(drawn, number, False)
    for different in ({"seed": 4}, {"steps": 3}, {"few": 3}, {"epochs": True}):
        how = {"epochs": False, **different}
        assert np.array_equal(asked(drawn, 3, **how)[0], asked(Positions(), 3, **how)[0])
    sizes = SIZES.copy()
    for number in (1, 2, 3, 4, 5):  # an array that is changed in place, as that of a deployment's population is
        sizes += number
        found, valid = drawn.of(3, CLIENTS, sizes, np.full(5, number), 5, 4, False)
        alone, wanted = Positions().of(3, CLIENTS, sizes.copy(), np.full(5, number), 5, 4, False)
        assert np.array_equal(found, alone)
        assert np.array_equal(valid, wanted)


def test_clients_in_rounds_of_their_own() -> None:
    rounds = np.array([1, 7, 3, 2, 2])
    found, _ = Positions().of(3, CLIENTS, SIZES, rounds, 5, 4, False)
    for i, number in enumerate(rounds.tolist()):
        assert np.array_equal(found[i], asked(Positions(), number, False)[0][i])


def test_numpy_is_called_once_for_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, permute = [], rng.permute
    monkeypatch.setattr(positions.rng, "permute", lambda *a: calls.append(1) or permute(*a))
    drawn = Positions()
    for number in range(1, 66):
        asked(drawn, number, False)
    assert len(calls) <= 4  # the first alone, then 32 at a time
    for number in range(1, 100, 2):  # rounds with gaps are drawn one by one, and nothing in vain
        asked(drawn, number, False)
    assert len(calls) <= 4 + 50


def test_rounds_without_steps_have_no_positions() -> None:
    drawn, clients = Positions(), np.array([0, 1])
    for number in range(3):
        positions, valid = drawn.of(0, clients, np.array([5, 6]), np.full(2, number), 0, 3, epochs=True)
        assert positions.shape == valid.shape == (2, 0, 3)
