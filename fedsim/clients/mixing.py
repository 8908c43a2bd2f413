"""One exchange between the nodes of a graph, in one place: who hears what, what attackers do to it, and what a node
makes of it.

The engine, where all nodes are in one process, and the shards of a Ray run take it from here. Without attackers and
without a rule an exchange is the mixing matrix's, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.returned import formed
from fedsim.core.types import Aggregate
from fedsim.graphs.mixing_matrix import MixingMatrix, repeated
from fedsim.messages.base import Arrived, Pipeline
from fedsim.messages.graph_rules import GraphRule
from fedsim.messages.heard import Heard


@dataclass(frozen=True)
class Mixing:
    """How the nodes of a run mix.

    Parameters
    ----------
    rule : what a node makes of what it hears (None: the weighted sum).
    exchanges : how often nodes mix where the algorithm mixes once.
    late : how many neighbours, drawn among the honest ones, are not heard in an exchange.
    """

    rule: GraphRule | None = None
    exchanges: int = 1
    late: int = 0

    def exchange(self, matrix: MixingMatrix, nodes: Ints, pipeline: Pipeline, arrived: Arrived) -> Aggregate:
        """One exchange after the other in a round: every call is the next one, ``[k, d] -> [m, d]``.

        Parameters
        ----------
        matrix : ``[m, k]``, the first m of its k columns are those of its own rows.
        nodes : the nodes that the columns stand for, ``[k]``.
        """
        if self.plain(pipeline):
            return matrix
        return _Exchange(self, matrix, nodes, pipeline, arrived, pipeline.attackers())

    def plain(self, pipeline: Pipeline) -> bool:
        """Whether an exchange is the matrix's; nobody is late then, for that is counted by a rule's f."""
        return self.rule is None and not len(pipeline.attackers())

    def round(self, matrix: MixingMatrix, nodes: Ints, pipeline: Pipeline, arrived: Arrived) -> Aggregate:
        """All exchanges that stand for one mixing of the algorithm, of a matrix ``[n, n]``."""
        return repeated(self.exchange(matrix, nodes, pipeline, arrived), self.exchanges)


class _Exchange:
    """The exchanges of one round."""

    def __init__(
        self, mixing: Mixing, matrix: MixingMatrix, nodes: Ints, pipeline: Pipeline, arrived: Arrived, attackers: Ints
    ) -> None:
        self.mixing, self.matrix, self.nodes, self.pipeline, self.arrived = mixing, matrix, nodes, pipeline, arrived
        self.attackers, self.own = attackers, np.arange(matrix.matrix.shape[0])
        self.honest = np.flatnonzero(~np.isin(nodes[self.own], attackers))
        self.made = 0

    def __call__(self, values: Tensor) -> Tensor:
        run = self.pipeline.run
        heard = Heard(values, self.nodes, self.matrix.matrix, self.own, self.arrived.number, self.made, run)
        self.made += 1
        if not len(self.attackers):
            return self._combined(heard)
        mixed: Tensor = self.matrix(values)  # attackers' own states follow the honest protocol
        if len(self.honest):
            found = self._combined(self.pipeline.edges(heard.only(self.honest), self.arrived))
            mixed[torch.as_tensor(self.honest, device=values.device)] = found
        return mixed

    def _combined(self, heard: Heard) -> Tensor:
        rule = self.mixing.rule
        if self.mixing.late:
            heard = heard.without(self._late(heard))
        if rule is None:
            return MixingMatrix(heard.matrix, self.matrix.device, self.matrix.dense)(heard.values)
        values = heard.values
        return formed(rule.mix(heard), (len(heard.own), values.shape[-1]), values.dtype, rule, "mix")

    def _late(self, heard: Heard) -> Ints:
        """Entries of those who come too late: of every receiver the same number, the attackers last."""
        receivers = heard.receivers[heard.rows]
        links = np.flatnonzero(heard.senders != receivers)
        key = rng.key(heard.run.seed, "late", receivers[links], heard.senders[links], heard.round, heard.exchange)
        order = links[np.lexsort((rng.uniform(key), np.isin(heard.senders[links], self.attackers), heard.rows[links]))]
        rows = heard.rows[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        late: Ints = order[place < self.mixing.late]
        return late
