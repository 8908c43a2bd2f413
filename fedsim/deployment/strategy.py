"""The other way round: fedsim's server half as a Flower Strategy in somebody's existing app.

Natural where the client's half of an algorithm is plain local training, which the app's own ClientApp does: FedAvg and
FedAvgM, FedAdam, FedYogi, FedAdagrad, with any aggregator. The others change what clients do; deploy those as
scenarios.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.algorithms.base import Algorithm, ServerAlgorithm
from fedsim.clients.round import describe, finish
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.job import Contribution, RunFacts
from fedsim.core.returned import aggregating
from fedsim.core.types import State
from fedsim.messages.aggregators import COMBINES

_CLIENT_HALF = ("init_client", "broadcast", "start", "local_step", "direction", "gradient", "message")


def make_strategy(algorithm: Mapping[str, Any], aggregator: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """A Flower Strategy: ``FedAvg`` of flwr.serverapp.strategy, but the new model is what `algorithm` combines.

    Its step is ``combine`` on ``delta_i = x_i - x`` of the arrays that clients send back, in the order of nodes,
    weighted by ``num-examples`` (or alike, for ``weighting: uniform``). Arrays that are not floating point (counters)
    become the clients' weighted mean, as in Flower's FedAvg, but keep their type.

    Parameters
    ----------
    algorithm, aggregator : as in a scenario, e.g. ``{"name": "fedadam", "server_lr": 0.01}``, ``{"name": "median"}``.
    settings : of Flower's FedAvg (``fraction_train``, ``min_available_nodes``, ...).

    Raises
    ------
    InputError
        The algorithm needs its own half of the client.
    """
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    part = part_from("algorithm", "name", algorithm)
    combine_with = part_from("aggregator", "name", aggregator or {"name": "mean"})
    if not isinstance(part, ServerAlgorithm) or not _is_server_only(part):
        raise InputError(
            f"'{algorithm['name']}' changes what clients do, which a Strategy cannot: deploy it as a scenario; "
            "allowed: fedavg, fedadam, fedyogi, fedadagrad",
            key="name",
        )
    if combine_with.everyone is not None:
        raise InputError(f"{combine_with.everyone}, and a Strategy does not know its clients' numbers", key="name")

    class FedsimStrategy(FedAvg):
        """``x = combine(x, {x_i - x})``."""

        received: Mapping[str, Any]
        state: State | None = None
        rule: State

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
            self.received = {k: v.numpy() for k, v in arrays.items()}
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
            answers = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
            arrays, metrics = super().aggregate_train(server_round, answers)
            contents = [reply.content for reply in answers if not reply.has_error()]
            if arrays is None or not contents:
                return arrays, metrics
            names = [k for k, v in self.received.items() if np.issubdtype(v.dtype, np.floating)]
            x = _flat(self.received, names)
            records = [content[self.arrayrecord_key] for content in contents]
            sent = torch.stack([_flat({k: v.numpy() for k, v in record.items()}, names) for record in records])
            examples = [float(next(iter(c.metric_records.values()))[self.weighted_by_key]) for c in contents]
            share = torch.tensor(examples if part.weighting == "samples" else [1.0] * len(contents), dtype=x.dtype)
            weights = share / share.sum()
            messages = {"delta": sent - x}
            if self.state is None:
                self.state, self.rule = part.init(x), combine_with.fresh({"delta": messages["delta"][:1]})
            self.state = {**self.state, "x": x}
            cohort = _Cohort(len(contents), weights.double().numpy(), x.dtype, x.device)
            event = cohort.round(server_round)
            if combine_with.needs(len(contents)) is not None:  # too few for the rule: the model stays
                return ArrayRecord({k: Array(v) for k, v in self.received.items()}), metrics
            info, facts = describe(part, cohort, event), RunFacts(cohort.seed, len(contents))
            aggregate, self.rule = combine_with.bind_in(messages, weights, self.rule, event, facts)
            aggregate = aggregating(aggregate, None, combine_with, *COMBINES)
            self.state = finish(part, self.state, messages, info, aggregate)
            made = _parted(self.state["x"], self.received, names)
            for k in set(self.received) - set(names):
                made[k] = arrays[k].numpy().round().astype(self.received[k].dtype)
            return ArrayRecord({k: Array(made[k]) for k in self.received}), metrics

    return FedsimStrategy(**settings)


def _is_server_only(part: ServerAlgorithm) -> bool:
    """Whether the client's half is plain local training from the model it receives."""
    bases = (Algorithm, ServerAlgorithm)
    return all(getattr(type(part), name) in [getattr(base, name) for base in bases] for name in _CLIENT_HALF)


@dataclass(frozen=True)
class _Cohort:
    """The clients that answered; they are all there are."""

    num_clients: int
    importance: Floats
    dtype: torch.dtype
    device: torch.device
    seed: int = 0

    def round(self, number: int) -> Contribution:
        """Round `number` with one local step of each: what they really did, only they know."""
        clients = np.arange(self.num_clients)
        one = np.ones(self.num_clients, dtype=np.int64)
        return Contribution(number, clients, one, one, weights=self.importance)


def _flat(arrays: Mapping[str, Any], names: list[str]) -> torch.Tensor:
    """The named arrays as one vector ``[d]``, in the widest type among them."""
    return torch.from_numpy(np.concatenate([np.asarray(arrays[name]).ravel() for name in names]))


def _parted(x: torch.Tensor, like: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """A vector as arrays of the shapes and types of `like`."""
    ends = np.cumsum([like[name].size for name in names])[:-1]
    pieces = np.split(x.numpy(), ends)
    return {n: p.reshape(like[n].shape).astype(like[n].dtype) for n, p in zip(names, pieces, strict=True)}
