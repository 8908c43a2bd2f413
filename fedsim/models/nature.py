"""What a module is besides a function of its parameters and of one sample, found out by letting it compute.

While it trains it may draw random numbers (dropout), and change buffers (the running statistics of batch normalisation,
or whatever else it counts). Evaluations do neither.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.core.errors import InputError
from fedsim.models.draws import Keyed
from fedsim.models.layout import Layout, placed
from fedsim.models.norms import evaluating, norms, training
from fedsim.models.outputs import logits_of

_KNOWN = ("torch.nn.modules.", "fedsim.")


@dataclass(frozen=True)
class Nature:
    """Whether training draws, where in a vector ``[s]`` the buffers sit that it changes, and whether an evaluation
    `differs` from it in what it computes."""

    draws: bool
    buffers: Layout
    differs: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is one function of its parameters and of one sample alone, in training and in evaluations."""
        return not self.draws and not self.buffers.total and not self.differs


PLAIN = Nature(False, placed({}))


def nature_of(module: nn.Module, rows: Tensor) -> Nature:
    """The nature of a module that trains on inputs like `rows` ``[b, ...]``; it stays as it is.

    Raises
    ------
    InputError
        It draws in a way that cannot be keyed (see `Keyed`), or makes buffers or gives them another form.
    """
    if _surely_plain(module):
        return PLAIN
    named, rows = dict(module.named_buffers()), rows if len(rows) > 1 else torch.cat([rows, rows])
    tried = [_trained(module, rows)]
    if rows.is_floating_point() and named:  # rows of zeros, say, may leave as it is what others change
        generator = torch.Generator().manual_seed(0)
        with suppress(Exception):  # which need not be numbers that it takes
            tried.append(_trained(module, torch.randn(rows.shape, generator=generator).to(rows)))
    changed = {k: b for k, b in named.items() if any(not torch.equal(t.buffers[k], b) for t in tried)}
    for key, before in changed.items():
        if (after := tried[0].buffers[key]).shape != before.shape:
            found = f"from {list(before.shape)} to {list(after.shape)}"
            raise InputError(f"buffer '{key}' changes its form while it trains, {found}; allowed: one form", key="name")
        _refuse_form(module, key, before)
    draws = any(t.draws > 0 for t in tried)
    return Nature(draws, placed(changed), not draws and not changed and _evaluates_otherwise(module, rows, tried[0]))


def trained_output(module: nn.Module, rows: Tensor) -> Any:
    """What a training forward gives, always under the same key; the module stays as it is."""
    return _trained(module, rows).out


def trains_on_one(module: nn.Module, row: Tensor) -> bool:
    """Whether a single row ``[1, ...]`` is enough to train on: where a batch is normalised it may not be."""
    try:
        _trained(module, row)
    except ValueError:  # PyTorch's own, of a batch that has no variance
        return False
    return True


@dataclass(frozen=True)
class _Trained:
    """What a training forward gives, how often it draws, and the buffers after it."""

    out: Any
    draws: int
    buffers: dict[str, Tensor]


def _trained(module: nn.Module, rows: Tensor) -> _Trained:
    """A training forward after which the module is as it was.

    Raises
    ------
    InputError
        It makes buffers that were not there.
    """
    buffers, before = {name: b.clone() for name, b in module.named_buffers()}, module.training
    training(module, True)
    try:
        with torch.no_grad(), Keyed(0) as keyed:
            out = logits_of(functional_call(module, buffers, (rows,)))
    finally:
        training(module, before)
    made = [name for name, _ in module.named_buffers() if name not in buffers]
    if made:
        raise InputError(f"buffer '{made[0]}' is made while it trains; allowed: buffers from the start", key="name")
    return _Trained(out, keyed.draws, buffers)


def _refuse_form(module: nn.Module, name: str, buffer: Tensor) -> None:
    """Refuse a buffer that changes and cannot travel as real numbers of its own."""
    if buffer.is_complex():
        kind = str(buffer.dtype).removeprefix("torch.")
        raise InputError(f"buffer '{name}' is {kind} and changes while it trains; allowed: real numbers", key="name")
    memory = buffer.untyped_storage().data_ptr()
    for prefix, sub in module.named_modules():
        for key, other in sub.named_buffers(recurse=False):
            where = f"{prefix}.{key}" if prefix else key
            if where != name and other.numel() and other.untyped_storage().data_ptr() == memory:
                raise InputError(
                    f"buffers '{name}' and '{where}' share their memory, and change while it trains; allowed: one "
                    "each, or one sub-module in both places",
                    key="name",
                )


@torch.no_grad()
def _evaluates_otherwise(module: nn.Module, rows: Tensor, trained: _Trained) -> bool:
    with evaluating(module):
        out = logits_of(module(rows))
    return isinstance(out, Tensor) and isinstance(trained.out, Tensor) and not alike(out, trained.out)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether outputs are the same to rounding, which an evaluation's own ways may change."""
    if one.shape != other.shape:
        return False
    far = torch.finfo(one.dtype).eps ** 0.5 * float(one.nan_to_num().abs().max()) if one.is_floating_point() else 0.0
    return torch.allclose(one, other, rtol=0, atol=far, equal_nan=True)


def initial_state(module: nn.Module, nature: Nature, dtype: torch.dtype) -> Tensor:
    """The buffers that training changes as one vector ``[s]``; integers become numbers of the run's type."""
    named = dict(module.named_buffers())
    flat = [named[name].detach().reshape(-1).to(dtype) for name in nature.buffers.names]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=dtype)


def hooked(module: nn.Module) -> bool:
    """Whether something is called before, after or instead of the forward of a part: its type does not say all then."""
    parts = module.modules()
    return any(sub._forward_hooks or sub._forward_pre_hooks or "forward" in vars(sub) for sub in parts)


def _surely_plain(module: nn.Module) -> bool:
    """Whether all its parts, and what is called before and after them, are known, and none of them draws or counts."""
    for sub in module.modules():
        hooks = (*sub._forward_hooks.values(), *sub._forward_pre_hooks.values())
        if not all(type(hook).__module__.startswith(_KNOWN) for hook in hooks):
            return False
        rate = getattr(sub, "p" if isinstance(sub, nn.modules.dropout._DropoutNd) else "dropout", 0)
        if not type(sub).__module__.startswith(_KNOWN) or isinstance(sub, nn.RReLU) or "forward" in vars(sub):
            return False
        if isinstance(rate, int | float) and rate > 0:
            return False
    return not norms(module)
