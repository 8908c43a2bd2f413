"""What a module is besides a function of its parameters and of one sample, found out by letting it compute.

While it trains it may draw random numbers (dropout), and change buffers (the running statistics of batch normalisation,
or whatever else it counts). Evaluations do neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.models.draws import Keyed
from fedsim.models.layout import Layout, placed
from fedsim.models.norms import norms, training

_KNOWN = ("torch.nn.modules.", "fedsim.")


@dataclass(frozen=True)
class Nature:
    """Whether training draws, and where in a vector ``[s]`` the buffers sit that it changes."""

    draws: bool
    buffers: Layout

    @property
    def plain(self) -> bool:
        """Whether it is a function of its parameters and of one sample alone."""
        return not self.draws and not self.buffers.total


PLAIN = Nature(False, placed({}))


def nature_of(module: nn.Module, rows: Tensor) -> Nature:
    """The nature of a module that trains on inputs like `rows` ``[b, ...]``; it stays as it is.

    Raises
    ------
    InputError
        It draws in a way that cannot be keyed (see `Keyed`).
    """
    if _surely_plain(module):
        return PLAIN
    named, rows = dict(module.named_buffers()), rows if len(rows) > 1 else torch.cat([rows, rows])
    tried = [_trained(module, rows)]
    if rows.is_floating_point() and named:  # rows of zeros, say, may leave as it is what others change
        generator = torch.Generator().manual_seed(0)
        tried.append(_trained(module, torch.randn(rows.shape, generator=generator).to(rows)))
    changed = {k: b for k, b in named.items() if any(not torch.equal(after[k], b) for _, after in tried)}
    return Nature(any(draws > 0 for draws, _ in tried), placed(changed))


def trains_on_one(module: nn.Module, row: Tensor) -> bool:
    """Whether a single row ``[1, ...]`` is enough to train on: where a batch is normalised it may not be."""
    try:
        _trained(module, row)
    except ValueError:  # PyTorch's own, of a batch that has no variance
        return False
    return True


def _trained(module: nn.Module, rows: Tensor) -> tuple[int, dict[str, Tensor]]:
    """How often a training forward draws, and the buffers after it; the module stays as it is."""
    buffers, before = {name: b.clone() for name, b in module.named_buffers()}, module.training
    training(module, True)
    try:
        with torch.no_grad(), Keyed(0) as keyed:
            functional_call(module, buffers, (rows,))
    finally:
        training(module, before)
    return keyed.draws, buffers


def initial_state(module: nn.Module, nature: Nature, dtype: torch.dtype) -> Tensor:
    """The buffers that training changes as one vector ``[s]``; integers become numbers of the run's type."""
    named = dict(module.named_buffers())
    flat = [named[name].detach().reshape(-1).to(dtype) for name in nature.buffers.names]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=dtype)


def _surely_plain(module: nn.Module) -> bool:
    """Whether all its parts are known, and none of them draws or counts."""
    for sub in module.modules():
        rate = getattr(sub, "p" if isinstance(sub, nn.modules.dropout._DropoutNd) else "dropout", 0)
        if not type(sub).__module__.startswith(_KNOWN) or isinstance(sub, nn.RReLU):
            return False
        if isinstance(rate, int | float) and rate > 0:
            return False
    return not norms(module)
