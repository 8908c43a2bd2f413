"""pFedMe (Dinh et al., NeurIPS 2020, arXiv 2006.08848, Algorithm 1): steps along Moreau envelopes of the clients.

The paper's names are in brackets. A local step of the common model w takes `inner_steps` (K) gradient steps towards
``theta = argmin f_i(theta) + lambda / 2 |theta - w|^2``, all on one minibatch, and then ``w = w - lr lambda (w -
theta)``, lr being the paper's eta. `server_lr` is its beta, and its plain mean over the cohort is ``weighting:
uniform``. As in the authors' code (github.com/CharlieDinh/pFedMe), theta starts a round at the received model and goes
on from one local step to the next. That code trains all clients in every round, also those whose models are not used;
here the cohort is trained. The client's own model is the theta at the end of its last round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.algorithms.base import Count, Message, Oracle, Positive, State
from fedsim.algorithms.dspodfl import DFedAvg
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.own_model import OwnModel, pulled
from fedsim.core.registry import register


@dataclass(frozen=True, kw_only=True)
class PFedMeClient(OwnModel):
    """``v = v - personal_lr (g_i(v) + lambda (v - x))``, `inner_steps` times; then ``x = x - lr lambda (x - v)``.

    The solver, `momentum` and `weight_decay` act on the steps of x, whose direction ``lambda (x - v)`` is the gradient
    of the envelope. Steps of v are plain.

    Parameters
    ----------
    lambda : inverse width of the envelope; the larger, the closer v stays to x.
    inner_steps : steps of v for one of x, all with the same minibatch.
    personal_lr : learning rate of v.
    """

    lr: Positive = 0.005
    personal_lr: Positive | None = 0.01
    lambda_: Positive = 15.0
    inner_steps: Count = 5

    @property
    def calls_per_step(self) -> int:
        return self.inner_steps

    def start(self, received: Message, client: State) -> State:
        return {"x": received["x"], "v": received["x"]}

    def init_client(self, params: torch.Tensor) -> State:
        return {"v": params}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        x, v, rate = local["x"], local["v"], self.own_rate(oracle)
        for _ in range(self.inner_steps):
            v = torch.addcmul(v, pulled(self.gradient(oracle, v), v, x, self.lambda_), rate, value=-1.0)
        return {**self.step(oracle, local, self.lambda_ * (x - v)), "v": v}


@register.algorithm("pfedme")
@dataclass(frozen=True, kw_only=True)
class PFedMe(PFedMeClient, FedAvg):
    """pFedMe under a server: ``x = (1 - server_lr) x + server_lr sum_i w_i x_i``."""

    needs: ClassVar[Needs] = Needs(own_models=True)


@register.algorithm("gossip_pfedme")
@dataclass(frozen=True, kw_only=True)
class GossipPFedMe(PFedMeClient, DFedAvg):
    """pFedMe on a graph, our extension: nodes mix x_i after their local steps, as in DFedAvg."""

    needs: ClassVar[Needs] = Needs(own_models=True)
