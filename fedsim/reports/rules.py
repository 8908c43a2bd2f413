"""What `fedsim plan` says of a robust rule of a server: what it withstands, what it costs, and what to know of it."""

from __future__ import annotations

from typing import Any

from fedsim.engine.assembly import Assembly
from fedsim.messages.robust import RobustRule
from fedsim.participation.synchronous import Synchronous
from fedsim.scenario.sections import Scenario


def server_rule_facts(s: Scenario, a: Assembly) -> dict[str, Any]:
    """Facts of the aggregator; none where it is linear, or on a graph."""
    rule = s.aggregator
    if a.network is not None or rule.is_linear:
        return {}
    most = s.participation.most_messages(a.task.num_clients)
    least = next((m for m in range(1, most + 1) if rule.needs(m) is None), most)
    rows: dict[str, Any] = {
        "name": s.names["aggregator"],
        "attackers that it withstands": f"{rule.tolerates(most)} of {most} messages",
    }
    if least > 1:
        rows["messages that it needs"] = least
    if isinstance(rule, RobustRule):
        pairs = rule.pairs + sum(part.pairs for part in rule.pre or ())
        if pairs:
            rows["distances per round"] = f"{pairs * most * (most - 1) // 2:,} of {a.task.dim:,} numbers"
        notes = []
        if not rule.weighs and getattr(s.algorithm, "weighting", "uniform") == "samples":
            notes.append("weights are ignored, but for their sum: weighting: samples counts for nothing else")
        if least > 1 and _varies(s):
            notes.append(f"rounds with fewer than {least} messages are skipped")
        if notes:
            rows["notes"] = notes
    return rows


def _varies(s: Scenario) -> bool:
    """Whether a round may have fewer messages than the most."""
    p = s.participation
    if not isinstance(p, Synchronous):
        return True
    fewer = p.sampling != "uniform" or p.deadline is not None or p.dropout > 0
    return fewer or s.system.availability is not None or s.system.departure is not None or s.system.network is not None
