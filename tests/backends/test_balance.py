"""What clients cost is learned from the seconds of jobs, and clients are divided so that no actor lags for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsim.backends import balance as module
from fedsim.backends.balance import RATIO, Balance, Stopwatch, divided
from fedsim.backends.placement import place
from fedsim.core.arrays import Floats, Ints

SECONDS = 0.1  # of a client's job
Truth = Callable[[int, Ints, int], float]
"""Seconds of a job of shard k, of these clients, in a round."""


class Simulated:
    """Actors that take as long as they are said to, and a `Balance` that hears of it."""

    def __init__(self, predicted: Floats, shards: int, truth: Truth, at: dict[int, int] | None = None) -> None:
        self.owner, self.truth, self.shards = place(predicted, shards), truth, shards
        self.at = at or {k: k for k in range(shards)}
        self.balance = Balance(predicted, self.members)
        self.divisions: list[int] = []
        self.round = 0

    @property
    def members(self) -> list[Ints]:
        return [np.flatnonzero(self.owner == k) for k in range(self.shards)]

    def rounds(self, count: int, cohort: Callable[[int], Ints] | None = None) -> None:
        for _ in range(count):
            everybody = np.arange(len(self.owner))
            chosen = everybody if cohort is None else cohort(self.round)
            for k, mine in enumerate(self.members):
                part = np.intersect1d(mine, chosen)
                if len(part):
                    whole = len(part) == len(mine)
                    self.balance.hear(k, [(self.truth(k, part, self.round), None if whole else part.astype(np.int32))])
            self.balance.judge(self.at)
            self.round += 1
            if self.balance.due:
                owner = self.balance.better(self.owner, self.at, divided)
                if owner is not None:
                    self.owner = owner
                    self.balance.moved(self.members, 0.1)
                    self.divisions.append(self.round)

    def lag(self) -> float:
        """The slowest actor in times of the mean, over many rounds."""
        totals = np.zeros(max(self.at.values()) + 1)
        for number in range(50):
            for k, mine in enumerate(self.members):
                totals[self.at[k]] += self.truth(k, mine, number)
        return float(totals.max() / totals.mean())


def test_dear_clients_that_nobody_predicted_are_spread() -> None:
    """All seem alike; those of one shard take four times as long."""
    cost = np.ones(40)
    cost[place(np.ones(40), 4) == 2] = 4.0
    simulated = Simulated(np.ones(40), 4, lambda _, mine, __: SECONDS * float(cost[mine].sum()))
    assert simulated.lag() > 2
    simulated.rounds(200)
    assert simulated.lag() < 1.1
    assert 1 <= len(simulated.divisions) <= 3
    assert simulated.divisions[0] < 15
    assert np.corrcoef(simulated.balance.cost, cost)[0, 1] > 0.5


def test_a_slow_actor_gets_fewer_clients() -> None:
    slow = np.array([1.0, 1.0, 3.0])
    simulated = Simulated(np.ones(30), 3, lambda k, mine, _: SECONDS * float(slow[k]) * len(mine))
    simulated.rounds(300)
    assert simulated.lag() < RATIO
    assert len(simulated.divisions) <= 4
    counts = [len(mine) for mine in simulated.members]
    assert counts[2] < min(counts[:2])
    assert simulated.balance.slowness[2] > max(simulated.balance.slowness[:2])


def test_cohorts_drawn_at_random_tell_which_clients_are_dear() -> None:
    """Each job has other clients, so that costs are told apart although they always come in sums."""
    random = np.random.default_rng(0)
    cost = random.permutation(np.repeat([0.5, 4.0], 30))
    simulated = Simulated(np.ones(60), 3, lambda _, mine, __: SECONDS * float(cost[mine].sum()))
    simulated.rounds(400, lambda _: np.sort(random.choice(60, 20, replace=False)))
    learned = simulated.balance.cost
    assert np.corrcoef(learned, cost)[0, 1] > 0.9
    assert learned.sum() == pytest.approx(SECONDS * cost.sum(), rel=0.2)
    assert simulated.lag() < RATIO


def test_noise_moves_nobody() -> None:
    """Every actor is the slowest one now and then, some rounds take ten times as long; and rounds of milliseconds."""
    random = np.random.default_rng(1)

    def truth(_: int, mine: Ints, __: int) -> float:
        return SECONDS * len(mine) * float(random.lognormal(0, 0.3)) * (10.0 if random.random() < 0.02 else 1.0)

    noisy = Simulated(np.ones(20), 4, truth)
    noisy.rounds(1000)
    assert len(noisy.divisions) <= 1
    short = Simulated(np.ones(20), 4, lambda k, _, __: 1e-3 * (1 + k))
    short.rounds(1000)
    assert not short.divisions


def test_one_slow_round_is_no_reason() -> None:
    simulated = Simulated(np.ones(20), 2, lambda k, mine, number: 100.0 if number == 6 and k else SECONDS * len(mine))
    simulated.rounds(300)
    assert not simulated.divisions


def test_what_cannot_be_better_is_tried_ever_less_often() -> None:
    """One client takes longer than all others together: it ends alone, and nothing goes on moving."""
    cost = np.ones(12)
    cost[5] = 50.0
    simulated = Simulated(np.ones(12), 3, lambda _, mine, __: SECONDS * float(cost[mine].sum()))
    simulated.rounds(600)
    early = len(simulated.divisions)
    assert (simulated.owner == simulated.owner[5]).sum() <= 2
    simulated.rounds(600)
    assert len(simulated.divisions) <= early + 2
    assert early <= 6


def test_another_load_of_a_machine_is_met_again() -> None:
    """One actor is slow at first, later another one."""

    def truth(k: int, mine: Ints, number: int) -> float:
        slow = k == (0 if number < 200 else 1)
        return SECONDS * len(mine) * (3.0 if slow else 1.0)

    simulated = Simulated(np.ones(24), 2, truth)
    simulated.rounds(200)
    first = [len(mine) for mine in simulated.members]
    assert first[0] < first[1]
    simulated.rounds(300)
    second = [len(mine) for mine in simulated.members]
    assert second[1] < second[0]


def test_what_is_heard_after_a_loss_is_not_believed() -> None:
    simulated = Simulated(np.ones(8), 2, lambda _, mine, __: SECONDS * len(mine))
    simulated.rounds(10)
    before = simulated.balance.cost.copy()
    simulated.balance.disregard()
    simulated.balance.hear(0, [(100.0, None)] * 10)
    np.testing.assert_array_equal(simulated.balance.cost, before)
    assert not simulated.balance.due


def test_shards_of_one_actor_count_together() -> None:
    """After a loss without room for another actor one has two shards: its clients go to the others."""
    simulated = Simulated(np.ones(30), 3, lambda _, mine, __: SECONDS * len(mine), at={0: 0, 1: 0, 2: 1})
    simulated.rounds(100)
    assert simulated.divisions
    assert simulated.lag() < RATIO
    assert all(len(mine) for mine in simulated.members)


@pytest.mark.parametrize("seed", range(20))
def test_divisions(seed: int) -> None:
    """Everybody is somewhere, no shard is empty, what is expected is what comes out, and what is balanced stays."""
    random = np.random.default_rng(seed)
    n, shards = int(random.integers(3, 80)), int(random.integers(2, 4))
    cost, owner = (
        random.pareto(1.5, n) + 0.1,
        np.concatenate([np.arange(shards), random.integers(0, shards, n - shards)]),
    )
    at, slowness = {k: k for k in range(shards)}, random.uniform(0.5, 2.0, shards)
    new = divided(cost, owner, at, slowness)
    assert set(new.tolist()) == set(range(shards))
    loads = np.bincount(new, cost, minlength=shards) * slowness
    share = cost.sum() / (1 / slowness).sum()
    assert loads.max() <= 2.1 * max(share, cost.max() * slowness.min())
    again = divided(cost, new, at, slowness)
    assert np.count_nonzero(again != new) <= max(2, 0.1 * n)


def test_few_clients_move_where_little_is_wrong() -> None:
    cost, owner = np.ones(1000), np.repeat(np.arange(4), 250)
    cost[owner == 3] *= 1.2
    new = divided(cost, owner, {k: k for k in range(4)}, np.ones(4))
    loads = np.bincount(new, cost)
    assert 20 <= np.count_nonzero(new != owner) <= 50
    assert loads.max() < 1.02 * loads.mean()


def test_swaps() -> None:
    """Two dear clients together, two cheap ones together: one of each moves."""
    new = divided(np.array([5.0, 5.0, 3.0, 3.0]), np.array([0, 0, 1, 1]), {0: 0, 1: 1}, np.ones(2))
    assert new.tolist() == [0, 1, 1, 0]


def test_stopwatch_says_whose_jobs_it_timed() -> None:
    import torch

    from fedsim.core.job import Job

    class Worker:
        initial = torch.zeros(3)

        def run(self, job: Any) -> Any:
            return {"x": torch.zeros(len(job.clients), 3)}

    clients = np.array([2, 5, 7])
    watch = Stopwatch(Worker(), clients)
    for some in (clients, clients[1:]):
        ones = np.ones(len(some), dtype=np.int64)
        watch.run(Job(some, ones, ones, {}))
    (first, everybody), (second, part) = watch.spent
    assert min(first, second) > 0
    assert everybody is None
    assert part is not None
    assert part.tolist() == [5, 7]
    assert watch.initial is Worker.initial


def test_thresholds_are_those_of_the_docs() -> None:
    assert (RATIO, module._WINDOW * module._WINDOWS, module._LEAST, module._WORTH) == (1.3, 8, 0.01, 1.0)
