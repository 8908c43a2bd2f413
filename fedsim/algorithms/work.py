"""How local work and learning rates vary over rounds and clients."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.types import Count, Positive

_FORMS = "allowed: a whole number above 0, a list with one per client, or {uniform: [lo, hi]}"


class LrDecay(BaseModel):
    """Learning rate of round t = 0, 1, ...: ``lr`` times a factor.

    ``lr_decay: 0.99`` is exponential, 0.99^t. Mappings: ``{step: 0.1, every: 30}``, ``{inverse: 0.01}`` = 1 / (1 + 0.01
    t), ``{inverse_sqrt: 0.01}`` = 1 / sqrt(1 + 0.01 t), ``{cosine: 500, floor: 0.0}`` = from 1 to `floor` over 500
    rounds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    exponential: Annotated[float, Field(gt=0, le=1)] | None = None
    step: Annotated[float, Field(gt=0, le=1)] | None = None
    every: Count | None = None
    inverse: Positive | None = None
    inverse_sqrt: Positive | None = None
    cosine: Count | None = None
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _one(self) -> LrDecay:
        kinds = ("exponential", "step", "inverse", "inverse_sqrt", "cosine")
        given = [k for k in kinds if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"found {given or 'none'} of the decays, allowed: exactly one of {', '.join(kinds)}")
        if (self.step is None) != (self.every is None):
            raise ValueError("'step' and 'every' go together, e.g. {step: 0.1, every: 30}")
        return self

    @model_serializer
    def _short(self) -> Any:
        given = {k: v for k, v in vars(self).items() if v is not None and (k != "floor" or self.cosine is not None)}
        return self.exponential if self.exponential is not None else given

    def factor(self, t: Ints) -> Floats:
        """The factor of rounds `t` (0 for the first round)."""
        time = np.asarray(t, dtype=np.float64)
        if self.exponential is not None:
            return self.exponential**time
        if self.step is not None and self.every is not None:
            return self.step ** np.floor(time / self.every)
        if self.inverse is not None:
            return 1.0 / (1.0 + self.inverse * time)
        if self.inverse_sqrt is not None:
            return 1.0 / np.sqrt(1.0 + self.inverse_sqrt * time)
        assert self.cosine is not None
        progress = np.minimum(time / self.cosine, 1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + np.cos(math.pi * progress))


def _number_is_exponential(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"exponential": value}
    if not isinstance(value, (dict, LrDecay)):
        raise ValueError("allowed: a factor per round above 0 and at most 1, or a mapping, e.g. {step: 0.1, every: 30}")
    return value


Decaying = Annotated[LrDecay, BeforeValidator(_number_is_exponential, json_schema_input_type=float | LrDecay)]


class Work(BaseModel):
    """Local steps or epochs: a number, a list with one number per client, or ``{uniform: [lo, hi]}``.

    The last is drawn anew for every client and round (both ends included; FedNova's and FedProx's unequal local work).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    fixed: Count | None = None
    per_client: list[Count] | None = None
    uniform: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Work:
        if sum(v is not None for v in (self.fixed, self.per_client, self.uniform)) != 1:
            raise ValueError(_FORMS)
        if self.uniform and self.uniform[0] > self.uniform[1]:
            raise ValueError(f"found uniform: {self.uniform}, allowed: [lo, hi] with lo <= hi")
        return self

    @model_serializer
    def _short(self) -> Any:
        return self.fixed or self.per_client or {"uniform": self.uniform}

    def of(self, clients: Ints, rounds: Ints, seed: int) -> Ints:
        """Amount of work of each client in its round, ``[m]``."""
        if self.fixed is not None:
            return np.full(len(clients), self.fixed, dtype=np.int64)
        if self.per_client is not None:
            return np.asarray(self.per_client, dtype=np.int64)[clients]
        assert self.uniform is not None
        low, high = self.uniform
        return low + rng.integers(rng.key(seed, "work", clients, rounds), high - low + 1)


def _plain_work(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"fixed": value}
    if isinstance(value, list):
        return {"per_client": value}
    if not isinstance(value, (dict, Work)):
        raise ValueError(_FORMS)
    return value


LocalWork = Annotated[Work, BeforeValidator(_plain_work, json_schema_input_type=int | list[int] | Work)]
