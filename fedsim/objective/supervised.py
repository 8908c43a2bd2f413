"""Supervised learning as a task: one data tensor on the device, clients as index lists, minibatches by index."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core import crew, rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import CARRIED, Answers, Losses, OwnTests, Plan, Task
from fedsim.core.tokens import IGNORED, widened
from fedsim.core.types import BatchSize, State
from fedsim.data.augment import Augment, moved
from fedsim.data.sets import Dataset
from fedsim.data.tokenized import tokens_of
from fedsim.models.layout import flatten
from fedsim.models.lora import adapters
from fedsim.models.losses import Loss, predictions
from fedsim.models.personal import matching
from fedsim.models.size import saved_bytes, widest
from fedsim.objective.batches import Batches, Change, Inputs, SupervisedPlan
from fedsim.objective.curvature import class_probabilities, gauss_newton, outputs_of
from fedsim.objective.kernel import Kernel, Precision
from fedsim.objective.own_losses import of_clients
from fedsim.objective.own_rows import OwnRows, Tested
from fedsim.objective.positions import Positions
from fedsim.objective.rows import evaluated, index_lists, peak, taken
from fedsim.objective.scores import Sums, counted, summed
from fedsim.objective.smoothness import convexity_of_linear, of_linear
from fedsim.objective.stacked import Way
from fedsim.objective.training import beside, kernel_of

_T = TypeVar("_T")
_EVAL_FLOATS = 32 * 2**20  # of the widest layer in one evaluation chunk: 128 MiB in float32
_EVAL_SAMPLES = 1000
_LARGEST = 700.0  # of a loss whose exponential is a number


class SupervisedTask(Task):
    """f_i = mean loss of one model over client i's samples."""

    sees_training_data = True
    """Whether the clients' samples are here, so that their loss can be evaluated; not so at a deployment's server."""
    tests: OwnRows | None = None
    """The test rows of each client's own."""

    def __init__(
        self,
        dataset: Dataset,
        rows: list[Ints],
        module: nn.Module,
        loss_name: str,
        loss: Loss,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        eval_samples: int | None = None,
        augment: Augment | None = None,
        precision: Precision = "full",
        way: Way = "auto",
        seen: Inputs | None = None,
    ) -> None:
        self.device, self.dtype, self.seed, self.augment = device, dtype, seed, augment
        self.inputs, self.targets = self.place(dataset.train_x, dataset.train_y)
        test_inputs, test_targets = self.place(dataset.test_x, dataset.test_y)
        self.indices, self.offsets = index_lists(rows)
        self.num_clients = len(rows)
        self.sizes, self._drawn = np.diff(self.offsets), Positions()
        share = self.sizes if dataset.importance is None else np.asarray(dataset.importance, dtype=np.float64)
        self.importance = share / share.sum()
        self.num_classes, self.tokens = dataset.num_classes, tokens_of(dataset)
        self._targets_each = self._count()
        self.loss_name, self.loss, self.is_classification = loss_name, loss, dataset.num_classes is not None
        self._engine: tuple[Precision, Way] = (precision, way)
        self.kernel: Kernel = kernel_of(module.to(device), loss, device, widened(self.inputs[:8]), *self._engine)
        self._initial = flatten(module).to(device=device, dtype=dtype)
        self.dim, self.shapes = len(self._initial), self.kernel.layout.shapes
        self.pixels, self.seen = dataset.pixels, (seen or Inputs()).to(device)
        self.passes = self.seen.passes
        perplexity = ("perplexity",) if self.tokens.language and loss_name == "cross_entropy" else ()
        names = ("train_loss", "test_loss", "test_accuracy", *perplexity, *self.seen.metrics)
        self.metrics = tuple(n for n in names if self.is_classification or not n.endswith("_accuracy"))
        self._eval_samples = eval_samples
        self._train_rows = evaluated(self.indices, eval_samples, seed, "train")
        test_rows = evaluated(np.arange(len(test_inputs)), eval_samples, seed, "test")
        every_row = len(test_rows) == len(test_inputs)
        self.test_inputs = test_inputs if every_row else test_inputs[torch.as_tensor(test_rows)]
        self.test_targets = test_targets if every_row else test_targets[torch.as_tensor(test_rows)]

    def initial(self) -> Tensor:
        return self._initial.clone()

    @property
    def carried(self) -> State:
        return {CARRIED: self.kernel.state.clone()} if len(self.kernel.state) else {}

    def named(self, which: str | Sequence[str]) -> Tensor:
        if isinstance(which, str):
            return super().named(which)
        return matching(self.kernel.layout, which).to(self.device)

    def shard(self, clients: Ints) -> Self:
        part = copy.copy(self)
        own = [self.indices[self.offsets[c] : self.offsets[c + 1]] for c in clients]
        kept, part.indices = np.unique(np.concatenate(own), return_inverse=True)
        rows = torch.as_tensor(kept, device=self.device)
        part.inputs, part.targets = self.inputs[rows], self.targets[rows]
        part._targets_each = part._count()
        part.offsets = np.zeros_like(self.offsets)
        part.offsets[clients] = np.cumsum(self.sizes[clients]) - self.sizes[clients]
        part.tests = None if self.tests is None else self.tests.shard(clients)
        part._train_rows = part.indices[:0]  # the training loss is measured where all data are
        return part

    def to(self, device: torch.device) -> Self:
        part = super().to(device)
        part.seen, part.tests = self.seen.to(device), None if self.tests is None else self.tests.to(device)
        if device != self.device:
            module, rows = self.kernel.module.to(device), widened(part.inputs[:8])
            part.kernel = kernel_of(module, self.loss, device, rows, *self._engine)
        return part

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> SupervisedPlan:
        sizes = self.sizes[clients]
        full = batch_size == "full"
        width = int(sizes.max() if full else min(int(batch_size), int(sizes.max())))
        if full:
            slot = np.arange(width)
            valid = np.broadcast_to(slot < sizes[:, None, None], (len(clients), int(steps.max()), width))
            positions = np.where(valid, slot, 0)
        else:
            positions, valid = self._drawn.of(self.seed, clients, sizes, rounds, int(steps.max()), width, epochs)
        return self._plan(clients, rounds, positions, valid, None)

    def poisson_plan(self, clients: Ints, rounds: Ints, steps: Ints, rates: Floats, seed: int | None = None) -> Plan:
        from scipy.stats import binom

        size, step = self.sizes[clients][:, None], np.arange(int(steps.max()))[None, :]
        keys = rng.key(self.seed if seed is None else seed, "poisson", clients[:, None], rounds[:, None], step)
        # How many are drawn is binomial, and given how many, every set of that size is as likely as any other.
        counts = binom.ppf(rng.uniform(rng.fold(keys, 0)), size, rates[:, None]).clip(0, size).astype(np.int64)
        slot = np.arange(max(int(counts.max()), 1))
        valid = slot < counts[:, :, None]
        positions = rng.permute(rng.fold(keys, 1)[:, :, None], np.minimum(slot, size[:, :, None] - 1), size[:, :, None])
        expected = torch.as_tensor(rates[:, None, None] * size[:, :, None], dtype=self.dtype, device=self.device)
        return self._plan(clients, rounds, positions, valid, torch.as_tensor(valid, device=self.device) / expected)

    def evaluate(self, params: Tensor) -> dict[str, float]:
        result = {}
        if self.sees_training_data:
            result["train_loss"] = self._score(params, self.inputs, self.targets, self._train_rows)[0]
        result["test_loss"], accuracy = self._score(params, self.test_inputs, self.test_targets, None)
        if self.is_classification:
            result["test_accuracy"] = accuracy
        if "perplexity" in self.metrics:
            result["perplexity"] = math.exp(result["test_loss"]) if result["test_loss"] < _LARGEST else math.inf
        seen = self.seen.evaluate(partial(self._score, params, self.test_inputs, self.test_targets, None))
        result |= {k: v for k, v in zip(self.seen.metrics, seen, strict=True) if k in self.metrics}
        return result

    def losses(self, models: Tensor, clients: Ints, rounds: Ints, samples: BatchSize) -> Losses:
        return of_clients(self, models, clients, rounds, samples)

    def poisoned(self, clients: Ints, change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Self:
        part = copy.copy(self)
        part.indices = self.indices.copy()
        inputs, targets, end = [self.inputs], [self.targets], len(self.inputs)
        for client in clients.tolist():
            place = slice(self.offsets[client], self.offsets[client + 1])
            own = torch.as_tensor(self.indices[place], device=self.device)
            if len(own):  # a machine of a deployment has the rows of its own client alone
                x, y = change(client, self.inputs[own], self.targets[own])
                inputs.append(x)
                targets.append(y)
                part.indices[place] = np.arange(end, end + len(own))
                end += len(own)
        part.inputs, part.targets = torch.cat(inputs), torch.cat(targets)
        part._targets_each = part._count()
        return part

    def pooled(self) -> Self:
        part = copy.copy(self)
        part.offsets = np.full_like(self.offsets, self.offsets[-1])
        part.offsets[0] = 0
        part.sizes = np.diff(part.offsets)
        return part

    def judged_by(self, clients: Ints) -> Self:
        part = copy.copy(self)
        own = np.concatenate([self.indices[self.offsets[c] : self.offsets[c + 1]] for c in clients])
        part._train_rows = evaluated(own, self._eval_samples, self.seed, "train")
        return part

    def smoothness(self, weights: Floats) -> tuple[Floats, float] | None:
        """Of a linear model on the samples as they are; of others none is known."""
        if not self._plain:
            return None
        rows = [self.indices[a:b] for a, b in pairwise(self.offsets.tolist())]
        return of_linear(self.kernel.module, self.loss_name, self.inputs, rows, weights)

    def convexity(self) -> Floats | None:
        """Of a linear model on the samples as they are; of others none is known."""
        if not self._plain:
            return None
        rows = [self.indices[a:b] for a, b in pairwise(self.offsets.tolist())]
        return convexity_of_linear(self.kernel.module, self.loss_name, self.inputs, rows)

    @property
    def _plain(self) -> bool:
        """Whether gradients are taken of the samples as they are, and these are known."""
        return self.sees_training_data and self.augment is None and self.seen.plain

    def answers(
        self, params: Tensor, client: int | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Answers:
        inputs, targets = self.test_inputs, self.test_targets
        if client is not None:
            if not self.sees_training_data:
                raise InputError("clients keep their data to themselves; allowed: measures on the test data")
            own = torch.as_tensor(self.indices[self.offsets[client] : self.offsets[client + 1]], device=self.device)
            inputs, targets = self.inputs[own], self.targets[own]
        outputs = torch.cat(
            [
                self.kernel.outputs(params.unsqueeze(0), widened(x) if change is None else change(widened(x)))[0]
                for x in torch.split(inputs, self.eval_rows)
            ]
        )
        if not self.tokens.single:
            kept = targets != IGNORED
            outputs, targets = outputs[kept], targets[kept]
        guesses = predictions(outputs, self.loss_name) if self.is_classification else None
        return Answers(outputs, targets, guesses)

    @property
    def own(self) -> OwnTests | None:
        return None if self.tests is None else Tested(self, self.tests)

    def curvature(self, client: int, x: Tensor, diagonal: bool) -> Tensor:
        if not self.kernel.nature.plain:
            message = "a model that draws or counts while it trains has no curvature that is known; allowed: sgld, none"
            raise InputError(message, key="name")
        if not self.tokens.single:
            raise InputError("a curvature is of one target per sample, found tokens; allowed: sgld, none", key="name")
        own = torch.as_tensor(self.indices[self.offsets[client] : self.offsets[client + 1]], device=self.device)
        return gauss_newton(self.kernel, x, widened(self.inputs[own]), self.targets[own], diagonal)

    @property
    def curvature_calls(self) -> int:
        return outputs_of(self.kernel, self._initial, widened(self.inputs[:1]))

    def probabilities(self, params: Tensor) -> Tensor:
        found = class_probabilities(self.kernel, self.loss_name, params, widened(self.test_inputs))
        return found if self.tokens.single else found[:, self.test_targets != IGNORED]

    @property
    def test_samples(self) -> int:
        return len(self.test_inputs) if self.tokens.single else int((self.test_targets != IGNORED).sum())

    def correct(self, params: Tensor) -> Ints | None:
        if not self.is_classification:
            return None
        width = widest(self.kernel.module, widened(self.inputs[:1]))
        models = max(1, min(len(params), _EVAL_FLOATS // (min(self.eval_rows, len(self.test_inputs)) * width)))
        both = (torch.split(v, self.eval_rows) for v in (self.test_inputs, self.test_targets))
        samples = list(zip(*both, strict=True))

        def right(rows: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
            guesses = predictions(self.kernel.outputs(rows, widened(inputs)), self.loss_name)
            return (guesses == targets).flatten(1).sum(-1)

        chunks = torch.split(params, models)
        found = self.each([partial(right, rows, x, y) for rows in chunks for x, y in samples])
        per_chunk = [sum(found[i : i + len(samples)]) for i in range(0, len(found), len(samples))]
        return torch.cat([torch.as_tensor(c) for c in per_chunk]).cpu().numpy().astype(np.int64)

    @property
    def computed(self) -> str:
        return self.kernel.words

    @property
    def adapted(self) -> bool:
        """Whether adapters train beside layers that do not: a row is then small, and what is computed with it large."""
        return bool(adapters(self.kernel.module))

    def step_bytes(self, batch_size: BatchSize) -> int:
        most = int(self.sizes.max())
        width = most if batch_size == "full" else min(batch_size, most)
        taken = width * self.inputs[0].numel() * self.inputs.element_size()
        return super().step_bytes(batch_size) + 2 * taken  # gathered, and read by the model

    def activation_bytes(self, batch_size: BatchSize) -> int:
        most = int(self.sizes.max())
        width = most if batch_size == "full" else min(batch_size, most)
        if self.device.type != "cuda":  # beside whole models they hardly count
            return width * saved_bytes(self.kernel.module, widened(self.inputs[:1])) if self.adapted else 0
        few = self.inputs[:width], self.targets[:width]
        peaks = [peak(self.kernel, self._initial, *few, rows) for rows in (1, 2, 1)]  # libraries load in the first
        return max(0, peaks[1] - peaks[2])

    def _plan(
        self, clients: Ints, rounds: Ints, positions: Ints, valid: Bools, weights: Tensor | None
    ) -> SupervisedPlan:
        """Minibatches at `positions` among their clients' samples; `weights` None: each is a mean over its targets."""
        index = self.indices[self.offsets[clients][:, None, None] + positions]
        rows = torch.as_tensor(index, device=self.device)
        moves = None
        if self.augment is not None:
            drawn = self.augment.draw(self.seed, clients, rounds, *index.shape[1:])
            moves = torch.as_tensor(drawn, device=self.device)
        each = self._weights(valid, index) if weights is None else weights
        positions = np.broadcast_to(positions, index.shape)
        more = beside(self.kernel, self.seed, clients, rounds, index)
        targets = self.targets.index_select(0, rows.reshape(-1)).view(*rows.shape, *self.targets.shape[1:])
        batches = Batches(rows, targets, valid.sum(-1), each, moves, positions, *more)
        return self.seen.plan(self, batches, clients, rounds)

    def gather(self, index: Tensor, moves: Tensor | None) -> Tensor:
        """Training inputs ``[..., *sample]`` of rows `index`, augmented as `moves` says."""
        # index_select on a flat index is several times faster than fancy indexing
        inputs = taken(self.inputs, index.reshape(-1)).view(*index.shape, *self.inputs.shape[1:])
        return widened(inputs) if moves is None else moved(inputs, moves)

    def place(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(device=self.device, dtype=self.dtype if x.is_floating_point() else None)
        return x, y.to(device=self.device, dtype=self.dtype if y.is_floating_point() else torch.int64)

    def _count(self) -> Ints | None:
        """How many targets of each row count, ``[N]``; None where all rows are alike in that."""
        return counted(self.targets).cpu().numpy() if self.tokens.ragged else None

    def _weights(self, valid: Bools, index: Ints) -> Tensor | float:
        """1 / (samples of the minibatch) for samples that count, as one number where every minibatch is whole.

        Where rows differ in how many of their targets count, a sample's share of them: a loss is a mean over targets.
        """
        if self._targets_each is not None:
            each = self._targets_each[index] * valid
            share = each / np.maximum(each.sum(-1, keepdims=True), 1)
            return torch.as_tensor(share, dtype=self.dtype, device=self.device)
        if valid.all():
            return 1.0 / int(valid.shape[-1])
        counts = np.maximum(valid.sum(-1, keepdims=True), 1)
        return torch.as_tensor(valid / counts, dtype=self.dtype, device=self.device)

    def _score(
        self, params: Tensor, inputs: Tensor, targets: Tensor, rows: Ints | None, change: Change | None = None
    ) -> tuple[float, float]:
        """Mean loss and accuracy of one model over `rows` of the inputs (all for None), as they are or changed."""
        index = None if rows is None else torch.as_tensor(rows, device=self.device)
        count = len(inputs) if index is None else len(index)

        def score(start: int) -> Sums:
            part = slice(start, start + rows_each)
            x = widened(inputs[part] if index is None else inputs.index_select(0, index[part]))
            y = targets[part] if index is None else targets.index_select(0, index[part])
            x = x if change is None else change(self.kernel, params, x, y, start)
            out = self.kernel.outputs(params.unsqueeze(0), x)[0]
            guesses = predictions(out, self.loss_name) if self.is_classification else None
            return summed(self.loss(out, y), guesses, y, self.tokens.single)

        rows_each = self.eval_rows
        scores = self.each([partial(score, start) for start in range(0, count, rows_each)])
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for part in scores:
            loss += part.loss
            correct += part.right.to(torch.int64)
        if not self.tokens.single:
            count = max(sum(part.targets for part in scores), 1)
        return float(loss) / count, float(correct) / count

    @property
    def eval_rows(self) -> int:
        """Samples that an evaluation takes at a time; of long outputs fewer."""
        outputs = (self.tokens.positions or 0) * (self.num_classes or 1)
        return max(1, min(_EVAL_SAMPLES, _EVAL_FLOATS // outputs)) if outputs else _EVAL_SAMPLES

    def each(self, parts: Sequence[Callable[[], _T]]) -> list[_T]:
        """What the parts of an evaluation give: on a CPU threads share them, on a GPU one follows the other."""
        return crew.each(parts) if self.device.type == "cpu" else [part() for part in parts]
