"""What robust rules of a server go together with."""

from __future__ import annotations

from collections.abc import Iterator

from fedsim.core.errors import InputError, Problem
from fedsim.scenario.sections import Scenario


def rule_problems(s: Scenario) -> Iterator[Problem]:
    """Rules about the section ``aggregator`` of a server that need neither data nor graph."""
    name, rule = s.names["aggregator"], s.aggregator
    if s.algorithm.setting == "gossip":
        if rule.on_graph is not None:
            yield Problem(f"found '{name}' on a graph: {rule.on_graph}", "aggregator.name")
        return
    if rule.is_linear:
        return
    if not s.algorithm.needs.through_aggregate and s.algorithm.needs.alone is None:  # else `chain_problems` says it
        message = (
            f"found '{name}', but '{s.names['algorithm']}' moves its state along sums of messages that pass no "
            "aggregator, so that it would protect nothing; allowed: mean, or another that is linear"
        )
        yield Problem(message, "aggregator.name")
    if s.algorithm.needs.linear_mixing is not None:
        yield Problem(f"found '{name}', but {s.algorithm.needs.linear_mixing}; allowed: mean", "aggregator.name")
    if s.participation.one_at_a_time:
        message = (
            f"found '{name}', but with mode {s.names['participation']} every message is combined by itself, so that "
            "there is nothing to compare it with; allowed: mean, or mode synchronous, fedbuff, fixed_interval"
        )
        yield Problem(message, "aggregator.name")
    if s.privacy is not None and s.privacy.trust == "secagg":
        message = f"found '{name}', but with secagg the server sees sums of messages only; allowed: mean"
        yield Problem(message, "aggregator.name")
    if rule.everyone is not None and s.participation.clocked:
        yield Problem(f"{rule.everyone}; allowed: mode synchronous with all clients", "participation.mode")


def rule_clients(s: Scenario, clients: int) -> Iterator[Problem]:
    """Rules about what a round has of that many clients."""
    if s.algorithm.setting != "server":
        return
    try:
        s.aggregator.check_clients(clients)
    except InputError as error:
        yield from error.under("aggregator").problems
    why = s.aggregator.needs(s.participation.most_messages(clients))
    if why is not None:
        yield Problem(f"{why} in the largest round; allowed: a smaller f, or more clients in a round", "aggregator")
