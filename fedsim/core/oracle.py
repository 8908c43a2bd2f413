"""What is minimised: per-client objectives behind one gradient oracle.

A task turns (clients, rounds, steps) into a `Plan` of minibatches; ``plan.oracle(k, count)`` is the stochastic
first-order oracle of local step `k` for the plan's first `count` rows. Which samples a minibatch holds depends on
(seed, client, round, step) alone, so it is the same for one client, a shard or all of them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Array, Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.own_tests import OwnAnswers
from fedsim.core.rules import Rule
from fedsim.core.sharing import CARRIED as CARRIED
from fedsim.core.sharing import PERSONAL as PERSONAL
from fedsim.core.sharing import PERSONAL_CARRIED as PERSONAL_CARRIED
from fedsim.core.sharing import Sharable
from fedsim.core.types import BatchSize, Message, State, clip_norm


class Oracle(ABC):
    """A stochastic first-order oracle: one minibatch per row, and the learning rate each row uses at this step."""

    def __init__(self, lr: Tensor) -> None:
        self.lr = lr
        """Learning rate per row, ``[m, 1]``."""

    @abstractmethod
    def grad(self, x: Tensor) -> Tensor:
        """Mean gradient over each row's minibatch, ``[m, d] -> [m, d]``; calling it again uses the same samples."""

    def descend(self, x: Tensor) -> None:
        """``x -= lr * grad(x)`` in place, ``[m, d]``, for stretches of plain SGD steps."""
        x.addcmul_(self.grad(x), self.lr, value=-1.0)

    def change(self, x: Tensor) -> Tensor:
        """``-lr * grad(x)``, ``[m, d] -> [m, d]``: how far a plain SGD step moves x, which stays as it is."""
        return self.grad(x) * -self.lr

    def walks(self, x: Tensor) -> bool:
        """Whether the plan of this step `walks` from x ``[m, d]``, so that bits are only the same if this step does."""
        return False

    def walk(self, x: Tensor, rule: Rule, remembered: State) -> None:
        """A step of x by that rule, as `Plan.walk` takes it."""
        rule.step(x, rule.gradient(self.grad, x), self.lr, remembered)

    @abstractmethod
    def per_sample_grad(self, x: Tensor) -> Tensor:
        """Gradient of every sample, ``[m, d] -> [m, b, d]``; rows with fewer than `b` samples end in zeros."""

    @property
    def samples(self) -> Tensor:
        """Samples in each row's minibatch, ``[m, 1]``."""
        return torch.ones_like(self.lr)

    def clipped_sum(
        self, x: Tensor, bound: Tensor | float, minus: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """``sum_j clip_bound(g_j(x_i))`` over each row's samples, ``[m, d]``.

        With `minus` ``[m, d]`` each sample's difference ``g_j(x_i) - g_j(minus_i)`` is clipped instead. `bound` is a
        number or ``[m, 1]``; inf clips nothing. `dtype` is the precision to compute in (default: that of x).
        """
        grads = self.per_sample_grad(x)
        if minus is not None:
            grads = grads - self.per_sample_grad(minus)
        return clip_norm(grads, bound.unsqueeze(-1) if isinstance(bound, Tensor) else bound).sum(-2)


class Plan(ABC):
    """The minibatches of some clients for one stretch of local work; rows are sorted by falling number of steps."""

    @abstractmethod
    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        """The oracle of local step `step` for the first `count` rows."""

    def descend(self, x: Tensor, lr: Tensor, steps: range, start: Tensor | None = None) -> None:
        """Plain SGD `steps` of the first rows, x ``[count, d]``, in place, as their oracles would take them.

        `start` ``[count, d]`` is where the first of them starts from; x, which it fills, then holds nothing.
        """
        if start is not None:
            x.copy_(start)
        for step in steps:
            self.oracle(step, len(x), lr).descend(x)

    def walks(self, x: Tensor) -> bool:
        """Whether its `walk` of the first rows x ``[count, d]`` is faster than step after step."""
        return False

    def walk(self, x: Tensor, lr: Tensor, steps: range, start: Tensor | None, rule: Rule, remembered: State) -> None:
        """`descend` by another rule; what it has `remembered` of these rows changes in place."""
        if start is not None:
            x.copy_(start)
        for step in steps:
            rule.step(x, rule.gradient(self.oracle(step, len(x), lr).grad, x), lr, remembered)

    carried: Tensor | None = None
    """What the clients' models carry besides their parameters, ``[m, s]``, as it is now; None: they carry nothing."""

    def begin(self, received: Message) -> None:  # noqa: B027 - few plans need to know
        """What the plan's clients received is `received`, rows ``[m, ...]`` or one for all; before the first oracle."""


@dataclass(frozen=True)
class Losses:
    """What models lose on clients' own samples, ``[m, 1]`` each: the mean over the samples, and the mean square."""

    mean: Tensor
    square: Tensor


@dataclass(frozen=True)
class Answers:
    """What a model says of some samples: outputs ``[N, k]``, targets ``[N]``, and, of classes, its guesses ``[N]``."""

    outputs: Tensor
    targets: Tensor
    guesses: Tensor | None = None


class OwnTests(Protocol):
    """The test rows of each client's own, as a task has them."""

    @property
    def shared(self) -> bool:
        """Whether all clients have the same ones."""

    @property
    def sizes(self) -> Ints:
        """Rows per client, ``[n]``."""

    def targets_of(self, clients: Ints) -> Ints:
        """How many targets the rows of `clients` have, ``[m]``: as many, unless there is one at every position."""

    def answers(self, models: Tensor, clients: Ints, whole: bool = False) -> OwnAnswers:
        """What one model ``[d]``, or the models ``[m, d]`` of `clients`, say of them; with outputs if `whole`."""

    def said(self, client: int, outputs: Array) -> tuple[Answers, Tensor | None]:
        """What was said of one client's rows, and the classes' probabilities ``[N, classes]`` where there are some."""


class Task(Sharable):
    """Per-client objectives f_i over parameters ``[d]``, with data on `device`."""

    num_clients: int
    seed: int
    """What draws of this run are keyed with."""
    sizes: Ints
    """Samples per client, ``[n]`` (1 where a client's gradient is exact)."""
    importance: Floats
    """p_i, ``[n]``, sums to 1: what the global objective sum_i p_i f_i weighs clients with (default: sample share)."""
    dtype: torch.dtype
    metrics: tuple[str, ...]
    """Names that `evaluate` returns."""
    shapes: tuple[tuple[int, ...], ...] | None = None
    """Of the model's parameters, in their order in the flat vector; None where it is just a vector."""
    passes: int = 1
    """Gradients that one sample of a minibatch costs: more than its own where its inputs are attacked first."""
    quadratic: bool = False
    """Whether every objective is a quadratic one, so that its `curvature` is the same everywhere."""

    def untrained(self) -> Tensor:
        """The model before the first round, as the task is asked about it: ``[d]``, or ``[d + s]``."""
        return torch.cat([self.initial(), *self.carried.values()])

    @abstractmethod
    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        """Minibatches for ``steps[i]`` local steps of ``clients[i]`` in its round ``rounds[i]``.

        All are ``[m]``, steps falling.

        With `epochs` a client walks through its shuffled samples, epoch after epoch, the last minibatch of an epoch
        being what is left; without, every step draws a fresh minibatch without replacement.
        """

    def poisson_plan(self, clients: Ints, rounds: Ints, steps: Ints, rates: Floats, seed: int | None = None) -> Plan:
        """Minibatches that hold each of client i's samples with probability ``rates[i]``, independently (all ``[m]``).

        `seed` decides which (None: the task's own). Gradients are sums divided by the public number ``rates[i] * n_i``,
        never by how many were drawn, which may be none. InputError where there are no samples to draw from.
        """
        raise InputError("a quadratic problem has no samples to draw from; allowed: a data set of samples")

    def poisoned(self, clients: Ints, change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Self:
        """The same task in which `clients` train on other rows: what `change` makes of a client's inputs and targets.

        Raises
        ------
        InputError
            There are no rows that could be changed.
        """
        raise InputError("it changes labels of samples, and a quadratic problem has none", key="attack.name")

    def pooled(self) -> Self:
        """The same task in which client 0 trains on what all clients have, and the others have nothing.

        Raises
        ------
        InputError
            These objectives cannot be put together.
        """
        message = f"{type(self).__name__} does not say what all clients' data are together"
        raise InputError(f"{message}; allowed: another algorithm", key="algorithm.name")

    def judged_by(self, clients: Ints) -> Self:
        """The same task whose `evaluate` asks these clients alone what they lose: the others attack.

        Raises
        ------
        InputError
            The objective weighs all of them 0.
        """
        return self._copied(lambda task: task.judged_by(clients))

    @abstractmethod
    def evaluate(self, params: Tensor) -> dict[str, float]:
        """Metrics of one model ``[d]``: ``train_loss`` and, with test data, ``test_loss`` (and ``test_accuracy``)."""

    def answers(
        self, params: Tensor, client: int | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Answers:
        """What one model ``[d]`` says of the test data (of the sample that ``run.eval_samples`` takes).

        Parameters
        ----------
        client : of the training data of this client instead.
        change : what is done to the inputs before the model sees them.

        Raises
        ------
        InputError
            There are none: a quadratic problem has no samples, and a deployment's server no training data.
        """
        raise InputError("a quadratic problem has no test data; allowed: a data set of samples")

    def losses(self, models: Tensor, clients: Ints, rounds: Ints, samples: BatchSize) -> Losses:
        """What models lose on training samples of their own clients: ``models[i]`` on those of ``clients[i]``.

        Parameters
        ----------
        models : rows ``[m, d]``, or one ``[d]`` for all; where the task carries something ``d + s``.
        rounds : of the clients, ``[m]``: another round draws other samples.
        samples : how many a client takes, drawn without replacement, or ``full``: all of them. The samples are as they
            are, neither augmented nor attacked, and models are as they are evaluated.

        Raises
        ------
        InputError
            These objectives have no losses.
        """
        raise InputError(f"{type(self).__name__} does not say what models lose on clients' samples")

    def loss_samples(self, clients: Ints, samples: BatchSize) -> int:
        """Losses of single samples that `losses` evaluates."""
        sizes = self.sizes[clients]
        return int((sizes if samples == "full" else np.minimum(sizes, samples)).sum())

    @property
    def own(self) -> OwnTests | None:
        """The test rows of each client's own; None: clients are not tested one by one."""
        return None

    def shard(self, clients: Ints) -> Self:
        """The same objectives with the training data of `clients` only; clients keep their numbers and draws.

        A task that wraps another one shards what it wraps.
        """
        return self._copied(lambda task: task.shard(clients))

    def to(self, device: torch.device) -> Self:
        """The same task with its data on `device`."""
        part = self._copied(lambda task: task.to(device))
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                setattr(part, name, value.to(device))
        part.device = device
        return part

    def _copied(self, inner: Callable[[Task], Task]) -> Self:
        """A shallow copy in which the tasks that this one wraps are replaced."""
        part = copy.copy(self)
        for name, value in vars(part).items():
            if isinstance(value, Task):
                setattr(part, name, inner(value))
        return part

    @cached_property
    def cumulative_importance(self) -> Floats:
        """Running sums of `importance`, for drawing clients in proportion to it."""
        return np.cumsum(self.importance)

    def correct(self, params: Tensor) -> Ints | None:
        """How many test samples each of the models ``[n, d]`` gets right, ``[n]``; None where there is no accuracy."""
        return None

    @property
    def test_samples(self) -> int:
        """Test samples that models are asked about."""
        return 0

    def smoothness(self, weights: Floats) -> tuple[Floats, float] | None:
        """L_i of every f_i, ``[n]``, and L of ``sum_i w_i f_i`` with weights ``[n]``; None where they are not known.

        ``|grad f(x) - grad f(y)| <= L |x - y|`` for all x and y.
        """
        return None

    def convexity(self) -> Floats | None:
        """mu_i of every f_i, ``[n]``: the smallest eigenvalue of its Hessian anywhere is at least that; None where they
        are not known."""
        return None

    def curvature(self, client: int, x: Tensor, diagonal: bool) -> Tensor:
        """The generalised Gauss-Newton matrix ``[d, d]`` at `x` of the sum of a client's losses, or its diagonal.

        It is positive semidefinite. Of quadratic objectives and of linear models it is the Hessian itself.

        Raises
        ------
        InputError
            It is not known of these objectives.
        """
        raise InputError(f"{type(self).__name__} does not say how its losses curve; allowed: sgld, none", key="name")

    def prepare(self) -> None:
        """Do what takes work and is needed before the first gradient; called once, before clients start.

        Raises
        ------
        InputError
            It cannot be done.
        """
        return

    @property
    def curvature_calls(self) -> int:
        """Backward passes per sample that `curvature` takes."""
        return 1

    def probabilities(self, params: Tensor) -> Tensor:
        """What each of the models ``[m, d]`` takes the classes of the test samples for, ``[m, N, classes]``.

        Raises
        ------
        InputError
            There are no test samples, or the loss is of no probabilities.
        """
        raise InputError("a quadratic problem has no test data; allowed: a data set with classes", key="name")

    def node_accuracy(self, params: Tensor) -> float | None:
        """Mean over the rows of ``[n, d]`` of each model's own test accuracy; None where there is no accuracy."""
        right = self.correct(params)
        return None if right is None else float(right.sum()) / (len(params) * self.test_samples)

    def steps_per_epoch(self, clients: Ints, batch_size: BatchSize) -> Ints:
        """Minibatches in one pass over each client's samples, ``[m]``."""
        if batch_size == "full":
            return np.ones(len(clients), dtype=np.int64)
        return -(-self.sizes[clients] // batch_size)

    @property
    def computed(self) -> str:
        """How gradients of many clients are computed, in words; empty where there is but one way."""
        return ""

    def step_bytes(self, batch_size: BatchSize) -> int:
        """Bytes that one row's local step touches, about: its parameters, gradient and update, and its minibatch."""
        return 3 * self.dim * torch.empty((), dtype=self.dtype).element_size()

    def activation_bytes(self, batch_size: BatchSize) -> int:
        """Memory that one more row's gradient takes, parameters apart, measured; 0 where it does not count."""
        return 0

    def samples_per_step(self, clients: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Ints:
        """Sample gradients that ``steps[i]`` steps evaluate, ``[m]``."""
        size = self.sizes[clients]
        if batch_size == "full":
            return steps * size
        if not epochs:
            return steps * np.minimum(size, batch_size)
        per_epoch = self.steps_per_epoch(clients, batch_size)
        whole, rest = steps // per_epoch, steps % per_epoch
        return whole * size + rest * np.minimum(size, batch_size)
