"""Probability laws: their distributions, floors, redraws, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from fedsim.core.errors import InputError
from fedsim.participation.laws import ProbabilityLaw

LAW = TypeAdapter(ProbabilityLaw)

COUNT = 20_000


def drawn(value: Any, count: int = COUNT, seed: int = 0, purpose: str = "node", round_: int = 1) -> Any:
    return LAW.validate_python(value).draw(count, seed, purpose, round_)


@pytest.mark.parametrize("a,b", [(0.5, 0.5), (0.8, 0.8), (2.0, 5.0)])
def test_beta_probabilities(a: float, b: float) -> None:
    floor = 1e-3
    found = drawn({"beta": [a, b]})
    assert found.min() >= floor
    assert found.max() <= 1
    assert stats.kstest(found[found > floor], lambda x: _above(stats.beta(a, b), floor, x)).pvalue > 1e-6
    below = stats.beta(a, b).cdf(floor)
    assert abs((found == floor).mean() - below) < 5 * np.sqrt(below * (1 - below) / COUNT) + 1 / COUNT
    assert abs(found.mean() - a / (a + b)) < 5 * stats.beta(a, b).std() / np.sqrt(COUNT) + floor


def _above(law: Any, floor: float, x: Any) -> Any:
    return (law.cdf(x) - law.cdf(floor)) / (1 - law.cdf(floor))


def test_uniform_probabilities() -> None:
    found = drawn("uniform")
    assert found.min() >= 1e-3
    assert stats.kstest(found, "uniform").pvalue > 1e-6
    some = drawn({"uniform": [0.2, 0.6]})
    assert some.min() > 0.2
    assert some.max() <= 0.6
    assert stats.kstest((some - 0.2) / 0.4, "uniform").pvalue > 1e-6


@pytest.mark.parametrize("mu,std", [(0.1, 0.1), (0.3, 0.1), (0.0, 0.25)])
def test_bimodal_probabilities_are_two_truncated_normals(mu: float, std: float) -> None:
    floor = 1e-6
    found = drawn({"bimodal": mu, "std": std, "floor": floor})
    halves = [stats.truncnorm(-c / std, (1 - c) / std, loc=c, scale=std) for c in (mu, 1 - mu)]
    assert found.min() >= floor
    assert found.max() <= 1
    assert stats.kstest(found, lambda x: (halves[0].cdf(x) + halves[1].cdf(x)) / 2).pvalue > 1e-6
    left = (found < 0.5).mean()
    assert abs(left - 0.5) < 5 * np.sqrt(0.25 / COUNT)
    assert (
        drawn({"bimodal": mu, "floor": floor}).tolist() == drawn({"bimodal": mu, "std": 0.1, "floor": floor}).tolist()
    )


def test_the_floor_lifts_small_draws_only() -> None:
    low, high = drawn({"beta": [0.5, 0.5], "floor": 1e-9}), drawn({"beta": [0.5, 0.5], "floor": 0.2})
    assert np.array_equal(high, np.maximum(low, 0.2))
    assert (low < 0.2).mean() > 0.2
    assert drawn(0.0, 3).tolist() == [0, 0, 0]  # what the scenario says itself is taken as it is


def test_given_probabilities() -> None:
    assert drawn(0.3, 4).tolist() == [0.3] * 4
    assert drawn(1, 2).tolist() == [1.0, 1.0]
    assert drawn([0, 0.5, 1], 3).tolist() == [0, 0.5, 1]
    with pytest.raises(InputError, match=r"list of 3 .* allowed: 4"):
        drawn([0, 0.5, 1], 4)


def test_draws_stay_until_they_are_redrawn() -> None:
    law = {"beta": [0.8, 0.8], "redraw_every": 10}
    first = drawn(law, 50, round_=1)
    assert np.array_equal(drawn(law, 50, round_=10), first)
    assert not np.array_equal(drawn(law, 50, round_=11), first)
    assert np.array_equal(drawn(law, 50, round_=11), drawn(law, 50, round_=20))
    fixed = {"beta": [0.8, 0.8]}
    assert np.array_equal(drawn(fixed, 50, round_=1), drawn(fixed, 50, round_=99_999))
    assert not np.array_equal(drawn(fixed, 50, seed=1), drawn(fixed, 50))
    assert not np.array_equal(drawn(fixed, 50, purpose="link"), drawn(fixed, 50))


@pytest.mark.parametrize(
    "value",
    [
        1.5, -0.1, "often", True, None, {}, {"beta": [0.5]}, {"beta": [0.5, 0.0]},
        {"beta": [1.0, 1.0], "uniform": [0.0, 1.0]},
        {"uniform": [0.6, 0.2]}, {"uniform": [0.0, 1.2]}, {"bimodal": 2.0}, {"beta": [1.0, 1.0], "floor": 0.0},
        {"fixed": 0.5, "redraw_every": 3}, {"beta": [1.0, 1.0], "redraw_every": 0}, {"betta": [1.0, 1.0]}, [0.5, 2.0],
    ],
)  # fmt: skip
def test_laws_that_mean_nothing(value: Any) -> None:
    with pytest.raises(ValidationError):
        LAW.validate_python(value)


@pytest.mark.parametrize(
    "value",
    [0.5, [0.25, 1.0], {"beta": [0.5, 0.8]}, {"uniform": [0.1, 0.2]}, {"bimodal": 0.2, "std": 0.3, "redraw_every": 7}],
)
def test_laws_can_be_written_and_read_again(value: Any) -> None:
    law = LAW.validate_python(value)
    assert LAW.validate_python(law.model_dump(mode="json")) == law
