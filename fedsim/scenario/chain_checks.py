"""What algorithms go together with whose models walk from client to client, each by itself."""

from __future__ import annotations

from collections.abc import Iterator

from fedsim.core.errors import Problem
from fedsim.participation.synchronous import Synchronous
from fedsim.scenario.sections import Scenario


def chain_problems(s: Scenario) -> Iterator[Problem]:
    """Rules about such an algorithm, and about samples, that need neither data nor graph."""
    sampling = s.algorithm.sampling
    for i, measure in enumerate(s.measures):
        if measure.of_samples and sampling is None:
            found = f"is of samples, and '{s.names['algorithm']}' keeps none"
            yield Problem(f"{found}; allowed: an algorithm that does, such as fsgld", f"run.metrics.{i}.name")
    if s.algorithm.needs.alone is not None:
        yield from _alone(s, s.algorithm.needs.alone)
    if s.algorithm.tokens is not None:
        yield from _walks(s)


def _alone(s: Scenario, why: str) -> Iterator[Problem]:
    """Nothing stands in the way of a message, and it is compared with no other."""
    if not s.aggregator.is_linear:
        message = f"found '{s.names['aggregator']}', but {why}, which it would compare with nothing; allowed: mean"
        yield Problem(message, "aggregator.name")
    for section, key, found, does in (
        ("privacy", "mechanism", s.privacy, "would clip and noise"),
        ("compression", "name", s.compression, "would change"),
        ("attack", "name", s.attack, "would change, and nobody could tell"),
    ):
        if found is not None:
            message = f"found '{s.names[section]}', but {why}, which it {does}; allowed: remove the section"
            yield Problem(message, f"{section}.{key}")
    if s.backend.client_errors == "drop":
        yield Problem(f"found 'drop', but {why}; allowed: fail", "backend.client_errors")
    if s.audits:
        yield Problem(f"found beside '{s.names['algorithm']}', but {why}; allowed: remove the section", "audit")


def _walks(s: Scenario) -> Iterator[Problem]:
    """Where a model goes is drawn for it alone, and it waits for the client that it is at."""
    name, mode = s.names["algorithm"], s.participation
    if s.augment is not None:
        message = f"found beside '{name}', which samples what the data say as they are; allowed: remove the key"
        yield Problem(message, "data.augment")
    if s.adversary is not None:
        message = f"found beside '{name}', which samples what the data say as they are; allowed: remove the section"
        yield Problem(message, "adversary")
    for key in ("availability", "departure"):
        if getattr(s.system, key) is not None:
            message = f"found beside '{name}', whose chains would visit clients that are on more often"
            yield Problem(f"{message}; allowed: remove it", f"system.{key}")
    if s.system.network is not None and s.system.network.loss is not None:
        yield Problem(f"found beside '{name}', whose chains would be lost; allowed: remove it", "system.network.loss")
    if not isinstance(mode, Synchronous):
        return
    if mode.sampling not in ("uniform", "weighted"):
        message = f"found '{mode.sampling}', but every chain of '{name}' goes to one client; allowed: uniform, weighted"
        yield Problem(message, "participation.sampling")
    for key, usual in (("stragglers", 0.0), ("dropout", 0.0), ("deadline", None), ("over_selection", 1.0)):
        if getattr(mode, key) != usual:
            message = f"found {getattr(mode, key)}, but a chain of '{name}' waits for the one client that it is at"
            yield Problem(f"{message}; allowed: no such key", f"participation.{key}")


def chain_clients(s: Scenario, clients: int) -> Iterator[Problem]:
    """Rules that need the number of clients."""
    if s.algorithm.tokens is None or not isinstance(s.participation, Synchronous):
        return
    size = s.participation.cohort_size(clients)
    if size != 1:
        key = "fraction" if s.participation.fraction is not None else "clients_per_round"
        message = (
            f"found a cohort of {size} clients, but a chain of '{s.names['algorithm']}' is at one client at a time"
        )
        yield Problem(f"{message}; allowed: clients_per_round: 1", f"participation.{key}")
