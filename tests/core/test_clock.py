"""Simulated time is exact: decimals and common fractions of a second are whole numbers of ticks."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from fedsim.core.clock import LONGEST, TICKS_PER_SECOND, bounded, exact, seconds, ticks
from fedsim.core.errors import InputError


@pytest.mark.parametrize("number", [0.2, 0.1, 0.3, 1.0, 0.7333, 1e-4, 12.3456, 1e6])
def test_decimals_are_what_was_written(number: float) -> None:
    assert exact(number) == Fraction(str(number))
    assert Fraction(ticks(number), TICKS_PER_SECOND) == Fraction(str(number))


@pytest.mark.parametrize("denominator", range(1, 21))
def test_fractions_are_exact(denominator: int) -> None:
    for numerator in range(1, 2 * denominator):
        value = Fraction(numerator, denominator)
        assert Fraction(ticks(value), TICKS_PER_SECOND) == value


def test_ticks_do_not_drift_where_floats_do() -> None:
    assert 0.2 + 0.2 + 0.2 != 0.6
    assert 3 * ticks(0.2) == ticks(0.6)
    assert 15 * ticks(Fraction(11, 15)) == ticks(11.0)


def test_seconds_are_the_nearest_float() -> None:
    for value in (Fraction(1, 5), Fraction(11, 15), Fraction(10**9) + Fraction(1, 7)):
        assert seconds(round(value * TICKS_PER_SECOND)) == float(value)
    assert ticks(Fraction(1, 3 * TICKS_PER_SECOND)) == 0
    assert ticks(Fraction(2, 3 * TICKS_PER_SECOND)) == 1


def test_fractions_are_rounded_as_python_rounds_them() -> None:
    draws = random.Random(0)
    for _ in range(5000):
        below = draws.choice([1, 3, 7, 2 * TICKS_PER_SECOND, 6 * TICKS_PER_SECOND, draws.randrange(1, 10**15)])
        value = Fraction(draws.randrange(10**12), below)
        assert ticks(value) == round(value * TICKS_PER_SECOND)


def test_fractions_have_the_bound_of_other_numbers() -> None:
    most = Fraction(int(LONGEST))
    assert bounded(most) == LONGEST
    with pytest.raises(InputError, match="at most 1e\\+15"):
        bounded(most + Fraction(1, 3))
    with pytest.raises(InputError, match="at most 1e\\+15"):
        bounded(math.nan)
