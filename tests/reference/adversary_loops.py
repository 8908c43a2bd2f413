"""Federated Adversarial Learning written the slow, obvious way: one client, one sample, one step after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """eps and step in pixel units, of which `low` and `high` are 0 and 1 in the model's numbers."""

    eps: float
    step: float
    steps: int
    norm: Literal["linf", "l2"]
    low: float
    high: float

    def on(self, model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
        """What it makes of one sample x, in the model's numbers; it works on pixels."""
        unit = self.high - self.low
        pixels = (x - self.low) / unit
        z = pixels.clone()
        for _ in range(self.steps):
            leaf = z.clone().requires_grad_()
            loss(model((self.low + unit * leaf).unsqueeze(0)), y.unsqueeze(0)).sum().backward()
            assert leaf.grad is not None
            z = self.project(z + self.step * self.along(leaf.grad), pixels)
        return self.low + unit * z

    def along(self, g: Tensor) -> Tensor:
        if self.norm == "linf":
            return torch.sign(g)
        return g / g.norm() if g.norm() > 0 else g

    def project(self, z: Tensor, own: Tensor) -> Tensor:
        change = z - own
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        elif change.norm() > self.eps:
            change = change * (self.eps / change.norm())
        return (own + change).clamp(0, 1)


def fal(
    model: nn.Module, loss: Loss, clients: list[tuple[Tensor, Tensor]], attack: Attack, lr: float, steps: int,
    rounds: int, attack_on: str = "local",
) -> Any:  # fmt: skip
    """The server's model after some rounds of full batches, clients weighing in alike."""
    server = copy.deepcopy(model)
    for _ in range(rounds):
        ends = []
        for x, y in clients:
            local = copy.deepcopy(server)
            for _ in range(steps):
                attacked_on = server if attack_on == "received" else local
                changed = [attack.on(attacked_on, loss, a, b) for a, b in zip(x, y, strict=True)]
                local.zero_grad()
                sum(
                    loss(local(z.unsqueeze(0)), b.unsqueeze(0)).sum() for z, b in zip(changed, y, strict=True)
                ).backward()
                with torch.no_grad():
                    for p in local.parameters():
                        assert p.grad is not None
                        p -= lr * p.grad / len(x)
            ends.append(local)
        with torch.no_grad():
            for p, *others in zip(server.parameters(), *(e.parameters() for e in ends), strict=True):
                p.copy_(torch.stack(others).mean(0))
    return server
