"""DSpodFL (arXiv 2402.03448 v4, ICLR 2025, Eq. 2 to 4 and Algorithm 1) and the methods it contains.

Nodes compute sporadically (v_i) and links fire sporadically (vhat_ij). Gradient and mixing both use the old
parameters: combine while adapting, not adapt then combine. The realised matrix is ``p_ij = r_ij vhat_ij``,
``p_ii = 1 - sum_j r_ij vhat_ij`` with R the mixing matrix of the physical graph (Metropolis by default), so every
realised P is symmetric and doubly stochastic and the network average moves by gradients alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsim.algorithms.base import Aggregate, Effort, GossipAlgorithm, Message, Report, Round, State
from fedsim.algorithms.client import change, reads_change, sends_received
from fedsim.algorithms.needs import Needs
from fedsim.core.arrays import Floats
from fedsim.core.registry import register
from fedsim.core.types import BatchSize

_FLOOR = 1e-3  # as in the probability laws: a node that never computes must not make the period infinite
_ALWAYS = Needs(compute="always", links="always", personal=True)


@register.algorithm("dspodfl")
@dataclass(frozen=True, kw_only=True)
class DSpodFL(GossipAlgorithm):
    """``x_i = sum_j p_ij x_j + delta_i``, with ``delta_i = - v_i lr g_i(x_i)`` for one local step.

    `compute` and `links` of the participation give the probabilities d_i and b_ij. More than one local step is our
    extension: delta_i is then the whole local change.
    """

    needs: ClassVar[Needs] = Needs(symmetric=True, continuous_time=True, personal=True)

    @sends_received
    @reads_change
    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"x": received["x"]}, {"delta": change(local, received)}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        return {**state, "x": aggregate(messages["x"]).add_(messages["delta"])}


@register.algorithm("dgd")
@dataclass(frozen=True, kw_only=True)
class DGD(DSpodFL):
    """Decentralized gradient descent: ``x_i = sum_j w_ij x_j - lr g_i(x_i)``.

    DSpodFL with every node computing and every link used. Full gradients by default. Compute and link probabilities, if
    a scenario gives any, only enter the delay metric.
    """

    needs: ClassVar[Needs] = _ALWAYS
    batch_size: BatchSize = "full"


@register.algorithm("dpsgd")
@dataclass(frozen=True, kw_only=True)
class DPSGD(DSpodFL):
    """D-PSGD (Lian et al., arXiv 1705.09056, Algorithm 1): DGD with minibatch gradients."""

    needs: ClassVar[Needs] = _ALWAYS


@register.algorithm("randomized_gossip")
@dataclass(frozen=True, kw_only=True)
class RandomizedGossip(DSpodFL):
    """DSpodFL's case "sporadic aggregations" (RG): every node computes, links fire with their probabilities."""

    needs: ClassVar[Needs] = Needs(symmetric=True, compute="always", personal=True)


@register.algorithm("sporadic_sgd")
@dataclass(frozen=True, kw_only=True)
class SporadicSGD(DSpodFL):
    """DSpodFL's case "sporadic SGDs": nodes compute with their probabilities, every link is used."""

    needs: ClassVar[Needs] = Needs(symmetric=True, links="always", personal=True)


@register.algorithm("periodic_gossip")
@dataclass(frozen=True, kw_only=True)
class PeriodicGossip(DSpodFL):
    """DFedAvg as the DSpodFL paper runs it: every node computes in every round, all links are used in every D-th.

    ``every: auto`` is the paper's D = ceil((1/m) sum_i 1/d_i). For several local steps and then one mixing as one round
    see `dfedavg`.
    """

    needs: ClassVar[Needs] = _ALWAYS
    every: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"

    def period(self, compute_probability: Floats) -> int:
        if self.every == "auto":
            return math.ceil(float((1.0 / np.maximum(compute_probability, _FLOOR)).mean()) - 1e-9)
        return self.every


@register.algorithm("dfedavg")
@dataclass(frozen=True, kw_only=True)
class DFedAvg(GossipAlgorithm):
    """DFedAvg: K local steps, momentum optional, then one mixing: ``x_i = sum_j w_ij (x_j + delta_j)``.

    Source: Sun et al., arXiv 2104.11375.

    With one local step this is adapt then combine (ATC), which differs from DGD in the order.
    """

    needs: ClassVar[Needs] = Needs(personal=True)

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"x": local["x"]}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        return {**state, "x": aggregate(messages["x"])}
