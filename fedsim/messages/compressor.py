"""Compression of what clients send, with error feedback: a transform whose rows are counted in honest bits.

A compressor C maps vectors to vectors that take fewer bits. ``|C(v) - v|^2 <= (1 - alpha) |v|^2`` for a contractive one
(in the mean, where it draws); an unbiased one has ``E C(v) = v`` and ``E |C(v) - v|^2 <= omega |v|^2``. It works on
each vector of d numbers by itself; numbers of one per client are never compressed. Index bits are always counted, and
what a server sends to clients is not compressed.

Error feedback keeps at the client what was lost: ``ef14`` (Seide et al. 2014) sends ``C(e + v)`` and keeps
``e = e + v - C(e + v)``; ``ef21`` (Richtarik et al., arXiv 2106.05203) sends ``C(v - h)``, from which both sides know
``h = h + C(v - h)``: that sum is the message, and its bits are those of ``C(v - h)``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.errors import InputError, RunError
from fedsim.core.job import Job, RunFacts
from fedsim.core.returned import like
from fedsim.core.types import Message, State
from fedsim.messages.vectors import vectors
from fedsim.messages.wire import Packing

Remembers = Literal["differences", "copies", "errors"]
"""What is kept of what was sent; see `fed_back`."""


def fed_back(how: Remembers, v: Tensor, kept: Tensor, compress: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What is sent of v, and what is kept of it for the next time; all are rows ``[m, d]``.

    ``errors``: C(e + v), and e + v - C(e + v). ``differences``: C(v - h), and h + C(v - h). ``copies``: as before, but
    what is sent is the new h, which whoever has the old one can tell from C(v - h).
    """
    if how == "errors":
        whole = kept + v
        sent = compress(whole)
        return sent, whole - sent
    change = compress(v - kept)
    after = kept + change
    return (after if how == "copies" else change), after


_FEEDBACK: Mapping[str, Remembers] = {"ef14": "errors", "ef21": "copies"}


@dataclass(frozen=True, kw_only=True)
class Compressor(Packing):
    """Base of the parts that ``compression.name`` names.

    Parameters
    ----------
    feedback : what clients keep of what compression lost (see the module).
    keys : names of the vectors of a message that are compressed (default: all).
    """

    feedback: Literal["none", "ef14", "ef21"] = "none"
    keys: list[str] | None = None

    draws: ClassVar[bool] = False
    """Whether it needs uniform numbers."""

    @abstractmethod
    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        """Rows ``[m, d]`` to rows of the same shape; `u` ``[m, d]`` are uniforms, empty where `draws` is not set."""

    @abstractmethod
    def bits(self, d: int, number: int) -> int:
        """Bits of one row of d numbers, of `number` bits each before compression."""

    def retraced(self, v: Tensor, sent: Tensor, u: Tensor) -> Tensor:
        """What a guess v would have become, differentiable, where `sent` is what really came; all are rows ``[m, d]``.

        An attacker who looks for the examples behind a message asks it. Where nothing says better it is v: rounding
        cannot be differentiated.
        """
        return v

    packs: ClassVar[bool] = False
    """Whether it says how what it sends travels: `pack` and `unpack`. A deployment needs it."""

    def pack(self, v: Tensor, u: Tensor) -> Tensor:
        """C(v, u) of rows ``[m, d]`` as it travels, bytes ``[m, ceil(bits / 8)]``."""
        raise RunError(f"{type(self).__name__} does not say how its messages travel")

    def unpack(self, packed: Tensor, like: Tensor, u: Tensor) -> Tensor:
        """C(v, u), bit for bit, from what `pack` made of it; rows of the form of `like` ``[m, d]``.

        Raises
        ------
        ValueError
            Nothing that `pack` makes.
        """
        raise RunError(f"{type(self).__name__} does not say how its messages travel")

    def alpha(self, d: int) -> float | None:
        """How contractive it is on d numbers; None where it need not be."""
        return None

    def omega(self, d: int) -> float | None:
        """The variance of an unbiased one, relative to the squared norm; None where it is biased."""
        return None

    @property
    def everyone(self) -> str | None:
        if self.feedback != "ef21":
            return None
        return "with feedback ef21 the server counts on the last message of every client"

    # --- the transform ------------------------------------------------------------------------------------------------

    def check(self, form: Message, run: RunFacts) -> None:
        allowed = ", ".join(vectors(form))
        if self.keys is not None and not self.keys:
            message = f"found [], which compresses nothing; allowed: {allowed}, or no key for all of them"
            raise InputError(message, key="compression.keys")
        unknown = [k for k in self.keys or () if k not in vectors(form)]
        if unknown:
            raise InputError(f"found '{unknown[0]}', allowed: {allowed}", key="compression.keys")
        for k in self.vectors(form):
            self._counted(form[k])
        if self.feedback != "none" and not all(self._contracts(form[k].shape[-1]) for k in self.vectors(form)):
            raise InputError(
                f"found '{self.feedback}' with a compressor whose error may be larger than what it compresses, so that "
                "what is fed back would grow without bound; allowed: none, or a contractive compressor (of rand_k one "
                "that is not scaled, of qsgd more levels or contractive: true)",
                key="compression.feedback",
            )

    def _contracts(self, d: int) -> bool:
        """Whether the squared error is below the squared norm, in the mean; not known of one that says nothing."""
        omega = self.omega(d)
        return self.alpha(d) is not None or omega is None or omega < 1

    def fresh(self, form: Message) -> State:
        if self.feedback == "none":
            return {}
        return {k: torch.zeros_like(form[k]) for k in self.vectors(form)}

    def transmitted(
        self, message: Message, kept: State, job: Job, run: RunFacts, pack: bool = False
    ) -> tuple[Message, Message, State]:
        sent, packed, after = dict(message), dict(message), dict(kept)
        for place, k in enumerate(self.vectors(message)):
            draws = self.draws_for(message[k], job, run, place)
            seen: list[Tensor] = []
            compress = partial(self._seen, u=draws, seen=seen)
            if self.feedback == "none":
                sent[k] = compress(message[k])
            else:
                sent[k], after[k] = fed_back(_FEEDBACK[self.feedback], message[k], kept[k], compress)
            if pack:
                packed[k] = self.pack(seen[0], draws)
        return sent, packed, after

    def arrived(self, packed: Message, form: Message, job: Job, run: RunFacts) -> Message:
        sent = dict(packed)
        for place, k in enumerate(self.vectors(form)):
            v = form[k].expand(len(job.clients), -1)
            sent[k] = self.unpack(packed[k], v, self.draws_for(v, job, run, place))
        return sent

    def _seen(self, v: Tensor, u: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(v)
        return like(self(v, u), v, self, "__call__")

    def vector_bytes(self, v: Tensor, round: int) -> int:
        return -(-self._counted(v) // 8)

    def _counted(self, v: Tensor) -> int:
        """`bits` of a vector of the form of `v`, refused where they are no number of bits."""
        d, found = v.shape[-1], self.bits(v.shape[-1], 8 * v.element_size())
        if not isinstance(found, Integral) or found < 0:
            message = (
                f"{type(self).__name__} says that {d} numbers take {found} bits; allowed: a whole number, 0 or more"
            )
            raise InputError(message, key="compression.name")
        return int(found)

    def facts(self, form: Message) -> Mapping[str, str]:
        said = {f"compressed '{k}'": self._said(form[k]) for k in self.vectors(form)}
        if self.feedback == "none" and any(self.omega(form[k].shape[-1]) is None for k in self.vectors(form)):
            said["note"] = "biased, without feedback: it may stop short of the optimum, or diverge"
        return said

    def _said(self, v: Tensor) -> str:
        """How many bits of how many, and how well: alpha of a contractive compressor, omega of an unbiased one."""
        d, number = v.shape[-1], 8 * v.element_size()
        bits = f"{self._counted(v):,} of {d * number:,} bits"
        known = {"alpha": self.alpha(d), "omega": self.omega(d)}
        return ", ".join([bits, *(f"{k} {value:.4g}" for k, value in known.items() if value is not None)])

    def vectors(self, form: Message) -> list[str]:
        return [k for k in vectors(form) if self.keys is None or k in self.keys]

    def draws_for(self, v: Tensor, job: Job, run: RunFacts, place: int) -> Tensor:
        """Uniform numbers in [0, 1) by client, round, vector and coordinate, shaped as `v`."""
        if not self.draws:
            return v.new_empty((len(v), 0))
        keys = rng.fold(rng.key(run.seed, "compress", job.clients[:, None], job.rounds[:, None]), place)
        draws = rng.uniform(rng.fold(keys, np.arange(v.shape[-1])[None, :]))
        return torch.as_tensor(draws, dtype=v.dtype, device=v.device)
