"""Clients' own test rows, and what one model, or each client's own, says of them.

One model takes all rows in one pass. Models of clients' own are taken side by side, those with about as many rows
together: a client's rows are filled up to a width that its number of rows alone decides, so that its numbers do not
depend on who else is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Array, Bools, Ints
from fedsim.core.oracle import Answers, OwnTests
from fedsim.core.own_tests import OwnAnswers
from fedsim.core.tokens import IGNORED, Tokens, widened
from fedsim.data.sets import Dataset
from fedsim.models.build import widest
from fedsim.models.losses import Loss, predictions
from fedsim.objective.curvature import probabilities_of
from fedsim.objective.kernel import Kernel
from fedsim.objective.rows import index_lists
from fedsim.objective.scores import counted

_T = TypeVar("_T")
_MODEL_FLOATS = 2**22  # of the models of a batch
_EVAL_FLOATS = 2**23  # of the widest layer in a batch


@dataclass(frozen=True)
class OwnRows:
    """Rows of `inputs` and `targets`: client i has ``indices[offsets[i]:offsets[i + 1]]``, or all have the same."""

    inputs: Tensor
    targets: Tensor
    indices: Ints
    offsets: Ints
    shared: bool = False

    @property
    def sizes(self) -> Ints:
        """Rows per client, ``[n]``."""
        if self.shared:
            return np.full(len(self.offsets) - 1, len(self.indices), dtype=np.int64)
        return np.diff(self.offsets)

    def of(self, client: int) -> Ints:
        """The rows of a client."""
        return self.indices if self.shared else self.indices[self.offsets[client] : self.offsets[client + 1]]

    def of_all(self, clients: Ints) -> Ints:
        """The rows of `clients`, of one after the other."""
        if self.shared:
            return np.tile(self.indices, len(clients))
        sizes = self.sizes[clients]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found: Ints = self.indices[np.repeat(self.offsets[clients], sizes) + within]
        return found

    def shard(self, clients: Ints) -> Self:
        """The same with the rows of `clients` alone; the others have none."""
        if self.shared:
            return self
        kept, indices = np.unique(self.of_all(clients), return_inverse=True)
        rows = torch.as_tensor(kept, device=self.inputs.device)
        sizes = np.zeros(len(self.offsets) - 1, dtype=np.int64)
        sizes[clients] = self.sizes[clients]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows], indices=indices, offsets=offsets)

    def to(self, device: torch.device) -> Self:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def own_rows(inputs: Tensor, targets: Tensor, rows: Sequence[Ints]) -> OwnRows:
    """The rows of each client."""
    return OwnRows(inputs, targets, *index_lists(rows))


def client_tests(task: Judge, held: Sequence[Ints] | None, natural: Sequence[Ints] | None, data: Dataset) -> OwnRows:
    """The test rows of clients: training rows that were `held` out, `natural` ones of the test data, or all of these.

    ``run.eval_samples`` takes a sample of the test data, which is what all clients then share; natural ones are whole.
    """
    if held is not None:
        return own_rows(task.inputs, task.targets, held)
    if natural is not None:
        return own_rows(*task.place(data.test_x, data.test_y), natural)
    return common_rows(task.test_inputs, task.test_targets, task.num_clients)


def common_rows(inputs: Tensor, targets: Tensor, clients: int) -> OwnRows:
    """All rows for every client."""
    return OwnRows(inputs, targets, np.arange(len(inputs)), np.zeros(clients + 1, dtype=np.int64), shared=True)


class Judge(Protocol):
    """What is needed of a task."""

    num_clients: int
    test_inputs: Tensor
    test_targets: Tensor
    inputs: Tensor
    targets: Tensor

    kernel: Kernel
    loss: Loss
    loss_name: str
    is_classification: bool
    dim: int
    tokens: Tokens

    @property
    def eval_rows(self) -> int: ...
    def place(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...
    def each(self, parts: Sequence[Callable[[], _T]]) -> list[_T]: ...


@dataclass(frozen=True)
class Tested(OwnTests):
    """The rows, and the models that are asked about them; see `fedsim.core.oracle.OwnTests`."""

    task: Judge
    rows: OwnRows

    @property
    def shared(self) -> bool:
        return self.rows.shared

    @property
    def sizes(self) -> Ints:
        return self.rows.sizes

    def targets_of(self, clients: Ints) -> Ints:
        sizes = self.rows.sizes[clients]
        if self.task.tokens.single:
            return sizes
        each = counted(self.rows.targets).cpu().numpy()[self.rows.of_all(clients)]
        client = np.repeat(np.arange(len(clients)), sizes)
        return np.bincount(client, weights=each, minlength=len(clients)).astype(np.int64)

    def answers(self, models: Tensor, clients: Ints, whole: bool = False) -> OwnAnswers:
        sizes = self.rows.sizes[clients]
        rows = self.rows.of_all(clients)
        parts = _of_one(self, models, rows) if models.dim() == 1 else _of_each(self, models, rows, sizes)
        found = self.task.each([part for _, part in parts])
        losses, right = np.empty(int(sizes.sum())), np.empty(int(sizes.sum()), dtype=np.int64)
        outputs: Array | None = None
        for (places, _), (loss, correct, out) in zip(parts, found, strict=True):
            losses[places], right[places] = loss.cpu().numpy(), correct.cpu().numpy()
            if whole:
                made: Array = out.cpu().numpy()
                outputs = np.empty((len(losses), *made.shape[1:]), dtype=made.dtype) if outputs is None else outputs
                outputs[places] = made
        client = np.repeat(np.arange(len(clients)), sizes)
        summed = np.bincount(client, weights=losses, minlength=len(clients)).astype(np.float64)
        if not self.task.is_classification:
            return OwnAnswers(summed, None, outputs)
        return OwnAnswers(summed, np.add.reduceat(right, np.cumsum(sizes) - sizes), outputs)

    def said(self, client: int, outputs: Array) -> tuple[Answers, Tensor | None]:
        targets, loss = self.rows.targets, self.task.loss_name
        out = torch.tensor(outputs, device=targets.device)  # a copy: what came from an actor cannot be written to
        targets = targets[torch.as_tensor(self.rows.of(client), device=targets.device)]
        if not self.task.tokens.single:
            kept = targets != IGNORED
            out, targets = out[kept], targets[kept]
        known = probabilities_of(loss, out) if loss in ("cross_entropy", "logistic") else None
        return Answers(out, targets, predictions(out, loss) if self.task.is_classification else None), known


_Scores = tuple[Tensor, Tensor, Tensor]  # losses [N], right [N], outputs [N, ...]
_Part = tuple[Ints, Callable[[], _Scores]]  # places among the rows that are asked about, and what gives their scores


def _of_one(tested: Tested, params: Tensor, rows: Ints) -> list[_Part]:
    task, own = tested.task, tested.rows

    def score(places: Ints) -> _Scores:
        x, y = _taken(own, rows[places])
        return _scores(task, task.kernel.outputs(params.unsqueeze(0), x)[0], y)

    every = np.arange(len(rows))
    return [(p, partial(score, p)) for p in np.split(every, np.arange(task.eval_rows, len(rows), task.eval_rows))]


def _of_each(tested: Tested, models: Tensor, rows: Ints, sizes: Ints) -> list[_Part]:
    """Of `rows`, of which client i has ``sizes[i]``, one client's after the other's."""
    task, own = tested.task, tested.rows
    starts = np.cumsum(sizes) - sizes
    most = task.eval_rows
    layer = widest(task.kernel.module, widened(own.inputs[:1]))
    widths = np.where(sizes > most, 0, sizes if task.kernel.alone else _filled(sizes))
    parts: list[_Part] = []

    def together(who: Ints, counts: Bools) -> _Scores:
        slots = np.minimum(np.arange(counts.shape[1]), sizes[who][:, None] - 1)  # its last row fills a client up
        x, y = _taken(own, rows[starts[who][:, None] + slots])
        all_of_them = len(who) == len(models)
        chosen = models if all_of_them else models.index_select(0, torch.as_tensor(who, device=models.device))
        out, y = task.kernel.own_outputs(chosen, x).flatten(0, 1), y.flatten(0, 1)
        if counts.all():
            return _scores(task, out, y)
        kept = torch.as_tensor(np.flatnonzero(counts), device=x.device)
        return _scores(task, out.index_select(0, kept), y.index_select(0, kept))

    def alone(i: int, part: slice) -> _Scores:
        x, y = _taken(own, rows[starts[i] + part.start : starts[i] + part.stop])
        return _scores(task, task.kernel.outputs(models[i : i + 1], x)[0], y)

    for width in np.unique(widths).tolist():
        group = np.flatnonzero(widths == width)
        if width == 0:
            for i in group.tolist():
                cuts = [slice(a, min(a + most, int(sizes[i]))) for a in range(0, int(sizes[i]), most)]
                parts += [(starts[i] + np.arange(cut.start, cut.stop), partial(alone, i, cut)) for cut in cuts]
            continue
        step = max(1, min(_EVAL_FLOATS // (width * layer), _MODEL_FLOATS // task.dim))
        for who in np.split(group, np.arange(step, len(group), step)):
            counts = np.arange(width) < sizes[who][:, None]
            parts.append(((starts[who][:, None] + np.arange(width))[counts], partial(together, who, counts)))
    return parts


def _filled(sizes: Ints) -> Ints:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few widths, and at most a half of a client's rows in vain."""
    power = 2 ** np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    between = 3 * power // 4
    return np.where((between >= sizes) & (power >= 4), between, power)


def _taken(own: OwnRows, rows: Ints) -> tuple[Tensor, Tensor]:
    index = torch.as_tensor(rows, device=own.inputs.device)
    flat = index.flatten()
    x, y = own.inputs.index_select(0, flat), own.targets.index_select(0, flat)
    return widened(x).view(*index.shape, *x.shape[1:]), y.view(*index.shape, *y.shape[1:])


def _scores(task: Judge, out: Tensor, targets: Tensor) -> _Scores:
    """Of each row: the sum of its targets' losses, how many guesses are right, and the outputs."""
    losses = task.loss(out, targets).double()
    if not task.tokens.single:
        losses = losses * counted(targets)
    if not task.is_classification:
        return losses, torch.zeros(len(losses), dtype=torch.int64), out
    guesses = predictions(out, task.loss_name) == targets
    return losses, guesses.flatten(1).sum(1) if guesses.dim() > 1 else guesses.long(), out
