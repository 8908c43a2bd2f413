"""What compression and attackers go together with."""

from __future__ import annotations

from collections.abc import Iterator

from fedsim.core.errors import Problem
from fedsim.messages.base import MessageTransform
from fedsim.scenario.sections import Scenario


def message_problems(s: Scenario) -> Iterator[Problem]:
    """Rules about the sections ``compression`` and ``attack`` that need neither data nor graph."""
    name = s.names["algorithm"]
    for section, part in (("compression", s.compression), ("attack", s.attack)):
        if part is None:
            continue
        if s.algorithm.setting == "gossip" and type(part).edges is MessageTransform.edges:
            message = "it acts on what clients send to a server, and here nodes send models to each other"
            yield Problem(f"{message}; allowed on a graph: remove the section", section)
        elif s.algorithm.setting == "server" and not s.algorithm.needs.through_aggregate:
            message = (
                f"'{name}' moves client and server along the same messages, which this would make differ; allowed: an "
                "algorithm that moves its state through the aggregator alone, such as fedavg, fedprox or fedadam"
            )
            yield Problem(message, section)
        if part.everyone is not None and s.participation.clocked:
            yield Problem(f"{part.everyone}; allowed: mode synchronous with all clients", "participation.mode")
    if s.compression is not None and s.algorithm.needs.everyone is not None:
        yield Problem(f"'{name}' adds up what all clients send, which compression would change", "compression")
    if s.privacy is not None and s.privacy.counts_on_messages:
        for section, part, why in (
            ("compression", s.compression, "noise and sensitivity are made for messages as they are clipped"),
            ("attack", s.attack, "noise is made for the sum of clipped messages, which attackers do not keep to"),
        ):
            if part is not None:
                yield Problem(f"found it beside '{s.names['privacy']}': {why}; allowed: dp_sgd, local_dp", section)
    if s.attack is not None and s.audits:
        yield Problem("an audit asks what an honest run gives away; allowed: one of the two sections", "attack")
