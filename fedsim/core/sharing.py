"""Which numbers of a model are shared, and which stay with each client.

Where some stay, a server or the nodes of a graph hold and mix vectors of the shared numbers alone, ``[..., s]``; that
is all that travels, and all that is counted, compressed, attacked or noised. A client puts its own numbers
``[..., p]`` beside them before it works (``d = s + p``). Where none stays, everything is as it is: no copy is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.types import State

Runs = tuple[tuple[int, int], ...]
"""Stretches ``(start, end)`` of a vector, ascending."""


@dataclass(frozen=True)
class Split:
    """Of a vector ``[..., width]`` the stretches that are shared, and those that stay with each client."""

    width: int = 0
    shared: Runs = ()
    own: Runs = ()

    @classmethod
    def of(cls, stays: Tensor) -> Split:
        """The split in which those numbers stay that are True in `stays` ``[width]``."""
        edges = [0, *(torch.nonzero(stays[1:] != stays[:-1]).flatten() + 1).tolist(), len(stays)]
        runs = [run for run in pairwise(edges) if run[0] < run[1]]
        own = tuple(run for run in runs if bool(stays[run[0]]))
        return cls(len(stays), tuple(run for run in runs if run not in own), own)

    @property
    def numbers(self) -> int:
        """How many stay with each client."""
        return sum(end - start for start, end in self.own)

    def common(self, v: Tensor) -> Tensor:
        """The shared numbers of ``[..., width]``; `v` itself where all are."""
        return v if not self.own else _taken(v, self.shared)

    def personal(self, v: Tensor) -> Tensor:
        """Those that stay, ``[..., p]``."""
        return _taken(v, self.own)

    def whole(self, common: Tensor, personal: Tensor) -> Tensor:
        """The vectors ``[..., width]`` with these numbers; one row of either may stand for many of the other."""
        lead = max(common.shape[:-1], personal.shape[:-1], key=lambda shape: (len(shape), *shape))
        made = common.new_empty((*lead, self.width))
        for runs, v in ((self.shared, common), (self.own, personal)):
            first = 0
            for start, end in runs:
                made[..., start:end] = v[..., first : first + end - start]
                first += end - start
        return made


def _taken(v: Tensor, runs: Runs) -> Tensor:
    parts = [v[..., start:end] for start, end in runs]
    return torch.cat(parts, -1) if parts else v[..., :0].clone()


@dataclass(frozen=True)
class Sharing:
    """What of the parameters, and of the buffers that training changes, is shared."""

    params: Split = Split()
    buffers: Split = Split()

    @property
    def everything(self) -> bool:
        """Whether nothing stays with clients."""
        return not (self.params.own or self.buffers.own)

    def common(self, message: Mapping[str, Tensor], buffers: str) -> dict[str, Tensor]:
        """The shared part of vectors by name, of which those called `buffers` are the model's buffers.

        What is one number per client, ``[m, 1]``, is as it was; buffers that all stay are left out.
        """
        if self.everything:
            return dict(message)
        found = {k: self._common(v) for k, v in message.items() if k != buffers}
        if buffers in message and (rest := self.buffers.common(message[buffers])).shape[-1]:
            found[buffers] = rest
        return found

    def _common(self, v: Tensor) -> Tensor:
        return self.params.common(v) if v.shape[-1] == self.params.width else v


EVERYTHING = Sharing()
"""All numbers are shared."""

CARRIED = "model:buffers"
"""In states and messages the name of what models carry besides their parameters; see `Task.carried`."""
PERSONAL, PERSONAL_CARRIED = "model:personal", "model:personal buffers"
"""The names under which clients keep what stays with them of their parameters and of what models carry besides."""


class Sharable(ABC):
    """Models ``[d]``, and what they carry besides, of which parts may stay with clients."""

    dim: int
    device: torch.device
    sharing: Sharing = EVERYTHING
    """Which numbers of models are shared; the others stay with each client."""

    @abstractmethod
    def initial(self) -> Tensor:
        """Initial parameters ``[d]``."""

    @property
    def carried(self) -> State:
        """What a model carries besides its parameters and training changes, as it is at first: ``[s]`` under `CARRIED`.

        It is no concern of algorithms: it travels beside their messages and is averaged. Where a task carries
        something, models that it is asked about are vectors ``[..., d + s]``.
        """
        return {}

    def common(self) -> Tensor:
        """The shared part ``[s]`` of the initial parameters: what a server and the nodes of a graph begin with."""
        return self.sharing.params.common(self.initial())

    @property
    def common_carried(self) -> State:
        """The shared part of `carried`: nothing where all of it stays with clients."""
        return self.sharing.common(self.carried, CARRIED)

    def model(self, common: Tensor, personal: State | None = None) -> Tensor:
        """Models as the task is asked about them, ``[..., d + b]``, from their shared parts ``[..., s + c]``.

        `personal` has what stays with clients (`PERSONAL`, `PERSONAL_CARRIED`); what is not in it is as it was at
        first.
        """
        if self.sharing.everything:
            return common
        found, parts = personal or {}, list[Tensor]()
        first = 0
        whole = ((PERSONAL, self.sharing.params, self.initial()), *self._whole_buffers())
        for name, split, initial in whole:
            v = common[..., first : first + split.width - split.numbers]
            first += v.shape[-1]
            parts.append(split.whole(v, found.get(name, split.personal(initial))) if split.own else v)
        return torch.cat(parts, -1)

    def _whole_buffers(self) -> list[tuple[str, Split, Tensor]]:
        return [(PERSONAL_CARRIED, self.sharing.buffers, v) for v in self.carried.values()]

    def named(self, which: str | Sequence[str]) -> Tensor:
        """Parameters as True in ``[d]``: all, those that are personal or shared, or those that a pattern matches.

        Raises
        ------
        InputError
            There are none; the key is empty, or the number of a pattern.
        """
        if which == "all":
            return torch.ones(self.dim, dtype=torch.bool, device=self.device)
        if isinstance(which, str):
            found = torch.full((self.dim,), which == "shared", device=self.device)
            for start, end in self.sharing.params.own:
                found[start:end] = which == "personal"
            if not found.any():
                raise InputError("found personal, but all parameters are shared; allowed: with model.personal")
            return found
        raise InputError("a quadratic problem has no parameters with names; allowed: all")
