"""Attackers: clients whose messages are replaced as they arrive, whatever they computed.

An attack is a transform that acts where messages are combined, after everything that clients did to them. Attackers do
the honest work; only what they are taken to have sent differs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import RunFacts
from fedsim.core.registry import register
from fedsim.core.types import Count, Message, NonNegative
from fedsim.messages.base import Arrived, MessageTransform

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Attack(MessageTransform):
    """Base of the parts that ``attack.name`` names.

    Parameters
    ----------
    attackers : how many clients attack, their share of all, or their numbers; who they are is drawn from the seed where
        it is not said.
    start : the first round in which they do.
    """

    attackers: Count | Share | list[int]
    start: Count = 1

    @abstractmethod
    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        """What attackers are taken to have sent, ``[b, d]``: `honest` ``[h, d]`` are the others' rows of the tensor
        called `key`, `own` ``[b, d]`` what the attackers' own work gave."""

    def who(self, run: RunFacts) -> Ints:
        """The attackers' numbers, ascending."""
        if isinstance(self.attackers, list):
            return np.array(sorted(set(self.attackers)), dtype=np.int64)
        n = run.num_clients
        count = self.attackers if isinstance(self.attackers, int) else max(1, round(self.attackers * n))
        draws = rng.uniform(rng.key(run.seed, "attackers", np.arange(n)))
        return np.sort(np.argsort(draws, kind="stable")[:count]).astype(np.int64)

    def check(self, form: Message, run: RunFacts) -> None:
        n = run.num_clients
        if isinstance(self.attackers, list):
            if len(set(self.attackers)) < len(self.attackers):
                raise InputError(f"found {self.attackers}, allowed: each client once", key="attack.attackers")
            odd = [i for i in self.attackers if not 0 <= i < n]
            if odd:
                raise InputError(f"found client {odd[0]}, allowed: 0 to {n - 1}", key="attack.attackers")
        if not 0 < len(self.who(run)) < n:
            message = f"found {self.attackers} of {n} clients, allowed: at least one, and not all"
            raise InputError(message, key="attack.attackers")

    def receive(self, message: Message, arrived: Arrived, run: RunFacts) -> Message:
        """Vectors of attackers are replaced, each by statistics of its own; numbers of one per client stay honest."""
        evil = np.isin(arrived.clients, self.who(run))
        if arrived.number < self.start or not evil.any():
            return message
        rows, others = np.flatnonzero(evil), np.flatnonzero(~evil)
        arrives = dict(message)
        for k, v in message.items():
            if v.shape[-1] > 1:
                whole = v[torch.arange(len(arrived.clients), device=v.device)]
                own = torch.as_tensor(rows, device=v.device)
                honest = whole[torch.as_tensor(others, device=v.device)]
                arrives[k] = whole.index_copy(0, own, self.messages(honest, whole[own], k, arrived, run))
        return arrives


@register.attack("sign_flip")
@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """``-scale`` times the attacker's own message."""

    scale: NonNegative = 1.0

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        return -self.scale * own
