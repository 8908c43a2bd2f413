"""CHOCO-SGD (Koloskova, Stich, Jaggi, ICML 2019, arXiv 1902.00340) and DeepSqueeze (Tang et al., arXiv 1907.07346).

Nodes of a graph send each other compressed models. In CHOCO every node keeps a copy hat_j of each neighbour's model,
which both sides move by ``C(x_j - hat_j)``, and mixes the copies; in DeepSqueeze nodes mix ``C(x + e)`` and keep the
error e. C is the scenario's ``compression``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, GossipAlgorithm, Message, Report, Round, State
from fedsim.algorithms.needs import Needs
from fedsim.core.registry import register

LINEAR = "neighbours' copies and errors add up only where mixing is a weighted sum"
Consensus = Annotated[float, Field(gt=0, le=1)]
"""gamma, the step of a node towards what it hears."""


def moved(x: Tensor, own: Tensor, mixed: Tensor, gamma: float) -> Tensor:
    """``x + gamma (mixed - own)``; exactly `mixed` where gamma is 1 and `own` is x."""
    return own.lerp(mixed, gamma).add_(x - own)


@register.algorithm("choco")
@dataclass(frozen=True, kw_only=True)
class Choco(GossipAlgorithm):
    """``y_i = x_i - lr g_i(x_i);  hat_i = hat_i + C(y_i - hat_i);  x_i = y_i + gamma (sum_j w_ij hat_j - hat_i)``

    That is ``order: gcm`` (gradient, compress, mix), the paper's. ``gmc``, of the authors' code, mixes before it
    compresses: ``x_i = y_i + gamma (sum_j w_ij hat_j - hat_i);  hat_i = hat_i + C(x_i - hat_i)``. A round then begins
    with the compression of what the last one ended with, and the first one sends nothing new.

    Nodes may take several local steps, or none: the copies move all the same. Links fire in every round, or the copies
    of one node would differ.

    Source: Koloskova, Stich, Jaggi, ICML 2019, arXiv 1902.00340.

    Parameters
    ----------
    gamma : the step of a node towards what it hears, above 0 and at most 1.
    order : ``gcm`` or ``gmc``.
    """

    needs: ClassVar[Needs] = Needs(symmetric=True, links="always", compression="copies", linear_mixing=LINEAR)
    gamma: Consensus = 0.1
    order: Literal["gcm", "gmc"] = "gcm"

    def init(self, params: Tensor) -> State:
        return (
            {"x": params} if self.order == "gcm" else {"x": params, "began": params.new_zeros((*params.shape[:-1], 1))}
        )

    def broadcast(self, state: State) -> Message:
        return dict(state)

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        sent = local["x"] if self.order == "gcm" else received["began"] * received["x"]
        return {"hat": sent}, {"y": local["x"]}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``x = y + gamma (W hat - hat)``"""
        hat = messages["hat"]
        after = {"x": moved(messages["y"], hat, aggregate(hat), self.gamma)}
        return after if self.order == "gcm" else {**after, "began": state["began"].new_ones(state["began"].shape)}


@register.algorithm("deepsqueeze")
@dataclass(frozen=True, kw_only=True)
class DeepSqueeze(GossipAlgorithm):
    """``y = x - lr g(x);  q = C(y + e);  e = y + e - q;  x_i = y_i + gamma (sum_j w_ij q_j - q_i)``

    Nobody keeps anything of a neighbour, so links may fire sporadically. Several local steps are our extension.

    Source: Tang et al., arXiv 1907.07346.

    Parameters
    ----------
    gamma : the step of a node towards what it hears, above 0 and at most 1.
    """

    needs: ClassVar[Needs] = Needs(symmetric=True, compression="errors", linear_mixing=LINEAR)
    gamma: Consensus = 0.1

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"q": local["x"]}, {"y": local["x"]}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``x = y + gamma (W q - q)``"""
        q = messages["q"]
        return {"x": moved(messages["y"], q, aggregate(q), self.gamma)}
