"""The named alternative: what a careful person writes without a simulator, one PyTorch module and optimiser per client.

Data are sliced from one tensor (no DataLoader, which would be several times slower), modules are reused, nothing is
copied needlessly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class ClientLoop:
    """Clients of a server, one after the other: load the global model, train, add up the result."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, rows: list[Tensor], lr: float, batch: int
    ) -> None:
        self.model, self.inputs, self.targets, self.rows, self.batch = model, inputs, targets, rows, batch
        self.x = parameters_to_vector(model.parameters()).detach().clone()
        self.optimiser = torch.optim.SGD(model.parameters(), lr=lr)
        self.loss = nn.CrossEntropyLoss()

    def epoch(self, rows: Tensor) -> Sequence[Tensor]:
        """Minibatches of a pass over `rows` in a random order."""
        return rows[torch.randperm(len(rows))].split(self.batch)

    def round(self, cohort: Iterable[Sequence[Tensor]] | None = None) -> None:
        """One FedAvg round of those whose minibatches `cohort` gives; None: of one local epoch of everybody."""
        total, count = torch.zeros_like(self.x), 0
        for parts in map(self.epoch, self.rows) if cohort is None else cohort:
            vector_to_parameters(self.x.clone(), self.model.parameters())  # the parameters become views of the clone
            for part in parts:
                self.optimiser.zero_grad()
                self.loss(self.model(self.inputs[part]), self.targets[part]).backward()
                self.optimiser.step()
            total += parameters_to_vector(self.model.parameters()).detach()
            count += 1
        self.x = total / count


class NodeLoop:
    """Nodes of a graph, one module each: a gradient step each, then one dense mixing of all parameter vectors."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        rows: list[Tensor],
        lr: float,
        batch: int,
        mixing: Tensor,
    ) -> None:
        self.models = [copy.deepcopy(model) for _ in rows]
        self.optimisers = [torch.optim.SGD(m.parameters(), lr=lr) for m in self.models]
        self.inputs, self.targets, self.rows, self.batch, self.mixing = inputs, targets, rows, batch, mixing
        self.loss = nn.CrossEntropyLoss()

    @torch.no_grad()
    def _stack(self) -> Tensor:
        return torch.stack([parameters_to_vector(m.parameters()) for m in self.models])

    def parameters(self) -> Tensor:
        """Of all nodes, ``[n, d]``."""
        return self._stack()

    def round(self, minibatches: Iterable[Tensor] | None = None) -> None:
        """x_i = sum_j w_ij x_j - lr g_i(x_i), on `minibatches`; None: on random ones."""
        before = self._stack()
        if minibatches is None:
            minibatches = (rows[torch.randint(len(rows), (self.batch,))] for rows in self.rows)
        for model, optimiser, part in zip(self.models, self.optimisers, minibatches, strict=True):
            optimiser.zero_grad()
            self.loss(model(self.inputs[part]), self.targets[part]).backward()
            optimiser.step()
        with torch.no_grad():
            mixed = self.mixing @ before + (self._stack() - before)
            for model, row in zip(self.models, mixed, strict=True):
                vector_to_parameters(row, model.parameters())
