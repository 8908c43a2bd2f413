"""Simulated time as an integer number of ticks.

Floating-point time breaks schedules that depend on ties: with FedFix's F-80 and a window of 0.2 s the fastest client
(0.2 s) would miss a tenth of its windows by rounding. A second is lcm(1, ..., 20) * 1000 ticks, so that decimals of up
to four digits and fractions of a second with denominators up to 20 are exact.
"""

from __future__ import annotations

from fractions import Fraction

TICKS_PER_SECOND = 232_792_560 * 1000


def exact(seconds: float) -> Fraction:
    """The decimal number a user wrote: ``exact(0.2) == Fraction(1, 5)``, which ``Fraction(0.2)`` is not."""
    return Fraction(repr(float(seconds)))


def ticks(seconds: float | Fraction) -> int:
    """The nearest number of ticks."""
    value = seconds if isinstance(seconds, Fraction) else exact(seconds)
    return round(value * TICKS_PER_SECOND)


def seconds(count: int) -> float:
    """Ticks as seconds."""
    return count / TICKS_PER_SECOND
