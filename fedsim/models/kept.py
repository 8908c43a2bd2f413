"""What a module keeps between calls beside its parameters and buffers, found out by letting it compute.

Such things are seen by no algorithm, are in no checkpoint and are shared by all clients of a process, so that numbers
would depend on how clients are divided. Tensors of one's own are looked for in what they do to outputs, numbers in what
the module's attributes hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.models.nature import alike, trained_output
from fedsim.models.norms import evaluating
from fedsim.models.outputs import logits_of

_OWN = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_DEEP = 3  # containers in containers
_MOST = 1000  # items of a container that are looked at


def refuse_kept(name: str, module: nn.Module, rows: Tensor) -> None:
    """Refuse a module whose outputs depend on what it computed before, tried on `rows` ``[n, ...]`` of the data.

    Raises
    ------
    InputError
        It trains or evaluates otherwise after other rows, or counts in an attribute.
    """

    def evaluated() -> Any:
        with torch.no_grad(), evaluating(module):
            return logits_of(module(rows))

    def trained() -> Any:
        return trained_output(module, rows)

    ways = ((evaluated, "evaluates the same again"), (trained, "trains on the same again"))
    before = [way() for way, _ in ways]
    attributes = dict(_attributes(module))
    trained_output(module, torch.cat([rows[:1], rows[:1]]))
    if rows.is_floating_point():
        with suppress(Exception):  # which need not be numbers that it takes
            trained_output(module, 3 * rows)
    for (way, what), first in zip(ways, before, strict=True):
        again = way()
        if isinstance(first, Tensor) and isinstance(again, Tensor) and not alike(first, again):
            raise InputError(
                f"'{name}' gives other outputs when it {what}: it draws from elsewhere than torch, or keeps something "
                "between calls; allowed: torch's draws, and buffers",
                key="name",
            )
    for where, value in _attributes(module):
        if attributes.get(where, value) != value:
            raise InputError(
                f"'{name}' changes its attribute '{where}' whenever it computes, which all clients would share; "
                "allowed: buffers (register_buffer)",
                key="name",
            )


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Numbers and texts that sub-modules and their classes hold, by name; of tensors and arrays none."""
    seen: set[type] = set()
    for prefix, sub in module.named_modules():
        yield from _simple(vars(sub), prefix)
        for kind in type(sub).__mro__:
            if kind.__module__.startswith("torch.") or kind is object or kind in seen:
                continue
            seen.add(kind)
            yield from _simple(vars(kind), kind.__name__)


def _simple(held: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in held.items():
        if key not in _OWN and not key.startswith("__"):
            yield f"{prefix}.{key}" if prefix else key, _plain(value, _DEEP)


def _plain(value: Any, deep: int) -> Any:
    """What can be compared of an attribute; None for everything else."""
    if isinstance(value, bool | int | float | complex | str | np.generic):
        return repr(value)
    if deep and isinstance(value, Mapping) and len(value) <= _MOST:
        return [(repr(k) if isinstance(k, int | str) else None, _plain(v, deep - 1)) for k, v in value.items()]
    if deep and isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return [len(value), *(_plain(v, deep - 1) for v in value[:_MOST])]
    return None
