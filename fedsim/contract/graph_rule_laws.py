"""What a rule of a graph's nodes promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from fedsim.contract.tools import UNSEEDED, LawBrokenError, compare, global_seed, same_from_yaml, unchanged
from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.graphs.mixing import mixing_matrix
from fedsim.graphs.mixing_matrix import BaseMixing
from fedsim.messages.graph_rules import GraphRule
from fedsim.messages.heard import Heard

N, D = 12, 5
TOLERANCE = 1e-12
_HINT = "a node's result depends on other things than what it hears; work on near.own and near.values alone"


def graph_rule_laws(rule: GraphRule) -> Mapping[str, Callable[[], str]]:
    """Laws of one rule."""
    return {
        "form of what it returns": partial(_form, rule),
        "nodes that agree stay where they are": partial(_agreed, rule),
        "a node knows what it hears": partial(_local, rule),
        "what is not finite does not spread": partial(_finite, rule),
        "inputs are not mutated": partial(_inputs, rule),
        "same seed, same numbers": partial(_seed, rule),
        "YAML round trip": partial(same_from_yaml, rule),
    }


def heard_of(number: int) -> Heard:
    """A ring of cliques, so that nodes have unequal degrees; all of them hear."""
    graph = nx.ring_of_cliques(3, 4)
    matrix = BaseMixing(mixing_matrix(graph, "metropolis"), directed=False).matrix
    draws = rng.normal(rng.key(number, "contract", np.arange(N)[:, None], np.arange(D)[None, :]))
    return Heard(torch.as_tensor(draws), np.arange(N), matrix, np.arange(N))


def part_of(heard: Heard, rows: Ints) -> Heard:
    """What the nodes `rows` hear, as a shard has it: their own rows first, then those of the neighbours they hear."""
    near = np.setdiff1d(np.unique(heard.matrix[rows].indices), rows)
    columns = np.concatenate([rows, near])
    where = np.empty(N, dtype=np.int64)
    where[columns] = np.arange(len(columns))
    mine = heard.matrix[rows]
    matrix = type(mine)((mine.data, where[mine.indices], mine.indptr), shape=(len(rows), len(columns)))
    return Heard(heard.values[torch.as_tensor(columns)], columns, matrix, np.arange(len(rows)))


def _form(rule: GraphRule) -> str:
    heard = heard_of(1)
    for values in (heard.values, heard.values.float()):
        found = rule.mix(Heard(values, heard.nodes, heard.matrix, heard.own))
        if not isinstance(found, Tensor) or found.shape != values.shape or found.dtype != values.dtype:
            what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise LawBrokenError(f"of {values.dtype} {list(values.shape)} it made {what}")
        if not bool(found.isfinite().all()):
            raise LawBrokenError("it made numbers that are not finite")
    return f"{N} nodes, {N} results"


def _agreed(rule: GraphRule) -> str:
    heard = heard_of(2)
    alike = heard.values[:1].expand(N, -1).clone()
    found = rule.mix(Heard(alike, heard.nodes, heard.matrix, heard.own))
    worst = compare("where all are alike", {"x": found}, {"x": alike}, 1e-9, "weights have to sum to 1")
    return f"largest difference {worst:.1e}"


def _local(rule: GraphRule) -> str:
    heard = heard_of(3)
    whole, worst = rule.mix(heard), 0.0
    for rows in (np.arange(7), np.array([2, 8, 9]), *np.arange(N)[:, None]):
        mine = {"x": whole[torch.as_tensor(rows)]}
        found = {"x": rule.mix(part_of(heard, rows))}
        worst = max(worst, compare(f"nodes {rows.tolist()} in a shard", found, mine, TOLERANCE, _HINT))
    return f"largest difference {worst:.1e}"


def _finite(rule: GraphRule) -> str:
    heard = heard_of(4)
    heard.values[1], heard.values[6, 2] = torch.nan, torch.inf
    others = [i for i in range(N) if i not in (1, 6)]
    if not bool(rule.mix(heard)[others].isfinite().all()):
        raise LawBrokenError("a neighbour's NaN or infinity came through, though such messages are dropped before")
    return "of two nodes that send NaN and infinity"


def _inputs(rule: GraphRule) -> str:
    heard = heard_of(5)
    before, data, columns = heard.values.clone(), heard.matrix.data.copy(), heard.matrix.indices.copy()
    rule.mix(heard)
    unchanged("mix", {"values": heard.values}, {"values": before})
    if not (np.array_equal(heard.matrix.data, data) and np.array_equal(heard.matrix.indices, columns)):
        raise LawBrokenError("mix changed the matrix that it was given")
    return "messages and weights are as they were"


def _seed(rule: GraphRule) -> str:
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            found.append({"x": rule.mix(heard_of(6))})
    hint = f"{UNSEEDED}; draw from keys (fedsim.rng)"
    compare("two calls with the same messages", found[0], found[1], 0.0, hint)
    return "bit for bit"
