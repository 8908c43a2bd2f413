"""Messages of an algorithm that sends less than its tensors: a round of several exchanges is one of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsim.core.types import Message
from fedsim.messages.base import MessageTransform


@dataclass(frozen=True, kw_only=True)
class Sized(MessageTransform):
    """Changes nothing but what is counted: `size` says the bytes of one client's message (`Algorithm.message_size`)."""

    size: Callable[[Message], int | None]

    def row_bytes(self, form: Message) -> int | None:
        return self.size(form)
