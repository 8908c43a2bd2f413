"""Tensors as the arrays that travel, and back; what a message has to look like."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedsim.core.arrays import Array
from fedsim.core.types import Message
from fedsim.deployment.flower.records import Arrays, BadRecord, shown


def to_arrays(message: Message) -> Arrays:
    """The tensors of `message` as arrays."""
    return {k: v.detach().cpu().contiguous().numpy() for k, v in message.items()}


def to_tensors(arrays: Arrays, device: torch.device) -> Message:
    """Arrays as tensors of their own.

    Raises
    ------
    BadRecord
        An array is of a type that no tensor has.
    """
    try:
        return {k: torch.from_numpy(array.copy()).to(device) for k, array in arrays.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise BadRecord(f"an array cannot be read: {error}") from error


def changed(message: Arrays, received: Arrays) -> Arrays:
    """The arrays of `message` that are not, bit for bit, the ones of the same name that were received."""
    return {k: v for k, v in message.items() if k not in received or not _same(v, received[k])}


def check_message(message: Message, expected: Mapping[str, torch.Tensor]) -> None:
    """Raise BadRecord unless `message` has the names, shapes and types of `expected`, and finite numbers."""
    if set(message) != set(expected):
        raise BadRecord(f"found the arrays {shown(sorted(message))}, expected {sorted(expected)}")
    for name, value in message.items():
        wanted = expected[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            found, right = (f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (value, wanted))
            raise BadRecord(f"'{name}' is {found}, expected {right}")
        if not bool(torch.isfinite(value).all()):
            raise BadRecord(f"'{name}' holds numbers that are not finite")


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
