"""Simulated time as an integer number of ticks.

Floating-point time breaks schedules that depend on ties: with FedFix's F-80 and a window of 0.2 s the fastest client
(0.2 s) would miss a tenth of its windows by rounding. A second is lcm(1, ..., 20) * 1000 ticks, so that decimals of up
to four digits and fractions of a second with denominators up to 20 are exact.
"""

from __future__ import annotations

from fractions import Fraction

from fedsim.core.errors import InputError

TICKS_PER_SECOND = 232_792_560 * 1000
LONGEST = 1e15
"""Seconds of the longest time that a scenario may name or draw: some 30 million years."""


def in_bounds(seconds: float | Fraction) -> bool:
    """Whether it is at most `LONGEST`; fractions compare themselves with floats slowly."""
    if isinstance(seconds, Fraction):
        return seconds.numerator <= int(LONGEST) * seconds.denominator
    return seconds <= LONGEST


def bounded(seconds: float | Fraction, what: str = "a time", key: str | None = None) -> float | Fraction:
    """The same number of seconds.

    Raises
    ------
    InputError
        It is more than `LONGEST`; sums of such times are no longer numbers.
    """
    if not in_bounds(seconds):
        raise InputError(f"found {what} of {float(seconds):g} seconds, allowed: at most {LONGEST:g}", key=key)
    return seconds


def exact(seconds: float) -> Fraction:
    """The decimal number a user wrote: ``exact(0.2) == Fraction(1, 5)``, which ``Fraction(0.2)`` is not."""
    return Fraction(repr(float(seconds)))


def ticks(seconds: float | Fraction) -> int:
    """The nearest number of ticks."""
    bounded(seconds)
    value = seconds if isinstance(seconds, Fraction) else exact(seconds)
    whole, rest = divmod(value.numerator * TICKS_PER_SECOND, value.denominator)
    return whole + (2 * rest + (whole & 1) > value.denominator)  # halves to even, as Fraction's own slower `round` does


def seconds(count: int) -> float:
    """Ticks as seconds."""
    return count / TICKS_PER_SECOND
