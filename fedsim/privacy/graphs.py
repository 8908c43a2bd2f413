"""Privacy on a graph, where there is no server to trust: DECOR's correlated noise, and Muffliato's noise then gossip.

Both noise every gradient at its node. Epsilon holds for whatever the nodes do with it, so for any gossip algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.libraries import nx
from fedsim.core.oracle import Oracle, Task
from fedsim.core.registry import register
from fedsim.core.types import Count, NonNegative, Positive, clip_norm
from fedsim.graphs.network import Network
from fedsim.participation.base import Arrival, Dispatch, Setting
from fedsim.participation.gossip import Gossip
from fedsim.privacy.accounting import Release, calibrate, epsilon, scaled
from fedsim.privacy.base import Bound, Mechanism
from fedsim.privacy.exposure import events, gradients_per_client
from fedsim.privacy.graph_noise import decor_leverage, gossip_leverage, laplacian, paper_leverage
from fedsim.privacy.ledger import Claim, PrivacyLedger
from fedsim.privacy.noise import gaussian
from fedsim.privacy.oracle import PrivateTask, Question, calls_per_step

_OBSERVERS = 64  # of larger graphs, that many observers are looked at


@dataclass(frozen=True, kw_only=True)
class NodeMechanism(Mechanism):
    """Base of the mechanisms that clip and noise every gradient at its node.

    Parameters
    ----------
    noise_multiplier : instead of `epsilon`: std of a node's own noise over the sensitivity of its gradient, 2 C for
        ``unit: node``, 2 C / batch size for ``unit: example``.
    unit : ``node``, all data of one node are replaced, and its minibatch gradient is clipped; ``example``, one example
        is replaced, and each example's gradient is. No amplification by sampling is claimed.
    clip_norm : C. Without it nothing is clipped, and nothing is private.
    """

    trust: Literal["local"] = "local"
    unit: Literal["node", "example"] = "node"
    clip_norm: Positive | None = None

    def leverage(self, network: Network) -> float:
        """Share of a release that the accounted adversary sees: the release's mu^2 over that of local DP."""
        return 1.0

    @property
    def in_step(self) -> bool:
        """Whether nodes have to work and mix in common rounds."""
        return True

    def against(self) -> str:
        """Who may look."""
        return "against everybody who sees messages"

    def check(self, setting: Setting) -> Network:
        """The graph of the run; raise InputError where noise or accounting would not fit it."""
        name = "decor" if isinstance(self, Decor) else "muffliato"
        network = setting.network
        if network is None:
            message = f"'{name}' protects nodes of a graph; allowed with a server: dp_sgd, dp_fedavg, dp_ftrl, local_dp"
            raise InputError(message, key="privacy.mechanism")
        if network.topology.directed or network.changes:
            found = "a directed graph" if network.topology.directed else "a sequence of graphs or random peers"
            raise InputError(f"found {found}, allowed with '{name}': one undirected graph", key="topology.graph")
        if self.in_step and not isinstance(setting.participation, Gossip):
            message = f"'{name}' needs rounds in which all nodes compute and all links are used, allowed: gossip"
            raise InputError(message, key="participation.mode")
        if self.clip_norm is None and self.noise_multiplier != 0:
            raise InputError("missing; allowed: the bound on each gradient", key="privacy.clip_norm")
        if self.unit == "example" and setting.algorithm.local_epochs is not None:
            message = "the last minibatch of an epoch is smaller, and moves more with one example; allowed: local_steps"
            raise InputError(message, key="algorithm.local_epochs")
        return network

    def bind(self, setting: Setting) -> BoundNodes:
        self.check_target()
        network = self.check(setting)
        calls = calls_per_step(setting.algorithm)
        most = int(gradients_per_client(setting).max())
        # mu^2 of a step: as many Gaussians as points, each seen by its leverage
        unit = {Release("gradient", (calls * self.leverage(network)) ** -0.5): most}
        z = self.noise_multiplier
        if z is None:
            assert self.epsilon is not None
            z = calibrate(unit, self.epsilon, self.delta)
        claim = Claim(
            "client" if self.unit == "node" else "example", "replace-one", "local", self.against(), "none is claimed"
        )
        planned = scaled(unit, z)
        ledger = PrivacyLedger(claim, self.delta, setting.task.num_clients, self.epsilon, planned)
        return self.bound(setting, ledger, z, calls, next(iter(planned)))

    def bound(self, setting: Setting, ledger: PrivacyLedger, z: float, calls: int, one: Release) -> BoundNodes:
        """The mechanism in this run."""
        return BoundNodes(self, setting, ledger, z, calls, one)


class BoundNodes(Bound):
    """Noise at every node in one run."""

    def __init__(
        self, mechanism: NodeMechanism, setting: Setting, ledger: PrivacyLedger, z: float, calls: int, one: Release
    ) -> None:
        super().__init__(mechanism, setting, ledger)
        assert setting.network is not None
        self.mechanism, self.network, self.z, self.calls, self.one = mechanism, setting.network, z, calls, one
        self.clip = mechanism.clip_norm if mechanism.clip_norm is not None else float("inf")
        weight = 1.0
        if mechanism.unit == "example":
            smallest = int(setting.task.sizes.min())
            batch = setting.algorithm.batch_size
            weight = 1.0 / (smallest if batch == "full" else min(batch, smallest))
        self.std = z * 2.0 * self.clip * weight if z > 0 else 0.0

    def task(self, task: Task) -> Task:
        return _NodeTask(task, self)

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        self.ledger.append(self.one, steps, clients)

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        """``clip_C(g)``, or the mean of ``clip_C(g_j)`` over the minibatch, ``[m, d]``."""
        if self.mechanism.unit == "node":
            return clip_norm(oracle.grad(x), self.clip)
        return oracle.clipped_sum(x, self.clip) / oracle.samples

    def noise(self, question: Question, like: Tensor) -> Tensor:
        """The noise of these nodes' gradients, ``[m, d]``."""
        q = question
        return self.std * self.draw("node", like, q.clients, q.rounds, q.step, q.call)

    def draw(self, purpose: str, like: Tensor, *parts: Any) -> Tensor:
        """Standard normal rows, one per element of the `parts`."""
        return gaussian(self.seeds, purpose, *parts, width=like.shape[-1], device=like.device, dtype=like.dtype)


class _NodeTask(PrivateTask):
    def __init__(self, inner: Task, bound: BoundNodes) -> None:
        super().__init__(inner, bound.calls)
        self.bound = bound

    def release(self, oracle: Oracle, x: Tensor, question: Question) -> Tensor:
        clipped = self.bound.gradient(oracle, x)
        return clipped + self.bound.noise(question, x) if self.bound.std > 0 else clipped


@register.privacy("decor")
@dataclass(frozen=True, kw_only=True)
class Decor(NodeMechanism):
    """``g_i = clip_C(g_i) + n_i + sum_{j in N(i)} v_ij``, v_ij = - v_ji: noise that two neighbours share a seed for.

    DECOR (Allouah et al., arXiv 2405.01031). n_i has std s, v_ij std ``correlation * s``; the v_ij cancel in the sum
    over all nodes. Epsilon follows from ``mu^2 = (2 C / s)^2 max_i [(I + correlation^2 L)^-1]_ii`` per step, L
    the graph's Laplacian, in closed form, where the authors compose Renyi bounds.

    Parameters
    ----------
    correlation : std of an edge's noise over std of a node's own. 0 is local DP; large values come close to one central
        noise, ``1 / n`` of the variance per node.
    adversary : ``participant``, any one node, which knows its own noise and the seeds it shares, and sees all messages;
        ``eavesdropper``, somebody outside, who sees all messages and knows no seed.
    """

    correlation: NonNegative = 10.0
    adversary: Literal["participant", "eavesdropper"] = "participant"

    shares_noise: ClassVar[bool] = True
    linear_mixing: ClassVar[str | None] = "correlated noise cancels only where a matrix mixes what nodes send"

    @property
    def in_step(self) -> bool:
        return self.correlation > 0

    def leverage(self, network: Network) -> float:
        L = laplacian(network.topology.graphs[0])
        return decor_leverage(L, self.correlation, self.adversary == "participant")

    def against(self) -> str:
        if self.adversary == "eavesdropper":
            return "against outsiders who see every message; a participant, who knows seeds, may learn more"
        return "against any one node and outsiders, also if they see every message; not against nodes that collude"

    def check(self, setting: Setting) -> Network:
        network = super().check(setting)
        if self.correlation > 0:
            for event in events(setting):
                if isinstance(event, Dispatch) and event.steps.min() != event.steps.max():
                    raise InputError(
                        "nodes take unequal numbers of local steps: correlated noise cancels only where both ends of "
                        "an edge compute; allowed: compute: 1, or an algorithm that always does, and equal local_steps",
                        key="participation.compute",
                    )
        return network

    def bound(self, setting: Setting, ledger: PrivacyLedger, z: float, calls: int, one: Release) -> BoundNodes:
        return _BoundDecor(self, setting, ledger, z, calls, one)


class _BoundDecor(BoundNodes):
    """Correlated noise in one run. Both ends of an edge draw its noise from the same key."""

    def __init__(
        self, mechanism: Decor, setting: Setting, ledger: PrivacyLedger, z: float, calls: int, one: Release
    ) -> None:
        super().__init__(mechanism, setting, ledger, z, calls, one)
        self.edge_std = mechanism.correlation * self.std
        graph = self.network.topology.graphs[0]
        self.neighbours = [sorted(graph.neighbors(i)) for i in range(len(graph))]

    def noise(self, question: Question, like: Tensor) -> Tensor:
        total = super().noise(question, like)
        if self.edge_std == 0:
            return total
        q = question
        for k in range(max(len(self.neighbours[i]) for i in q.clients.tolist())):  # every row's k-th edge at once
            rows = np.array([r for r, i in enumerate(q.clients.tolist()) if k < len(self.neighbours[i])])
            here = q.clients[rows]
            there = np.array([self.neighbours[i][k] for i in here.tolist()])
            parts = (np.minimum(here, there), np.maximum(here, there), q.rounds[rows], q.step, q.call)
            sign = torch.as_tensor(np.where(here < there, 1.0, -1.0), dtype=like.dtype, device=like.device)
            shared = self.draw("edge", like, *parts) * (self.edge_std * sign.unsqueeze(1))
            total.index_add_(0, torch.as_tensor(rows, device=like.device), shared)
        return total

    def facts(self) -> dict[str, Any]:
        assert isinstance(self.mechanism, Decor)
        n = len(self.neighbours)
        share = self.z**2 / (self.calls * self.one.z**2) if self.z > 0 else 0.0
        (count,) = self.ledger.planned.values()
        local = epsilon({Release("gradient", self.z * self.calls**-0.5): count}, self.ledger.delta)
        return {
            **super().facts(),
            "share of local DP's mu^2": f"{share:.4g} for one {self.mechanism.adversary}, at best 1/n = {1 / n:.4g}",
            "epsilon if all others' seeds were known": local,
        }


@register.privacy("muffliato")
@dataclass(frozen=True, kw_only=True)
class Muffliato(NodeMechanism):
    """``g_i = clip_C(g_i) + n_i``, and every round mixes `gossip_steps` times instead of once.

    Muffliato (Cyffers et al., arXiv 2206.05091): noise is added once, and gossip spreads it; with `dfedavg` a round is
    the paper's gradient step and then gossip. The ledger claims local DP, against everybody. What one observer learns
    of one release is less, and is reported over pairs of nodes and by their distance in the graph (network DP).

    Parameters
    ----------
    gossip_steps : mixing steps per round.
    """

    linear_mixing: ClassVar[str | None] = "what an observer sees is accounted for with the mixing matrix"

    gossip_steps: Count = 10

    @property
    def exchanges(self) -> int:
        return self.gossip_steps

    def check(self, setting: Setting) -> Network:
        network = super().check(setting)
        for event in events(setting):
            if not isinstance(event, Arrival):
                continue
            edges = event.edges
            if edges is not None and len(edges) and (event.ticks or len(edges) != len(network.mixings[0].links)):
                message = (
                    "links that fail change what an observer sees; allowed: 1, or an algorithm that uses all links"
                )
                raise InputError(message, key="participation.links")
        return network

    def bound(self, setting: Setting, ledger: PrivacyLedger, z: float, calls: int, one: Release) -> BoundNodes:
        return _BoundMuffliato(self, setting, ledger, z, calls, one)


class _BoundMuffliato(BoundNodes):
    """Noise, then gossip, in one run."""

    def facts(self) -> dict[str, Any]:
        seen = self.network_dp
        return {
            **super().facts(),
            "one release, seen by one node": f"epsilon {seen['mean']:.4g} on average, at most {seen['max']:.4g}",
            "by distance in the graph": ", ".join(f"{k}: {v:.4g}" for k, v in seen["by_distance"].items()),
            "by the paper's sum": f"{seen['paper_mean']:.4g} on average (not a bound: see docs/mechanisms.md)",
        }

    def report(self) -> dict[str, Any]:
        return {**super().report(), "network_dp_of_one_release": self.network_dp}

    @cached_property
    def network_dp(self) -> dict[str, Any]:
        """Epsilon of one release per observer: the mean, the largest, and the mean by distance in the graph."""
        graph, W = self.network.topology.graphs[0], self.network.mixings[0].matrix.toarray()
        n = len(graph)
        observers = np.unique(np.linspace(0, n - 1, min(n, _OBSERVERS)).round().astype(int)).tolist()
        own: list[float] = []
        paper: list[float] = []
        by_distance: dict[int, list[float]] = {}
        for v in observers:
            distance = nx.single_source_shortest_path_length(graph, v)
            exact, summed = gossip_leverage(W, self.exchanges, v), paper_leverage(W, self.exchanges, v)
            for u in range(n):
                if u != v:
                    own.append(self._epsilon(exact[u]))
                    paper.append(self._epsilon(summed[u]))
                    by_distance.setdefault(distance[u], []).append(own[-1])
        return {
            "observers": len(observers),
            "mean": float(np.mean(own)),
            "max": float(np.max(own)),
            "by_distance": {k: float(np.mean(v)) for k, v in sorted(by_distance.items())},
            "paper_mean": float(np.mean(paper)),
        }

    def _epsilon(self, leverage: float) -> float:
        if self.z == 0:
            return float("inf") if leverage > 0 else 0.0
        return (
            epsilon({Release("gradient", self.z * leverage**-0.5): 1}, self.ledger.delta) if leverage > 1e-12 else 0.0
        )
