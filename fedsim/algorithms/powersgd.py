"""PowerSGD (Vogels, Karimireddy and Jaggi, NeurIPS 2019, arXiv 1905.13727): low-rank messages with error feedback.

A client adds to its change what was left out before, ``M_i = delta_i + e_i``, per parameter a matrix ``[a, b]`` (the
first axis against all others). Algorithm 1 takes one step of a subspace iteration on the mean of all clients' matrices
in two exchanges: they send ``P_i = M_i Q``, get ``P = orth(mean P_i)``, and send ``Q_i = M_i^T P``. The step is
``P (mean Q_i)^T``, and the mean of the Q_i is the next round's Q. Both are means before anything is done with them, so
the server never sees a client's own matrices, and no rule but the mean has a meaning.

Algorithm 2 keeps the error, ``e_i = M_i - P (mean Q_i)^T``, against the step that was made, as its authors' reducer
does; their later package makes the two exchanges in turns, one per step, and keeps the error in the gradient, which is
not done here. Errors are kept in units of the model's change, since clients may take several local steps. The papers'
momentum after the mean is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import Count


@dataclass(frozen=True)
class _Matrix:
    """Where a matrix ``[a, b]`` begins in the flat vector."""

    offset: int
    a: int
    b: int

    def of(self, flat: Tensor) -> Tensor:
        """The matrix, a view ``[..., a, b]``."""
        return flat.narrow(-1, self.offset, self.a * self.b).view(*flat.shape[:-1], self.a, self.b)

    def factor(self, flat: Tensor, rank: int) -> Tensor:
        """What its Q ``[b, rank]`` is in a flat vector that has Q in the matrix's place, a view."""
        return flat.narrow(-1, self.offset, self.b * rank).view(*flat.shape[:-1], self.b, rank)


@register.algorithm("powersgd")
@dataclass(frozen=True, kw_only=True)
class PowerSGD(ServerAlgorithm):
    """``M_i = delta_i + e_i;  P = orth(mean M_i Q);  Q = mean M_i^T P;  x = x + server_lr P Q^T;  e_i = M_i - P Q^T``

    A matrix is sent whole where its factors would be no smaller, and so is what has fewer than two axes; both leave no
    error. With a `rank` of min(a, b) or more nothing is left out: that is FedAvg. A round's two exchanges with the
    server are one round here: bytes are exactly those of ``P_i`` and ``Q_i``; its time has the latency of one.

    Parameters
    ----------
    rank : r, columns of P and Q.
    shapes : the shapes of the model's parameters in their order, a list of lists, or ``auto``: the model's own.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",),
        why="both exchanges of a round are with the same clients",
        everyone="what was left out is the difference to the step that all clients made",
        through_aggregate=False,
        own_size=True,
    )
    rank: Count = 1
    shapes: list[list[Count]] | Literal["auto"] = "auto"

    def settled(self, task: Task, alpha: float | None) -> Self:
        """The shapes of the model's parameters."""
        if self.shapes != "auto":
            found = sum(math.prod(shape) for shape in self.shapes)
            if found != task.dim:
                message = f"found shapes of {found} numbers, the model has {task.dim}; allowed: auto, or all its shapes"
                raise InputError(message, key="shapes")
            return self
        return replace(self, shapes=[list(shape) for shape in task.shapes or [(task.dim,)]])

    def check_deployed(self) -> None:
        message = "a round has two exchanges, and a SuperNode would send its whole matrix; allowed: a simulation"
        raise InputError(message, key="algorithm.name")

    def facts(self) -> Mapping[str, Any]:
        low = list(self._low())
        if not low:
            return {"low rank": "nothing: factors would be no smaller, so all is sent whole, as with fedavg"}
        return {"low rank": f"{len(low)} matrices of {sum(m.a * m.b for m in low)} parameters in rank {self.rank}"}

    def message_size(self, form: Message) -> int | None:
        """``(a + b) rank`` numbers of a matrix that is sent as factors, all of the others."""
        (sent,) = form.values()
        saved = sum(m.a * m.b - (m.a + m.b) * self.rank for m in self._low())
        return (sent.shape[-1] - saved) * sent.element_size()

    # --- one round ----------------------------------------------------------------------------------------------------

    def init(self, params: Tensor) -> State:
        return {"x": params, "q": self._first(params)}

    def init_client(self, params: Tensor) -> State:
        return {"sent": torch.zeros_like(params), "at": params}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        x = received["x"].expand_as(local["x"])
        left = client["sent"] - (x - client["at"]) / self.server_lr
        sent = local["x"] - x
        for matrix in self._low():
            matrix.of(sent).add_(matrix.of(left))
        return {"sent": sent}, {}, {"sent": sent, "at": x}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        mean, q = aggregate(messages["sent"]).clone(), state["q"].clone()
        for matrix in self._low():
            M, Q = matrix.of(mean), matrix.factor(q, self.rank)
            P = torch.linalg.qr(M @ Q).Q
            after = M.mT @ P
            M.copy_(P @ after.mT)
            Q.copy_(torch.where((after != 0).any(), after, Q))  # where nothing moved, the last Q is the better guess
        return {"x": state["x"] + self.server_lr * mean, "q": q}

    def _low(self) -> Iterator[_Matrix]:
        """The matrices that are sent as factors."""
        offset = 0
        for shape in [] if self.shapes == "auto" else self.shapes:
            a, b = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
            if (a + b) * self.rank < a * b:
                yield _Matrix(offset, a, b)
            offset += a * b

    def _first(self, params: Tensor) -> Tensor:
        """Q of the first round, normal numbers, the same in every run of a model; in the places of its matrices."""
        q = torch.zeros_like(params)
        for number, matrix in enumerate(self._low()):
            keys = rng.key(0, "powersgd", number, np.arange(matrix.b * self.rank))
            matrix.factor(q, self.rank).copy_(torch.as_tensor(rng.normal(keys)).view(matrix.b, self.rank))
        return q
