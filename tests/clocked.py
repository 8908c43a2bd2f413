"""What tests of clocked participation share: speeds, modes, and the events of a scenario without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedsim.engine.assembly import assemble
from fedsim.participation.base import Arrival, Dispatch
from fedsim.scenario.load import parse

Make = Callable[..., Any]
F80 = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
ASYNC = {"mode": "asynchronous"}
DIGITS = {
    "dataset": "digits", "clients": 6, "limit": 300,
    "partition": {"scheme": "dirichlet", "alpha": 0.5, "min_partition_size": 8},
}  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "asynchronous": ASYNC,
    "fixed_interval": {"mode": "fixed_interval", "window": 0.3},
    "fedbuff": {"mode": "fedbuff", "buffer": 4, "concurrency": 4},
    "barrier": {"mode": "fedbuff", "buffer": 3, "restart": "barrier"},
}


def events(count: int, seed: int = 0, **sections: Any) -> list[Arrival | Dispatch]:
    """The first events of a scenario, without any training, until `count` combines."""
    scenario = parse({**sections, "run": {"device": "cpu"}, "seed": seed})
    a = assemble(scenario)
    stream = scenario.participation.events(a.setting(scenario))
    found: list[Any] = []
    arrivals = 0
    while arrivals < count:
        found.append(next(stream))
        arrivals += isinstance(found[-1], Arrival)
    return found
