"""What ``fedsim plan`` says of the rule that every node of a graph runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.algorithms.base import GossipAlgorithm
from fedsim.core.arrays import Ints
from fedsim.engine.assembly import Assembly
from fedsim.messages.graph_rules import rule_of
from fedsim.messages.neighbours import NearestNeighbourAveraging
from fedsim.scenario.sections import Scenario

_NAMED = 20  # nodes that are shown by number


def rule_facts(s: Scenario, a: Assembly) -> dict[str, Any]:
    """How many messages the rule has at each node, and where that is too few for what it is told to tolerate."""
    rule = rule_of(s.aggregator)
    if a.network is None or rule is None or not isinstance(s.algorithm, GossipAlgorithm):
        return {}
    late = 0 if s.algorithm.waits_for_all() else rule.tolerated or 0
    hears = np.maximum(np.min([mixing.hears for mixing in a.network.mixings], axis=0) - late, 0)
    rows: dict[str, Any] = {
        "every node runs": s.names["aggregator"],
        "others that a node hears": f"{hears.min()} to {hears.max()}, mean {hears.mean():.3g}",
    }
    notes = [] if rule.weighs else ["weights of links are ignored"]
    f = rule.tolerated
    if f:
        rows["attackers among them that it tolerates"] = f
        few = np.flatnonzero(hears < 2 * f + 1)
        if len(few):
            notes.append(f"fewer than 2 f + 1 others are heard by {_shown(few)}: f attackers may outvote the honest")
        factor = 5 if s.algorithm.waits_for_all() else 7
        known = hears + 1 + late
        if isinstance(rule, NearestNeighbourAveraging) and (known <= factor * f).any() and not len(few):
            tight = np.flatnonzero(known <= factor * f)
            notes.append(
                f"not more than {factor} f messages are sent to {_shown(tight)}: attackers may keep two halves apart"
            )
    if notes:
        rows["notes on the rule"] = notes
    return rows


def _shown(nodes: Ints) -> str:
    """Some nodes by number."""
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return f"{len(nodes)} nodes ({', '.join(map(str, nodes[:_NAMED].tolist()))}{more})"
