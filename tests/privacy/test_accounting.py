"""Epsilon against the exact values that were computed once with dp-accounting and recorded."""

from __future__ import annotations

import math

import pytest

from fedsim.core.errors import InputError
from fedsim.privacy.accounting import (
    Release,
    calibrate,
    epsilon,
    epsilon_closed_form,
    epsilon_pld,
    epsilon_rdp,
    scaled,
)

DELTA = 1e-5
PAPER = {  # target, T: Renyi epsilon, exact epsilon of the authors' noise over 2,000 rounds
    (1, 6): (0.7805, 0.7128), (1, 20): (0.7901, 0.7215), (1, 60): (0.7999, 0.7305), (1, 200): (0.7941, 0.7251),
    (3, 6): (2.4959, 2.2993), (3, 20): (2.5271, 2.3283), (3, 60): (2.5591, 2.3580), (3, 200): (2.5398, 2.3401),
    (5, 6): (4.1818, 3.8675), (5, 20): (4.2354, 3.9173), (5, 60): (4.2902, 3.9685), (5, 200): (4.2573, 3.9377),
    (8, 6): (6.9438, 6.4479), (8, 20): (7.0354, 6.5338), (8, 60): (7.1303, 6.6221), (8, 200): (7.0732, 6.5691),
}  # fmt: skip


def paper_profile(target: float, T: int, rounds: int = 2000) -> dict[Release, int]:
    alpha = 1 + math.ceil(2 * math.log(1 / DELTA) / target)
    z1, z2 = math.sqrt(1.25 * alpha * rounds / (T * target)), math.sqrt(5 * alpha * rounds / target)
    restarts = math.ceil(rounds / T)
    return {Release("restart", z1): restarts, Release("difference", z2): rounds - restarts}


@pytest.mark.parametrize("target,T", PAPER)
def test_the_closed_form_and_renyi_give_the_recorded_values(target: float, T: int) -> None:
    profile = paper_profile(target, T)
    rdp, exact = PAPER[target, T]
    assert epsilon_rdp(profile, DELTA) == pytest.approx(rdp, abs=1e-4)
    assert epsilon(profile, DELTA) == epsilon_closed_form(profile, DELTA) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("target,T", [(1, 20), (3, 20), (8, 60)])
def test_pld_agrees_with_the_closed_form(target: float, T: int) -> None:
    profile = paper_profile(target, T)
    assert epsilon_pld(profile, DELTA) == pytest.approx(epsilon_closed_form(profile, DELTA), abs=1e-3)
    assert epsilon_pld(profile, DELTA) < epsilon_rdp(profile, DELTA)


def test_why_the_library_is_never_asked_for_replace_one() -> None:
    """Its accountants disagree about what REPLACE_ONE does to a Gaussian; told when a new version changes that."""
    import dp_accounting as dpa
    from dp_accounting import pld, rdp

    event, replace = dpa.GaussianDpEvent(1.0), dpa.NeighboringRelation.REPLACE_ONE
    assert pld.PLDAccountant().compose(event).get_epsilon(DELTA) == pytest.approx(4.377, abs=1e-3)
    assert pld.PLDAccountant(replace).compose(event).get_epsilon(DELTA) == pytest.approx(9.997, abs=1e-3)
    by_rdp = rdp.RdpAccountant(neighboring_relation=replace).compose(event).get_epsilon(DELTA)
    assert by_rdp == pytest.approx(4.729, abs=1e-3)
    assert epsilon({Release("a", 1.0): 1}, DELTA) == pytest.approx(4.377, abs=1e-3)
    assert epsilon({Release("a", 0.5): 1}, DELTA) == pytest.approx(9.997, abs=1e-3)


def test_poisson_sampling_gives_the_recorded_values() -> None:
    profile = {Release("step", 1.0, 0.01): 1000}
    assert epsilon_rdp(profile, DELTA) == pytest.approx(2.1014, abs=1e-4)
    assert epsilon_pld(profile, DELTA) == pytest.approx(1.8282, abs=1e-4)
    assert 0 <= epsilon(profile, DELTA) - epsilon_pld(profile, DELTA) <= 1e-3


@pytest.mark.parametrize(
    "profile",
    [{Release("a", 1.0): 40, Release("b", 3.0): 7}, {Release("a", 1.0, 0.02): 500}, {Release("a", 9.0, 0.2): 50}],
)
@pytest.mark.parametrize("target", [0.5, 3.0])
def test_calibrated_noise_spends_the_target_and_not_more(profile: dict[Release, int], target: float) -> None:
    spent = epsilon(scaled(profile, calibrate(profile, target, DELTA)), DELTA)
    assert target * (1 - 1e-3) < spent <= target * (1 + 1e-9)


def test_a_very_long_run_is_calibrated_too() -> None:
    """A PLD of so many releases would take hours; Renyi's bound has to do, for the noise and for what is spent."""
    profile = {Release("round", 1.0, 0.5): 10**9}
    spent = epsilon(scaled(profile, calibrate(profile, 2.0, DELTA)), DELTA)
    assert 2.0 * (1 - 1e-2) < spent <= 2.0


def test_more_releases_than_can_be_counted_are_refused() -> None:
    """At 2^64 - 1 of them Renyi's bound is rounding errors, which the library takes for an epsilon of zero."""
    profile = {Release("round", 1e8, 0.5): 2**64 - 1}
    for ask in (lambda: calibrate(profile, 2.0, DELTA), lambda: epsilon(profile, DELTA)):
        with pytest.raises(InputError, match="allowed: at most 1,000,000,000") as caught:
            ask()
        assert caught.value.problems[0].key == "run.rounds"


def test_no_noise_is_no_privacy_and_no_release_costs_nothing() -> None:
    assert epsilon({Release("a", 0.0): 1}, DELTA) == math.inf
    assert epsilon({}, DELTA) == epsilon({Release("a", 0.0): 0}, DELTA) == 0.0
