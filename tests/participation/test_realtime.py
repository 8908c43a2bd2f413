"""On a wall clock the clocked modes do what their schedules say, if jobs really take as long as the schedule thinks."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import RunError
from fedsim.engine.assembly import Assembly, assemble
from fedsim.participation.base import Arrival, Dispatch, Event
from fedsim.participation.record import trace_row
from fedsim.participation.wall_clock import RealTime
from fedsim.scenario.load import parse
from fedsim.scenario.sections import Scenario

Make = Callable[..., Any]
TAU = [1.0, 0.37, 0.61, 0.83]
N = len(TAU)


class Inbox:
    """Answers that take the seconds of `tau`, on a clock of its own; jobs of clients in `lost` are given up."""

    def __init__(self, tau: list[float]) -> None:
        self.tau, self.time, self.queue = tau, 0.0, [(0.0, -1, -1)][:0]
        self.lost: set[int] = set()

    def now(self) -> float:
        return self.time

    def dispatched(self, event: Dispatch) -> None:
        jobs = event.clients if event.jobs is None else event.jobs
        for c, j in zip(event.clients.tolist(), jobs.tolist(), strict=True):
            heapq.heappush(self.queue, (self.time + self.tau[c], j, c))

    def arrivals(self, until: float | None) -> tuple[list[int], list[int]]:
        if until is not None and (not self.queue or self.queue[0][0] > until):
            self.time = until
            return [], []
        self.time, job, client = heapq.heappop(self.queue)
        return ([], [job]) if client in self.lost else ([job], [])

    def settle(self, jobs: Any) -> Any:
        ends = {j: (at, c) for at, j, c in self.queue}
        self.queue = []
        self.time = max(ends[j][0] for j in jobs.tolist())
        return np.array([ends[j][1] not in self.lost for j in jobs.tolist()])


def made(participation: dict[str, Any], problem: Any, tau: Any = TAU, **more: Any) -> tuple[Scenario, Assembly]:
    sections = {
        "data": problem.section(),
        "algorithm": {"name": "fedavg", "lr": 0.1, **more.pop("algorithm", {})},
        "participation": participation,
        "system": {"compute": {"model": "table", "values": tau}},
        **more,
    }
    scenario = parse(sections)
    return scenario, assemble(scenario)


def live(scenario: Scenario, assembly: Assembly, inbox: Inbox, **keys: Any) -> Iterator[Event]:
    clock = RealTime(scenario.participation, inbox, **keys)
    for event in clock.events(assembly.setting(scenario)):
        if isinstance(event, Dispatch):
            inbox.dispatched(event)
        yield event


def arrivals(events: Iterator[Event], count: int) -> list[Arrival]:
    return list(islice((e for e in events if isinstance(e, Arrival)), count))


MODES: list[dict[str, Any]] = [
    {"mode": "asynchronous"},
    {"mode": "asynchronous", "staleness": {"polynomial": 0.5}},
    {"mode": "fixed_interval", "window": 0.5},
    {"mode": "fixed_interval", "window": 0.3, "weights": "identical"},
    {"mode": "fedbuff", "buffer": 2},
    {"mode": "fedbuff", "buffer": 3, "concurrency": 2},
    {"mode": "fedbuff", "buffer": 2, "restart": "barrier"},
]


@pytest.mark.parametrize("mode", MODES, ids=lambda m: "-".join(str(v) for v in m.values()))
def test_the_wall_clock_repeats_the_schedule(mode: dict[str, Any], quadratic: Make) -> None:
    scenario, assembly = made(mode, quadratic(n=N, importance=True))
    scheduled = arrivals(scenario.participation.events(assembly.setting(scenario)), 40)
    lived = arrivals(live(scenario, assembly, Inbox(TAU)), 40)
    for one, other in zip(lived, scheduled, strict=True):
        order = np.lexsort((other.rounds, other.clients))  # a buffer is summed in the order of clients
        for key in ("clients", "rounds", "steps", "staleness"):
            assert getattr(one, key).tolist() == getattr(other, key)[order].tolist(), key
        assert one.time == pytest.approx(other.time, abs=1e-6)
        assert one.number == other.number
    # Durations are measured as the run goes: after everybody has delivered twice they are those of the schedule.
    for one, other in zip(lived[20:], scheduled[20:], strict=True):
        order = np.lexsort((other.rounds, other.clients))
        assert one.weights == pytest.approx(other.weights[order], rel=1e-6)


def test_estimated_weights_count_what_was_delivered(quadratic: Make) -> None:
    problem = quadratic(n=N, importance=True)
    scenario, assembly = made({"mode": "asynchronous", "weights": "estimated"}, problem)
    lived = arrivals(live(scenario, assembly, Inbox(TAU)), 400)
    mean = np.zeros(N)
    for event in lived:
        mean[event.clients] += event.weights
    assert mean / len(lived) == pytest.approx(problem.p, rel=0.05)
    counts = np.bincount(np.concatenate([e.clients for e in lived]), minlength=N)
    last = lived[-1].clients[0]
    assert lived[-1].weights[0] == pytest.approx(problem.p[last] / (counts[last] / len(lived)))


def test_a_lost_job_starts_again_and_a_lost_client_is_left_out(quadratic: Make) -> None:
    scenario, assembly = made({"mode": "asynchronous"}, quadratic(n=N))
    inbox = Inbox(TAU)
    inbox.lost = {1}
    events = live(scenario, assembly, inbox)
    sent = [e.rounds.tolist() for e in islice(events, 60) if isinstance(e, Dispatch) and 1 in e.clients.tolist()]
    assert [r[-1] if len(r) == 1 else r[1] for r in sent] == [1, 2, 3]  # three jobs, then never again
    inbox.lost = set(range(N))
    with pytest.raises(RunError, match="nobody is left after round"):
        list(events)


def test_in_fedbuff_an_idle_client_takes_the_place_of_a_lost_one(quadratic: Make) -> None:
    scenario, assembly = made({"mode": "fedbuff", "buffer": 2, "concurrency": 2}, quadratic(n=N))
    inbox = Inbox(TAU)
    events = live(scenario, assembly, inbox)
    first = next(events)
    assert isinstance(first, Dispatch)
    inbox.lost = {int(first.clients[0])}
    lived = arrivals(events, 30)
    others = set(range(N)) - inbox.lost
    assert set(np.concatenate([e.clients for e in lived]).tolist()) == others


def test_a_buffer_that_cannot_fill_ends_the_run(quadratic: Make) -> None:
    mode = {"mode": "fedbuff", "buffer": N, "restart": "barrier"}
    scenario, assembly = made(mode, quadratic(n=N))
    with pytest.raises(RunError, match="round 1: too few clients are left to fill the buffer"):
        arrivals(live(scenario, assembly, _losing(1)), 1)


def test_a_synchronous_round_goes_on_with_those_who_came(quadratic: Make) -> None:
    problem = quadratic(n=N, importance=True)
    scenario, assembly = made({"mode": "synchronous"}, problem)
    inbox = Inbox(TAU)
    inbox.lost = {2}
    one, two = arrivals(live(scenario, assembly, inbox), 2)
    here = [0, 1, 3]
    assert one.clients.tolist() == here
    assert one.weights == pytest.approx(problem.p[here] / problem.p[here].sum())
    assert one.missing.tolist() == [2]
    assert trace_row([one])["clients"].tolist() == here
    assert (one.time, two.time) == (1.0, 2.0)
    with pytest.raises(RunError, match=r"round 1: clients \[2\] are missing, and because"):
        arrivals(live(scenario, assembly, _losing(2), complete="because"), 1)
    with pytest.raises(RunError, match="round 1: none of its 4 clients answered"):
        arrivals(live(scenario, assembly, _losing(*range(N))), 1)


def _losing(*clients: int) -> Inbox:
    inbox = Inbox(TAU)
    inbox.lost = set(clients)
    return inbox


def test_a_missing_node_of_a_graph_is_isolated(quadratic: Make) -> None:
    gossip = {"mode": "gossip", "compute": 0.7, "links": 0.8}
    more: dict[str, Any] = {"topology": {"graph": "complete"}, "algorithm": {"name": "dspodfl"}}
    scenario, assembly = made(gossip, quadratic(n=N), system={"compute": 1.0}, **more)
    whole = arrivals(live(scenario, assembly, Inbox(TAU)), 20)
    cut = arrivals(live(scenario, assembly, _losing(1)), 20)
    for one, other in zip(cut, whole, strict=True):
        W = one.mixing.matrix.toarray()
        assert W[1].tolist() == [0, 1, 0, 0]
        assert W[:, 1].tolist() == [0, 1, 0, 0]
        assert W.sum(0) == pytest.approx(np.ones(N))
        kept = [e for e in other.edges.tolist() if 1 not in e]
        assert one.edges.tolist() == kept
        for i, j in kept:
            assert W[i, j] == other.mixing.matrix.toarray()[i, j]
        assert one.steps.tolist() == [0 if c == 1 else k for c, k in enumerate(other.steps.tolist())]
        assert one.sends == 2 * len(kept)


def test_a_missing_node_of_a_window_of_poisson_clocks_is_isolated(quadratic: Make) -> None:
    """Its ticks did not happen: neither its work nor the exchanges with it; all others' did."""
    participation = {"mode": "poisson", "compute": 2.0, "links": 2.0}
    more: dict[str, Any] = {"topology": {"graph": "complete"}, "algorithm": {"name": "dspodfl"}}
    problem = quadratic(n=N)
    sections = {"data": problem.section(), "participation": participation, "run": {"device": "cpu"}, **more}
    scenario = parse(sections)
    assembly = assemble(scenario)

    def rounds(inbox: Inbox) -> list[list[Arrival]]:
        found: list[list[Arrival]] = [[]]
        for event in live(scenario, assembly, inbox):
            if isinstance(event, Arrival):
                found[-1].append(event)
                if event.closes:
                    found.append([])
            if len(found) > 8:
                break
        return found[:-1]

    for cut, whole in zip(rounds(_losing(1)), rounds(Inbox(TAU)), strict=True):
        one, other = trace_row(cut), trace_row(whole)
        assert one["events"] == [e for e in other["events"] if 1 not in e[1:]]
        assert list(one["compute"]) == [i for i in other["compute"] if i != 1]
        assert one["edges"].tolist() == [e for e in other["edges"].tolist() if 1 not in e]
        assert len(one["steps"]) == len(one["compute"])
        for part in cut:
            if len(part.clients) == 0:
                continue
            W = part.mixing.matrix.toarray()
            assert W.sum(0) == pytest.approx(np.ones(len(part.clients)))
            at = np.flatnonzero(part.clients == 1)
            assert (W[at] == np.eye(len(part.clients))[at]).all()
            assert (part.steps[at] == 0).all()
            assert part.sends == 2 * len(part.edges)


def test_a_window_in_which_nobody_answers_ends_the_run_also_where_nodes_merge(quadratic: Make) -> None:
    """The merge is a part of the round that waits for nobody: it is no answer, and earlier answers are not its own."""
    windows = [{"from": 0, "until": 9, "merge": True}]
    participation = {"mode": "poisson", "compute": 5.0, "links": 2.0, "schedule": windows}
    more: dict[str, Any] = {"topology": {"graph": "complete"}, "algorithm": {"name": "dspodfl"}}
    sections = {"data": quadratic(n=N).section(), "participation": participation, "run": {"device": "cpu"}, **more}
    scenario = parse(sections)
    inbox = Inbox(TAU)
    events = live(scenario, assemble(scenario), inbox)
    first = next(e for e in events if isinstance(e, Arrival) and e.closes)
    assert first.merge
    inbox.lost = set(range(N))
    with pytest.raises(RunError, match=r"round 2: none of its 4 clients answered"):
        next(e for e in events if isinstance(e, Arrival) and e.closes)


def test_on_a_directed_graph_nobody_may_be_missing(quadratic: Make) -> None:
    more: dict[str, Any] = {"topology": {"graph": "ring", "weights": "lazy"}, "algorithm": {"name": "dgd"}}
    scenario, assembly = made({"mode": "gossip"}, quadratic(n=N), system={"compute": 1.0}, **more)
    import networkx as nx

    from fedsim.graphs.network import build_network

    ring = nx.DiGraph([(i, (i + 1) % N) for i in range(N)])
    topology = replace(assembly.network.topology, graphs=(ring,))  # type: ignore[type-var]
    network = build_network(topology, "uniform", "dpsgd", False)
    with pytest.raises(RunError, match=r"nodes \[1\] are missing, and on a directed graph"):
        arrivals(live(scenario, replace(assembly, network=network), _losing(1)), 1)


def test_a_resumed_run_counts_on(quadratic: Make) -> None:
    scenario, assembly = made({"mode": "asynchronous"}, quadratic(n=N))
    clock = RealTime(scenario.participation, Inbox(TAU), offset=100.0, rounds_done={0: 7})
    events = clock.events(assembly.setting(scenario), 50)
    first = next(events)
    assert isinstance(first, Dispatch)
    assert first.rounds.tolist() == [8, 1, 1, 1]
    clock.inbox.dispatched(first)  # type: ignore[attr-defined]
    arrival = next(events)
    assert isinstance(arrival, Arrival)
    assert (arrival.number, arrival.time) == (51, 100.37)


def test_a_clocked_deployment_runs_to_its_end(tmp_path: Path, quadratic: Make) -> None:
    pytest.importorskip("flwr")
    from flower_loopback import Deployment

    scenario = {
        "data": quadratic(n=3, d=3).section(),
        "algorithm": {"name": "fedavg", "lr": 0.2},
        "participation": {"mode": "fixed_interval", "window": 0.4},
        "run": {"rounds": 8, "eval_every": 2, "trace": True},
    }
    app = Deployment(tmp_path / "app", scenario, 3)
    app.grid.nodes[102].delay = 0.7
    run = app.run()
    lively = [row["clients"] for row in run.trace]
    assert all(0 in row for row in lively[1:])
    assert 2 < sum(2 in row for row in lively) < 6
    assert max(s for row in run.trace for s in row["staleness"]) >= 1
    assert np.diff([row["time"] for row in run.trace]) == pytest.approx(0.4, abs=0.3)
    assert run.metrics["train_loss"].iloc[-1] < run.metrics["train_loss"].iloc[0]
    assert fedsim.load(run.dir / "scenario.yaml").participation == parse(scenario).participation
