"""The vocabulary of the package: states, messages, constrained numbers, and helpers that reduce the last axis.

Every tensor an algorithm touches has shape ``[..., d]``: the last axis is the ``d`` parameters, leading axes are
clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from fedsim.core.clock import LONGEST

State = dict[str, Tensor]
"""What a server, a node or a client keeps: names to tensors whose last axis is ``d`` (or 1 for a scalar per client)."""

Message = dict[str, Tensor]
"""What travels; same form as a State, one to one with a Flower ArrayRecord."""

Aggregate = Callable[..., Tensor]
"""``aggregate(values[, weights])``: ``[m, d]`` with weights ``[m]`` gives ``[d]``, with ``[n, m]`` ``[n, d]``."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _accountable(z: float) -> float:
    if z and z < 1e-100:
        raise ValueError(f"found {z:g}, allowed: 0, or from 1e-100 to 1e+100")
    return z


NoiseMultiplier = Annotated[float, Field(ge=0, le=1e100), AfterValidator(_accountable)]
"""Standard deviation of noise over the sensitivity; what accountants can square."""
Seconds = Annotated[float, Field(gt=0, le=LONGEST)]
"""Virtual seconds."""
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
Bins = Annotated[int, Field(gt=0, le=1_000_000)]
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}

BatchSize = Count | Literal["full"]
"""Samples per local step; ``full`` is all the client has."""


def tensor_of(values: npt.NDArray[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor of that type, converted by numpy: for few of them a tensor's own way takes many times as
    long. Like ``torch.as_tensor`` it may share their memory."""
    kind = _NUMPY.get(dtype) if device.type == "cpu" else None
    if kind is None:
        return torch.as_tensor(values, dtype=dtype, device=device)
    return torch.from_numpy(values.astype(kind, copy=False))


def norm(v: Tensor) -> Tensor:
    """Euclidean norm over the last axis, kept as an axis of length 1: ``[..., d] -> [..., 1]``."""
    result: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return result


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Inner product over the last axis: ``[..., d], [..., d] -> [..., 1]``."""
    return (u * v).sum(dim=-1, keepdim=True)


def clip_norm(v: Tensor, bound: Tensor | float) -> Tensor:
    """Scale each row down to Euclidean norm `bound` (a number, or ``[..., 1]``); shorter rows are unchanged.

    ``[..., d] -> [..., d]``.
    """
    return v * (bound / norm(v).clamp_min(1e-12)).clamp(max=1.0)


def message_bytes(message: Message) -> int:
    """Bytes of one row of a message ``[..., d]``."""
    return sum(v.shape[-1] * v.element_size() for v in message.values())


def agree(rows: Tensor) -> bool:
    """Whether all rows ``[n, d]`` are the same: their mean may differ from each of them by rounding."""
    return bool((rows == rows[:1]).all())
