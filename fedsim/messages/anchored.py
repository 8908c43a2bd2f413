"""Robust rules that compare messages with something else than each other: their past, or a client that is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.job import RunFacts
from fedsim.core.registry import register
from fedsim.core.types import Aggregate, Count, Message, Positive, State
from fedsim.messages.base import Arrived
from fedsim.messages.distances import Table, by_columns, cosines, moved, norms
from fedsim.messages.robust import Combine, RobustRule, Turn, compared, massed, median
from fedsim.messages.vectors import is_vector, vectors


@dataclass(frozen=True, kw_only=True)
class _Clipped:
    """What some steps of clipping around v make: ``rest v + shares @ rows``, with shares ``[m]`` in float64."""

    rest: float
    shares: Tensor

    def of(self, rows: Tensor, v: Tensor) -> Tensor:
        """``[m, w]`` and ``[w]`` -> ``[w]``."""
        return self.rest * v + self.shares.to(rows.dtype) @ rows


@register.aggregator("centered_clipping")
@dataclass(frozen=True, kw_only=True)
class CenteredClipping(RobustRule):
    """``v = v + mean_i clip(V_i - v, tau)`` from what came of the round before, at first from 0 (Karimireddy et al.,
    arXiv 2012.10333).

    Whole messages are clipped. What an algorithm aggregates beside messages (their quotients, say) has no past: it is
    moved from its coordinate-wise median by the same shares. Numbers of one per client are averaged.

    Parameters
    ----------
    tau : the norm to which differences are clipped.
    iters : how often in a round.
    """

    tau: Positive
    iters: Count = 1

    @property
    def on_graph(self) -> str | None:
        return "it starts from what came of a server's last round; allowed there: clipped_gossip"

    def withstands(self, m: int) -> int:
        return (m - 1) // 2

    def fresh(self, form: Message) -> State:
        return {k: torch.zeros_like(form[k]) for k in vectors(form) or form}

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        """Without a past: from 0."""
        rows = rows.settled()
        clipped, _ = self._steps(rows, [v.new_zeros(v.shape[-1]) for v in rows.tensors])

        def combine(part: Tensor, weights: Tensor | None, vector: bool) -> Tensor:
            return massed(weights, clipped.shares.to(part.dtype) @ part if vector else part.mean(0))

        return combine

    def bind_in(
        self, messages: Message, weights: Tensor, state: State, arrived: Arrived, run: RunFacts
    ) -> tuple[Aggregate, State]:
        names = compared(messages, run)
        ready = self.ready([messages[k][:] for k in names], arrived, run)
        if ready is None:
            return super().bind_in(messages, weights, state, arrived, run)
        clipped, after = self._steps(ready.rows.settled(), [state[k].squeeze(0) for k in names])
        found = dict(zip(names, after, strict=True))

        def aggregate(values: Tensor, given: Tensor | None = None) -> Tensor:
            mass = weights if given is None else given
            name = next((k for k in names if messages[k] is values), None)
            if name is not None:
                return massed(mass, found[name])
            vector = is_vector(values, messages, names)
            rows, _ = ready.kept(values[:], None)

            def combine(part: Tensor) -> Tensor:
                part = ready.changed(part, vector)
                return clipped.of(part, median(part)) if vector else part.mean(0)

            return massed(mass, by_columns(combine, rows))

        return aggregate, {**state, **{k: v.unsqueeze(0) for k, v in found.items()}}

    def _steps(self, rows: Table, v: list[Tensor]) -> tuple[_Clipped, list[Tensor]]:
        """All steps of a round from `v`, a ``[d_k]`` per tensor, and where they lead."""
        m = len(rows)
        rest, shares = 1.0, torch.zeros(m, dtype=torch.float64, device=rows.tensors[0].device)
        for _ in range(self.iters):
            size = norms(rows, v)
            factor = torch.where(size <= self.tau, torch.ones_like(size), self.tau / size) / m
            step = _Clipped(rest=1.0 - float(factor.sum()), shares=factor)
            v = [moved(step.of, tensor, old) for tensor, old in zip(rows.tensors, v, strict=True)]
            rest, shares = rest * step.rest, step.rest * shares + factor
        return _Clipped(rest=rest, shares=shares), v


@register.aggregator("fltrust")
@dataclass(frozen=True, kw_only=True)
class FLTrust(RobustRule):
    """Messages count as far as they point where the trusted client's does, at its length: ``sum_i t_i |g| / |V_i| V_i
    / sum_i t_i`` with ``t_i = max(0, cos(g, V_i))`` over all other clients (Cao et al., arXiv 2012.13995).

    Where nobody points that way it is the trusted client's message. Numbers of one per client are averaged with the
    same trust.

    Parameters
    ----------
    root : the number of the client that is trusted; it has to take part in every round.
    """

    root: Annotated[int, Field(ge=0)]

    def __post_init__(self) -> None:
        if self.pre is not None:
            raise InputError("a trusted client's message is compared as it is, allowed: without pre", key="pre")

    @property
    def least(self) -> tuple[int, str]:
        return 2, "the trusted client and another one"

    @property
    def everyone(self) -> str | None:
        return f"fltrust compares all messages with those of client {self.root}"

    @property
    def on_graph(self) -> str | None:
        return "nodes do not all hear the client that is trusted"

    def check_clients(self, clients: int) -> None:
        if self.root >= clients:
            raise InputError(f"found client {self.root}, allowed: 0 to {clients - 1}", key="root")

    def check_run(self, run: RunFacts) -> None:
        if self.root in (run.attackers or ()):
            raise InputError(f"found client {self.root}, which attacks; allowed: an honest client", key="root")

    def withstands(self, m: int) -> int:
        return m - 1

    def lacks(self, clients: Ints) -> str | None:
        missing = f"client {self.root}, which is trusted, took no part"
        return self.needs(len(clients)) if self.root in clients else missing

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        clients = torch.as_tensor(turn.arrived.clients, device=turn.left.device)[turn.left]
        at = torch.nonzero(clients == self.root).flatten().tolist()
        if not at:
            raise RunError(f"aggregator: client {self.root}, which is trusted, sent nothing finite in this round")
        size = norms(rows)
        length = size[at[0]]
        trust = cosines(rows, at[0], size).clamp_min(0.0)
        trust[at[0]] = 0.0
        if float(trust.sum()) == 0.0:
            trust[at[0]] = 1.0
        trust = trust / trust.sum()
        scaled = torch.where(size > 0, trust * length / size, 0.0)

        def combine(part: Tensor, weights: Tensor | None, vector: bool) -> Tensor:
            return massed(weights, (scaled if vector else trust).to(part.dtype) @ part)

        return combine
