"""Rounds on a graph whose links and nodes come and go: who is there, and how those mix.

A node that is away neither computes nor sends, and keeps all that it has. One that joins has what it had, or with
``join: average`` only listens in its first round and takes the mean of what it hears.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedsim.core.arrays import Bools
from fedsim.core.clock import TICKS_PER_SECOND, seconds
from fedsim.core.errors import InputError
from fedsim.core.libraries import sparse
from fedsim.graphs.mixing_matrix import BaseMixing
from fedsim.graphs.network import Network
from fedsim.graphs.presence import There, never
from fedsim.messages.graph_rules import rule_of
from fedsim.participation.base import Participation, Setting

_ALLOWED = "allowed: links that come and go, and nodes that are always there"


class Mixes(NamedTuple):
    """The matrix of the nodes that are there ``[m, m]``, and how many messages cross a link."""

    matrix: Any
    sends: int


def here(network: Network, number: int, now: int, before: int) -> tuple[There | None, Bools]:
    """Who is there in round `number`, which begins at tick `now` (the one before it at tick `before`), and who of them
    only listens, since it was not there in the round before."""
    presence = network.topology.presence
    nobody = np.zeros(network.topology.num_nodes, dtype=bool)
    if presence is None:
        return None, nobody
    there = presence.at(number if presence.by_rounds else now)
    if presence.how.join == "last" or number == 1:
        return there, nobody
    return there, there.nodes & ~presence.nodes.at(number - 1 if presence.by_rounds else before)


def among(network: Network, which: int, there: There | None, fires: Bools, joins: Bools) -> Mixes:
    """How nodes mix over the links that fire: those that join take the mean of what they hear, and the others do not
    hear them."""
    base = network.mixings[which]
    if there is None:
        return Mixes(base.realised(fires), int(fires[base.entry_links].sum()))
    mixing = network.among(there)
    fired = fires[there.links]
    ends = joins[mixing.links]
    mutual = fired & ~ends.any(-1)
    matrix, sends = mixing.realised(mutual), int(mutual[mixing.entry_links].sum())
    taught = fired & (ends[:, 0] != ends[:, 1])
    if taught.any():
        matrix, sends = _listening(matrix, mixing, taught, joins), sends + int(taught.sum())
    if not there.everybody:
        nodes = np.flatnonzero(there.nodes)
        matrix = sparse.csr_array(matrix[nodes][:, nodes])
        matrix.sort_indices()
    return Mixes(matrix, sends)


def _listening(matrix: Any, mixing: BaseMixing, taught: Bools, joins: Bools) -> Any:
    """`matrix` in which nodes that join weigh alike those that they hear over links `taught`, without themselves."""
    links = mixing.links[taught]
    row, column = np.where(joins[links[:, :1]], links, links[:, ::-1]).T
    heard = np.bincount(row, minlength=mixing.n)
    entries = sparse.coo_array(matrix)
    kept = heard[entries.row] == 0
    data = np.concatenate([entries.data[kept], 1.0 / heard[row]])
    rows, columns = np.concatenate([entries.row[kept], row]), np.concatenate([entries.col[kept], column])
    found = sparse.csr_array((data, (rows, columns)), shape=matrix.shape)
    found.sort_indices()
    return found


Span = tuple[int, int]
"""The first and the last instant of a run."""


def rounds_span(setting: Setting) -> Span | None:
    """The instants at which a run's rounds begin; None where nobody knows them beforehand."""
    presence = setting.gossip[1].topology.presence
    if presence is not None and presence.by_rounds:
        return 1, setting.rounds
    return (0, (setting.rounds - 1) * TICKS_PER_SECOND) if setting.durations is None else None


def check_coming(mode: Participation, setting: Setting, span: Span | None) -> None:
    """Raise InputError where links and nodes come and go, and the run's algorithm or mode cannot do with that, or where
    no link is there from the first to the last instant of the run, `span` (None: that is not known)."""
    algorithm, network = setting.gossip
    presence = network.topology.presence
    if presence is None:
        return
    if span is not None and never(presence.links, *span) == presence.links.count:
        unit = "rounds" if presence.by_rounds else "virtual seconds"
        length = span[1] if presence.by_rounds else f"{seconds(span[1]):.6g}"
        message = f"found no link that is there in any of the run's {length} {unit}; allowed: spells in the run "
        raise InputError(f"{message}(unit, origin and scale say how times are read)", key="topology.spells")
    if not presence.nodes.changes:
        return
    if mode.merging is not None:
        message = f"found a merge of all nodes, but some are not always there; {_ALLOWED}, or no merge"
        raise InputError(message, key=mode.merging)
    if rule_of(setting.aggregator) is not None:
        message = f"found {type(setting.aggregator).__name__}, but a node may hear nobody while others are away"
        raise InputError(f"{message}; {_ALLOWED}, or the aggregator mean", key="aggregator.name")
    why = algorithm.needs.linear_mixing
    if presence.how.join == "average" and why is not None:
        message = f"found average, but {why}; allowed: last"
        raise InputError(message, key="topology.spells.join")


def check_clocks(auto: bool, setting: Setting) -> None:
    """Raise InputError where Poisson clocks cannot do with how a graph changes; `auto`: the links' rate is found from
    the graph."""
    algorithm, network = setting.gossip
    presence = network.topology.presence
    mixing = network.mixings[0]
    if mixing.redrawn and mixing.moves_mean:
        message = "found pulls, but at a tick of a link both its ends mix; allowed: symmetric: true"
        raise InputError(message, key="topology.symmetric")
    if len(network.mixings) > 1 and presence is None:
        raise InputError(
            "neighbours that change with the round, but Poisson clocks know none; allowed: one graph that stays",
            key="topology",
        )
    if presence is None:
        return
    if presence.by_rounds:
        message = "found spells in rounds, but Poisson clocks tick in virtual seconds; allowed: s"
        raise InputError(message, key="topology.spells.unit")
    if auto or algorithm.needs.flows:
        message = f"found links that come and go, but {type(algorithm).__name__}'s constants are those of a graph that"
        raise InputError(f"{message} stays; allowed: dspodfl, or a graph without spells", key="topology.spells")
    if presence.nodes.changes and presence.how.join == "average":
        message = "found average, but at a tick two nodes mix and nobody hears all its neighbours; allowed: last"
        raise InputError(message, key="topology.spells.join")
