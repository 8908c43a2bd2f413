"""What happens to messages on their way: transforms at the client before they leave, and as they arrive.

A scenario's transforms are one ordered tuple, a `Pipeline`, in one fixed order: what privacy does (clipping and noise),
then compression (post-processing, so that epsilon holds), both at the client; then attacks, which replace attackers'
messages as they arrive. The engine calls the pipeline in two places and knows none of its links.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.core.registry import Part
from fedsim.core.returned import same_form
from fedsim.core.types import Message, State, message_bytes
from fedsim.messages.heard import Heard
from fedsim.messages.vectors import SEPARATOR


class Arrived(Protocol):
    """The round whose messages arrive; `fedsim.core.job.Contribution` and a participation's `Arrival` are ones."""

    @property
    def number(self) -> int: ...
    @property
    def clients(self) -> Ints: ...
    @property
    def rounds(self) -> Ints: ...
    @property
    def steps(self) -> Ints: ...


class MessageTransform(Part, ABC):
    """What a scenario does to messages; every method does nothing unless overridden.

    Rows are clients, ``[m, d]`` (or ``[m, 1]`` for a number per client). A method that draws takes its key from
    ``run.seed``, the client and the round, and works row by row: then shards, chunks and resumed runs agree.
    """

    keeps_form: ClassVar[bool] = True
    """Whether `send` gives vectors of the form that it got; not where it gives the bytes that travel."""
    keeps_idle: ClassVar[bool] = False
    """Whether a node of a graph that did no local work remembers what it sent all the same."""
    vectors_only: ClassVar[bool] = False
    """Whether it gets messages without what is one number per client, which stays as it is."""

    @property
    def everyone(self) -> str | None:
        """Why all clients have to take part in every round, where they have to."""
        return None

    def check(self, form: Message, run: RunFacts) -> None:
        """Raise InputError where it does not fit what clients send: `form` is one client's message, rows of one."""

    def fresh(self, form: Message) -> State:
        """What a client keeps for it between rounds, before its first one, as rows of one like those of `form`."""
        return {}

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        """At the client, before it leaves: what is sent instead, and what the client keeps from now on.

        Row i is of ``job.clients[i]`` in its round ``job.rounds[i]``. Rows that did no work keep what they had.
        """
        return message, kept

    def draw_from(self, word: int) -> None:
        """From now on draw what has to be new from `word` (noise; see `fedsim.privacy.base.Bound.draw_from`)."""

    def receive(self, message: Message, arrived: Arrived, run: RunFacts) -> Message:
        """At a server, before it is combined: what is combined instead; row i is of ``arrived.clients[i]``."""
        return message

    def dishonest(self, run: RunFacts) -> Ints:
        """The numbers of the clients that do not send what they should, ascending: nobody."""
        return np.empty(0, dtype=np.int64)

    def edges(self, heard: Heard, arrived: Arrived, run: RunFacts) -> Heard:
        """On a graph: what honest nodes hear instead of `heard`, whose receivers are honest nodes alone.

        It is called in every exchange, once per shard with the shard's own receivers and what reaches them, and is to
        be the same for a receiver wherever it is. `Heard.told` lets a receiver hear another message over a link.
        """
        return heard

    def row_bytes(self, form: Message) -> int | None:
        """Bytes of one client's message as it travels, from its `form` before this transform; None: unchanged."""
        return None

    def facts(self, form: Message) -> Mapping[str, str]:
        """What `fedsim plan` says of it, from the `form` of one client's message."""
        return {}

    def first_bytes(self, form: Message) -> int | None:
        """`row_bytes` of a message of the first round, where that is not like those of the others; None: it is."""
        return None


@dataclass(frozen=True)
class Pipeline:
    """The transforms of a run, in their order."""

    links: tuple[MessageTransform, ...] = ()
    run: RunFacts = RunFacts(0, 0)  # noqa: RUF009 - frozen

    def check(self, form: Message) -> None:
        """Raise InputError where a link does not fit what clients send."""
        for link in self.links:
            link.check(self.given(link, form), self.run)

    def fresh(self, form: Message) -> State:
        """What a client keeps for all links before its first round."""
        return {
            f"{i}{SEPARATOR}{name}": row
            for i, link in enumerate(self.links)
            for name, row in link.fresh(self.given(link, form)).items()
        }

    def given(self, link: MessageTransform, message: Message) -> Message:
        """The part of a message that `link` gets."""
        if not link.vectors_only:
            return message
        return {
            k: v for k, v in message.items() if v.shape[-1] > 1 or (k not in self.run.numbers and SEPARATOR not in k)
        }

    def send(self, message: Message, kept: State, job: Job) -> tuple[Message, State]:
        """What leaves clients, and what they keep; `kept` has the rows that `fresh` named, whatever else is in it."""
        after: State = {}
        for i, link in enumerate(self.links):
            prefix = f"{i}{SEPARATOR}"
            mine = {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}
            given = self.given(link, message)
            sent, now = link.send(given, mine, job, self.run)
            if link.keeps_form:
                same_form(sent, given, link, "send")
            message = {**message, **sent} if link.vectors_only else sent
            after |= {prefix + k: v for k, v in same_form(now, mine, link, "send").items()}
        return message, after

    def idle(self, kept: State) -> State:
        """Of what `send` says is kept the rows that nodes without local work keep, too."""
        mine = tuple(f"{i}{SEPARATOR}" for i, link in enumerate(self.links) if link.keeps_idle)
        return {k: v for k, v in kept.items() if k.startswith(mine)} if mine else {}

    def receive(self, message: Message, arrived: Arrived) -> Message:
        """What a server combines."""
        for link in self.links:
            given = self.given(link, message)
            combined = link.receive(given, arrived, self.run)
            same_form(combined, given, link, "receive")
            message = {**message, **combined} if link.vectors_only else combined
        return message

    def facts(self, form: Message) -> Mapping[str, str]:
        """What `fedsim plan` says of all links."""
        return {k: v for link in self.links for k, v in link.facts(self.given(link, form)).items()}

    def attackers(self) -> Ints:
        """The numbers of all clients that do not send what they should."""
        return self._attackers

    @cached_property
    def _attackers(self) -> Ints:
        return np.unique(
            np.concatenate([np.empty(0, dtype=np.int64), *(link.dishonest(self.run) for link in self.links)])
        )

    def edges(self, heard: Heard, arrived: Arrived) -> Heard:
        """What honest nodes of a graph hear."""
        for link in self.links:
            heard = link.edges(heard, arrived, self.run)
        return heard

    def row_bytes(self, form: Message, first: bool = False) -> int:
        """Bytes of one client's message as it travels, in the first round or in another."""
        size = message_bytes(form)
        for link in self.links:
            given = self.given(link, form)
            changed = link.first_bytes(given) if first else None
            changed = link.row_bytes(given) if changed is None else changed
            rest = message_bytes(form) - message_bytes(given)
            size = size if changed is None else changed + rest
        return size


def own_rows(kept: State) -> State:
    """What an algorithm keeps at a client, without what the links of a pipeline keep."""
    return {k: v for k, v in kept.items() if SEPARATOR not in k}


def check_names(names: Iterable[str], who: str) -> None:
    """Raise InputError where an algorithm uses a name that belongs to links."""
    for name in names:
        if SEPARATOR in name:
            raise InputError(f"{who} keeps '{name}' at a client, allowed: names without '{SEPARATOR}'")


__all__ = [
    "SEPARATOR",
    "Arrived",
    "Job",
    "MessageTransform",
    "Pipeline",
    "RunFacts",
    "Tensor",
    "check_names",
    "own_rows",
]
