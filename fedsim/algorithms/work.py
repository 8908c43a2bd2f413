"""How local work and learning rates vary over rounds and clients."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, model_validator

from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.one_of import Chosen, Form, OneOf
from fedsim.core.types import Count, Positive


class _Decay(Form):
    """A schedule, which may have a warm-up before it: its own first round, t = 0, is then round `warm_up`."""

    warm_up: Count | None = None

    @abstractmethod
    def of(self, t: Floats) -> Floats:
        """The factor of rounds `t` (0 for the first round), where there is no warm-up."""

    def at(self, t: Floats) -> Floats:
        """The factor of rounds `t`: 1, 2, ... over `warm_up`, and from there on the schedule."""
        if self.warm_up is None:
            return self.of(t)
        late = t - (self.warm_up - 1)
        return np.where(late < 0, (t + 1) / self.warm_up, self.of(np.maximum(late, 0.0)))


class ExponentialDecay(_Decay):
    """``factor^t``."""

    older = ("factor",)
    model: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, le=1)]

    def of(self, t: Floats) -> Floats:
        return np.asarray(self.factor**t)

    def written(self) -> Any:
        return self.factor if self.warm_up is None else super().written()


class StepDecay(_Decay):
    """`factor` after every `every` rounds."""

    older = ("factor",)
    model: Literal["step"]
    factor: Annotated[float, Field(gt=0, le=1)]
    every: Count

    @model_validator(mode="before")
    @classmethod
    def _together(cls, value: Any) -> Any:
        if isinstance(value, dict) and "every" not in value:
            raise ValueError("'step' and 'every' go together, e.g. {model: step, factor: 0.1, every: 30}")
        return value

    def of(self, t: Floats) -> Floats:
        return np.asarray(self.factor ** np.floor(t / self.every))


class InverseDecay(_Decay):
    """``1 / (1 + rate t)``."""

    older = ("rate",)
    model: Literal["inverse"]
    rate: Positive

    def of(self, t: Floats) -> Floats:
        return np.asarray(1.0 / (1.0 + self.rate * t))


class InverseSqrtDecay(_Decay):
    """``1 / sqrt(1 + rate t)``."""

    older = ("rate",)
    model: Literal["inverse_sqrt"]
    rate: Positive

    def of(self, t: Floats) -> Floats:
        return np.asarray(1.0 / np.sqrt(1.0 + self.rate * t))


class CosineDecay(_Decay):
    """Half a cosine from 1 to `floor` over `rounds` rounds, then `floor`."""

    older = ("rounds",)
    model: Literal["cosine"]
    rounds: Count
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    def of(self, t: Floats) -> Floats:
        progress = np.minimum(t / self.rounds, 1.0)
        return np.asarray(self.floor + (1.0 - self.floor) * 0.5 * (1.0 + np.cos(math.pi * progress)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_DECAYS = OneOf(
    allowed=(
        "allowed: a factor per round above 0 and at most 1, or {model: ..., ...} with exactly one of "
        "exponential, step, inverse, inverse_sqrt, cosine"
    ),
    plain=lambda value: {"model": "exponential", "factor": value} if _is_number(value) else None,
    plain_type=float,
    what="decay",
)


class LrDecay(
    Chosen[
        Annotated[
            ExponentialDecay | StepDecay | InverseDecay | InverseSqrtDecay | CosineDecay,
            Discriminator("model"),
            _DECAYS,
        ]
    ]
):
    """Learning rate of round t = 0, 1, ...: ``lr`` times a factor.

    ``lr_decay: 0.99`` is exponential, 0.99^t. Mappings: ``{model: step, factor: 0.1, every: 30}``, ``{model: inverse,
    rate: 0.01}`` = 1 / (1 + 0.01 t), ``{model: inverse_sqrt, rate: 0.01}`` = 1 / sqrt(1 + 0.01 t), ``{model: cosine,
    rounds: 500, floor: 0.0}`` = from 1 to `floor` over 500 rounds. With ``warm_up: 10`` in a mapping the first 10
    rounds have 1/10, 2/10, ..., 10/10, and the schedule goes on from the last of them.
    """

    def factor(self, t: Ints) -> Floats:
        """The factor of rounds `t` (0 for the first round)."""
        return self.root.at(np.asarray(t, dtype=np.float64))


class _Amount(Form):
    @abstractmethod
    def of(self, clients: Ints, rounds: Ints, seed: int) -> Ints:
        """Amount of work of each client in its round, ``[m]``."""

    def written(self) -> Any:
        return getattr(self, self.older[0])


class FixedWork(_Amount):
    """The same for everybody."""

    older = ("value",)
    model: Literal["fixed"]
    value: Count

    def of(self, clients: Ints, rounds: Ints, seed: int) -> Ints:
        return np.full(len(clients), self.value, dtype=np.int64)


class WorkTable(_Amount):
    """One number per client."""

    older, older_name = ("values",), "per_client"
    model: Literal["table"]
    values: list[Count]

    def of(self, clients: Ints, rounds: Ints, seed: int) -> Ints:
        return np.asarray(self.values, dtype=np.int64)[clients]


class UniformWork(_Amount):
    """Drawn anew for every client and round, both ends included."""

    older = ("low", "high")
    model: Literal["uniform"]
    low: Count
    high: Count

    @model_validator(mode="after")
    def _ordered(self) -> UniformWork:
        if self.low > self.high:
            raise ValueError(f"found low {self.low} above high {self.high}, allowed: [lo, hi] with lo <= hi")
        return self

    def of(self, clients: Ints, rounds: Ints, seed: int) -> Ints:
        return self.low + rng.integers(rng.key(seed, "work", clients, rounds), self.high - self.low + 1)

    def written(self) -> Any:
        return {"uniform": [self.low, self.high]}


def _plain_work(value: Any) -> dict[str, Any] | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"model": "fixed", "value": value}
    return {"model": "table", "values": value} if isinstance(value, list) else None


_AMOUNTS = OneOf(
    allowed="allowed: a whole number above 0, a list with one per client, or {model: uniform, low: ..., high: ...}",
    plain=_plain_work,
    plain_type=int | list[int],
)


class Work(Chosen[Annotated[FixedWork | WorkTable | UniformWork, Discriminator("model"), _AMOUNTS]]):
    """Local steps or epochs: a number, a list with one number per client, or ``{model: uniform, low: 1, high: 5}``.

    The last is drawn anew for every client and round (both ends included; FedNova's and FedProx's unequal local work).
    """

    @property
    def constant(self) -> bool:
        """Whether a client's work is the same in every round."""
        return not isinstance(self.root, UniformWork)

    @property
    def single(self) -> bool:
        """Whether it is 1 for everybody."""
        return isinstance(self.root, FixedWork) and self.root.value == 1

    @property
    def per_client(self) -> list[int] | None:
        """The given numbers, where there is one per client."""
        return self.root.values if isinstance(self.root, WorkTable) else None

    def of(self, clients: Ints, rounds: Ints, seed: int) -> Ints:
        """Amount of work of each client in its round, ``[m]``."""
        return self.root.of(clients, rounds, seed)
