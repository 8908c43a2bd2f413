"""Epsilon of composed Gaussian releases, computed by dp-accounting and never by hand.

Every release is told by ``z = noise std / true L2 sensitivity``; whether the sensitivity is that of replacing or of
removing one unit is settled there, so the library is always asked with its default relation (its REPLACE_ONE doubles
the sensitivity of a Gaussian in one accountant and not in the other).

Without subsampling, adaptively composed Gaussian mechanisms are exactly one Gaussian mechanism with
``1 / z^2 = sum_i 1 / z_i^2``, whose epsilon has a closed form. With Poisson subsampling the privacy loss distribution
(PLD) is composed numerically; Renyi accounting (RDP) is reported beside it and is 8 to 10 % looser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedsim.core.errors import InputError

_FINE, _COARSE = 1e-4, 1e-3  # intervals of privacy losses: both give bounds, the coarse one ten times as fast
_SAMPLED_ORDERS = (*(1 + k / 10 for k in range(10, 100)), *range(11, 64), 128, 256, 512)
_LARGEST_TARGET = 100.0
_MOST_PLD, _MOST_RELEASES = 200_000, 10**9
_LARGEST_PLD = 600.0  # epsilon by RDP above which a PLD would take gigabytes: its size is about epsilon / interval


@dataclass(frozen=True, order=True)
class Release:
    """One Gaussian release: its noise over its sensitivity, and the Poisson sampling rate (1: everybody takes part).

    `kind` says what is released ("restart", "step", ...); z = 0 is a release without noise.
    """

    kind: str
    z: float
    q: float = 1.0


Profile = Mapping[Release, int]
"""How many of each release one protected unit takes part in."""


def epsilon(profile: Profile, delta: float) -> float:
    """Epsilon at `delta`: the closed form where nothing is subsampled, else PLD (RDP where it does not fit or end)."""
    spent = {r: n for r, n in profile.items() if n > 0}
    if not spent:
        return 0.0
    if any(r.z == 0 for r in spent):
        return math.inf
    if all(r.q == 1 for r in spent):
        return epsilon_closed_form(spent, delta)
    many, by_rdp = _too_many(spent), epsilon_rdp(spent, delta)
    return by_rdp if many or by_rdp > _LARGEST_PLD else quick_pld(spent, delta)


def epsilon_closed_form(profile: Profile, delta: float) -> float:
    """Epsilon of ``mu^2 = sum n / z^2`` (all q = 1): Balle & Wang, arXiv 1805.06530."""
    import dp_accounting

    assert all(r.q == 1 for r in profile)
    mu = mu_of(profile)
    return float(dp_accounting.get_epsilon_gaussian(1.0 / mu, delta)) if mu > 0 else 0.0


def epsilon_pld(profile: Profile, delta: float, interval: float = _FINE) -> float:
    """Epsilon from the composed privacy loss distribution, an upper bound: tight to 1e-4 for `interval` 1e-4."""
    return _pld(tuple(profile.items()), delta, interval)


@lru_cache(maxsize=1024)
def _pld(spent: tuple[tuple[Release, int], ...], delta: float, interval: float) -> float:
    """It takes up to seconds, and runs of one scenario, a resumed one for example, ask the same again."""
    from dp_accounting import pld

    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    return float(accountant.compose(_event(dict(spent))).get_epsilon(delta))


def quick_pld(profile: Profile, delta: float) -> float:
    """`epsilon_pld` tight to about 1e-3, at intervals as coarse as that allows (its excess grows as n interval^2)."""
    profile = merged(profile)
    releases = sum(profile.values())
    return epsilon_pld(profile, delta, min(_COARSE, max(_FINE, math.sqrt(1e-3 / releases))))


def epsilon_rdp(profile: Profile, delta: float) -> float:
    """Epsilon from Renyi accounting over the library's orders (subsampled: those from 2 on, whose series converge)."""
    return _rdp(tuple(profile.items()), delta)


@lru_cache(maxsize=1024)
def _rdp(spent: tuple[tuple[Release, int], ...], delta: float) -> float:
    """As `_pld`: a search for noise asks for some twenty of them, and the next run of the scenario for the same."""
    from dp_accounting import rdp

    orders = None if all(r.q == 1 for r, _ in spent) else _SAMPLED_ORDERS
    return float(rdp.RdpAccountant(orders).compose(_event(dict(spent))).get_epsilon(delta))


def mu_of(profile: Profile) -> float:
    """The mu of Gaussian differential privacy, ``sqrt(sum n / z^2)``, of releases that are not subsampled."""
    return math.sqrt(sum(n / r.z**2 for r, n in profile.items()))


def mu_for(epsilon: float, delta: float) -> float:
    """The mu that spends (epsilon, delta) exactly."""
    import dp_accounting

    return 1.0 / float(dp_accounting.get_sigma_gaussian(epsilon, delta))


def calibrate(profile: Profile, target: float, delta: float) -> float:
    """The factor on every z of `profile` with which it spends `target` exactly, or a hair less.

    Closed form where nothing is subsampled; else a search by PLD around RDP's answer. The bracket stays near that
    answer: a PLD of much smaller z takes gigabytes.
    """
    assert all(r.z > 0 for r in profile)
    if all(r.q == 1 for r in profile):
        return mu_of(profile) / mu_for(target, delta)
    many = _too_many(profile)
    from scipy.optimize import brentq  # a second of start-up that only this search needs

    def excess(scale: float, of: Any) -> float:
        return float(of(scaled(profile, scale), delta)) - target

    low, high = 1e-2, 1.0
    while excess(high, epsilon_rdp) > 0:
        low, high = high, 2 * high
    upper = brentq(excess, low, high, args=(epsilon_rdp,), rtol=1e-4) if excess(low, epsilon_rdp) > 0 else low
    if target > _LARGEST_TARGET or many:  # hardly private, or very long: the looser bound has to do
        return float(upper) * 1.001
    while excess(upper, quick_pld) > 0:
        upper *= 1.01
    lower = 0.9 * upper
    while excess(lower, quick_pld) < 0:
        upper, lower = lower, 0.9 * lower
    found = float(brentq(excess, lower, upper, args=(quick_pld,), rtol=1e-4))
    while excess(found, quick_pld) > 0:  # the private side of the root
        found *= 1 + 1e-4
    return found


def _too_many(profile: Profile) -> bool:
    """Whether a PLD would take minutes: its time grows with the number of subsampled releases.

    Raises
    ------
    InputError
        There are so many that the rounding of Renyi's bound is no longer small.
    """
    releases = sum(n for r, n in profile.items() if r.q < 1)
    if releases > _MOST_RELEASES:
        message = f"found {releases:,} subsampled releases, allowed: at most {_MOST_RELEASES:,}, whose epsilon is known"
        raise InputError(message, key="run.rounds")
    return releases > _MOST_PLD


def scaled(profile: Profile, factor: float) -> dict[Release, int]:
    """The same releases with `factor` times their noise."""
    return {Release(r.kind, r.z * factor, r.q): n for r, n in profile.items()}


def merged(profile: Profile) -> dict[Release, int]:
    """The same privacy with one release in place of all that are not subsampled: composed, they are one Gaussian."""
    sampled = {r: n for r, n in profile.items() if r.q < 1}
    whole = {r: n for r, n in profile.items() if r.q == 1 and n > 0}
    return {**sampled, Release("whole", 1.0 / mu_of(whole)): 1} if whole else sampled


def _event(profile: Profile) -> Any:
    import dp_accounting as dpa

    def one(release: Release) -> Any:
        gaussian = dpa.GaussianDpEvent(release.z)
        return gaussian if release.q == 1 else dpa.PoissonSampledDpEvent(release.q, gaussian)

    return dpa.ComposedDpEvent([dpa.SelfComposedDpEvent(one(r), n) for r, n in profile.items() if n > 0])
