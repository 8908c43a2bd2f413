"""Phases of local work as the worker takes them: what does not train stays as it was, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.client import for_solver
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Oracle, Task
from fedsim.core.types import State


@dataclass(frozen=True, eq=False)
class Schedule:
    """What trains when.

    Parameters
    ----------
    trains : ``[p, d]``, whether each parameter trains in each phase.
    ends : ``[p]``, after how many steps or epochs each phase is over.
    """

    trains: Tensor
    ends: Ints

    @classmethod
    def of(cls, algorithm: Algorithm, task: Task) -> Schedule | None:
        """The schedule of an algorithm's phases; None where it has none.

        Raises
        ------
        InputError
            A phase trains nothing, or a pattern matches no parameter.
        """
        if algorithm.train is None:
            return None
        marks = []
        for i, phase in enumerate(algorithm.train):
            try:
                marks.append(task.named(phase.parameters))
            except InputError as error:
                raise error.under(f"train.{i}.parameters") from None
        return cls(torch.stack(marks), np.cumsum([phase.units for phase in algorithm.train]))

    def at(self, units: Ints) -> Now:
        """The phases of rows that have done so many steps or epochs, ``[m]``."""
        phases = np.minimum(np.searchsorted(self.ends, units, side="right"), len(self.ends) - 1)
        if len(phases) and (phases == phases[0]).all():
            return Now(phases, self.trains[int(phases[0])])
        return Now(phases, self.trains[torch.as_tensor(phases, device=self.trains.device)])


@dataclass(frozen=True, eq=False)
class Now:
    """The phase of each row, ``[m]``, and what trains in it, ``[m, d]`` or ``[d]`` for all rows."""

    phases: Ints
    trains: Tensor

    def begun(self, algorithm: Algorithm, local: State, before: Now | None) -> State:
        """`local` in which the solver starts anew in rows whose phase has just begun."""
        fresh = for_solver(algorithm.local_solver.start(local["x"]))
        if before is None or not fresh:
            return local
        new = self.phases != before.phases[: len(self.phases)]
        if not new.any():
            return local
        rows = torch.as_tensor(new, device=local["x"].device).unsqueeze(1)
        return {k: torch.where(rows, fresh[k], v) if k in fresh else v for k, v in local.items()}

    def after(self, stepped: State, local: State) -> State:
        """What a step made of `local`, where it trains; what a solver remembers begins with the first step."""
        d = self.trains.shape[-1]
        whole = {k for k, v in stepped.items() if v.shape[-1] == d and k in local}
        return {k: torch.where(self.trains, v, local[k]) if k in whole else v for k, v in stepped.items()}


class Masked(Oracle):
    """Gradients by what trains; the others are 0."""

    def __init__(self, oracle: Oracle, trains: Tensor) -> None:
        super().__init__(oracle.lr)
        self.oracle, self.rest = oracle, ~trains

    def grad(self, x: Tensor) -> Tensor:
        return self.oracle.grad(x).masked_fill(self.rest, 0)

    def per_sample_grad(self, x: Tensor) -> Tensor:
        rest = self.rest if self.rest.dim() == 1 else self.rest.unsqueeze(1)
        return self.oracle.per_sample_grad(x).masked_fill(rest, 0)

    @property
    def samples(self) -> Tensor:
        return self.oracle.samples
