"""What ``fedsim plan`` says of a scenario's attackers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.engine.assembly import Assembly
from fedsim.engine.attackers import chances, honest_part, record, tolerated
from fedsim.messages.attackers import Attackers
from fedsim.scenario.sections import Scenario

_NAMED = 20  # attackers, and nodes that hear some, that are shown by number


def attack_facts(s: Scenario, a: Assembly) -> dict[str, Any]:
    """Who attacks, how much of them a rule or an honest node hears, and what is left of the graph without them."""
    run, found = a.pipeline.run, record(s, a.pipeline.run, a.network)
    if found is None or not isinstance(s.attack, Attackers):
        return {}
    rows: dict[str, Any] = {"name": found["name"], "attackers": f"{len(found['attackers'])} of {run.num_clients}"}
    if not found["attackers"]:
        return rows
    rows["their numbers"] = _shown(found["attackers"])
    rows["placement"] = "given" if isinstance(s.attack.attackers, list) else s.attack.placement
    f, honest = tolerated(s), honest_part(a.network, run)
    if f is not None:
        rows["the rule tolerates"] = f
    if honest is None:
        rows |= {name: f"{chance:.5f}" for name, chance in chances(s, run).items()}
    else:
        rows["attackers that an honest node hears"] = f"at most {honest.heard.max()}, mean {honest.heard.mean():.3g}"
        rows["their weight (delta_max)"] = honest.delta_max
        reached = np.flatnonzero(honest.heard)
        rows["honest nodes that hear some"] = [
            f"node {honest.nodes[i]}: {honest.heard[i]}, weight {honest.weight[i]:.4g}" for i in reached[:_NAMED]
        ] + ([f"and {len(reached) - _NAMED} more"] if len(reached) > _NAMED else [])
        rows["honest nodes are connected"] = "yes" if honest.connected else f"no, {len(honest.pieces)} parts"
        rows["honest gap"] = honest.gap
    if found["within_bound"] is False:
        rows["note"] = f"more attackers may be heard at once than the {f} that the rule tolerates: it may break down"
    return rows


def _shown(numbers: list[int]) -> str:
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return ", ".join(map(str, numbers[:_NAMED])) + more
