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

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.core.registry import register
from fedsim.core.types import Count, Fraction, Message, State, norm
from fedsim.messages.base import MessageTransform

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
class Compressor(MessageTransform):
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
        unknown = [k for k in self.keys or () if k not in form]
        if unknown:
            raise InputError(f"found '{unknown[0]}', allowed: {', '.join(form)}", key="compression.keys")
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

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        sent, after = dict(message), dict(kept)
        for place, k in enumerate(self.vectors(message)):
            compress = partial(self.drawing, job=job, run=run, place=place)
            if self.feedback == "none":
                sent[k] = compress(message[k])
            else:
                sent[k], after[k] = fed_back(_FEEDBACK[self.feedback], message[k], kept[k], compress)
        return sent, after

    def drawing(self, v: Tensor, job: Job, run: RunFacts, place: int) -> Tensor:
        """C of rows ``[m, d]`` of the clients of `job`, with their draws for the vector number `place` of a message."""
        return self(v, self._uniforms(v, job, run, place))

    def row_bytes(self, form: Message) -> int:
        compressed = self.vectors(form)
        total = 0
        for k, v in form.items():
            number = 8 * v.element_size()
            bits = self.bits(v.shape[-1], number) if k in compressed else v.shape[-1] * number
            total += -(-bits // 8)
        return total

    def facts(self, form: Message) -> Mapping[str, str]:
        said = {f"compressed '{k}'": self._said(form[k]) for k in self.vectors(form)}
        if self.feedback == "none" and any(self.omega(form[k].shape[-1]) is None for k in self.vectors(form)):
            said["note"] = "biased, without feedback: it may stop short of the optimum, or diverge"
        return said

    def _said(self, v: Tensor) -> str:
        """How many bits of how many, and how well: alpha of a contractive compressor, omega of an unbiased one."""
        d, number = v.shape[-1], 8 * v.element_size()
        bits = f"{self.bits(d, number):,} of {d * number:,} bits"
        known = {"alpha": self.alpha(d), "omega": self.omega(d)}
        return ", ".join([bits, *(f"{k} {value:.4g}" for k, value in known.items() if value is not None)])

    def vectors(self, form: Message) -> list[str]:
        """Names of the vectors of a message that are compressed."""
        return [k for k, v in form.items() if v.shape[-1] > 1 and (self.keys is None or k in self.keys)]

    def _uniforms(self, v: Tensor, job: Job, run: RunFacts, place: int) -> Tensor:
        """Uniform numbers in [0, 1) by client, round, vector and coordinate, shaped as `v`."""
        if not self.draws:
            return v.new_empty((len(v), 0))
        keys = rng.fold(rng.key(run.seed, "compress", job.clients[:, None], job.rounds[:, None]), place)
        draws = rng.uniform(rng.fold(keys, np.arange(v.shape[-1])[None, :]))
        return torch.as_tensor(draws, dtype=v.dtype, device=v.device)


@register.compressor("none")
@dataclass(frozen=True, kw_only=True)
class Whole(Compressor):
    """The vector itself, in all its bits: what others are compared with. alpha = 1."""

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        return v

    def bits(self, d: int, number: int) -> int:
        return d * number

    def alpha(self, d: int) -> float:
        return 1.0

    def omega(self, d: int) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class _Sparse(Compressor):
    """Base of those that keep some coordinates.

    Parameters
    ----------
    k, fraction : how many coordinates are kept, or their share of d (at least one); one of the two.
    """

    k: Count | None = None
    fraction: Fraction | None = None

    def kept(self, d: int) -> int:
        """Coordinates kept of d."""
        return self.k if self.k is not None else max(1, round((self.fraction or 1.0) * d))

    def check(self, form: Message, run: RunFacts) -> None:
        super().check(form, run)
        if (self.k is None) == (self.fraction is None):
            found = "neither 'k' nor 'fraction'" if self.k is None else "both 'k' and 'fraction'"
            raise InputError(f"found {found}, allowed: one of the two", key="compression.k")
        for name in self.vectors(form):
            d = form[name].shape[-1]
            if self.kept(d) > d:
                raise InputError(f"found {self.k}, allowed: at most {d}, the length of '{name}'", key="compression.k")


@register.compressor("top_k")
@dataclass(frozen=True, kw_only=True)
class TopK(_Sparse):
    """The k largest absolute values; of equal ones those of lower index. alpha = k / d."""

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        k = self.kept(v.shape[-1])
        order = torch.sort(v.abs(), dim=-1, descending=True, stable=True).indices[..., :k]
        return torch.zeros_like(v).scatter_(-1, order, v.gather(-1, order))

    def bits(self, d: int, number: int) -> int:
        k = self.kept(d)
        return k * number + (min(k * math.ceil(math.log2(d)), d) if k < d else 0)

    def alpha(self, d: int) -> float:
        return self.kept(d) / d


@register.compressor("rand_k")
@dataclass(frozen=True, kw_only=True)
class RandK(_Sparse):
    """k coordinates drawn by a key that both sides know, so that indices take no bits.

    Parameters
    ----------
    scaled : times d / k, which makes it unbiased with omega = d / k - 1; without, alpha = k / d.
    """

    draws: ClassVar[bool] = True
    scaled: bool = False

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        d = v.shape[-1]
        k = self.kept(d)
        order = torch.sort(u, dim=-1, stable=True).indices[..., :k]
        chosen = v.gather(-1, order) * (d / k if self.scaled else 1.0)
        return torch.zeros_like(v).scatter_(-1, order, chosen)

    def bits(self, d: int, number: int) -> int:
        return self.kept(d) * number

    def alpha(self, d: int) -> float | None:
        return None if self.scaled else self.kept(d) / d

    def omega(self, d: int) -> float | None:
        return d / self.kept(d) - 1 if self.scaled else None


@register.compressor("sign")
@dataclass(frozen=True, kw_only=True)
class Sign(Compressor):
    """``(|v|_1 / d) sign(v)``, the sign of 0 being +. alpha >= 1 / d."""

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        size = v.abs().mean(dim=-1, keepdim=True)
        return torch.where(v >= 0, size, -size)

    def bits(self, d: int, number: int) -> int:
        return d + number

    def alpha(self, d: int) -> float:
        return 1.0 / d


@register.compressor("qsgd")
@dataclass(frozen=True, kw_only=True)
class QSGD(Compressor):
    """``|v| sign(v) l / s`` with l one of the two integers around ``s |v_j| / |v|``, drawn so that the mean is v.

    Alistarh et al., arXiv 1610.02132, with a fixed number of bits per coordinate (the paper's Elias code is not
    modelled). omega = min(d / s^2, sqrt(d) / s).

    Parameters
    ----------
    levels : s.
    contractive : divided by 1 + omega, which makes it contractive with alpha = 1 / (1 + omega).
    """

    draws: ClassVar[bool] = True
    levels: Annotated[int, Field(ge=1, lt=2**31)]
    contractive: bool = False

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        size = norm(v)
        a = self.levels * v.abs() / torch.where(size > 0, size, torch.ones_like(size))
        low = a.floor()
        level = low + (u < a - low).to(v.dtype)
        out = size * torch.sign(v) * level / self.levels
        return out / (1 + self._omega(v.shape[-1])) if self.contractive else out

    def bits(self, d: int, number: int) -> int:
        return number + d * (1 + math.ceil(math.log2(self.levels + 1)))

    def _omega(self, d: int) -> float:
        return min(d / self.levels**2, math.sqrt(d) / self.levels)

    def alpha(self, d: int) -> float | None:
        return 1 / (1 + self._omega(d)) if self.contractive else None

    def omega(self, d: int) -> float | None:
        return None if self.contractive else self._omega(d)


@register.compressor("natural")
@dataclass(frozen=True, kw_only=True)
class Natural(Compressor):
    """Each number becomes one of the two powers of two around it, drawn so that the mean is the number. omega = 1/8.

    Horvath et al., arXiv 1905.10988: sign and exponent travel, 9 bits of a float32, 12 of a float64.
    """

    draws: ClassVar[bool] = True

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(v.abs())  # v = mantissa 2^exponent with the mantissa in [1/2, 1)
        low = torch.ldexp(torch.full_like(mantissa, 0.5), exponent)
        up = u < 2 * mantissa - 1
        return torch.where(v == 0, torch.zeros_like(v), torch.sign(v) * torch.where(up, 2 * low, low))

    def bits(self, d: int, number: int) -> int:
        return d * (1 + (8 if number == 32 else 11))

    def omega(self, d: int) -> float:
        return 1 / 8
