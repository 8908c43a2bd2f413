"""Minibatches of clients' samples as an oracle, and the seam at which their inputs may be changed before gradients.

`Inputs` says what gradients are taken of: the samples as they are, unless a subclass makes others of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.oracle import CARRIED, Oracle, Plan
from fedsim.core.rules import HeavyBall, Rule
from fedsim.core.types import Message, State
from fedsim.objective import minibatch
from fedsim.objective.kernel import Kernel, Training, Walk
from fedsim.objective.persample import budget, parts

Change = Callable[[Kernel, Tensor, Tensor, Tensor, int], Tensor]
"""``change(kernel, params [d], inputs [N, ...], targets [N], first) -> [N, ...]`` of test rows `first` and on."""


class Source(Protocol):
    """What minibatches need of their task."""

    kernel: Kernel
    seed: int
    inputs: Tensor

    def gather(self, index: Tensor, moves: Tensor | None) -> Tensor:
        """Training inputs ``[..., *sample]`` of rows `index`, augmented as `moves` says."""


@dataclass(frozen=True)
class Batches:
    """Minibatches ``[m, steps, b]`` of m clients, or of one step ``[m, b]``.

    `index` are rows of the data, of which the first `counts` ``[m, steps]`` of a minibatch count; `weights` are 0 for
    the rest, or one number where every minibatch is whole; `moves` augment the samples; `positions` are the samples'
    places among those of their client. Of models that draw or count while they train there are `keys` ``[m, steps]``
    and `state` ``[m, s]``, the buffers that training changes, as they are now.
    """

    index: Tensor
    targets: Tensor
    counts: Ints
    weights: Tensor | float
    moves: Tensor | None
    positions: Ints
    keys: rng.Keys | None = None
    state: Tensor | None = None

    def at(self, step: int, count: int) -> Batches:
        """Those of the first `count` clients in one step."""
        taken = (slice(0, count), step)
        weights = self.weights[taken] if isinstance(self.weights, Tensor) else self.weights
        moves = None if self.moves is None else self.moves[taken]
        return Batches(
            self.index[taken], self.targets[taken], self.counts[taken], weights, moves, self.positions[taken],
            None if self.keys is None else self.keys[taken], None if self.state is None else self.state[:count],
        )  # fmt: skip


class SupervisedPlan(Plan):
    """Gradients of the samples as they are."""

    def __init__(self, task: Source, batches: Batches) -> None:
        self.task, self.batches = task, batches

    @property
    def carried(self) -> Tensor | None:  # type: ignore[override]
        return self.batches.state

    def begin(self, received: Message) -> None:
        if CARRIED in received and self.batches.state is not None:
            self.batches.state.copy_(received[CARRIED])

    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        return BatchOracle(self.task, self.batches.at(step, count), lr)

    def descend(self, x: Tensor, lr: Tensor, steps: range, start: Tensor | None = None) -> None:
        own, count = self.batches, len(x)
        if self._other:
            super().descend(x, lr, steps, start)
            return
        if self.walks(x):
            self.walk(x, lr, steps, start, HeavyBall(), {})
            return
        index, targets, weights = self._by_step
        descend = minibatch.descending(self.task.kernel, x, self.task.inputs, own.index.shape[-1], lr, start)
        several = count < len(own.index)
        for step in steps:
            rows, wanted, counted = index[step], targets[step], weights[step]
            if several:
                rows, wanted = rows[:count], wanted[:count]
                counted = counted[:count] if isinstance(counted, Tensor) else counted
            moves = None if own.moves is None else own.moves[:count, step]
            descend(self.task.gather(rows, moves), wanted, counted)

    @property
    def _other(self) -> bool:
        """Whether a step depends on more than parameters and samples."""
        return self.batches.keys is not None or type(self).oracle is not SupervisedPlan.oracle

    def walks(self, x: Tensor) -> bool:
        own, task = self.batches, self.task
        known = not self._other and own.moves is None
        return known and minibatch.walks(task.kernel, x, task.inputs, own.index.shape[-1])

    def walk(self, x: Tensor, lr: Tensor, steps: range, start: Tensor | None, rule: Rule, remembered: State) -> None:
        own, taken = self.batches, (slice(0, len(x)), slice(steps.start, steps.stop))
        weights = own.weights[taken] if isinstance(own.weights, Tensor) else own.weights
        path = Walk(own.index[taken], own.targets[taken], weights, rule, remembered)
        self.task.kernel.walk(x, self.task.inputs, path, lr, start)

    @cached_property
    def _by_step(self) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor | float]]:
        """`index`, `targets` and `weights` of all clients, step by step: the first of them lie side by side."""
        own = self.batches

        def apart(v: Tensor) -> Sequence[Tensor]:
            return v.transpose(0, 1).contiguous().unbind(0)

        weights = apart(own.weights) if isinstance(own.weights, Tensor) else [own.weights] * own.index.shape[1]
        return apart(own.index), apart(own.targets), weights


class BatchOracle(Oracle):
    """One minibatch per row; a subclass may take gradients of other inputs than the samples'."""

    def __init__(self, task: Source, batch: Batches, lr: Tensor) -> None:
        super().__init__(lr)
        self.task, self.batch = task, batch
        self._counted = False

    def kernel(self, writes: bool = False) -> Kernel:
        """The kernel as this step has it; a gradient `writes` down what the model counts, once in a step."""
        kernel, batch = self.task.kernel, self.batch
        if batch.keys is None or batch.state is None:
            return kernel
        writes, self._counted = writes and not self._counted, self._counted or writes
        return kernel.during(Training(batch.keys, batch.counts, batch.state, writes))

    def of_samples(self, rows: slice, columns: slice) -> Kernel:
        """The kernel where gradients of these samples are taken, of each alone: what one draws is of its own key."""
        kernel, batch = self.task.kernel, self.batch
        if batch.keys is None or batch.state is None:
            return kernel
        keys = rng.fold(batch.keys[rows, None], batch.positions[rows, columns])
        return kernel.during(Training(batch.keys[rows], batch.counts[rows], batch.state[rows], False, keys))

    @cached_property
    def inputs(self) -> Tensor:
        """The samples, augmented, ``[m, b, *sample]``."""
        return self.task.gather(self.batch.index, self.batch.moves)

    def seen(self, x: Tensor) -> Tensor:
        """The inputs that gradients at x ``[m, d]`` are taken of, ``[m, b, *sample]``."""
        return self.inputs

    def seen_part(self, x: Tensor, rows: slice, columns: slice, inputs: Tensor, targets: Tensor) -> Tensor:
        """The same of a part of the minibatches, of whose samples it is told."""
        return inputs

    def grad(self, x: Tensor) -> Tensor:
        return minibatch.grad(self.kernel(writes=True), x, self.seen(x), self.batch.targets, self.batch.weights)

    def descend(self, x: Tensor) -> None:
        kernel, seen = self.kernel(writes=True), self.seen(x)
        minibatch.descend(kernel, x, seen, self.batch.targets, self.batch.weights, self.lr)

    def walks(self, x: Tensor) -> bool:
        own, task = self.batch, self.task
        plain = own.keys is None and own.moves is None and type(self).seen is BatchOracle.seen
        return plain and minibatch.walks(task.kernel, x, task.inputs, own.index.shape[-1])

    def walk(self, x: Tensor, rule: Rule, remembered: State) -> None:
        if not self.walks(x):
            super().walk(x, rule, remembered)
            return
        own = self.batch
        weights = own.weights.unsqueeze(1) if isinstance(own.weights, Tensor) else own.weights
        path = Walk(own.index.unsqueeze(1), own.targets.unsqueeze(1), weights, rule, remembered)
        self.task.kernel.walk(x, self.task.inputs, path, self.lr)

    def change(self, x: Tensor) -> Tensor:
        kernel, seen = self.kernel(writes=True), self.seen(x)
        return minibatch.change(kernel, x, seen, self.batch.targets, self.batch.weights, self.lr)

    def per_sample_grad(self, x: Tensor) -> Tensor:
        kernel, weights = self.of_samples(slice(None), slice(None)), self.batch.weights
        grads = kernel.per_sample_grad(x, self.seen(x), self.batch.targets)
        return grads * (weights > 0).unsqueeze(-1) if isinstance(weights, Tensor) else grads

    @property
    def samples(self) -> Tensor:
        return torch.as_tensor(self.batch.counts, dtype=self.lr.dtype, device=self.lr.device).unsqueeze(1)

    def floats_per_sample(self, difference: bool) -> int:
        """Numbers that `clipped_sum` holds for each sample, about."""
        return self.task.kernel.floats_per_sample(difference) + self.task.inputs[0].numel()

    def clipped_part(
        self, kernel: Kernel, x: Tensor, seen: Tensor, targets: Tensor, valid: Tensor | None, bound: Tensor,
        minus: Tensor | None, at_minus: Callable[[], Tensor],
    ) -> Tensor:  # fmt: skip
        """`Kernel.clipped_sum` of a part; `at_minus` gives the inputs that gradients at `minus` are taken of."""
        return kernel.clipped_sum(x, seen, targets, valid, bound, minus)

    def clipped_sum(
        self, x: Tensor, bound: Tensor | float, minus: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        dtype, task, batch = dtype or x.dtype, self.task, self.batch
        bounds = torch.as_tensor(bound, dtype=dtype, device=x.device).expand(len(x), 1)
        result = torch.zeros(x.shape, dtype=dtype, device=x.device)
        floats = self.floats_per_sample(minus is not None)
        for rows, columns in parts(batch.counts, floats, budget(x.device, dtype)):
            moves = None if batch.moves is None else batch.moves[rows, columns]
            inputs, targets = task.gather(batch.index[rows, columns], moves), batch.targets[rows, columns]
            inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
            whole = int(batch.counts[rows].min()) >= columns.stop
            valid = None if whole or not isinstance(batch.weights, Tensor) else batch.weights[rows, columns] > 0
            here, before = x[rows].to(dtype), None if minus is None else minus[rows].to(dtype)
            part = (rows, columns, inputs, targets)

            def at_minus(before: Tensor | None = before, part: tuple[slice, slice, Tensor, Tensor] = part) -> Tensor:
                assert before is not None
                return self.seen_part(before, *part)

            seen = self.seen_part(here, *part)
            kernel = self.of_samples(rows, columns)
            result[rows] += self.clipped_part(kernel, here, seen, targets, valid, bounds[rows], before, at_minus)
        return result.to(x.dtype)


class Inputs:
    """What gradients are taken of, and which columns an evaluation has besides: here the samples, and none."""

    passes: int = 1
    """Gradients that one sample costs."""
    plain: bool = True
    """Whether gradients are those of the samples as they are."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """The columns, of which those of an accuracy are of classes alone."""

    def plan(self, task: Source, batches: Batches, clients: Ints, rounds: Ints) -> SupervisedPlan:
        """The minibatches `batches` of `clients` in their `rounds` ``[m]``."""
        return SupervisedPlan(task, batches)

    def evaluate(self, score: Callable[[Change], tuple[float, float]]) -> tuple[float, ...]:
        """Values of `metrics`; `score` gives loss and accuracy of a model on changed test inputs."""
        return ()

    def check(self, kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor) -> None:
        """Raise InputError where the model ``[d]`` is none for it, tried on some samples."""

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on `device`."""
        return self
