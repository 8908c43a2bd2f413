"""The named alternative: what a careful person writes without a simulator, one PyTorch module and optimiser per client.

Data are sliced from one tensor (no DataLoader, which would be several times slower), modules are reused, nothing is
copied needlessly.
"""

from __future__ import annotations

import copy

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

    def round(self) -> None:
        """One FedAvg round of one local epoch of everybody."""
        total = torch.zeros_like(self.x)
        for rows in self.rows:
            vector_to_parameters(self.x.clone(), self.model.parameters())  # the parameters become views of the clone
            shuffled = rows[torch.randperm(len(rows))]
            for part in shuffled.split(self.batch):
                self.optimiser.zero_grad()
                self.loss(self.model(self.inputs[part]), self.targets[part]).backward()
                self.optimiser.step()
            total += parameters_to_vector(self.model.parameters()).detach()
        self.x = total / len(self.rows)


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

    def round(self) -> None:
        """x_i = sum_j w_ij x_j - lr g_i(x_i)"""
        before = self._stack()
        for model, optimiser, rows in zip(self.models, self.optimisers, self.rows, strict=True):
            part = rows[torch.randint(len(rows), (self.batch,))]
            optimiser.zero_grad()
            self.loss(model(self.inputs[part]), self.targets[part]).backward()
            optimiser.step()
        with torch.no_grad():
            mixed = self.mixing @ before + (self._stack() - before)
            for model, row in zip(self.models, mixed, strict=True):
                vector_to_parameters(row, model.parameters())
