"""DADAO (Nabli & Oyallon, arXiv 2208.00779, ICML 2023): accelerated gossip in continuous time, one tick at a time.

Every node has six vectors and a Poisson clock of its own, every link another. Between its events a node's vectors
follow a linear flow, the same at every node; a node's tick is one gradient, a link's tick one message each way. For
L-smooth, mu-strongly convex f_i the exact minimiser of their sum is reached with constant steps, whatever the nodes'
data and rates, after a number of gradients and of messages that both grow with ``sqrt(L / mu)`` alone.

The constants are those of the authors' code (github AdelNabli/DADAO, ``optimizers.py``). With nu = mu/2, q =
sqrt(nu/L) and chi_1 of the links weighted by their rates:

    eta = q/8        alpha = q/4    alpha~ = q/8    theta = 1/(2q)    beta = 1/2    beta~ = 2 chi_1/q
    delta = q/4      delta~ = 1     gamma = 1/(4L)  gamma~ = 1/(4 sqrt(L nu))

    flow    x' = eta (x~ - x)    x~' = eta (x - x~)    y' = alpha (y~ - y)    y~' = -theta (nu x~ + y + z)
            z' = alpha (z~ - z)  z~' = alpha~ (z - z~)
    node    e = grad f_i(x) - nu x - y~;    x -= gamma e;    x~ -= gamma~ e;    y~ += (delta + delta~) e
    link    m = (y_i + z_i) - (y_j + z_j);    z_i -= beta m;    z~_i -= beta~ m, and + for j
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import (
    Aggregate,
    Decay,
    Effort,
    GossipAlgorithm,
    Message,
    NonNegative,
    Oracle,
    Positive,
    Report,
    Round,
    State,
    Surroundings,
)
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.settling import Auto, found_chi, number
from fedsim.algorithms.work import LrDecay, Work
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import BatchSize

_SLACK = 1e-8  # of 2 chi_1 chi_2 above 1, for rates that were written down
_STEPS = "the step sizes of DADAO follow from mu and L: remove it"


@dataclass(frozen=True)
class Constants:
    """What mu, L and chi_1 make of the method; names as in the paper, ``_t`` for its tilde."""

    nu: float
    eta: float
    alpha: float
    alpha_t: float
    theta: float
    beta: float
    beta_t: float
    delta: float
    delta_t: float
    gamma: float
    gamma_t: float

    @classmethod
    def of(cls, mu: float, L: float, chi_1: float) -> Constants:
        nu = mu / 2
        q = math.sqrt(nu / L)
        return cls(
            nu=nu, eta=q / 8, alpha=q / 4, alpha_t=q / 8, theta=1 / (2 * q), beta=0.5, beta_t=2 * chi_1 / q,
            delta=q / 4, delta_t=1.0, gamma=1 / (4 * L), gamma_t=1 / (4 * math.sqrt(L * nu)),
        )  # fmt: skip

    def flow(self, elapsed: Floats) -> dict[str, Floats]:
        """The entries of ``exp(A t)`` that are needed, for every t of `elapsed` ``[m]``.

        The x and the z block are relaxations; (y, y~) rotates, with the x and z of its past as a source. `pull` and
        `sink` are the shares of the difference by which x, z and their tildes meet; ``YX`` is the entry of x in y.
        """
        alpha, s, theta, t = self.alpha, self.alpha + self.alpha_t, self.theta, np.asarray(elapsed, dtype=np.float64)
        omega = math.sqrt(alpha * theta - alpha * alpha / 4)  # alpha theta is 1/8, so that this is real
        decay, cos, sin = np.exp(-alpha * t / 2), np.cos(omega * t), np.sin(omega * t) / omega
        yy, yt = decay * (cos - sin * alpha / 2), decay * sin * alpha  # of exp(B t), B = [[-alpha, alpha], [-theta, 0]]
        ty, tt = -decay * sin * theta, decay * (cos + sin * alpha / 2)

        def source(k: float) -> tuple[Floats, Floats]:
            """``int_0^t exp(B (t - u)) e^{-k u} du [0, 1]``: what a source ``e^{-k u}`` in y~' makes of (y, y~)."""
            determinant, rest = k * k - alpha * k + alpha * theta, tt - np.exp(-k * t)
            return (k * yt - alpha * rest) / determinant, (theta * yt + (k - alpha) * rest) / determinant

        entries = {"YY": yy, "YYt": yt, "YtY": ty, "YtYt": tt}
        for row, one, ex, ez in zip(("Y", "Yt"), source(0.0), source(2 * self.eta), source(s), strict=True):
            entries[f"{row}X"], entries[f"{row}Xt"] = (
                -theta * self.nu * (one - ex) / 2,
                -theta * self.nu * (one + ex) / 2,
            )
            entries[f"{row}Z"], entries[f"{row}Zt"] = (
                -theta * (self.alpha_t * one + alpha * ez) / s,
                -theta * alpha * (one - ez) / s,
            )
        return {**entries, "pull": -np.expm1(-2 * self.eta * t) / 2, "sink": -np.expm1(-s * t) / s}


@register.algorithm("dadao")
@dataclass(frozen=True, kw_only=True)
class Dadao(GossipAlgorithm):
    """Accelerated gossip on Poisson clocks that reaches the exact optimum (see the module for its equations).

    Parameters
    ----------
    mu, L : strong convexity and smoothness of every node's objective, without `weight_decay`, which is added to both.
        Auto: found for quadratic problems and for linear models with a smooth loss.
    chi_1, chi_2 : of the graph whose links are weighted by their rates: found, and compared where they are given.

    Links need rates with ``2 chi_1 chi_2 <= 1``: below them the method diverges. ``links: auto``, the default, gives
    all links the least rate. Gradients are scaled by n p_i where the nodes' importance p_i differs. There is no lr.
    """

    needs: ClassVar[Needs] = Needs(
        symmetric=True, continuous_time=True, flows=True, steps="own",
        linear_mixing="the nodes' z sum to 0 only where pairs exchange what they have",
        no_merge="every node of DADAO knows its own gradient at the optimum, which a mean over the nodes forgets",
    )  # fmt: skip
    usual: ClassVar[Mapping[str, Any]] = {"mode": "poisson", "links": "auto", "pair_weight": "own"}
    without: ClassVar[Mapping[str, str]] = {
        "lr": _STEPS,
        "lr_decay": _STEPS,
        "momentum": "DADAO has its own acceleration: remove it",
        "clip": "a clipped gradient is none of a smooth and strongly convex function's: remove it",
    }
    mu: NonNegative | Auto = "auto"
    L: Positive | Auto = "auto"
    chi_1: Positive | Auto = "auto"
    chi_2: Positive | Auto = "auto"
    batch_size: BatchSize = "full"
    lr: Positive = field(default=1.0, init=False)
    lr_decay: LrDecay = field(default=LrDecay.model_validate(1.0), init=False)
    momentum: Decay = field(default=0.0, init=False)
    clip: None = field(default=None, init=False)

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        work, epochs = self.work()
        if epochs or work != Work.model_validate(1):
            key = "local_epochs" if epochs else "local_steps"
            raise InputError("a node of DADAO takes exactly one gradient per tick of its clock", key=key)
        _check_constants(self.mu, self.L, self.weight_decay, "")

    @property
    def pair(self) -> float | None:
        """1: the two ends exchange their messages whole, so that their difference is exact, and the same both ways."""
        return 1.0

    def link_rate(self, chi_1: float, chi_2: float) -> float | None:
        """``sqrt(2 chi_1 chi_2)``"""
        return math.sqrt(2 * chi_1 * chi_2)

    def other_rates(self, ends: tuple[float, float], usual: Floats) -> str | None:
        found = "found other rates for some time, but DADAO's steps follow from the usual ones, and it may diverge"
        return f"{found}; allowed: no such window"

    def placed(self, run: Surroundings) -> Self:
        mu, L = self.mu, self.L
        if mu == "auto" or L == "auto":
            low, high = _curvature(run)
            scale = run.task.importance * run.task.num_clients
            mu = float((scale * low).min()) if mu == "auto" else mu
            L = float((scale * high).max()) if L == "auto" else L
        _check_constants(mu, L, self.weight_decay, "algorithm.")
        chi_1, chi_2 = found_chi(self, run)
        condition = 2 * chi_1 * chi_2
        if condition > 1 + _SLACK:
            shown, factor = f"{condition:{'.4g' if condition > 1.001 else '.12g'}}", math.sqrt(condition)
            raise InputError(
                f"2 chi_1 chi_2 = {shown} > 1: DADAO diverges; raise links by a factor of at least "
                f"{math.ceil(1000 * factor) / 1000:.4g}, or leave them to auto",
                key="participation.links",
            )
        return replace(self, mu=mu, L=L, chi_1=chi_1, chi_2=chi_2)

    @cached_property
    def constants(self) -> Constants:
        """Of the settled algorithm.

        Raises
        ------
        InputError
            It is not settled.
        """
        return Constants.of(number(self.mu) + self.weight_decay, number(self.L) + self.weight_decay, number(self.chi_1))

    def facts(self) -> Mapping[str, Any]:
        if "auto" in (self.mu, self.L, self.chi_1, self.chi_2):
            return {}
        c = self.constants
        return {
            **{name: getattr(self, name) for name in ("mu", "L", "chi_1", "chi_2")},
            "2 chi_1 chi_2": 2 * number(self.chi_1) * number(self.chi_2),
            "rate of convergence": f"at least {c.eta:.6g} per virtual second, of E sum |x_i - x*|^2",
            **{name.replace("_t", "~"): value for name, value in vars(c).items()},
        }

    def init(self, params: Tensor) -> State:
        zero = {name: torch.zeros_like(params) for name in ("y", "y_tilde", "z", "z_tilde")}
        return {"x": params, "x_tilde": params.clone(), **zero}

    def flow(self, state: State, elapsed: Tensor) -> State:
        x, x_t, y, y_t, z, z_t = (state[k] for k in ("x", "x_tilde", "y", "y_tilde", "z", "z_tilde"))
        c, entries = self.constants, self.constants.flow(elapsed.squeeze(-1).cpu().numpy())
        E = {k: torch.as_tensor(v, dtype=x.dtype, device=x.device).unsqueeze(-1) for k, v in entries.items()}

        def turned(row: str) -> Tensor:
            of_y = E[f"{row}Y"] * y + E[f"{row}Yt"] * y_t
            return of_y + (E[f"{row}X"] * x + E[f"{row}Xt"] * x_t) + (E[f"{row}Z"] * z + E[f"{row}Zt"] * z_t)

        apart, gap = E["pull"] * (x_t - x), E["sink"] * (z_t - z)
        return {
            "x": x + apart, "x_tilde": x_t - apart, "y": turned("Y"), "y_tilde": turned("Yt"),
            "z": z + c.alpha * gap, "z_tilde": z_t - c.alpha_t * gap,
        }  # fmt: skip

    def broadcast(self, state: State) -> Message:
        return {"x": state["x"], "v": state["y"] + state["z"]}

    def start(self, received: Message, client: State) -> State:
        return {"x": received["x"], "g": torch.zeros_like(received["x"])}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        return {**local, "g": self.gradient(oracle, local["x"])}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"v": received["v"]}, {"g": local["g"]}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        c, x, y_t = self.constants, state["x"], state["y_tilde"]
        m = messages["v"] - aggregate(messages["v"])  # v_i - v_j, for pairs exchange; 0 at all other nodes
        e = messages["g"] * (round.importance * round.num_clients) + (self.weight_decay - c.nu) * x - y_t
        e = torch.where(round.steps > 0, e, torch.zeros_like(e))
        return {
            "x": x - c.gamma * e, "x_tilde": state["x_tilde"] - c.gamma_t * e,
            "y": state["y"], "y_tilde": y_t + (c.delta + c.delta_t) * e,
            "z": state["z"] - c.beta * m, "z_tilde": state["z_tilde"] - c.beta_t * m,
        }  # fmt: skip


def _curvature(run: Surroundings) -> tuple[Floats, Floats]:
    """mu_i and L_i ``[n]`` of the nodes' objectives, or an InputError where they are not known."""
    n = run.task.num_clients
    low, known = run.task.convexity(), run.task.smoothness(np.full(n, 1 / n))
    if low is None or known is None:
        raise InputError(
            "found auto, but mu and L are not known of this problem; allowed: numbers, or auto for a quadratic problem "
            "or the model linear with the loss logistic, cross_entropy or mse, without augmentation",
            key="algorithm.mu",
        )
    return low, known[0]


def _check_constants(mu: float | Auto, L: float | Auto, weight_decay: float, prefix: str) -> None:
    """Raise InputError where mu or L is none of a smooth and strongly convex function."""
    if mu != "auto" and mu + weight_decay <= 0:
        message = f"found {mu:g}, and no weight_decay: DADAO needs strongly convex objectives; allowed: above 0"
        raise InputError(message, key=f"{prefix}mu")
    if mu != "auto" and L != "auto" and mu > L:
        raise InputError(f"found {mu:g}, above L = {L:g}; allowed: at most L", key=f"{prefix}mu")
