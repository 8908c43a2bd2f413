"""Sharpness-aware minimisation by clients: FedSAM, MoFedSAM, FedGamma, and the ascent step they share with FedSpeed.

Sources: FedSAM and MoFedSAM, Qu et al., arXiv 2206.02618 (ICML 2022); FedGamma, Dai et al., IEEE TNNLS 2023. As in
FL-Simulator's code both gradients of a step use the same minibatch, and the control variates of FedGamma are made of
gradients at the perturbed point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Message, NonNegative, Oracle, State
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedcm import FedCM
from fedsim.algorithms.scaffold import Scaffold
from fedsim.core.registry import register
from fedsim.core.types import norm

_SMALL = 1e-7  # keeps the normalised ascent finite where the gradient vanishes, as in FL-Simulator's code


def unit(g: Tensor) -> Tensor:
    """``g / (||g|| + 1e-7)``, ``[..., d] -> [..., d]``."""
    return g / (norm(g) + _SMALL)


class Ascent(Oracle):
    """``(1 - alpha) g(x) + alpha g(x + e)``,  ``e = rho g(x) / (||g(x)|| + 1e-7)``

    (without `normalize` ``e = rho g(x)``). Both gradients are of the same minibatch, so that one of these costs two.
    """

    def __init__(self, oracle: Oracle, rho: float, normalize: bool = True, alpha: float = 1.0) -> None:
        super().__init__(oracle.lr)
        self.oracle, self.rho, self.normalize, self.alpha = oracle, rho, normalize, alpha

    @property
    def samples(self) -> Tensor:
        return self.oracle.samples

    def grad(self, x: Tensor) -> Tensor:
        g = self.oracle.grad(x)
        return self._merged(g, self.oracle.grad(self._climb(x, g)))

    def per_sample_grad(self, x: Tensor) -> Tensor:
        climbed = self._climb(x, self.oracle.grad(x))
        return self._merged(self.oracle.per_sample_grad(x), self.oracle.per_sample_grad(climbed))

    def _climb(self, x: Tensor, g: Tensor) -> Tensor:
        return torch.add(x, unit(g) if self.normalize else g, alpha=self.rho)

    def _merged(self, here: Tensor, above: Tensor) -> Tensor:
        return above if self.alpha == 1 else (1 - self.alpha) * here + self.alpha * above


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
        return 2 if self.rho > 0 and self.ascent_share > 0 else 1

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        if self.calls_per_step == 2:
            oracle = Ascent(oracle, self.rho, self.normalize, self.ascent_share)
        return super().local_step(oracle, local, received, client)


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
