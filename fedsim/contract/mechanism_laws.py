"""What a privacy mechanism promises, on a small federation with a linear model.

No test of this kind can show that an epsilon holds: `fedsim audit` bounds it from below. What is shown is that noise is
there, is made from keys, and is paid for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import nn

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.diff2_bvr import Diff2Bvr
from fedsim.algorithms.dspodfl import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.clients.round import begin, describe, finish
from fedsim.clients.worker import Worker
from fedsim.contract.tools import LawBrokenError, compare, global_seed, same_from_yaml
from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.job import Contribution, Job, RunFacts
from fedsim.core.types import Message
from fedsim.data.sets import Dataset
from fedsim.graphs.mixing_matrix import MixingMatrix, repeated
from fedsim.graphs.network import Network, build_network
from fedsim.graphs.topology import Topology
from fedsim.messages.aggregators import Mean
from fedsim.messages.base import Pipeline
from fedsim.models.losses import cross_entropy
from fedsim.objective.supervised import SupervisedTask
from fedsim.participation.base import Participation, Setting
from fedsim.participation.gossip import Gossip
from fedsim.participation.synchronous import Synchronous

CLIENTS, ROWS, FEATURES, CLASSES, ROUNDS = 4, 12, 6, 3, 3
_HINT = "draw noise from keys (client, round, step), as fedsim.privacy.noise does"


def mechanism_laws(part: Any) -> Mapping[str, Callable[[], str]]:
    """Laws of one mechanism."""
    return {
        "it binds, or says why not": partial(_binds, part),
        "every round is paid for": partial(_paid, part),
        "more noise, less epsilon": partial(_monotone, part),
        "same seed, same noise": partial(_seed, part),
        "another noise seed, other noise": partial(_noise, part),
        "stacked = single": partial(_rows, part),
        "a resumed ledger goes on": partial(_resume, part),
        "YAML round trip": partial(same_from_yaml, part),
    }


def _settings() -> Iterator[tuple[Algorithm, Participation, Network | None]]:
    """Runs that mechanisms are made for, the most usual one first."""
    yield FedAvg(lr=0.1, batch_size=4), Synchronous(), None
    yield Diff2(lr=0.1, restart_every=2, clip_norm=1.0, difference_clip=1.0), Synchronous(), None
    yield (
        Diff2Bvr(lr=0.1, clip_norm=1.0, difference_clip=1.0, inner_clip=1.0, inner_steps=2, inner_batch=2),
        Synchronous(),
        None,
    )
    ring = build_network(Topology((nx.cycle_graph(CLIENTS),)), "metropolis", "DPSGD", DPSGD.needs.symmetric)
    yield DPSGD(lr=0.1, batch_size=4), Gossip(), ring


class _Case:
    """One run under the mechanism, of the first kind that it binds to."""

    def __init__(self, part: Any) -> None:
        draws = rng.normal(rng.key(0, "contract", np.arange(CLIENTS * ROWS)[:, None], np.arange(FEATURES)[None, :]))
        x = torch.as_tensor(draws, dtype=torch.float32)
        y = torch.arange(CLIENTS * ROWS) % CLASSES
        data = Dataset("contract", x, y, x[:CLASSES], y[:CLASSES], CLASSES)
        rows = [np.arange(c * ROWS, (c + 1) * ROWS) for c in range(CLIENTS)]
        module = nn.Linear(FEATURES, CLASSES)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        inner = SupervisedTask(
            data, rows, module.double(), "cross_entropy", cross_entropy, 0, torch.device("cpu"), torch.float64
        )
        self.bound: Any = None
        refusals = []
        for algorithm, participation, network in _settings():
            self.algorithm, self.network = algorithm, network
            try:
                self.bound = part.bind(Setting(0, ROUNDS, inner, algorithm, participation, Mean(), network))
                break
            except InputError as error:
                refusals.append(f"{type(algorithm).__name__}: {error}")
        if self.bound is None:
            raise LawBrokenError("it binds to none of these: " + "; ".join(refusals))
        self.task = self.bound.task(inner)
        self.worker = Worker(self.task, self.algorithm, pipeline=Pipeline(self.bound.links, RunFacts(0, CLIENTS)))

    def messages(self, state: Message, number: int, clients: list[int]) -> tuple[Message, Contribution]:
        who = np.array(clients)
        one = np.ones(len(who), dtype=np.int64)
        rows = None if self.network is None else torch.as_tensor(who)
        received = self.bound.broadcast(begin(self.algorithm, state, rows))
        share = None if self.network else np.full(len(who), 1 / len(who))
        return self.worker.run(Job(who, number * one, one, received)), Contribution(
            number, who, number * one, one, weights=share
        )

    def start(self) -> Message:
        """The state before the first round."""
        x = self.task.initial()
        return self.algorithm.init(x if self.network is None else x.expand(CLIENTS, -1).clone())

    def run(self, rounds: int = ROUNDS) -> Message:
        state, everybody = self.start(), list(range(CLIENTS))
        for number in range(1, rounds + 1):
            one = np.ones(CLIENTS, dtype=np.int64)
            self.bound.charge(np.arange(CLIENTS), number * one, one)
            messages, event = self.messages(state, number, everybody)
            info = describe(self.algorithm, self.task, event)
            if self.network is not None:
                mixed = MixingMatrix(self.network.mixings[0].matrix, torch.device("cpu"))
                mean = repeated(mixed, self.bound.exchanges)
            else:
                mean, _ = Mean().bind(messages, torch.as_tensor(event.weights), {})
            aggregate = self.bound.aggregate(info, state, messages, mean)
            state = finish(self.algorithm, state, messages, info, aggregate)
        return state


def _with(part: Any, **keys: Any) -> Any:
    return dataclasses.replace(part, **keys)


def _noise_of(part: Any) -> Any:
    """The mechanism with noise given, not calibrated: what it is given, or 1."""
    return part if part.noise_multiplier else _with(part, epsilon=None, noise_multiplier=1.0)


def _binds(part: Any) -> str:
    case = _Case(_noise_of(part))
    claim = case.bound.ledger.claim
    return f"with {type(case.algorithm).__name__}: one {claim.unit}, {claim.adjacency}, trust {claim.trust}"


def _paid(part: Any) -> str:
    case, spent = _Case(_noise_of(part)), [0.0]
    for rounds in range(1, ROUNDS + 1):
        fresh = _Case(_noise_of(part))
        fresh.run(rounds)
        spent.append(fresh.bound.ledger.epsilon())
    if not all(e > 0 for e in spent[1:]) or any(a > b for a, b in itertools.pairwise(spent)):
        raise LawBrokenError(f"after 0, 1, ... rounds the ledger says {spent}, allowed: above 0, and never less")
    columns = set(case.bound.columns())
    if not {"epsilon", "delta"} <= columns:
        raise LawBrokenError(f"its columns of metrics are {sorted(columns)}, allowed: epsilon and delta among them")
    return "epsilon " + ", ".join(f"{e:.3g}" for e in spent[1:])


def _monotone(part: Any) -> str:
    found = []
    for noise in (0.5, 1.0, 2.0):
        case = _Case(_with(part, epsilon=None, noise_multiplier=noise))
        case.run()
        found.append(case.bound.ledger.epsilon())
    if not (math.isfinite(found[0]) and found[0] > found[1] > found[2] > 0):
        raise LawBrokenError(f"noise 0.5, 1, 2 gave epsilon {found}, allowed: falling")
    return "epsilon " + ", ".join(f"{e:.3g}" for e in found)


def _seed(part: Any) -> str:
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            found.append(_Case(_noise_of(part)).run())
    compare("two runs of one seed: the model", found[0], found[1], 0.0, _HINT)
    return "bit for bit"


def _noise(part: Any) -> str:
    one = _Case(_with(_noise_of(part), noise_seed=1)).run()["x"]
    other = _Case(_with(_noise_of(part), noise_seed=2)).run()["x"]
    apart = float((one - other).norm())
    if not apart > 0:
        raise LawBrokenError("two noise seeds give the same model: there is no noise, or it does not follow noise_seed")
    return f"models {apart:.2g} apart"


def _rows(part: Any) -> str:
    case, worst = _Case(_noise_of(part)), 0.0
    state = case.start()
    whole, _ = case.messages(state, 1, list(range(CLIENTS)))
    for client in range(CLIENTS):
        alone, _ = _Case(_noise_of(part)).messages(state, 1, [client])
        mine = {k: v[[client]] for k, v in whole.items()}
        worst = max(worst, compare(f"client {client} alone: its message", mine, alone, 1e-12, _HINT))
    return f"largest difference {worst:.1e}"


def _resume(part: Any) -> str:
    whole = _Case(_noise_of(part))
    whole.run()
    first = _Case(_noise_of(part))
    first.run(ROUNDS - 1)
    second = _Case(_noise_of(part))
    second.bound.load(first.bound.save())
    one = np.ones(CLIENTS, dtype=np.int64)
    second.bound.charge(np.arange(CLIENTS), ROUNDS * one, one)
    spent, expected = second.bound.ledger.epsilon(), whole.bound.ledger.epsilon()
    if abs(spent - expected) > 1e-9 * expected:
        raise LawBrokenError(f"resumed it has spent {spent:.6g}, unbroken {expected:.6g}: save and load lose releases")
    return f"epsilon {spent:.4g}"
