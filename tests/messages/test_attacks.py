"""What attackers send: the numbers of the papers' rules, and properties against obvious references."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reference import attacks as reference

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.core.fields import make_part
from fedsim.core.job import Contribution, Job, RunFacts
from fedsim.core.registry import lookup
from fedsim.messages.attack import Attack
from fedsim.messages.attacks import most_hidden

HONEST = np.array([[1.0, 2, -1], [2, 1, 0], [0, 2, 1], [1, 0, -2], [3, 1, 1]])
OWN = np.array([[4.0, 5, 6], [7, 8, 9]])
RUN = RunFacts(3, 7, (5, 6))
TABLE: list[tuple[str, dict[str, Any], list[float]]] = [
    ("alie", {"z": 1.0}, [0.2598245749, 0.3633399735, -1.503840481]),
    ("alie", {}, [1.111139859, 0.988034606, -0.5303242088]),
    ("min_max", {}, [0.2749603368, 0.3744465863, -1.4865320751]),
    ("min_max", {"direction": "sign"}, [-0.2819836065, -0.4819836065, 1.4819836065]),
    ("min_max", {"direction": "unit"}, [-0.3712778495, -0.3182381567, 0.0530396928]),
    ("ipm", {}, [-0.14, -0.12, 0.02]),
    ("ipm", {"eps": 2.0}, [-2.8, -2.4, 0.4]),
    ("sign_flip", {"of": "mean"}, [-1.4, -1.2, 0.2]),
    ("mimic", {}, [1.0, 2, -1]),
    ("mimic", {"who": 3}, [1.0, 0, -2]),
    ("mimic", {"who": 30}, [3.0, 1, 1]),
    ("zero", {}, [0.0, 0, 0]),
    ("nan", {}, [float("nan")] * 3),
]


def made(name: str, **keys: Any) -> Attack:
    part = make_part(lookup("attack", name), {"attackers": [5, 6], **keys})
    assert isinstance(part, Attack)
    return part


def delivered(part: Attack, values: Any, clients: list[int], number: int = 1, run: RunFacts = RUN) -> Any:
    """What is combined of the rows that these clients send."""
    who, one = np.array(clients), np.ones(len(clients), dtype=np.int64)
    message, _ = part.send({"v": torch.as_tensor(values)}, {}, Job(who, number * one, one, {}), run)
    return part.receive(message, Contribution(number, who, number * one, one), run)["v"].numpy()


@pytest.mark.parametrize("name,keys,expected", TABLE, ids=[f"{n} {k}" for n, k, _ in TABLE])
def test_the_message_of_every_attack(name: str, keys: dict[str, Any], expected: list[float]) -> None:
    found = delivered(made(name, **keys), np.vstack([HONEST, OWN]), list(range(7)))
    assert found[:5].tolist() == HONEST.tolist()
    for row in found[5:]:
        assert row.tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_sign_flip_of_the_own_message() -> None:
    found = delivered(made("sign_flip", scale=2.0), np.vstack([HONEST, OWN]), list(range(7)))
    assert found.tolist() == [*HONEST.tolist(), *(-2 * OWN).tolist()]


@pytest.mark.parametrize(
    "n,b,z",
    [
        (7, 2, 0.2533471031),
        (26, 5, 0.1800123698),
        (16, 3, 0.0965586153),
        (25, 11, 1.0675705239),
        (50, 24, 1.4260768723),
    ],
)
def test_how_far_a_little_is_enough(n: int, b: int, z: float) -> None:
    assert most_hidden(n, b) == pytest.approx(z, abs=1e-9)
    assert most_hidden(n, b) == pytest.approx(reference.auto_z(n, b), abs=1e-12)


def test_z_follows_the_cohort() -> None:
    """Of the seven clients four were asked, one of them an attacker: z is that of 4 and 1."""
    rows = np.vstack([HONEST[[0, 1, 4]], OWN[:1]])
    found = delivered(made("alie"), rows, [0, 1, 4, 5])
    assert found[3] == pytest.approx(reference.alie(rows[:3], reference.auto_z(4, 1)), abs=1e-12)


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(2, 5)), elements=st.floats(-10, 10, width=32)),
    st.sampled_from([("alie", {"z": 1.5}), ("ipm", {"eps": 0.7}), *(("min_max", {"direction": d}) for d in
                    ("std", "sign", "unit"))]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_against_the_obvious_reference(honest: Any, attack: tuple[str, dict[str, Any]]) -> None:
    name, keys = attack
    if name == "min_max" and (np.abs(honest.mean(0)).max() < 1e-3 or np.ptp(honest, axis=0).max() < 1e-3):
        return  # no direction, or no room
    n = len(honest)
    found = delivered(made(name, **keys), np.vstack([honest, OWN[:1, :1].repeat(honest.shape[1], 1)]), [*range(n), 20])
    assert np.array_equal(found[n], np.full(honest.shape[1], 4.0))  # nobody of these attacks
    part = make_part(lookup("attack", name), {"attackers": [20], **keys})
    values = np.vstack([honest, OWN[:1, :1].repeat(honest.shape[1], 1)])
    found = delivered(part, values, [*range(n), 20], run=RunFacts(3, 21, (20,)))  # type: ignore[arg-type]
    expected = getattr(reference, name)(honest, *keys.values())
    assert found[n] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "random"])
def test_draws_belong_to_attacker_round_and_coordinate(name: str) -> None:
    part, values = made(name), np.zeros((4, 3))
    first = delivered(part, values, [0, 5, 6, 1])
    assert np.array_equal(delivered(part, values[:2], [6, 5])[::-1], first[1:3])  # nobody else has a say
    again = delivered(part, values, [0, 5, 6, 1], number=2)
    drawn = np.concatenate([first[1:3].ravel(), again[1:3].ravel()])
    assert len(np.unique(drawn)) == 12
    assert np.array_equal(first[[0, 3]], np.zeros((2, 3)))


def test_gaussian_numbers_have_the_mean_and_spread_that_are_asked_for() -> None:
    drawn = delivered(made("gaussian", mu=3.0, sigma=0.5), np.zeros((1, 20_000)), [5])
    assert drawn.mean() == pytest.approx(3.0, abs=5 * 0.5 / 20_000**0.5)
    assert drawn.std() == pytest.approx(0.5, rel=0.03)
    evenly = delivered(made("random", scale=2.0), np.zeros((1, 20_000)), [5])
    assert -2 <= evenly.min() < -1.99
    assert 1.99 < evenly.max() <= 2


def test_numbers_of_one_per_client_stay_honest() -> None:
    one = np.ones(3, dtype=np.int64)
    messages = {"v": torch.ones(3, 2), "steps": torch.full((3, 1), 4.0)}
    part = made("ipm")
    found = part.receive(messages, Contribution(1, np.array([0, 5, 6]), one, one), RUN)
    assert found["steps"].tolist() == [[4.0]] * 3
    assert found["v"].flatten().tolist() == pytest.approx([1.0, 1.0, *[-0.1] * 4])


def test_a_client_of_several_contributions_is_replaced_in_all() -> None:
    """Under fedbuff a client may be in a combine more than once."""
    found = delivered(made("ipm", eps=1.0), [[1.0, 1], [9, 9], [3, 3], [9, 9]], [0, 5, 1, 5])
    assert found.tolist() == [[1, 1], [-2, -2], [3, 3], [-2, -2]]


@pytest.mark.parametrize(
    "keys,key",
    [
        ({"attackers": 7}, "attack.attackers"), ({"attackers": [5, 5]}, "attack.attackers"),
        ({"attackers": [7]}, "attack.attackers"), ({"attackers": list(range(7))}, "attack.attackers"),
        ({"attackers": 2, "placement": "degree"}, "attack.placement"),
        ({"attackers": [2], "placement": "cut"}, "attack.placement"),
        ({"attackers": 2, "knowledge": "neighbours"}, "attack.knowledge"),
    ],
)  # fmt: skip
def test_what_is_refused(keys: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        made("ipm", **keys).check({}, RunFacts(0, 7))
    assert [p.key for p in caught.value.problems] == [key]


def test_how_many_attack() -> None:
    def count(attackers: Any, n: int) -> int:
        return len(made("zero", attackers=attackers).attacking(RunFacts(1, n)))

    assert [count(0, 7), count(3, 7), count(0.5, 10), count(0.01, 10), count([], 4)] == [0, 3, 5, 1, 0]


@dataclass(frozen=True, kw_only=True)
class SaysNothing(fedsim.Attack):
    """An attack that needs its own message alone, and forgets to say what it makes of it."""

    @property
    def local(self) -> bool:
        return True

    def messages(self, honest: Any, own: Any, key: str, arrived: Any, run: Any) -> Any:
        return own


def test_a_local_attack_without_alone_is_named(tmp_path: Path) -> None:
    scenario = {
        "data": {"dataset": "digits", "clients": 3, "limit": 60}, "model": {"name": "linear"},
        "algorithm": {"name": "fedavg"}, "run": {"rounds": 1},
        "attack": {"name": "test_attacks:SaysNothing", "attackers": 1},
    }  # fmt: skip
    with pytest.raises(RunError, match="SaysNothing is local, but has no `alone`"):
        fedsim.run(scenario, out=tmp_path / "run")
