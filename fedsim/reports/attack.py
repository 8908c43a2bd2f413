"""What ``fedsim plan`` says of a scenario's attackers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.engine.assembly import Assembly
from fedsim.engine.attackers import chances, everything, honest_part, record, tolerated
from fedsim.messages.attackers import Attackers, centrality
from fedsim.scenario.sections import Scenario

_NAMED = 20  # attackers that are shown by number
_FEW = 4  # nodes that hear some, of which numbers are shown


def attack_facts(s: Scenario, a: Assembly) -> dict[str, Any]:
    """Who attacks, how much of them a rule or an honest node hears, and what is left of the graph without them."""
    run, found = a.pipeline.run, record(s, a.pipeline.run, a.network)
    if found is None or not isinstance(s.attack, Attackers):
        return {}
    rows: dict[str, Any] = {"name": found["name"], "attackers": f"{len(found['attackers'])} of {run.num_clients}"}
    if not found["attackers"]:
        return rows
    placement = "given" if isinstance(s.attack.attackers, list) else s.attack.placement
    rows["their numbers"] = _shown(found["attackers"])
    if a.network is not None and s.attack.placement != "random":
        by, values = centrality(everything(a.network), s.attack.placement)
        rows["their numbers"] = _shown([f"{i} ({by} {values[i]:.4g})" for i in found["attackers"]])
    rows["placement"] = placement
    f, honest = tolerated(s), honest_part(a.network, run)
    if f is not None:
        rows["the rule tolerates"] = f
    elif s.aggregator.is_linear:
        rows["the rule tolerates"] = f"none: one attacker moves '{s.names['aggregator']}' anywhere"
    else:
        rows["the rule tolerates"] = f"'{s.names['aggregator']}' is told no number f"
    if honest is None:
        rows |= {name: f"{chance:.5f}" for name, chance in chances(s, run).items()}
    else:
        rows["attackers that an honest node hears"] = f"at most {honest.heard.max()}, mean {honest.heard.mean():.3g}"
        rows["their weight (delta_max)"] = honest.delta_max
        reached = np.flatnonzero(honest.heard)
        rows["honest nodes that hear some"] = [
            f"node {honest.nodes[i]}: {honest.heard[i]}, weight {honest.weight[i]:.4g}" for i in reached[:_FEW]
        ] + ([f"and {len(reached) - _FEW} more"] if len(reached) > _FEW else [])
        rows["honest nodes are connected"] = "yes" if honest.connected else f"no, {len(honest.pieces)} parts"
        rows["honest gap"] = honest.gap
    if found["within_bound"] is not None:
        rows["never more than it tolerates (within_bound)"] = "yes" if found["within_bound"] else "no"
    if found["within_bound"] is False:
        rows["note"] = f"more attackers may be heard at once than the {f} that the rule tolerates: it may break down"
    return rows


def _shown(parts: Sequence[object]) -> str:
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return ", ".join(map(str, parts[:_NAMED])) + more
