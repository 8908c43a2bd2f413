"""A model of each client's own that is trained beside the common one: what Ditto, pFedMe and APFL share.

The own model is called v. It starts from the initial model, a client keeps it between rounds, and it never leaves the
client. A class of this kind is mixed into one for a server and into one for a graph, where the model that neighbours
mix takes the place of the server's. With the mechanism `dp_sgd` the gradients of v are clipped and noised like all
others, so that v is private, too. Mechanisms that protect messages leave v as it is: it is not sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Effort, Message, Oracle, Positive, Report, State
from fedsim.algorithms.client import ClientHalf, for_solver, of_solver
from fedsim.core.errors import InputError
from fedsim.core.rules import Rule


@dataclass(frozen=True, kw_only=True)
class OwnModel(Algorithm):
    """Keeps v at the client and steps it with the scenario's solver, which remembers for v what is v's.

    Parameters
    ----------
    personal_lr : learning rate of v (default: `lr`). `lr_decay` and the clocks of `lr` apply to it, too.
    """

    stepping: ClassVar[tuple[str, ...]] = (*Algorithm.stepping, "step_own", "own_rate")
    personal_lr: Positive | None = None

    def init_client(self, params: Tensor) -> State:
        return {**super().init_client(params), "v": params, **self._remembered(self.local_solver.start(params))}

    def start(self, received: Message, client: State) -> State:
        return {**super().start(received, client), "v": client["v"], **for_solver(of_solver(client, "v"), "v")}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        """A step of x alone, bit for bit the one that it takes where there is no v."""
        rule, plain = self._common_rule, self.clip is None and self.local_solver.in_place
        if rule is None or not (plain or oracle.walks(local["x"])):
            return super().local_step(oracle, local, received, client)
        x = local["x"].clone(memory_format=torch.contiguous_format)
        if plain:
            oracle.descend(x)
            return {**local, "x": x}
        before = of_solver(local) or self.local_solver.start(x)
        remembered = {k: v.clone(memory_format=torch.contiguous_format) for k, v in before.items()}
        oracle.walk(x, rule, remembered)
        return {**local, "x": x, **for_solver(remembered)}

    @property
    def _common_rule(self) -> Rule | None:
        """By which rule x steps along its minibatch gradients, if it does nothing else; see `ClientHalf.rule`."""
        plain = {*ClientHalf.stepping} - {"start", "local_step"}  # which add what v needs
        rule = self.local_solver.rule if all(getattr(type(self), n) is getattr(ClientHalf, n) for n in plain) else None
        return None if rule is None else replace(rule, clip=self.clip)

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        # It is the other parent's.
        travels, stays, kept = super().message(local, received, client, effort)  # type: ignore[safe-super]
        return travels, stays, {**kept, "v": local["v"], **self._remembered(of_solver(local, "v"))}

    def check_train(self) -> None:
        super().check_train()
        if self.train is not None:
            message = f"{type(self).__name__} trains two models, and phases are of one; allowed: no such key"
            raise InputError(message, key="train")

    def personal_model(self, received: Message, client: State) -> Tensor:
        return client["v"]

    def step_own(self, oracle: Oracle, local: State, direction: Tensor) -> State:
        """v after a step of the solver along `direction`, and what the solver remembers of it."""
        v, solver = local["v"], self.local_solver
        before = of_solver(local, "v") or solver.start(v)
        after, state = solver.step(v, direction, self.own_rate(oracle), before)
        return {"v": after, **for_solver(state, "v")}

    def own_rate(self, oracle: Oracle) -> Tensor:
        """The learning rate of v, ``[m, 1]``."""
        return self._scaled(oracle, self.personal_lr)

    def _scaled(self, oracle: Oracle, rate: float | None) -> Tensor:
        """`rate` where `lr` is the rate of the oracle: both decay alike."""
        return oracle.lr if rate is None else oracle.lr * (rate / self.lr)

    def _remembered(self, state: State) -> State:
        return for_solver(state, "v") if self.local_solver.state == "kept" else {}


def pulled(g: Tensor, v: Tensor, x: Tensor, factor: float) -> Tensor:
    """``g + factor (v - x)``"""
    return g if factor == 0 else torch.add(g, v - x, alpha=factor)
