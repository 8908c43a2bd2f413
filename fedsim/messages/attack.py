"""Attacks on messages: what attackers are taken to have sent, whatever they computed.

An attack acts after everything that clients did to their messages. Attackers do the honest work, so that a message of
their own exists, and honest clients' messages are never touched.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.job import Job, RunFacts
from fedsim.core.returned import formed, like
from fedsim.core.types import Count, Message, State
from fedsim.messages.attackers import Attackers
from fedsim.messages.base import Arrived
from fedsim.messages.heard import Heard
from fedsim.messages.target import Target, present, taken
from fedsim.messages.vectors import vectors


@dataclass(frozen=True, kw_only=True)
class Attack(Attackers):
    """Base of attacks on messages.

    Attackers know everything and work together: they see what all honest clients sent for the same round. Tensors of
    one number per client stay honest; every other one is replaced by statistics of its own.

    Parameters
    ----------
    start : the first round in which they attack.
    knowledge : on a graph, what attackers know when they write to a node: what it and its honest ``neighbours`` send
        (the default), or what ``all`` honest nodes send. Under a server they know all that arrives.
    """

    start: Count = 1
    knowledge: Literal["all", "neighbours"] | None = None

    sees_all: ClassVar[bool] = False
    """Whether on a graph it needs what all honest nodes send, whatever `knowledge` says."""
    finite: ClassVar[bool] = True
    """Whether it sends numbers; a rule that weighs every message alike cannot take others."""
    on_edges: ClassVar[bool] = False
    """Whether it sends every neighbour a message of its own, so that it needs a graph."""

    @property
    def local(self) -> bool:
        """Whether it needs nothing but the attacker's own message (`alone`), and is done where that is."""
        return False

    @abstractmethod
    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        """What attackers are taken to have sent, ``[b, d]``: `honest` ``[h, d]`` are the others' rows of the tensor
        called `key`, by number of client, and never none; `own` ``[b, d]`` what the attackers' own work gave."""

    def alone(self, own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> Tensor:
        """What attackers `clients` ``[b]`` send in their rounds ``[b]``, row by row, where it is `local`."""
        raise RunError(f"{type(self).__name__} is local, but has no `alone`, which makes what attackers send")

    def check(self, form: Message, run: RunFacts) -> None:
        super().check(form, run)
        if run.links is not None:
            return
        if self.on_edges:
            message = (
                "it sends every neighbour another message, and a server has none; allowed: an algorithm on a graph"
            )
            raise InputError(message, key="attack.name")
        if self.knowledge == "neighbours":
            message = "found 'neighbours', but under a server attackers see all that arrives; allowed: all"
            raise InputError(message, key="attack.knowledge")

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        if not self._at_clients(run):
            return message, kept
        evil = np.isin(job.clients, self.attacking(run)) & (job.rounds >= self.start)
        return self._alone(message, np.flatnonzero(evil), job, run), kept

    def receive(self, message: Message, arrived: Arrived, run: RunFacts) -> Message:
        if self._at_clients(run) or arrived.number < self.start:
            return message
        evil = np.isin(arrived.clients, self.attacking(run))
        rows, others = np.flatnonzero(evil), np.flatnonzero(~evil)
        if self.local:
            return self._alone(message, rows, arrived, run)
        if not len(rows) or not len(others):
            return message  # where no honest message has come, attackers send their own
        others = others[np.argsort(arrived.clients[others], kind="stable")]
        arrives = dict(message)
        for k in vectors(message, run.numbers):
            v = message[k]
            whole = v[torch.arange(len(evil), device=v.device)]
            own, honest = (torch.as_tensor(i, device=v.device) for i in (rows, others))
            mine = whole[own]
            sent = like(self.messages(whole[honest], mine, k, arrived, run), mine, self, "messages")
            arrives[k] = whole.index_copy(0, own, sent)
        return arrives

    def _at_clients(self, run: RunFacts) -> bool:
        """Whether messages are replaced where they are made: on a clock only the server knows the round's number."""
        return self.local and run.links is None and (self.start == 1 or not run.clocked)

    def _alone(self, message: Message, rows: Ints, of: Job | Arrived, run: RunFacts) -> Message:
        if not len(rows):
            return message
        changed = dict(message)
        for k in vectors(message, run.numbers):
            v = message[k]
            whole = v[torch.arange(len(of.clients), device=v.device)]
            index = torch.as_tensor(rows, device=v.device)
            own = whole[index]
            sent = like(self.alone(own, k, of.clients[rows], of.rounds[rows], run), own, self, "alone")
            changed[k] = whole.index_copy(0, index, sent)
        return changed

    # --- on a graph ---------------------------------------------------------------------------------------------------

    def edges(self, heard: Heard, arrived: Arrived, run: RunFacts) -> Heard:
        """Attackers' links to honest receivers carry what `said` makes; attackers' own states are honest."""
        attackers = self.attacking(run)
        entries = np.flatnonzero(np.isin(heard.senders, attackers))
        if arrived.number < self.start or not len(entries):
            return heard
        values, told = heard.values, self.said(heard, entries, arrived, run)
        shape = (len(entries), values.shape[-1])
        return heard.told(entries, formed(told, shape, values.dtype, self, "said", "alone", "messages"))

    def said(self, heard: Heard, entries: Ints, arrived: Arrived, run: RunFacts) -> Tensor:
        """What is heard over the links that are `entries` of the matrix, all of attackers, ``[p, d]``."""
        key = f"exchange {heard.exchange}"
        if self.local:
            who, rounds = heard.senders[entries], np.full(len(entries), arrived.number, dtype=np.int64)
            return self.alone(taken(heard, heard.matrix.indices[entries]), key, who, rounds, run)
        if self.knowledge == "all":
            honest, evil = present(heard, self.attacking(run))
            own = taken(heard, evil)
            told = like(self.messages(taken(heard, honest), own, key, arrived, run), own, self, "messages")
            place = np.searchsorted(heard.nodes[evil], heard.senders[entries])
            return told[torch.as_tensor(place, device=told.device)]
        said = heard.values.new_empty((len(entries), heard.values.shape[-1]))
        rows = heard.rows[entries]
        for row in np.unique(rows).tolist():
            mine = np.flatnonzero(rows == row)
            target = Target.of(heard, row, entries[mine], self.attacking(run))
            told = like(self.tell(target, key, arrived, run), target.evil, self, "tell", "messages")
            said[torch.as_tensor(mine, device=said.device)] = told
        return said

    def tell(self, target: Target, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        """What attackers tell one honest node, ``[b, d]``: made of its own message and its honest neighbours'."""
        return self.messages(target.known, target.evil, key, arrived, run)


@dataclass(frozen=True, kw_only=True)
class LocalAttack(Attack):
    """Base of attacks that need nothing but the attacker's own message; `alone` says what is sent."""

    @property
    def local(self) -> bool:
        return True

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        rows = np.flatnonzero(np.isin(arrived.clients, self.attacking(run)))
        return self.alone(own, key, arrived.clients[rows], arrived.rounds[rows], run)

    @abstractmethod
    def alone(self, own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> Tensor:
        """What attackers `clients` ``[b]`` send in their rounds ``[b]``; row i depends on the i-th of each alone."""
