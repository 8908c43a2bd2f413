"""Ditto (Li et al., ICML 2021, arXiv 2012.04221, Algorithm 1): a model of each client's own near the common one.

The common model is FedAvg's (the paper's G), whatever lambda is. The variant is that of the authors' code
(github.com/litian96/ditto): v takes a step for every step of x, on the same minibatch, and is pulled towards the model
that was received, not towards the one that is being trained. That code can also choose lambda among 0.1, 1 and 2 by a
client's validation loss; here it is fixed. The paper lets v take s steps at a learning rate of its own:
``personal_lr`` is that rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim.algorithms.base import Message, NonNegative, Oracle, State
from fedsim.algorithms.client import adds_to_next
from fedsim.algorithms.dspodfl import DFedAvg
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.own_model import OwnModel, pulled
from fedsim.core.registry import register
from fedsim.core.rules import Affine


@dataclass(frozen=True, kw_only=True)
class DittoClient(OwnModel):
    """``v = v - personal_lr (g_i(v) + lambda (v - x_received))`` beside every step of x.

    Parameters
    ----------
    lambda : how strongly v is pulled to the common model; 0 is training alone. The paper tunes it in {0.05, 0.1, 0.2,
        0.5, 1, 2}.
    """

    lambda_: NonNegative = 0.1

    @property
    def calls_per_step(self) -> int:
        return 2

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        after, v = super().local_step(oracle, local, received, client), local["v"]
        direction = pulled(self.gradient(oracle, v), v, received["x"], self.lambda_)
        return {**after, **self.step_own(oracle, local, direction)}

    @adds_to_next
    def affine_direction(self, received: Message, client: State) -> Affine | None:
        return super().affine_direction(received, client)  # x goes its way as if there were no v

    def affine_beside(self, received: Message, client: State) -> dict[str, tuple[Affine, float]]:
        pull = Affine(pull=self.lambda_, shift=-self.lambda_ * received["x"]) if self.lambda_ else Affine()
        return {"v": (pull, 1.0 if self.personal_lr is None else self.personal_lr / self.lr)}


@register.algorithm("ditto")
@dataclass(frozen=True, kw_only=True)
class Ditto(DittoClient, FedAvg):
    """Ditto under a server: x is FedAvg's, and ``v_i = v_i - lr (g_i(v_i) + lambda (v_i - x))``."""

    needs: ClassVar[Needs] = Needs(own_models=True)


@register.algorithm("gossip_ditto")
@dataclass(frozen=True, kw_only=True)
class GossipDitto(DittoClient, DFedAvg):
    """Ditto on a graph, our extension: x_i is DFedAvg's, and v_i is pulled to what node i mixed last, ``x_i``."""

    needs: ClassVar[Needs] = Needs(own_models=True)
