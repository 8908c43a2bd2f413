"""What attackers on a graph promise: honest links carry what was sent, wherever the receiver is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from fedsim.contract.graph_rule_laws import N, heard_of, part_of
from fedsim.contract.tools import UNSEEDED, LawBrokenError, compare, global_seed, unchanged
from fedsim.core.arrays import Ints
from fedsim.core.job import Contribution, RunFacts
from fedsim.messages.attack import Attack
from fedsim.messages.attackers import Attackers
from fedsim.messages.heard import Heard

TOLERANCE = 1e-12
LINKS = np.array(sorted(map(sorted, nx.ring_of_cliques(3, 4).edges())), dtype=np.int64)
RUN = RunFacts(5, N, links=LINKS)
_HINT = "what a node is told depends on nodes that it does not hear; make it of the target and its neighbours"


def edge_laws(part: Attackers) -> Mapping[str, Callable[[], str]]:
    """Laws of attackers whose messages to a graph's nodes are replaced."""
    laws: dict[str, Callable[[], str]] = {
        "nodes hear honest neighbours as they sent": partial(_honest_links, part),
        "what nodes heard is not mutated": partial(_inputs, part),
        "same seed, same messages to nodes": partial(_seed, part),
    }
    if not (isinstance(part, Attack) and (part.sees_all or part.knowledge == "all")):
        laws["a node in a shard is told the same"] = partial(_shards, part)
    return laws


def _told(part: Attackers, number: int = 1, rows: Ints | None = None) -> tuple[Heard, Heard]:
    """What honest nodes (those in `rows`) would hear, and what they hear."""
    part.check({}, RUN)
    whole = heard_of(number)
    honest = np.setdiff1d(np.arange(N), part.attacking(RUN))
    if rows is None:
        heard = whole.only(honest)
    else:
        here = part_of(whole, rows)
        heard = here.only(np.flatnonzero(np.isin(here.receivers, honest)))
    one = np.ones(N, dtype=np.int64)
    start = part.start if isinstance(part, Attack) else 1
    return heard, part.edges(heard, Contribution(start, np.arange(N), start * one, one), RUN)


def _messages(heard: Heard) -> Tensor:
    """What is heard over every link, ``[nnz, d]``."""
    rows = heard.values[torch.as_tensor(heard.matrix.indices.astype(np.int64))]
    return rows.nan_to_num(7.0)


def _honest_links(part: Attackers) -> str:
    before, after = _told(part)
    if not (np.array_equal(before.senders, after.senders) and np.array_equal(before.matrix.data, after.matrix.data)):
        raise LawBrokenError("it changes who is heard, or with which weight; change messages alone (Heard.told)")
    honest = torch.as_tensor(~np.isin(before.senders, part.attacking(RUN)))
    if not torch.equal(_messages(before)[honest], _messages(after)[honest]):
        raise LawBrokenError("what honest neighbours sent is changed")
    return f"{int(honest.sum())} of {len(honest)} messages are honest"


def _inputs(part: Attackers) -> str:
    before, _ = _told(part, 2)
    unchanged("edges", {"values": before.values}, {"values": heard_of(2).values})
    fresh = heard_of(2).only(np.setdiff1d(np.arange(N), part.attacking(RUN)))
    if not np.array_equal(before.matrix.indices, fresh.matrix.indices):
        raise LawBrokenError("edges changed the matrix that it was given")
    return "messages and matrix are as they were"


def _seed(part: Attackers) -> str:
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            found.append({"x": _messages(_told(part, 3)[1])})
    hint = f"{UNSEEDED}; draw from keys (fedsim.rng)"
    compare("two calls with the same messages", found[0], found[1], 0.0, hint)
    return "bit for bit"


def _shards(part: Attackers) -> str:
    whole, worst = _told(part, 4)[1], 0.0
    links = dict(zip(_pairs(whole), _messages(whole), strict=True))
    for rows in (np.arange(7), np.array([2, 8, 9]), *np.arange(N)[:, None]):
        here = _told(part, 4, rows)[1]
        if here.matrix.nnz:
            mine = {"x": torch.stack([links[pair] for pair in _pairs(here)])}
            where = f"nodes {rows.tolist()} in a shard: what they are told"
            worst = max(worst, compare(where, mine, {"x": _messages(here)}, TOLERANCE, _HINT))
    return f"largest difference {worst:.1e}"


def _pairs(heard: Heard) -> list[tuple[int, int]]:
    return list(zip(heard.receivers[heard.rows].tolist(), heard.senders.tolist(), strict=True))
