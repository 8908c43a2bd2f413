"""The local-training loop: rows in any order, chunks, and the in-process backend's pending jobs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.algorithms.dspodfl import DPSGD, DSpodFL
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.scaffold import Scaffold
from fedsim.algorithms.work import LrDecay
from fedsim.backends.in_process import Vectorized
from fedsim.backends.shard import Shard
from fedsim.clients.worker import Worker, default_chunk_rows
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.data.sets import Quadratic
from fedsim.objective.quadratic import QuadraticTask

N, D = 7, 3


@pytest.fixture
def task() -> QuadraticTask:
    random = np.random.default_rng(0)
    arrays = (
        random.uniform(0.5, 2, (N, D)),
        random.standard_normal((N, D)),
        random.standard_normal(D),
        np.full(N, 1 / N),
    )
    data = Quadratic(*(torch.as_tensor(a) for a in arrays), noise=0.2)
    return QuadraticTask(data, 4, torch.device("cpu"), torch.float64)


def job(clients: Any, steps: Any, received: Any, rounds: Any = 1) -> Job:
    clients = np.asarray(clients)
    return Job(clients, np.broadcast_to(rounds, clients.shape).astype(np.int64), np.asarray(steps), received)


class Remembering(ServerAlgorithm):
    """Keeps its last delta and how often it worked."""

    def init_client(self, params: Any) -> Any:
        return {"last": torch.zeros_like(params), "times": torch.zeros_like(params[..., :1])}

    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        delta = local["x"] - received["x"]
        return {"delta": delta, "before": client["last"]}, {}, {"last": delta, "times": client["times"] + 1}


# --- local work -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 100])
def test_rows_stay_with_their_clients_in_any_order(task: QuadraticTask, chunk_rows: int) -> None:
    algorithm = Scaffold(lr=0.1, momentum=0.5)
    received = algorithm.broadcast(algorithm.init(task.initial()))
    clients, steps = np.array([4, 0, 6, 2, 5]), np.array([1, 3, 2, 3, 5])
    found = Worker(task, algorithm, chunk_rows).run(job(clients, steps, received))
    for i in range(5):
        alone = Worker(task, algorithm).run(job(clients[i : i + 1], steps[i : i + 1], received))
        for k in found:
            assert (found[k][i] - alone[k][0]).abs().max() < 1e-14, (k, i)


def test_each_row_may_start_from_its_own_model_in_its_own_round(task: QuadraticTask) -> None:
    """As after a merge of asynchronous jobs: the learning rate and the noise follow the row's round."""
    algorithm = FedAvg(lr=0.1, lr_decay=LrDecay(exponential=0.5))
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clients, steps, rounds = np.array([1, 5, 3]), np.array([2, 4, 1]), np.array([3, 1, 2])
    together = Worker(task, algorithm).run(job(clients, steps, {"x": x}, rounds))["delta"]
    for i in range(3):
        alone = Worker(task, algorithm).run(job(clients[[i]], steps[[i]], {"x": x[i]}, rounds[[i]]))["delta"]
        assert (together[i] - alone[0]).abs().max() < 1e-15
    assert (together[1] - Worker(task, algorithm).run(job([5], [4], {"x": x[1]}, 2))["delta"][0]).abs().max() > 1e-3


def test_local_sgd_step_by_step(task: QuadraticTask) -> None:
    algorithm = FedAvg(lr=0.1, momentum=0.9, weight_decay=0.3, clip=0.5)
    x = task.initial()
    delta = Worker(task, algorithm).run(job([2], [4], {"x": x}, 6))["delta"][0]
    plan = task.plan(np.array([2]), np.array([6]), np.array([4]), 32, False)
    y, v = x.clone(), torch.zeros(D, dtype=torch.float64)
    for k in range(4):
        g = plan.oracle(k, 1, torch.full((1, 1), 0.1)).grad(y.unsqueeze(0))[0]
        g = g * min(1.0, 0.5 / float(g.norm()))
        v = 0.9 * v + g + 0.3 * y
        y = y - 0.1 * v
    assert (delta - (y - x)).abs().max() < 1e-15
    assert delta.abs().max() > 1e-3


@pytest.mark.parametrize("algorithm", [FedAvg, DPSGD])
def test_one_plain_step_is_sent_as_the_gradient_that_it_follows(task: QuadraticTask, algorithm: Any) -> None:
    """To the last bit, whoever else has work, as the difference of two models would not be."""
    x = 1e6 + torch.randn(4, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clients, steps, rounds = np.array([4, 1, 6, 2]), np.array([1, 0, 1, 1]), np.array([3, 1, 2, 3])
    known = algorithm(lr=0.1, lr_decay=LrDecay(exponential=0.5))
    delta = Worker(task, known).run(job(clients, steps, {"x": x}, rounds))["delta"]
    for i in range(4):
        one = slice(i, i + 1)
        alone = Worker(task, known).run(job(clients[one], steps[one], {"x": x[one]}, rounds[one]))["delta"]
        assert torch.equal(delta[one], alone)
        rate = torch.full((1, 1), 0.1 * 0.5 ** (rounds[i] - 1), dtype=torch.float64)
        plan = task.plan(clients[one], rounds[one], np.ones(1, dtype=np.int64), 32, False)
        wanted = plan.oracle(0, 1, rate).grad(x[one]) * -rate * steps[i]
        assert torch.equal(delta[one], wanted)
        assert wanted.abs().max() > 1e-3 or not steps[i]


class Doubled(DPSGD):
    """Reads x where the method that it overrides reads how far it moved."""

    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"x": received["x"]}, {"delta": 2 * (local["x"] - received["x"])}, client


class Elsewhere(DPSGD):
    def begin(self, received: Any, client: Any) -> Any:
        return {"x": received["x"] + 1.0}


class Reporting(FedAvg):
    def report(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        travels, stays, kept = super().report(local, received, client, effort)
        return {"delta": travels["delta"] + 0 * local["x"]}, stays, kept


class Wrapped(FedAvg):
    @functools.wraps(FedAvg.message)
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": local["x"] - received["x"]}, {}, client


@pytest.mark.parametrize("algorithm", [Elsewhere, Reporting, Wrapped])
def test_who_does_more_than_the_engine_knows_gets_x(task: QuadraticTask, algorithm: Any) -> None:
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta = Worker(task, algorithm(lr=0.1)).run(job([4, 1, 6], [1, 1, 1], {"x": x}))["delta"]
    plan = task.plan(np.array([4, 1, 6]), np.ones(3, dtype=np.int64), np.ones(3, dtype=np.int64), 32, False)
    start = x + (1.0 if algorithm is Elsewhere else 0.0)
    wanted = start - 0.1 * plan.oracle(0, 3, torch.full((3, 1), 0.1)).grad(start) - x
    assert (delta - wanted).abs().max() < 1e-14


def test_a_method_that_overrides_one_that_reads_the_change_alone_finds_x(task: QuadraticTask) -> None:
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    work = job([4, 1, 6, 2], [1, 0, 1, 1], {"x": x})
    once, twice = (Worker(task, kind(lr=0.1)).run(work)["delta"] for kind in (DPSGD, Doubled))
    assert (2 * once - twice).abs().max() < 1e-14
    assert twice.abs().max() > 1e-3


def test_who_does_nothing_keeps_everything(task: QuadraticTask) -> None:
    worker, x = Worker(task, Remembering(lr=0.1)), task.initial()
    first = worker.run(job([0, 1, 2], [2, 3, 1], {"x": x}))["delta"]
    kept = worker.store.gather(np.arange(N))
    second = worker.run(job([0, 1, 2], [2, 0, 1], {"x": x}, 2))
    assert torch.equal(second["before"], first)
    assert not second["delta"][1].any()
    after = worker.store.gather(np.arange(N))
    assert torch.equal(after["last"][1], kept["last"][1])
    assert after["times"][:, 0].tolist() == [2, 1, 2, 0, 0, 0, 0]
    assert torch.equal(after["last"][3:], torch.zeros(4, D, dtype=torch.float64))


def test_a_round_in_which_nobody_works(task: QuadraticTask) -> None:
    algorithm = DSpodFL(lr=0.1)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Worker(task, algorithm).run(job(np.arange(N), np.zeros(N, dtype=int), {"x": x}))
    assert torch.equal(found["x"], x)
    assert not found["delta"].any()


def test_what_was_received_is_left_alone(task: QuadraticTask) -> None:
    for received in (task.initial(), task.initial().expand(N, -1).clone()):
        before = received.clone()
        Worker(task, FedAvg(lr=0.1), 2).run(job(np.arange(N), [1, 2, 3, 1, 2, 3, 1], {"x": received}))
        assert torch.equal(received, before)


def test_chunks_fit_the_cache_whatever_the_model(task: QuadraticTask) -> None:
    rows = default_chunk_rows(task, 32)
    assert rows >= N
    wide = QuadraticTask(
        Quadratic(torch.ones(1, 2_000_000), torch.ones(1, 2_000_000), torch.zeros(2_000_000), torch.ones(1)),
        0, torch.device("cpu"), torch.float32,
    )  # fmt: skip
    assert default_chunk_rows(wide, 32) == 1


# --- the in-process backend -----------------------------------------------------------------------


@pytest.fixture
def backend(task: QuadraticTask) -> Vectorized:
    return Vectorized(Worker(task, Remembering(lr=0.1)))


def test_jobs_are_computed_together_and_collected_in_any_order(task: QuadraticTask, backend: Vectorized) -> None:
    x = torch.randn(2, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    backend.dispatch(job([0, 3], [2, 1], {"x": x[0]}, 1))
    backend.dispatch(job([5], [3], {"x": x[1]}, 2))
    late, early = backend.collect(np.array([5, 0])), backend.collect(np.array([3]))
    for found, client, steps, start, round_ in (
        (late["delta"][0], 5, 3, x[1], 2),
        (late["delta"][1], 0, 2, x[0], 1),
        (early["delta"][0], 3, 1, x[0], 1),
    ):
        alone = Worker(task, FedAvg(lr=0.1)).run(job([client], [steps], {"x": start}, round_))["delta"][0]
        assert (found - alone).abs().max() < 1e-15


def test_one_job_collected_as_it_is(task: QuadraticTask, backend: Vectorized) -> None:
    backend.dispatch(job([4, 1], [1, 2], {"x": task.initial()}))
    found = backend.collect(np.array([4, 1]))["delta"]
    backend.dispatch(job([4, 1], [1, 2], {"x": task.initial()}))
    swapped = backend.collect(np.array([1, 4]))["delta"]
    assert torch.equal(found, swapped.flip(0))


def test_nothing_is_computed_before_it_is_needed(task: QuadraticTask, backend: Vectorized) -> None:
    backend.dispatch(job([0], [1], {"x": task.initial()}))
    assert not backend.worker.store.gather(np.array([0]))["times"].any()
    backend.collect(np.array([0]))
    assert backend.worker.store.gather(np.array([0]))["times"].item() == 1


def test_as_many_are_computed_ahead_as_there_is_room_for(
    task: QuadraticTask, backend: Vectorized, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that end first; what has no room is computed when it is asked for."""
    sizes: list[list[int]] = []
    run = backend.worker.run

    def counted(job: Job) -> Any:
        sizes.append(job.numbers.tolist())
        return run(job)

    monkeypatch.setattr(backend.worker, "run", counted)
    monkeypatch.setattr(backend, "_most", 4)
    ones = np.ones(N, dtype=np.int64)
    ends = np.array([7.0, 3.0, 1.0, 5.0, 2.0, 6.0, 4.0])
    backend.dispatch(Job(np.arange(N), ones, ones, {"x": task.initial()}, ends=ends))
    backend.collect(np.array([5]))
    assert sorted(sizes.pop()) == [1, 2, 4, 5]
    backend.collect(np.array([2, 4]))
    assert not sizes
    backend.collect(np.array([6]))  # there is room for three now
    assert sorted(sizes.pop()) == [0, 3, 6]
    found = {c: backend.collect(np.array([c]))["delta"] for c in (3, 0, 1)}
    assert not sizes
    for client, delta in found.items():
        alone = Worker(task, FedAvg(lr=0.1)).run(job([client], [1], {"x": task.initial()}, 1))["delta"]
        assert (delta - alone).abs().max() < 1e-15
    assert not backend.save().get("done.numbers", torch.empty(0)).numel()


def test_rows_of_a_batch_are_given_up_with_those_that_were_taken(task: QuadraticTask, backend: Vectorized) -> None:
    backend.dispatch(job(np.arange(N), np.ones(N, dtype=int), {"x": task.initial()}))
    backend.collect(np.array([0]))
    held = []
    for client in (4, 2, 6, 1, 3):
        backend.collect(np.array([client]))
        (batch,) = {id(b): b for b in backend._done.values()}.values()
        held.append(len(batch.rows["delta"]))
    assert held == [7, 7, 3, 3, 1]
    last = backend.collect(np.array([5]))["delta"]
    alone = Worker(task, FedAvg(lr=0.1)).run(job([5], [1], {"x": task.initial()}, 1))["delta"]
    assert (last - alone).abs().max() < 1e-15


def test_collecting_what_was_never_dispatched(task: QuadraticTask, backend: Vectorized) -> None:
    with pytest.raises(RunError, match="2"):
        backend.collect(np.array([2]))
    backend.dispatch(job([0, 1], [1, 1], {"x": task.initial()}))
    with pytest.raises(RunError, match="2"):
        backend.collect(np.array([0, 2]))


def test_what_raises_raises_again(task: QuadraticTask, backend: Vectorized, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor computes before it is asked for messages, and its answer is what the run ends with."""

    def refuse(_: Job) -> Any:
        raise ValueError("these data are poison")

    monkeypatch.setattr(backend.worker, "run", refuse)
    backend.dispatch(job([0], [1], {"x": task.initial()}))
    for ask in (backend.compute, lambda: backend.collect(np.array([0]))):
        with pytest.raises(ValueError, match="poison"):
            ask()


def test_a_shard_refuses_messages_of_another_form(task: QuadraticTask) -> None:
    clients = np.arange(N)
    shard = Shard(task, lambda part: Worker(part, FedAvg(lr=0.1)), clients, drop=False)
    for rounds, widths in ((1, {}), (2, {"delta": D}), (3, {"delta": D, "more": D})):
        ones = np.ones(N, dtype=np.int64)
        shard.dispatch(clients, rounds * ones, ones, clients, {"x": task.initial().numpy()})
        if rounds < 3:
            shard.collect(clients, widths)
            assert shard.collected().widths == {"delta": D}
        else:
            with pytest.raises(RunError, match="one form in all rounds"):
                shard.collect(clients, widths)


def test_clients_survive_saving(task: QuadraticTask, backend: Vectorized) -> None:
    backend.dispatch(job([0, 3], [2, 1], {"x": task.initial()}))
    backend.collect(np.array([0, 3]))
    other = Vectorized(Worker(task, Remembering(lr=0.1)))
    other.load(backend.save())
    for one in (backend, other):
        one.dispatch(job([3, 4], [1, 1], {"x": task.initial()}, 2))
    found, again = (one.collect(np.array([3, 4])) for one in (backend, other))
    assert found["before"][0].abs().max() > 1e-3
    for k, v in found.items():
        assert torch.equal(again[k], v)
