"""A client that was left out while its job was under way is left out also after a checkpoint, or where it moves to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.backends.guard import ClientError, Guard
from fedsim.backends.placement import merge_saved, split_saved
from fedsim.backends.ray.transport import as_array
from fedsim.backends.shard import Shard
from fedsim.clients.worker import Worker
from fedsim.core.job import Job
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

Make = Callable[..., Any]


@pytest.mark.parametrize("poisoned", [[4], [], [0, 2, 4, 5]])
def test_dropped_jobs_stay_dropped(quadratic: Make, poisoned: list[int]) -> None:
    problem = quadratic(n=6)
    b = problem.b.copy()
    b[poisoned] = 1e6
    np.savez(problem.file, A=problem.A, b=b, x0=problem.x0)
    s = parse(
        {
            "data": problem.section(),
            "algorithm": {"name": "ray_parts:Picky", "lr": 0.02},
            "run": {"dtype": "float64", "device": "cpu"},
        }
    )
    a = assemble(s)
    build = partial(Worker, algorithm=s.algorithm, pipeline=a.pipeline)
    every, owner = [np.array([0, 1, 2]), np.array([3, 4, 5])], np.array([0, 0, 0, 1, 1, 1])
    shards = [Shard(a.task.shard(mine), build, mine, True) for mine in every]
    x, ones = as_array(a.task.initial()), np.ones(3, dtype=np.int64)
    for shard, mine in zip(shards, every, strict=True):
        shard.dispatch(mine, ones, ones, 10 + mine, {"x": x})
        shard.compute()
    saved = merge_saved([{k: torch.as_tensor(v) for k, v in shard.save()[0].items()} for shard in shards])
    parts = split_saved(saved, 1 - owner)  # all change places
    again = [Shard(a.task.shard(mine), build, mine, True) for mine in reversed(every)]
    for k, shard in enumerate(again):
        shard.reset({n: as_array(v) for n, v in parts.get(k, {}).items()})
    (holder,) = [shard for shard in again if shard.save()[0].get("done.numbers") is not None]
    holder.collect(10 + np.arange(6), {})
    assert sorted(holder.collected().dropped) == [10 + i for i in poisoned]
    assert {n - 10: lost.client for n, lost in holder.collected().dropped.items()} == {i: i for i in poisoned}
    assert all("raised" in lost.why for lost in holder.collected().dropped.values())


class Exiting:
    """As much of a worker as a guard asks: the odd clients among several end the process, or interrupt it."""

    def __init__(self, raised: type[BaseException]) -> None:
        self.raised, self.store = raised, self

    def gather(self, clients: Any) -> dict[str, torch.Tensor]:
        return {"kept": torch.zeros(len(clients), 1)}

    def scatter(self, clients: Any, rows: Any) -> None:
        pass

    def run(self, job: Job) -> dict[str, torch.Tensor]:
        if ((job.clients % 2 == 1) & (job.steps > 0)).any():
            raise self.raised(3)
        return {"delta": torch.as_tensor(job.steps).unsqueeze(1)}


class Own(BaseException):
    pass


@pytest.mark.parametrize("raised", [SystemExit, Own, ValueError])
def test_a_client_whose_work_would_end_its_process_is_named_or_left_out(raised: type[BaseException]) -> None:
    """An actor that goes down with it takes the other clients along, and nobody says whose fault it was."""
    clients, ones = np.arange(4), np.ones(4, dtype=np.int64)
    job = Job(clients, ones, ones, {}, clients)
    guard = Guard(Exiting(raised), drop=True)  # type: ignore[arg-type]
    assert guard.run(job)["delta"].flatten().tolist() == [1, 0, 1, 0]
    assert sorted(guard.dropped) == [1, 3]
    assert all(f"{raised.__name__}: 3" in failed.why for failed in guard.dropped.values())
    with pytest.raises(ClientError, match=f"{raised.__name__}: 3"):
        Guard(Exiting(raised), drop=False).run(job)  # type: ignore[arg-type]


def test_an_interrupt_is_no_client_s_fault() -> None:
    clients, ones = np.arange(4), np.ones(4, dtype=np.int64)
    with pytest.raises(KeyboardInterrupt):
        Guard(Exiting(KeyboardInterrupt), drop=True).run(Job(clients, ones, ones, {}, clients))  # type: ignore[arg-type]
