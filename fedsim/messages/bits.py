"""Numbers as bits, bits as bytes: what compressed vectors are made of while they travel; rows by rows, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def of_floats(values: Tensor) -> Array:
    """All bits of floating point numbers ``[m, n]``, little endian: ``[m, n * width]`` of 0 and 1."""
    array = values.detach().cpu().contiguous().numpy()
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(len(array), -1)
    return np.unpackbits(raw, axis=1)


def to_floats(bits: Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers that `of_floats` took apart."""
    kind = np.dtype(str(dtype).removeprefix("torch.")).newbyteorder("<")
    raw = np.packbits(bits, axis=1).view(kind)
    return torch.from_numpy(raw.astype(kind.newbyteorder("="))).to(device)


def of_integers(values: Array, width: int) -> Array:
    """`width` bits of each whole number ``[m, n]``, the highest first: ``[m, n * width]``."""
    places = np.arange(width - 1, -1, -1, dtype=np.int64)
    return ((values[..., None] >> places) & 1).astype(np.uint8).reshape(len(values), -1)


def to_integers(bits: Array, width: int, count: int) -> Array:
    """The `count` numbers per row that `of_integers` took apart."""
    places = np.arange(width - 1, -1, -1, dtype=np.int64)
    return np.asarray((bits.reshape(len(bits), count, width).astype(np.int64) << places).sum(-1))


def to_bytes(*parts: Array) -> Tensor:
    """Bits ``[m, n]`` side by side as bytes ``[m, ceil(bits / 8)]``, filled up with zeros."""
    return torch.from_numpy(np.packbits(np.concatenate(parts, axis=1), axis=1))


def of_bytes(packed: Tensor, *lengths: int) -> list[Array]:
    """The parts of the given lengths that `to_bytes` put side by side."""
    bits = np.unpackbits(packed.cpu().numpy(), axis=1, count=sum(lengths))
    return np.split(bits, np.cumsum(lengths)[:-1], axis=1)
