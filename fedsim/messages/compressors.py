"""The compressors that come with fedsim: what becomes of a vector, in how many bits, and how these travel.

On the wire a vector takes exactly the bits that are counted, filled up to a whole byte; what is unpacked is what the
compressor gave, bit for bit. The uniform numbers of the draws come from keys that both sides know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.job import RunFacts
from fedsim.core.registry import register
from fedsim.core.types import Count, Fraction, Message, norm
from fedsim.messages import bits as bit
from fedsim.messages.compressor import Compressor


@register.compressor("none")
@dataclass(frozen=True, kw_only=True)
class Whole(Compressor):
    """The vector itself, in all its bits: what others are compared with. alpha = 1."""

    packs: ClassVar[bool] = True

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        return v

    def bits(self, d: int, number: int) -> int:
        return d * number

    def pack(self, v: Tensor, u: Tensor) -> Tensor:
        return bit.to_bytes(bit.of_floats(v))

    def unpack(self, packed: Tensor, like: Tensor, u: Tensor) -> Tensor:
        return bit.to_floats(bit.of_bytes(packed, self.bits(like.shape[-1], _width(like)))[0], like.dtype, like.device)

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

    packs: ClassVar[bool] = True
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
        order = self._largest(v)
        return torch.zeros_like(v).scatter_(-1, order, v.gather(-1, order))

    def retraced(self, v: Tensor, sent: Tensor, u: Tensor) -> Tensor:
        return v * (sent != 0)

    def _largest(self, v: Tensor) -> Tensor:
        """Places of the k largest absolute values ``[m, k]``, in any order.

        A selection costs much less than a sort, but leaves open which of equal values it takes: rows in which that
        matters are sorted.
        """
        k, size = self.kept(v.shape[-1]), v.abs()
        least, order = torch.topk(size, k, dim=-1, sorted=False)
        open_ = (size >= least.amin(-1, keepdim=True)).sum(-1) != k
        if bool(open_.any()):
            order[open_] = torch.sort(size[open_], dim=-1, descending=True, stable=True).indices[..., :k]
        return order

    def bits(self, d: int, number: int) -> int:
        return self.kept(d) * number + sum(self._places(d))

    def _places(self, d: int) -> tuple[int, int]:
        """Bits that say where the values are: those of a list of k places, or one for each of d; one of them is 0."""
        k = self.kept(d)
        if k == d:
            return 0, 0
        listed = k * math.ceil(math.log2(d))
        return (listed, 0) if listed < d else (0, d)

    def pack(self, v: Tensor, u: Tensor) -> Tensor:
        d = v.shape[-1]
        order = self._largest(v).sort(dim=-1).values
        values, places = bit.of_floats(v.gather(-1, order)), order.cpu().numpy()
        listed, marked = self._places(d)
        if listed:
            return bit.to_bytes(values, bit.of_integers(places, listed // self.kept(d)))
        marks = np.zeros((len(v), marked), dtype=np.uint8)
        if marked:
            np.put_along_axis(marks, places, 1, axis=1)
        return bit.to_bytes(values, marks)

    def unpack(self, packed: Tensor, like: Tensor, u: Tensor) -> Tensor:
        d = like.shape[-1]
        k, (listed, marked) = self.kept(d), self._places(d)
        values, where = bit.of_bytes(packed, k * _width(like), listed + marked)
        if listed:
            places = bit.to_integers(where, listed // k, k)
        else:
            if marked and (where.sum(1, dtype=np.int64) != k).any():
                raise ValueError(f"other than {k} of {d} places are marked")
            places = np.nonzero(where)[1].reshape(-1, k) if marked else np.tile(np.arange(d), (len(packed), 1))
        if (places >= d).any() or (np.diff(places) <= 0).any():
            raise ValueError(f"places are not rising numbers below {d}")
        order = torch.as_tensor(places, device=like.device)
        return torch.zeros_like(like).scatter_(-1, order, bit.to_floats(values, like.dtype, like.device))

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
        order, chosen = self._chosen(v, u)
        return torch.zeros_like(v).scatter_(-1, order, chosen)

    def retraced(self, v: Tensor, sent: Tensor, u: Tensor) -> Tensor:
        order, chosen = self._chosen(v, u)
        return torch.zeros_like(v).scatter(-1, order, chosen)

    def _drawn(self, u: Tensor) -> Tensor:
        """Places of the k smallest uniform numbers ``[m, k]``."""
        return torch.sort(u, dim=-1, stable=True).indices[..., : self.kept(u.shape[-1])]

    def _chosen(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        d, order = v.shape[-1], self._drawn(u)
        return order, v.gather(-1, order) * (d / self.kept(d) if self.scaled else 1.0)

    def pack(self, v: Tensor, u: Tensor) -> Tensor:
        return bit.to_bytes(bit.of_floats(self._chosen(v, u)[1]))

    def unpack(self, packed: Tensor, like: Tensor, u: Tensor) -> Tensor:
        (values,) = bit.of_bytes(packed, self.bits(like.shape[-1], _width(like)))
        chosen = bit.to_floats(values, like.dtype, like.device)
        return torch.zeros_like(like).scatter_(-1, self._drawn(u), chosen)

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

    packs: ClassVar[bool] = True

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        size = v.abs().mean(dim=-1, keepdim=True)
        return torch.where(v >= 0, size, -size)

    def bits(self, d: int, number: int) -> int:
        return d + number

    def pack(self, v: Tensor, u: Tensor) -> Tensor:
        size = v.abs().mean(dim=-1, keepdim=True)
        return bit.to_bytes(bit.of_floats(size), (v >= 0).cpu().numpy().astype(np.uint8))

    def unpack(self, packed: Tensor, like: Tensor, u: Tensor) -> Tensor:
        value, signs = bit.of_bytes(packed, _width(like), like.shape[-1])
        size = bit.to_floats(value, like.dtype, like.device)
        return torch.where(torch.as_tensor(signs.astype(bool), device=like.device), size, -size)

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
    levels : s; at most 2^24 with numbers of 32 bits, above which these cannot hold every level.
    contractive : divided by 1 + omega, which makes it contractive with alpha = 1 / (1 + omega).
    """

    draws: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    levels: Annotated[int, Field(ge=1, lt=2**31)]
    contractive: bool = False

    def check(self, form: Message, run: RunFacts) -> None:
        for name in self.vectors(form):
            most = int(2 / torch.finfo(form[name].dtype).eps)
            if self.levels > most:
                message = (
                    f"found {self.levels}, but {form[name].dtype} does not hold every level; allowed: at most {most}"
                )
                raise InputError(message, key="compression.levels")
        super().check(form, run)

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        size, level = self._levels(v, u)
        return self._value(size, torch.sign(v), level)

    def retraced(self, v: Tensor, sent: Tensor, u: Tensor) -> Tensor:
        return v / (1 + self._omega(v.shape[-1])) if self.contractive else v

    def _levels(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The norm ``[m, 1]``, and the levels ``[m, d]``, whole numbers up to `levels`."""
        v, exponent = _in_range(v)
        size = norm(v)
        a = self.levels * v.abs() / torch.where(size > 0, size, torch.ones_like(size))
        low = a.floor()
        level = (low + (u < a - low).to(v.dtype)).clamp(max=self.levels)
        if exponent is None:
            return size, level
        largest = torch.full_like(size, torch.finfo(v.dtype).max)
        return torch.where(size.isfinite(), _times_power(size, exponent).minimum(largest), size), level

    def _value(self, size: Tensor, sign: Tensor, level: Tensor) -> Tensor:
        out = size * sign * level / self.levels
        large = ~(size * self.levels).isfinite()  # too large a product, where what comes of it is not
        if bool(large.any()):
            out = torch.where(large, size * sign * (level / self.levels), out)
        return out / (1 + self._omega(level.shape[-1])) if self.contractive else out

    def bits(self, d: int, number: int) -> int:
        return number + d * (1 + self._width)

    @property
    def _width(self) -> int:
        """Bits of one level."""
        return math.ceil(math.log2(self.levels + 1))

    def pack(self, v: Tensor, u: Tensor) -> Tensor:
        size, level = self._levels(v, u)
        levels = bit.of_integers(level.cpu().numpy().astype(np.int64), self._width)
        return bit.to_bytes(bit.of_floats(size), (v < 0).cpu().numpy().astype(np.uint8), levels)

    def unpack(self, packed: Tensor, like: Tensor, u: Tensor) -> Tensor:
        d = like.shape[-1]
        value, signs, levels = bit.of_bytes(packed, _width(like), d, d * self._width)
        level = bit.to_integers(levels, self._width, d)
        if (level > self.levels).any():
            raise ValueError(f"a level is above {self.levels}")
        size = bit.to_floats(value, like.dtype, like.device)
        sign = torch.as_tensor(1.0 - 2.0 * signs, dtype=like.dtype, device=like.device)
        return self._value(size, sign, torch.as_tensor(level, dtype=like.dtype, device=like.device))

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

    Horvath et al., arXiv 1905.10988: sign and exponent travel, 9 bits of a float32, 12 of a float64. What is too small
    for such an exponent (subnormal) becomes 0, and what is not finite infinite: no message hides that a run diverged.
    """

    draws: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    def __call__(self, v: Tensor, u: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(v.abs())  # v = mantissa 2^exponent with the mantissa in [1/2, 1)
        low = torch.ldexp(torch.full_like(mantissa, 0.5), exponent)
        up = u < 2 * mantissa - 1
        power = torch.where(up, 2 * low, low)
        power = torch.where(power < torch.finfo(v.dtype).tiny, torch.zeros_like(v), torch.sign(v) * power)
        return torch.where(v.isfinite(), power, torch.where(v < 0, -torch.inf, torch.inf))

    def bits(self, d: int, number: int) -> int:
        return d * (1 + _exponent(number))

    def pack(self, v: Tensor, u: Tensor) -> Tensor:
        """A power of two is its sign and its exponent: the first bits of the floating point number."""
        number, d = _width(v), v.shape[-1]
        raw = self(v, u).cpu().numpy().view(np.int32 if number == 32 else np.int64).astype(np.int64)
        kept = 1 + _exponent(number)
        return bit.to_bytes(bit.of_integers(raw >> (number - kept) & ((1 << kept) - 1), kept).reshape(len(v), d * kept))

    def unpack(self, packed: Tensor, like: Tensor, u: Tensor) -> Tensor:
        number, d = _width(like), like.shape[-1]
        kept = 1 + _exponent(number)
        code = bit.to_integers(bit.of_bytes(packed, d * kept)[0], kept, d)
        unsigned = (code << (number - kept)).astype(np.uint32 if number == 32 else np.uint64)
        return torch.from_numpy(unsigned.view(np.float32 if number == 32 else np.float64)).to(like.device)

    def omega(self, d: int) -> float:
        return 1 / 8


def _in_range(v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows whose squares neither overflow nor vanish, and the powers of two ``[m, 1]`` by which they were divided.

    None where no row is divided. A row that is not finite stays as it is.
    """
    most = v.abs().amax(-1, keepdim=True)
    limits = torch.finfo(v.dtype)
    fits = (most == 0) | ~most.isfinite() | ((most > limits.tiny**0.25) & (most < limits.max**0.25))
    if bool(fits.all()):
        return v, None
    exponent = torch.frexp(most).exponent
    exponent = torch.where(fits, torch.zeros_like(exponent), exponent)
    return _times_power(v, -exponent), exponent


def _times_power(v: Tensor, exponent: Tensor) -> Tensor:
    """v times 2^exponent, in two steps, each of which is a number of v's type."""
    half = exponent // 2
    return torch.ldexp(torch.ldexp(v, half), exponent - half)


def _width(v: Tensor) -> int:
    """Bits of one number."""
    return 8 * v.element_size()


def _exponent(number: int) -> int:
    """Bits of the exponent of a floating point number of `number` bits."""
    return 8 if number == 32 else 11
