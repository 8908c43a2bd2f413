"""A2CiD2 (Nabli, Belilovsky & Oyallon, arXiv 2306.08289, NeurIPS 2023): accelerated gossip for deep nets.

SGD whose nodes average in pairs when the Poisson clock of a link ticks. Beside its model x every node has a second
vector x~, and between its events the two draw nearer to each other; on large, badly connected graphs that spreads
what nodes know much faster at the same number of messages. With chi_1 and chi_2 of the links weighted by their rates:

    eta = 1 / (2 sqrt(chi_1 chi_2))    alpha = 1/2    alpha~ = 1/2 sqrt(chi_1 / chi_2)

    flow    x' = eta (x~ - x)    x~' = eta (x - x~)
    node    x -= lr v    x~ -= lr v    with v the direction of the solver (momentum, weight decay)
    link    m = x_i - x_j;    x_i -= alpha m;    x~_i -= alpha~ m, and + for j

These are the equations; the authors' code (github AdelNabli/ACiD), written for real time, sends x before the flow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Message, NonNegative, Positive, Round, State, Surroundings
from fedsim.algorithms.dspodfl import DSpodFL
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.settling import Auto, found_chi, number
from fedsim.algorithms.solvers import SGD, LocalSolver
from fedsim.algorithms.work import Work
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Fraction


@register.algorithm("acid")
@dataclass(frozen=True, kw_only=True)
class Acid(DSpodFL):
    """Pairwise averaging on Poisson clocks with a continuous momentum of its own (see the module for its equations).

    Parameters
    ----------
    momentum : of SGD; kept from tick to tick, neither mixed nor part of the flow.
    eta : rate at which x and x~ draw nearer; 0 is plain pairwise averaging.
    alpha, alpha_tilde : weights with which x and x~ of the two ends of a link mix.
    chi_1, chi_2 : of the graph whose links are weighted by their rates: found, and compared where they are given.

    `eta` and `alpha_tilde` are by default those of the paper for the graph and the links' rates.
    """

    needs: ClassVar[Needs] = Needs(
        symmetric=True, continuous_time=True, flows=True,
        linear_mixing="x and x~ have the same mean over the nodes only where pairs mix by weighted sums",
    )  # fmt: skip
    usual: ClassVar[Mapping[str, Any]] = {"mode": "poisson", "pair_weight": "own"}
    eta: NonNegative | Auto = "auto"
    alpha: Fraction = 0.5
    alpha_tilde: NonNegative | Auto = "auto"
    chi_1: Positive | Auto = "auto"
    chi_2: Positive | Auto = "auto"

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        work, epochs = self.work()
        if epochs or work != Work.model_validate(1):
            key = "local_epochs" if epochs else "local_steps"
            raise InputError("a node of ACiD takes exactly one step per tick of its clock", key=key)

    @property
    def pair(self) -> float | None:
        """`alpha`"""
        return self.alpha

    @cached_property
    def local_solver(self) -> LocalSolver:
        return self.solver or SGD(momentum=self.momentum, weight_decay=self.weight_decay, state="kept")

    def other_rates(self, ends: tuple[float, float], usual: Floats) -> str | None:
        slowest, most = min(ends), float(usual.max(initial=0.0))
        if self.eta == 0 or ends == (0.0, 0.0) or slowest >= most:
            return None
        found = f"found rates from {slowest:g} on, but eta follows from the links' own rates"
        return f"{found}: at lower ones nodes may drift apart; allowed: 0, at least {most:g}, or algorithm.eta: 0"

    def placed(self, run: Surroundings) -> Self:
        eta, alpha_tilde = self.eta, self.alpha_tilde
        if eta == 0 and alpha_tilde == "auto":
            alpha_tilde = self.alpha  # plain averaging: x~ stays what x is
        if eta != "auto" and alpha_tilde != "auto" and (self.chi_1, self.chi_2) == ("auto", "auto"):
            return replace(self, alpha_tilde=alpha_tilde)
        chi_1, chi_2 = found_chi(self, run)
        eta = 1 / (2 * math.sqrt(chi_1 * chi_2)) if eta == "auto" else eta
        alpha_tilde = 0.5 * math.sqrt(chi_1 / chi_2) if alpha_tilde == "auto" else alpha_tilde
        return replace(self, eta=eta, alpha_tilde=alpha_tilde, chi_1=chi_1, chi_2=chi_2)

    def facts(self) -> Mapping[str, Any]:
        if "auto" in (self.eta, self.alpha_tilde):
            return {}
        of_graph = {name: getattr(self, name) for name in ("chi_1", "chi_2") if getattr(self, name) != "auto"}
        return {"eta": self.eta, "alpha": self.alpha, "alpha_tilde": self.alpha_tilde, **of_graph}

    def init(self, params: Tensor) -> State:
        return {"x": params, "x_tilde": params.clone()}

    def flow(self, state: State, elapsed: Tensor) -> State:
        x, x_t = state["x"], state["x_tilde"]
        pull = -np.expm1(-2 * number(self.eta) * elapsed.squeeze(-1).cpu().numpy()) / 2
        apart = torch.as_tensor(pull, dtype=x.dtype, device=x.device).unsqueeze(-1) * (x_t - x)
        return {"x": x + apart, "x_tilde": x_t - apart}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        x, delta = messages["x"], messages["delta"]
        mixed = aggregate(x)
        m = (x - mixed) / self.alpha  # x_i - x_j of a pair, 0 at all other nodes
        x_t = state["x_tilde"] - number(self.alpha_tilde) * m
        return {"x": mixed.add_(delta), "x_tilde": x_t.add_(delta)}
