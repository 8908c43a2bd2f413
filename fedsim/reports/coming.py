"""What ``fedsim plan`` says of a graph whose links and nodes come and go."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.core.clock import TICKS_PER_SECOND
from fedsim.engine.assembly import Assembly
from fedsim.graphs.intervals import Intervals
from fedsim.graphs.presence import Presence, at_rounds, extremes, in_windows, joint_connectivity, mean_there, never
from fedsim.participation.poisson import PoissonGossip
from fedsim.scenario.sections import Scenario

_MOST = 20_000_000
"""Rounds times links, or times spells, above which it is not searched when the graph is jointly connected."""


def coming_facts(s: Scenario, a: Assembly) -> dict[str, Any]:
    """How many links and nodes are there, and in how many rounds in a row all nodes are connected."""
    presence = None if a.network is None else a.network.topology.presence
    if presence is None:
        return {}
    links, nodes, span = presence.links, presence.nodes, (1, s.run.rounds)
    facts: dict[str, Any] = {}
    if isinstance(s.participation, PoissonGossip):
        window = s.participation.window_ticks
        facts = _counts(links, nodes, 0, s.run.rounds * window - 1)
        edges = np.arange(s.run.rounds + 1, dtype=np.int64) * window
        links, nodes = in_windows(links, edges), in_windows(nodes, edges)
    elif not presence.by_rounds:
        if a.durations is not None:
            said = "by virtual seconds; rounds last as long as their slowest node or link, and the run records who was"
            return {"links and nodes that are there": said}
        begins = np.arange(s.run.rounds, dtype=np.int64) * TICKS_PER_SECOND
        links, nodes = at_rounds(links, begins), at_rounds(nodes, begins)
    facts = facts or _counts(links, nodes, *span)
    both = ((links, "links"), (nodes, "nodes"))
    missed = [f"{count} of {f.count} {what}" for f, what in both if (count := never(f, *span))]
    if missed:
        facts["never there in the run"] = " and ".join(missed)
    return {**facts, "jointly connected": _joint(presence, links, s.run.rounds)}


def _counts(links: Intervals, nodes: Intervals, first: int, last: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, found in (("links that are there", links), ("nodes that are there", nodes)):
        low, high = extremes(found, first, last)
        mean = f"{mean_there(found, first, last):.4g} of {found.count} on average, {low} to {high}"
        rows[name] = f"all {low}, always" if low == high == found.count else mean
    if nodes.changes:
        rows["nodes at the start"] = int(nodes.at(first).sum())
    return rows


def _joint(presence: Presence, links: Intervals, rounds: int) -> str:
    if rounds * (links.count + len(links.items)) > _MOST:
        return f"not searched: {rounds:,} rounds of {links.count:,} links with {len(links.items):,} spells"
    found = joint_connectivity(presence.ends, links, presence.nodes.count, rounds)
    if found is None:
        return f"never: the links of the run's {rounds} rounds together do not connect all nodes"
    return "in every round" if found == 1 else f"over any {found} rounds in a row, not over any fewer"
