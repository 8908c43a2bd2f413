"""Parts that break one law each, to show that the laws can fail."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import fedsim
from fedsim.backends.in_process import Vectorized
from fedsim.clients.worker import Worker
from fedsim.data.sets import Digits
from fedsim.messages.attacks import InnerProduct, SignFlip
from fedsim.messages.compressors import TopK
from fedsim.messages.edge_attacks import Dissensus
from fedsim.messages.graph_rules import GraphRule
from fedsim.messages.heard import Heard, Near
from fedsim.messages.poison import LabelFlip
from fedsim.privacy.local_dp import LocalDP

# --- aggregators ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Good(fedsim.Aggregator):
    """The largest value of each coordinate."""

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights.sum() * values.max(dim=0).values


@dataclass(frozen=True)
class LosesMass(fedsim.Aggregator):
    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return values.max(dim=0).values


@dataclass(frozen=True)
class KeepsTheRows(fedsim.Aggregator):
    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights.unsqueeze(1) * values


@dataclass(frozen=True)
class NotLinear(fedsim.Aggregator):
    linear: ClassVar[bool] = True

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights.sum() * values.max(dim=0).values


@dataclass(frozen=True)
class GrowingState(fedsim.Aggregator):
    def fresh(self, form: fedsim.Message) -> fedsim.State:
        return {"seen": torch.zeros(1)}

    def bind(self, messages: Any, weights: Tensor, state: Any) -> Any:
        return (lambda values: weights @ values), {"seen": torch.cat([state["seen"], torch.ones(1)])}


@dataclass(frozen=True)
class SortsInPlace(fedsim.Aggregator):
    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        values.copy_(values.sort(dim=0).values)
        return weights.sum() * values[-1]


@dataclass(frozen=True)
class TossesACoin(fedsim.Aggregator):
    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights.sum() * values[int(torch.randint(len(values), ()))]


@dataclass(frozen=True)
class Forgetful(Good):
    loud: float = 1.0

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


# --- rules of a graph's nodes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halfway(GraphRule):
    """Half its own, half the mean of the neighbours'; a good one."""

    def combine(self, near: Near) -> Tensor:
        return (near.own + near.values.mean(1)) / 2


@dataclass(frozen=True)
class FirstColumn(Halfway):
    def mix(self, heard: Heard) -> Tensor:
        return super().mix(heard)[:, :1]


@dataclass(frozen=True)
class Sums(Halfway):
    def combine(self, near: Near) -> Tensor:
        return near.own + near.values.mean(1)


@dataclass(frozen=True)
class SeesEverybody(Halfway):
    def combine(self, near: Near) -> Tensor:
        return super().combine(near) + near.heard.values.std(0)


@dataclass(frozen=True)
class Believes(Halfway):
    def mix(self, heard: Heard) -> Tensor:
        return torch.as_tensor(heard.matrix.toarray(), dtype=heard.values.dtype) @ heard.values


@dataclass(frozen=True)
class AddsInPlace(Halfway):
    def mix(self, heard: Heard) -> Tensor:
        return heard.values.add_(1).sub(1)


@dataclass(frozen=True)
class MixesByChance(Halfway):
    def combine(self, near: Near) -> Tensor:
        return near.own + torch.rand(1, dtype=near.own.dtype) * (near.values.mean(1) - near.own)


# --- solvers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Upwards(fedsim.LocalSolver):
    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: Any) -> Any:
        return x + lr * v, state


@dataclass(frozen=True, kw_only=True)
class SharesMomentum(fedsim.LocalSolver):
    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: Any) -> Any:
        return x - lr * v.mean(0), state


@dataclass(frozen=True, kw_only=True)
class Overwrites(fedsim.LocalSolver):
    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: Any) -> Any:
        return x.sub_(lr * v), state


@dataclass(frozen=True, kw_only=True)
class Wobbles(fedsim.LocalSolver):
    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: Any) -> Any:
        return x - lr * v + 1e-6 * torch.randn_like(x), state


@dataclass(frozen=True, kw_only=True)
class SaysInPlace(fedsim.LocalSolver):
    @property
    def in_place(self) -> bool:
        return True

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: Any) -> Any:
        return x - 2 * lr * v, state


@dataclass(frozen=True, kw_only=True)
class Miscounts(fedsim.LocalSolver):
    def weight_sum(self, steps: Tensor) -> Tensor:
        return 2 * steps

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: Any) -> Any:
        return x - lr * v, state


@dataclass(frozen=True, kw_only=True)
class Forgets(fedsim.LocalSolver):
    def start(self, x: Tensor) -> Any:
        return {"b": torch.zeros_like(x)}

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: Any) -> Any:
        return x - lr * v, {}


# --- transforms -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MixesRows(fedsim.MessageTransform):
    def send(self, message: Any, kept: Any, job: Any, run: Any) -> Any:
        return {k: v - v.mean(0) for k, v in message.items()}, kept


@dataclass(frozen=True, kw_only=True)
class DropsAKey(fedsim.MessageTransform):
    def send(self, message: Any, kept: Any, job: Any, run: Any) -> Any:
        return {"delta": message["delta"]}, kept


@dataclass(frozen=True, kw_only=True)
class ScalesInPlace(fedsim.MessageTransform):
    def send(self, message: Any, kept: Any, job: Any, run: Any) -> Any:
        return {k: v.mul_(0.5) for k, v in message.items()}, kept


@dataclass(frozen=True, kw_only=True)
class GlobalNoise(fedsim.MessageTransform):
    def receive(self, message: Any, arrived: Any, run: Any) -> Any:
        return {k: v + torch.randn_like(v) for k, v in message.items()}


@dataclass(frozen=True, kw_only=True)
class HalfABit(fedsim.MessageTransform):
    def row_bytes(self, form: Any) -> Any:
        return 0.5


@dataclass(frozen=True, kw_only=True)
class Boasts(TopK):
    """Keeps one coordinate and says that it loses nothing."""

    k: int | None = 1

    def alpha(self, d: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class HitsEverybody(SignFlip):
    attackers: int | float | list[int] = 3

    def receive(self, message: Any, arrived: Any, run: Any) -> Any:
        return {k: -v for k, v in message.items()}


@dataclass(frozen=True, kw_only=True)
class Unsorted(HitsEverybody):
    def attacking(self, run: Any) -> Any:
        return np.array([4, 2, 9])


@dataclass(frozen=True, kw_only=True)
class AlwaysThere(HitsEverybody):
    start: int = 3

    def receive(self, message: Any, arrived: Any, run: Any) -> Any:
        evil = torch.as_tensor(np.isin(arrived.clients, self.attacking(run)))[:, None]
        return {k: torch.where(evil, -v, v) for k, v in message.items()}


@dataclass(frozen=True, kw_only=True)
class CopiesWhoIsFirst(InnerProduct):
    """It copies whoever's message came first, which nobody promised anything about."""

    attackers: int | float | list[int] = 3

    def receive(self, message: Any, arrived: Any, run: Any) -> Any:
        evil = torch.as_tensor(np.isin(arrived.clients, self.attacking(run)))
        return {k: torch.where(evil[:, None], v[~evil][:1], v) if not evil.all() else v for k, v in message.items()}


@dataclass(frozen=True, kw_only=True)
class NeedsSomebody(InnerProduct):
    attackers: int | float | list[int] = 3

    def receive(self, message: Any, arrived: Any, run: Any) -> Any:
        evil = torch.as_tensor(np.isin(arrived.clients, self.attacking(run)))
        return {k: torch.where(evil[:, None], v[~evil].mean(0), v) for k, v in message.items()}


@dataclass(frozen=True, kw_only=True)
class _Poison(LabelFlip):
    attackers: int | float | list[int] = 3


class FloatLabels(_Poison):
    def rows(self, inputs: Tensor, targets: Tensor, classes: int, client: int, seed: int) -> tuple[Tensor, Tensor]:
        return inputs, targets.float()


class FlipsInPlace(_Poison):
    def rows(self, inputs: Tensor, targets: Tensor, classes: int, client: int, seed: int) -> tuple[Tensor, Tensor]:
        return inputs, targets.neg_().add_(classes - 1)


class AnyLabel(_Poison):
    def rows(self, inputs: Tensor, targets: Tensor, classes: int, client: int, seed: int) -> tuple[Tensor, Tensor]:
        return inputs, torch.randint_like(targets, classes)


@dataclass(frozen=True, kw_only=True)
class _Edges(Dissensus):
    attackers: int | float | list[int] = 3


class LiesForOthers(_Edges):
    def edges(self, heard: Any, arrived: Any, run: Any) -> Any:
        return dataclasses.replace(heard, values=heard.values + 1)


class PullsInPlace(_Edges):
    def edges(self, heard: Any, arrived: Any, run: Any) -> Any:
        heard.values[torch.as_tensor(np.isin(heard.nodes, self.attacking(run)))] = 0.0
        return heard


class TellsAnything(_Edges):
    def said(self, heard: Any, entries: Any, arrived: Any, run: Any) -> Any:
        return torch.randn(len(entries), heard.values.shape[-1], dtype=heard.values.dtype)


class KnowsTooMuch(_Edges):
    """It says it is made of neighbours, and looks at whatever is in the process."""

    def said(self, heard: Any, entries: Any, arrived: Any, run: Any) -> Any:
        return heard.values.mean(0).expand(len(entries), -1)


# --- mechanisms -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Local(LocalDP):
    clip_norm: float | None = 1.0

    def bind(self, setting: Any) -> Any:
        return self.changed(super().bind(setting))

    def changed(self, bound: Any) -> Any:
        return bound


@dataclass(frozen=True, kw_only=True)
class Quiet(_Local):
    """It adds no noise, and is paid for it."""

    def changed(self, bound: Any) -> Any:
        bound.std = 0.0
        return bound


def _nothing(*arguments: Any) -> None:
    """Charge nothing."""


def _noisy(messages: Any, job: Any) -> Any:  # noqa: ARG001
    return {k: v + torch.randn_like(v) for k, v in messages.items()}


@dataclass(frozen=True, kw_only=True)
class Free(_Local):
    """Nothing of it is written down."""

    def changed(self, bound: Any) -> Any:
        bound.charge = _nothing
        return bound


@dataclass(frozen=True, kw_only=True)
class GlobalDraws(_Local):
    def changed(self, bound: Any) -> Any:
        bound.outgoing = _noisy
        return bound


@dataclass(frozen=True, kw_only=True)
class ForOthers(_Local):
    def bind(self, setting: Any) -> Any:
        raise fedsim.InputError("never")


# --- data sets and backends -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Digits(Digits):
    def load(self, clients: int | None, seed: int, base: Path) -> Any:
        return self.changed(super().load(clients, seed, base), seed)

    def changed(self, data: Any, seed: int) -> Any:
        return data


@dataclass(frozen=True)
class LabelTooLarge(_Digits):
    def changed(self, data: Any, seed: int) -> Any:
        return dataclasses.replace(data, num_classes=9)


@dataclass(frozen=True)
class SharedRow(_Digits):
    def changed(self, data: Any, seed: int) -> Any:
        return dataclasses.replace(data, clients=[np.arange(5), np.arange(4, 9)])


@dataclass(frozen=True)
class Shuffled(_Digits):
    def changed(self, data: Any, seed: int) -> Any:
        order = torch.randperm(len(data.train_x))
        return dataclasses.replace(data, train_x=data.train_x[order], train_y=data.train_y[order])


@dataclass(frozen=True)
class SeededSplit(_Digits):
    def changed(self, data: Any, seed: int) -> Any:
        return dataclasses.replace(data, train_x=data.train_x.roll(seed, 0), train_y=data.train_y.roll(seed, 0))


class _Changed(Vectorized):
    pass


class Halves(_Changed):
    def collect(self, jobs: Any) -> Any:
        return {k: v / 2 for k, v in super().collect(jobs).items()}


class Unordered(_Changed):
    def collect(self, jobs: Any) -> Any:
        return super().collect(np.sort(jobs))


class Amnesiac(_Changed):
    def collect(self, jobs: Any) -> Any:
        messages = super().collect(jobs)
        self.worker = Worker(self.worker.task, self.worker.algorithm)
        return messages


class LosesJobs(_Changed):
    def save(self) -> Any:
        return {k: v for k, v in super().save().items() if not k.startswith("pending")}


class Inventive(_Changed):
    def collect(self, jobs: Any) -> Any:
        try:
            return super().collect(jobs)
        except fedsim.RunError:
            return {}
