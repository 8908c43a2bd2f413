"""DIFF2 (Murata & Suzuki, ICML 2023, arXiv 2302.03884): private gradients built from clipped gradient differences.

The gradient-descent variant, DIFF2-GD. All clients and all their examples take part in every round. Every T-th round
releases the mean of per-example gradients clipped to C1; the rounds between release the mean of per-example gradient
*differences* between the last two iterates, clipped to C2 times the distance of these iterates, which is public. Near a
stationary point steps are short, so the differences are small and little noise hides them. T = 1 is DP-GD.

What this class computes is without noise; ``privacy: {mechanism: gaussian}`` adds it and accounts for it. Means are
sums divided by the client's number of examples, whatever the chunks; the published code averages the means of chunks,
which gives examples of a short last chunk more weight than its noise covers.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, Oracle, Positive, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import BatchSize, Count, norm

_FIXED = ("local_steps", "local_epochs", "batch_size", "momentum", "weight_decay", "clip", "server_lr", "relaxed_init")
_SHORT_STEP = 1e-3  # of the length of x: below it differences of float32 gradients are mostly rounding


@register.algorithm("diff2")
@dataclass(frozen=True, kw_only=True)
class Diff2(ServerAlgorithm):
    """``v = mean_p clip_{C1} grad f_p(x)`` in every T-th round, else ``v + mean_p clip_{C2 |x - x'|} diff_p``; ``x - lr v``.

    ``diff_p`` is the mean over client p's examples of the clipped ``grad l(x; z) - grad l(x'; z)``, x' the iterate
    before x. DIFF2-GD; with ``restart_every: 1`` DP-GD.

    Parameters
    ----------
    restart_every : T, rounds from one restart to the next.
    clip_norm : C1, the bound on each example's gradient in a restart (default: none).
    difference_clip : C2, the bound on each example's gradient difference over the distance of the iterates; plays the
        smoothness constant (default: none).
    """  # noqa: E501

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",),
        why="differences are taken between the last two common models",
        steps="own",
        everyone="v adds up differences of one and the same average over all clients",
    )
    restart_every: Count = 20
    clip_norm: Positive | None = None
    difference_clip: Positive | None = None
    batch_size: BatchSize = "full"
    weighting: Literal["samples", "uniform"] = "uniform"

    def check(self, num_clients: int) -> None:
        for field in dataclasses.fields(self):
            if field.name in _FIXED and getattr(self, field.name) != field.default:
                raise InputError(
                    f"found {getattr(self, field.name)!r}: a round of diff2 is one step along all examples' clipped "
                    f"gradients; allowed: {'no such key' if field.default is None else field.default}",
                    key=field.name,
                )

    def init(self, params: Tensor) -> State:
        return {"x": params, "previous": params, "v": torch.zeros_like(params), "age": params.new_zeros(1)}

    def broadcast(self, state: State) -> Message:
        return {k: state[k] for k in ("x", "previous", "age")}

    def radius(self, received: Message) -> Tensor:
        """The bound on each example's vector, ``[..., 1]``: C1, or C2 |x - x'|; of what everybody knows."""
        restart, difference = self.clip_norm or math.inf, self.difference_clip or math.inf
        apart = norm(received["x"] - received["previous"])
        return torch.where(received["age"] == 0, restart, difference * apart if self.difference_clip else difference)

    def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
        """Sum over the client's examples divided by their number."""
        previous, radius = received["previous"].expand_as(x), self.radius(received)
        restarts = received["age"] == 0
        short = norm(x - previous) < _SHORT_STEP * norm(x)
        restart, exact = torch.stack([restarts.all(), short.any()]).tolist()  # the only wait for a GPU in a round
        if restart:
            total = oracle.clipped_sum(x, radius)
        elif exact:
            total = oracle.clipped_sum(x, radius, previous, torch.float64)
        else:
            total = oracle.clipped_sum(x, radius, previous)
        return total / oracle.samples

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        return {**local, "mean": self.direction(oracle, local["x"], received, client)}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"mean": local["mean"] if "mean" in local else torch.zeros_like(local["x"])}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``v = mean`` or ``v + mean``;  ``x = x - lr v``"""
        mean, restart = aggregate(messages["mean"]), state["age"] == 0
        v = torch.where(restart, mean, state["v"] + mean)
        x = state["x"] - round.lr[0] * v
        return {"x": x, "previous": state["x"], "v": v, "age": (state["age"] + 1) % self.restart_every}

    def gradients(self, task: Task, clients: Ints, rounds: Ints, steps: Ints) -> int:
        """Outside of restarts every example's gradient is taken at both iterates."""
        points = 1 if self.restarts(int(rounds[0])) else 2
        return points * super().gradients(task, clients, rounds, steps)

    def restarts(self, number: int) -> bool:
        """Whether round `number` (1, 2, ...) is a restart."""
        return (number - 1) % self.restart_every == 0
