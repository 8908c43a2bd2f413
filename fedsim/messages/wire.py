"""Compressed messages as they travel between machines: bytes in place of the vectors that are compressed.

A simulation hands on what arrives; a deployment's clients send what travels, and its server unpacks it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.job import Job, RunFacts
from fedsim.core.types import Message, State, message_bytes
from fedsim.messages.base import MessageTransform, Pipeline


class Packing(MessageTransform):
    """A link that compresses: what arrives, and what travels for it."""

    vectors_only: ClassVar[bool] = True

    @abstractmethod
    def transmitted(
        self, message: Message, kept: State, job: Job, run: RunFacts, pack: bool = False
    ) -> tuple[Message, Message, State]:
        """What arrives, what travels for it (where it is to be packed), and what is kept; see `send`."""

    @abstractmethod
    def arrived(self, packed: Message, form: Message, job: Job, run: RunFacts) -> Message:
        """What `transmitted` says arrives, from what travelled; `form` is one client's message.

        Raises
        ------
        ValueError
            Nothing that `transmitted` packs.
        """

    @abstractmethod
    def vectors(self, form: Message) -> list[str]:
        """Names of the vectors of a message that are compressed."""

    @abstractmethod
    def vector_bytes(self, v: Tensor, round: int) -> int:
        """Bytes of a vector of the form of `v` ``[1, d]`` in that round."""

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        sent, _, after = self.transmitted(message, kept, job, run)
        return sent, after

    def row_bytes(self, form: Message) -> int:
        return self._bytes(form, 2)

    def first_bytes(self, form: Message) -> int:
        return self._bytes(form, 1)

    def _bytes(self, form: Message, round: int) -> int:
        mine = self.vectors(form)
        plain = message_bytes({k: v for k, v in form.items() if k not in mine})
        return plain + sum(self.vector_bytes(form[k], round) for k in mine)


@dataclass(frozen=True, kw_only=True)
class Wired(MessageTransform):
    """A compressing link at a client of a deployment: what it gives is what travels."""

    keeps_form: ClassVar[bool] = False
    vectors_only: ClassVar[bool] = True

    link: Packing

    def check(self, form: Message, run: RunFacts) -> None:
        self.link.check(form, run)

    def fresh(self, form: Message) -> State:
        return self.link.fresh(form)

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        _, packed, after = self.link.transmitted(message, kept, job, run, pack=True)
        return packed, after


def wired(pipeline: Pipeline) -> Pipeline:
    """The pipeline of a deployment's client."""
    links = (Wired(link=link) if isinstance(link, Packing) else link for link in pipeline.links)
    return Pipeline(tuple(links), pipeline.run)


def travelling(pipeline: Pipeline, form: Message, round: int) -> Message:
    """The form of one client's message in that round as it travels."""
    message = dict(form)
    for link in _packing(pipeline):
        for name in link.vectors(pipeline.given(link, form)):
            message[name] = torch.zeros((1, link.vector_bytes(form[name], round)), dtype=torch.uint8)
    return message


def opened(pipeline: Pipeline, packed: Message, form: Message, job: Job) -> Message:
    """What arrives, from what travelled; all of one form.

    Raises
    ------
    ValueError
        No compressor makes such bytes.
    """
    for link in _packing(pipeline):
        packed = link.arrived(packed, pipeline.given(link, form), job, pipeline.run)
    return packed


def packs(pipeline: Pipeline) -> bool:
    """Whether anything travels packed."""
    return any(True for _ in _packing(pipeline))


def _packing(pipeline: Pipeline) -> Iterator[Packing]:
    return (link for link in pipeline.links if isinstance(link, Packing))
