"""What `plan` says that processes send each other in a round is what Ray serializes, within a twentieth."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.participation.base import Arrival, Dispatch
from fedsim.reports.plan import plan
from fedsim.reports.processes import server_traffic
from fedsim.scenario.load import parse

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ROUNDS = 3
SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 12, "limit": 240},
    "model": {"name": "mlp", "hidden": [300]},
    "participation": {"mode": "synchronous", "clients_per_round": 8},
    "backend": {"name": "ray", "actors": 3},
}
WORK = {"lr": 0.05, "local_steps": 1, "batch_size": 4}
RING: dict[str, Any] = {**SERVER, "topology": {"graph": "ring"}}
del RING["participation"]
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {**SERVER, "algorithm": {"name": "fedavg", **WORK}},
    "in the calls": {**SERVER, "model": {"name": "mlp", "hidden": [150]}, "algorithm": {"name": "fedavg", **WORK}},
    "all rows": {**SERVER, "algorithm": {"name": "fedavg", **WORK}, "aggregator": {"name": "median"}},
    "two messages": {**SERVER, "algorithm": {"name": "scaffold", **WORK}},
    "two sums": {**SERVER, "algorithm": {"name": "feddyn", **WORK}},
    "numbers": {**SERVER, "algorithm": {"name": "fednova", **WORK}},
    "compressed": {**SERVER, "algorithm": {"name": "fedavg", **WORK}, "compression": {"name": "top_k", "k": 100}},
    "private": {
        **SERVER,
        "algorithm": {"name": "fedavg", **WORK},
        "participation": {"mode": "synchronous", "fraction": 0.7, "sampling": "poisson"},
        "privacy": {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "clip_norm": 1.0},
    },
    "asynchronous": {
        **SERVER,
        "algorithm": {"name": "fedavg", **WORK},
        "participation": {"mode": "fedbuff", "buffer": 6, "weights": "identical"},
    },
    "graph": {**RING, "algorithm": {"name": "dpsgd", "lr": 0.05, "batch_size": 4}},
    "tracking": {**RING, "algorithm": {"name": "gradient_tracking", "lr": 0.05, "batch_size": 4}},
    "compressed graph": {
        **RING, "algorithm": {"name": "choco", "lr": 0.05, "batch_size": 4},
        "compression": {"name": "top_k", "k": 100},
    },
}  # fmt: skip


class Counted:
    """The bytes that Ray serializes for calls, answers, shared memory and rows between actors."""

    def __init__(self, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray._private.worker import global_worker

        context = global_worker.get_serialization_context()  # type: ignore[no-untyped-call]
        self.bytes = Counter[str]()
        ray = backend._ray

        def count(way: str, value: Any) -> None:
            self.bytes[way] += context.serialize(value).total_bytes

        def told(arguments: Any) -> None:
            for a in arguments:
                if isinstance(a, list):
                    told(a)
                elif isinstance(a, ray.ObjectRef):
                    if a not in shared:
                        count("between", ray.get(a))
                else:
                    count("to", a)

        shared: list[Any] = []
        send, get, put = backend._send, backend._get, ray.put
        many: Any = getattr(backend, "_many", None)

        def counting_send(k: int, *calls: Any, **how: Any) -> Any:
            count(
                "to",
                [(method, [None if isinstance(a, ray.ObjectRef) else a for a in every]) for method, every in calls],
            )
            return send(k, *calls, **how)

        def counting_get(references: Any) -> Any:
            found = get(references)
            for value in found:
                count("back", value)
            return found

        def counting_many(k: int, returns: int, method: str, arguments: Any) -> Any:
            told(list(arguments))
            return many(k, returns, method, arguments)

        def counting_put(value: Any) -> Any:
            count("to", value)
            shared.append(put(value))
            return shared[-1]

        monkeypatch.setattr(backend, "_send", counting_send)
        monkeypatch.setattr(backend, "_get", counting_get)
        monkeypatch.setattr(ray, "put", counting_put)
        if many is not None:
            monkeypatch.setattr(backend, "_many", counting_many)


def said(text: str) -> float:
    """The bytes in what a plan says."""
    (number, unit), *_ = re.findall(r"([\d.]+(?:e\+\d+)?) (B|KiB|MiB) per round", text)
    return float(number) * {"B": 1, "KiB": 2**10, "MiB": 2**20}[unit]


@pytest.mark.parametrize("case", CASES)
def test_plan_says_what_travels(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = parse(CASES[case])
    rows = plan(scenario)["between processes"]
    simulation = Simulation(scenario, assemble(scenario), tmp_path)
    try:
        counted = Counted(simulation.backend, monkeypatch)
        events = scenario.participation.events(simulation.assembly.setting(scenario))
        per_round: list[Counter[str]] = []
        expected: list[tuple[int, int]] = []
        while len(per_round) <= ROUNDS:
            for event in islice(events, 1):
                if isinstance(event, Dispatch):
                    simulation._dispatch([event])
                    continue
                assert isinstance(event, Arrival)
                if simulation.backend.nodes_here is None:
                    busy = len(np.unique(simulation.backend.owner[event.clients]))  # type: ignore[attr-defined]
                    expected.append(server_traffic(scenario, simulation.assembly, event, busy))
                simulation._combine(event)
                simulation.parts.clear()
                if simulation.backend.nodes_here is not None:
                    simulation.backend._settle()  # type: ignore[attr-defined]
                per_round.append(counted.bytes.copy())
                counted.bytes.clear()
        last = per_round[1:]  # what is sent once is in the first
        mean = {way: sum(found[way] for found in last) / ROUNDS for way in ("to", "back", "between")}
    finally:
        simulation.backend.close()
    if "back" not in rows:
        assert math.isclose(said(rows["models between actors"]), mean["between"], rel_tol=0.05)
        assert mean["to"] + mean["back"] < 0.05 * mean["between"]
        return
    assert mean["between"] == 0
    assert math.isclose(said(rows["to the actors"]), expected[0][0], rel_tol=0.001)
    assert math.isclose(said(rows["back"]), expected[0][1], rel_tol=0.001)
    for found, (to, back) in zip(last, expected[1:], strict=True):
        assert math.isclose(to, found["to"], rel_tol=0.05)
        assert math.isclose(back, found["back"], rel_tol=0.05)
