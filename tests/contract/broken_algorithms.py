"""Algorithms that each break one law on purpose, and two that break none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fedsim.algorithms.base import Algorithm, ServerAlgorithm
from fedsim.algorithms.client import change, reads_change
from fedsim.algorithms.dspodfl import DSpodFL
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.sam import FedSAM
from fedsim.core.rules import Affine
from fedsim.core.types import clip_norm, norm

CALLS = [0]


@dataclass(frozen=True, kw_only=True)
class Good(ServerAlgorithm):
    """Normalised client updates with a memory on clients and server: keeps every law."""

    bound: float = 10.0

    def init(self, params: Any) -> Any:
        return {"x": params, "seen": params.new_zeros(1)}

    def init_client(self, params: Any) -> Any:
        return {"sum": torch.zeros_like(params), "rounds": torch.zeros_like(params[..., :1])}

    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        delta = clip_norm(local["x"] - received["x"], self.bound)
        kept = {"sum": client["sum"] + delta, "rounds": client["rounds"] + 1}
        return {"delta": delta, "size": norm(delta)}, {}, kept

    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return {"x": state["x"] + self.server_lr * aggregate(messages["delta"]), "seen": aggregate(messages["size"])}


@dataclass(frozen=True, kw_only=True)
class StepsInPlace(ServerAlgorithm):
    def local_step(self, oracle: Any, local: Any, received: Any, client: Any) -> Any:
        local["x"].sub_(oracle.lr * oracle.grad(local["x"]))
        return local


@dataclass(frozen=True, kw_only=True)
class MovesTheServerInPlace(ServerAlgorithm):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        state["x"].add_(aggregate(messages["delta"]))
        return state


@dataclass(frozen=True, kw_only=True)
class ScalesMessages(DSpodFL):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        messages["delta"].mul_(0.5)
        return super().combine(state, messages, round, aggregate)


@dataclass(frozen=True, kw_only=True)
class ForgetsTheClient(ServerAlgorithm):
    def init_client(self, params: Any) -> Any:
        return {"sum": torch.zeros_like(params)}

    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        client.pop("sum")
        return {"delta": local["x"] - received["x"]}, {}, {"sum": local["x"]}


@dataclass(frozen=True, kw_only=True)
class CentresOverClients(ServerAlgorithm):
    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        g = oracle.grad(x)
        return g - 0.5 * g.mean(0)


@dataclass(frozen=True, kw_only=True)
class MeanWithoutDim(DSpodFL):
    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        g = oracle.grad(x)
        return g / (1 + g.abs().mean())


@dataclass(frozen=True, kw_only=True)
class CountsRows(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": (local["x"] - received["x"]) / len(local["x"])}, {}, client


@dataclass(frozen=True, kw_only=True)
class NeedsAClientAxis(ServerAlgorithm):
    """Row by row it is right, for one client ``[d]`` it is not: ``dim=1`` where ``dim=-1`` was meant."""

    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        g = oracle.grad(x)
        return g / (1 + g.norm(dim=1, keepdim=True))


@dataclass(frozen=True, kw_only=True)
class ScalarMeanAtTheServer(ServerAlgorithm):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return {"x": state["x"] + messages["delta"].mean()}


@dataclass(frozen=True, kw_only=True)
class GlobalRandom(ServerAlgorithm):
    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        return oracle.grad(x) + 1e-3 * torch.randn_like(x)


@dataclass(frozen=True, kw_only=True)
class RemembersBetweenRuns(ServerAlgorithm):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        CALLS[0] += 1
        return {"x": state["x"] + aggregate(messages["delta"]) / CALLS[0]}


@dataclass(frozen=True, kw_only=True)
class WrongSign(ServerAlgorithm):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return {"x": state["x"] - aggregate(messages["delta"])}


@dataclass(frozen=True, kw_only=True)
class WrongSignOnAGraph(DSpodFL):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return {"x": aggregate(messages["x"]) - messages["delta"]}


@dataclass(frozen=True, kw_only=True)
class DoesNothing(ServerAlgorithm):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return dict(state)


@dataclass(frozen=True, kw_only=True)
class Overflows(ServerAlgorithm):
    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return {"x": state["x"] + 1e200 * aggregate(messages["delta"]) ** 3}


@dataclass(frozen=True, kw_only=True)
class SumsParametersAway(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        delta = local["x"] - received["x"]
        return {"delta": delta, "size": delta.sum(-1)}, {}, client


@dataclass(frozen=True, kw_only=True)
class HalvesThePrecision(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": (local["x"] - received["x"]).float()}, {}, client

    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return {"x": state["x"] + aggregate(messages["delta"].double())}


@dataclass(frozen=True, kw_only=True)
class SendsATensor(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return local["x"] - received["x"], {}, client


@dataclass(frozen=True, kw_only=True)
class CallsItW(ServerAlgorithm):
    def init(self, params: Any) -> Any:
        return {"w": params}

    def broadcast(self, state: Any) -> Any:
        return {"x": state["w"]}

    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        return {"w": state["w"] + aggregate(messages["delta"])}


@dataclass(frozen=True, kw_only=True)
class DoublesItsKey(ServerAlgorithm):
    mu: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", 2 * self.mu)


@dataclass(frozen=True, kw_only=True)
class Crashes(ServerAlgorithm):
    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        return oracle.grad(x) + received["control"]


@dataclass(frozen=True, kw_only=True)
class CheckCrashes(ServerAlgorithm):
    def check(self, num_clients: int) -> None:
        raise ZeroDivisionError(f"no luck with {num_clients}")


@dataclass(frozen=True, kw_only=True)
class Unfinished(Algorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": local["x"] - received["x"]}, {}, client


@dataclass(frozen=True, kw_only=True)
class LeavesItAtHome(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {}, {"delta": local["x"] - received["x"]}, client


@dataclass(frozen=True, kw_only=True)
class SendsAndKeeps(DSpodFL):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        delta = local["x"] - received["x"]
        return {"x": received["x"], "delta": delta}, {"delta": delta}, client


@dataclass(frozen=True, kw_only=True)
class ReturnsAPair(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": local["x"] - received["x"]}, client


@dataclass(frozen=True, kw_only=True)
class NeedsAStep(ServerAlgorithm):
    """Its message reads what only a local step makes: no plan, no idle client."""

    def local_step(self, oracle: Any, local: Any, received: Any, client: Any) -> Any:
        g = oracle.grad(local["x"])
        return {"x": local["x"] - oracle.lr * g, "g": g}

    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": local["x"] - received["x"], "g": local["g"]}, {}, client


@dataclass(frozen=True, kw_only=True)
class DividesByItsSteps(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": (local["x"] - received["x"]) / effort.steps}, {}, client


@dataclass(frozen=True, kw_only=True)
class NeverDecays(ServerAlgorithm):
    def local_step(self, oracle: Any, local: Any, received: Any, client: Any) -> Any:
        return {"x": local["x"] - self.lr * oracle.grad(local["x"])}


@dataclass(frozen=True, kw_only=True)
class SumsPastTheAggregator(ServerAlgorithm):
    """Half of its step is the cohort's plain mean, which no robust aggregator sees."""

    def combine(self, state: Any, messages: Any, round: Any, aggregate: Any) -> Any:
        mean = (round.weights * messages["delta"]).sum(0)
        return {"x": state["x"] + 0.5 * aggregate(messages["delta"]) + 0.5 * mean}


@dataclass(frozen=True, kw_only=True)
class SaysThatItSums(SumsPastTheAggregator):
    needs: ClassVar[Needs] = Needs(through_aggregate=False)


class NotAnAlgorithm:
    pass


@dataclass(frozen=True, kw_only=True)
class FlowsUnsaid(DSpodFL):
    def flow(self, state: Any, elapsed: Any) -> Any:
        return {"x": state["x"] * torch.exp(-elapsed)}


@dataclass(frozen=True, kw_only=True)
class FlowsByEuler(FlowsUnsaid):
    needs: ClassVar[Needs] = Needs(symmetric=True, continuous_time=True, flows=True)

    def flow(self, state: Any, elapsed: Any) -> Any:
        return {"x": state["x"] * (1 - 0.1 * elapsed)}


@dataclass(frozen=True, kw_only=True)
class ReadsMoreThanChange(ServerAlgorithm):
    @reads_change
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": change(local, received) + 0 * local["x"]}, {}, client


@dataclass(frozen=True, kw_only=True)
class ReadsTheChangeOtherwise(ServerAlgorithm):
    @reads_change
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": change(local, received) * (0.5 if "x" in local else 1.0)}, {}, client


@dataclass(frozen=True, kw_only=True)
class SaysOtherDirections(FedProx):
    def affine_direction(self, received: Any, client: Any) -> Any:
        return Affine(pull=self.mu, shift=self.mu * received["x"])


@dataclass(frozen=True, kw_only=True)
class ForgetsTheClip(ServerAlgorithm):
    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        return oracle.grad(x)

    def affine_direction(self, received: Any, client: Any) -> Any:
        return Affine()


@dataclass(frozen=True, kw_only=True)
class StepsWithoutTheSolver(ServerAlgorithm):
    def local_step(self, oracle: Any, local: Any, received: Any, client: Any) -> Any:
        return {**local, "x": local["x"] - oracle.lr * self.gradient(oracle, local["x"])}

    def affine_direction(self, received: Any, client: Any) -> Any:
        return Affine()


@dataclass(frozen=True, kw_only=True)
class ForgetsTheMomentum(ServerAlgorithm):
    def local_step(self, oracle: Any, local: Any, received: Any, client: Any) -> Any:
        g = self.gradient(oracle, local["x"]) + self.weight_decay * local["x"]
        return {**local, "x": local["x"] - oracle.lr * g}


@dataclass(frozen=True, kw_only=True)
class PullsByItsRate(ServerAlgorithm):
    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        return self.gradient(oracle, x) + 0.01 / oracle.lr * (x - received["x"])

    def affine_direction(self, received: Any, client: Any) -> Any:
        return Affine(pull=0.01 / self.lr, shift=-0.01 / self.lr * received["x"])


@dataclass(frozen=True, kw_only=True)
class CountsOneGradient(FedSAM):
    calls_per_step = 1  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class SaysItInPlace(FedProx):
    def affine_direction(self, received: Any, client: Any) -> Any:
        return Affine(pull=self.mu, shift=received["x"].mul_(-self.mu))


@dataclass(frozen=True, kw_only=True)
class SaysItInAPair(FedProx):
    def affine_direction(self, received: Any, client: Any) -> Any:
        return self.mu, -self.mu * received["x"]
