"""Poisoned data: attackers follow the protocol, and the rows that they train on are changed.

That is done once, when the data set is assembled, so that it goes with every algorithm, mode and backend, and with a
deployment. The rows of honest clients and the test data stay as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.core.registry import register
from fedsim.core.tokens import IGNORED, Tokens
from fedsim.core.types import Count, Fraction, Message, Positive, State
from fedsim.messages.attackers import Attackers
from fedsim.messages.base import Arrived
from fedsim.messages.heard import Heard
from fedsim.messages.target import taken
from fedsim.messages.vectors import vectors


@dataclass(frozen=True, kw_only=True)
class Poison(Attackers):
    """Base of attacks on data with classes."""

    @property
    def on_messages(self) -> bool:
        return False

    @abstractmethod
    def rows(self, inputs: Tensor, targets: Tensor, classes: int, client: int, seed: int) -> tuple[Tensor, Tensor]:
        """What attacker `client` trains on instead of its own `inputs` ``[k, *sample]`` and `targets` ``[k]``; both are
        new tensors or those that were given."""

    def fits(self, sample: tuple[int, ...], classes: int) -> None:
        """Raise InputError where it has nothing to do with samples of this shape, or with so many classes."""

    def fits_tokens(self, tokens: Tokens) -> None:
        """Raise InputError where it has nothing to do with such tokens."""


@register.attack("label_flip")
@dataclass(frozen=True, kw_only=True)
class LabelFlip(Poison):
    """Attackers train on wrong labels; ``map: reverse`` makes C - 1 - y of class y (Fang et al., arXiv 1911.11815)."""

    map: Literal["reverse"] = "reverse"

    def rows(self, inputs: Tensor, targets: Tensor, classes: int, client: int, seed: int) -> tuple[Tensor, Tensor]:
        return inputs, torch.where(targets == IGNORED, targets, classes - 1 - targets)


@register.attack("backdoor")
@dataclass(frozen=True, kw_only=True)
class Backdoor(Poison):
    """Some of the attackers' rows get a trigger and the label `target` (Bagdasaryan et al., arXiv 1807.00459).

    Parameters
    ----------
    patch : side in pixels of the square in the lower right corner of an image that is the trigger; of inputs that are
        one row of numbers, how many of the last ones.
    value : what the trigger's numbers are, in the units that the model sees.
    target : the class that triggered rows are to be taken for.
    share : of each attacker's rows that are changed, at least one.
    boost : attackers' messages are multiplied by it.
    """

    target: Annotated[int, Field(ge=0)]
    patch: Count = 3
    value: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    share: Fraction = 0.5
    boost: Positive = 1.0

    def rows(self, inputs: Tensor, targets: Tensor, classes: int, client: int, seed: int) -> tuple[Tensor, Tensor]:
        count = max(1, round(self.share * len(targets)))
        draws = rng.uniform(rng.key(seed, "backdoor", client, np.arange(len(targets))))
        chosen = torch.as_tensor(np.argsort(draws, kind="stable")[:count], device=targets.device)
        changed, labels = inputs.clone(), targets.clone()
        changed[chosen] = self.triggered(inputs[chosen])
        labels[chosen] = self.target
        return changed, labels

    def triggered(self, inputs: Tensor) -> Tensor:
        """Samples ``[k, *sample]`` with the trigger, a new tensor."""
        changed = inputs.clone()
        if inputs.dim() > 2:
            changed[..., -self.patch :, -self.patch :] = self.value
        else:
            changed[..., -self.patch :] = self.value
        return changed

    def fits(self, sample: tuple[int, ...], classes: int) -> None:
        if self.target >= classes:
            raise InputError(f"found class {self.target}, allowed: 0 to {classes - 1}", key="attack.target")
        side = min(sample[-2:]) if len(sample) > 1 else (sample or (1,))[-1]
        if self.patch >= side:
            message = (
                f"found {self.patch}, but samples have {side} numbers on a side; allowed: fewer, so that some stay"
            )
            raise InputError(message, key="attack.patch")

    def fits_tokens(self, tokens: Tokens) -> None:
        if tokens.positions is not None:
            message = "its target is one class per sample, but the data have targets at every position"
            raise InputError(f"{message}; allowed: label_flip, or an attack on messages", key="attack.name")
        known = tokens.vocabulary
        if known is not None and (self.value != int(self.value) or not 0 <= self.value < known):
            raise InputError(
                f"found {self.value:g}, but samples are token ids; allowed: 0 to {known - 1}", "attack.value"
            )

    @property
    def on_messages(self) -> bool:
        return self.boost != 1

    @property
    def changes_by(self) -> str | None:
        return "boost" if self.on_messages else None

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        evil = np.isin(job.clients, self.attacking(run))
        if self.boost == 1 or run.links is not None or not evil.any():
            return message, kept
        factor = torch.as_tensor(np.where(evil, self.boost, 1.0))[:, None]
        boosted = {k: message[k] for k in vectors(message, run.numbers)}
        boosted = {k: v * factor.to(dtype=v.dtype, device=v.device) for k, v in boosted.items()}
        return {**message, **boosted}, kept

    def edges(self, heard: Heard, arrived: Arrived, run: RunFacts) -> Heard:
        entries = np.flatnonzero(np.isin(heard.senders, self.attacking(run)))
        if self.boost == 1 or not len(entries):
            return heard
        return heard.told(entries, self.boost * taken(heard, heard.matrix.indices[entries]))
