"""Sharpness-aware minimisation by clients: FedSAM, MoFedSAM, FedGamma, and the ascent step they share with FedSpeed.

Sources: FedSAM and MoFedSAM, Qu et al., arXiv 2206.02618 (ICML 2022); FedGamma, Dai et al., IEEE TNNLS 2023. As in
FL-Simulator's code both gradients of a step use the same minibatch, and the control variates of FedGamma are made of
gradients at the perturbed point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedsim.algorithms.base import Algorithm, Message, NonNegative, Oracle, State
from fedsim.algorithms.client import adds_to_next
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedcm import FedCM
from fedsim.algorithms.scaffold import Scaffold
from fedsim.core.registry import register
from fedsim.core.rules import Affine, Climb


class Ascent(Oracle):
    """The gradients of a `Climb`. Both gradients are of the same minibatch, so that one of these costs two."""

    def __init__(self, oracle: Oracle, climb: Climb) -> None:
        super().__init__(oracle.lr)
        self.oracle, self.climb = oracle, climb

    @property
    def samples(self) -> Tensor:
        return self.oracle.samples

    def grad(self, x: Tensor) -> Tensor:
        return self.climb.gradient(self.oracle.grad, x)

    def per_sample_grad(self, x: Tensor) -> Tensor:
        climbed = self.climb.above(x, self.oracle.grad(x))
        return self.climb.merged(self.oracle.per_sample_grad(x), self.oracle.per_sample_grad(climbed))


@dataclass(frozen=True, kw_only=True)
class SharpnessAware(Algorithm):
    """Mixed into an algorithm, it replaces the minibatch gradient of every local step by that of `Ascent`.

    Parameters
    ----------
    rho : length of the ascent step; 0 is none.
    normalize : whether the ascent is rho times the gradient's direction (as in FL-Simulator) or rho times the gradient.
    """

    rho: NonNegative = 0.1
    normalize: bool = True

    @property
    def ascent_share(self) -> float:
        """Share of the gradient at the perturbed point in the one that is used."""
        return 1.0

    @property
    def calls_per_step(self) -> int:
        return 1 if self.climb is None else 2

    @property
    def climb(self) -> Climb | None:
        """How a step's gradient is made of two; None: it is one."""
        return Climb(self.rho, self.normalize, self.ascent_share) if self.rho > 0 and self.ascent_share != 0 else None

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        oracle = oracle if self.climb is None else Ascent(oracle, self.climb)
        return super().local_step(oracle, local, received, client)

    @adds_to_next
    def affine_direction(self, received: Message, client: State) -> Affine | None:
        plain = super().affine_direction(received, client)
        return None if plain is None else replace(plain, climb=self.climb)

    def affine_beside(self, received: Message, client: State) -> dict[str, tuple[Affine, float]]:
        beside = super().affine_beside(received, client)
        return {name: (replace(plain, climb=self.climb), times) for name, (plain, times) in beside.items()}


@register.algorithm("fedsam")
@dataclass(frozen=True, kw_only=True)
class FedSAM(SharpnessAware, FedAvg):
    """FedAvg with ``direction = g(y + e)``."""


@register.algorithm("mofedsam")
@dataclass(frozen=True, kw_only=True)
class MoFedSAM(SharpnessAware, FedCM):
    """FedCM with ``direction = alpha g(y + e) + (1 - alpha) d``."""


@register.algorithm("fedgamma")
@dataclass(frozen=True, kw_only=True)
class FedGamma(SharpnessAware, Scaffold):
    """SCAFFOLD with ``direction = g(y + e) - c_i + c``.

    Source: Dai et al., IEEE TNNLS 2023.
    """
