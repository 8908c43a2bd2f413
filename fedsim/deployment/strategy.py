"""The other way round: fedsim's algorithms in somebody's existing Flower app, with its own data and loop of rounds.

`make_strategy` is the server's half. Where the client's half is plain local training (FedAvg and FedAvgM, FedAdam,
FedYogi, FedAdagrad) the app's own ClientApp does it. Others change what clients do (FedProx, SCAFFOLD, FedDyn, ...):
their ClientApp calls `fedsim.deployment.local_training.train_locally`.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.algorithms.base import Algorithm, ServerAlgorithm
from fedsim.clients.round import describe, finish
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.fields import part_from
from fedsim.core.job import Contribution, RunFacts
from fedsim.core.oracle import CARRIED
from fedsim.core.returned import aggregating
from fedsim.core.types import Message, State
from fedsim.deployment.carried import (
    ALGORITHM,
    AVERAGED,
    MARK,
    STATISTICS,
    WORK,
    flat,
    others,
    parameters,
    parted,
    record,
    vectors,
)
from fedsim.messages.aggregators import COMBINES, Aggregator

LOG = logging.getLogger("flwr.fedsim")

_CLIENT_HALF = ("init_client", "broadcast", "start", "local_step", "direction", "gradient", "message", "receive")
_OF_A_SCENARIO = ("settled", "objective", "before", "of_clients", "role_of", "choose", "placed")
_OF_BATCHES = ("local_steps", "local_epochs", "batch_size", "train")


def make_strategy(
    algorithm: Mapping[str, Any],
    aggregator: Mapping[str, Any] | None = None,
    averaged: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """A Flower Strategy: ``FedAvg`` of flwr.serverapp.strategy, but the new model is what `algorithm` combines.

    Its step is ``combine`` on ``delta_i = x_i - x`` of the arrays that clients send back, in the order of nodes,
    weighted by ``num-examples`` (or alike, for ``weighting: uniform``). What a model carries besides its parameters
    takes no step: it becomes what the aggregator makes of the clients' values, and keeps its type.

    Parameters
    ----------
    algorithm, aggregator : as in a scenario, e.g. ``{"name": "fedadam", "server_lr": 0.01}``, ``{"name": "median"}``.
        How many steps a client takes is up to its batches.
    averaged : how the names of arrays end that are no parameters though they are of floating point, beside PyTorch's
        ``running_mean`` and ``running_var``.
    settings : of Flower's FedAvg (``fraction_train``, ``min_available_nodes``, ...).

    Raises
    ------
    InputError
        The algorithm or the aggregator needs more of a run than a Strategy knows, or a key would do nothing.
    """
    from flwr.serverapp.strategy import FedAvg

    part, rule = _checked(algorithm, aggregator or {"name": "mean"})
    told = json.dumps(dict(algorithm))
    if isinstance(averaged, str):
        raise InputError(f"found {averaged!r}, allowed: a list of how names end", key="averaged")
    ends, mark = [*STATISTICS, *averaged], secrets.token_hex(8)

    class FedsimStrategy(FedAvg):
        """``x = combine(x, {x_i - x})``."""

        server: _Server | None = None

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
            config[ALGORITHM], config[AVERAGED], config[MARK] = told, ends, mark
            messages = list(super().configure_train(server_round, arrays, config, grid))
            received = {k: v.numpy() for k, v in arrays.items()}
            self.server = self.server or _Server(part, rule, received, ends)
            sent = self.server.begin(received, len(list(grid.get_node_ids())))
            for message in messages:
                message.content[self.arrayrecord_key] = record(received, sent) if sent else arrays
            return messages

        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
            answers = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
            arrays, metrics = super().aggregate_train(server_round, answers)
            valid = [reply for reply in answers if not reply.has_error()]
            if arrays is None or not valid or self.server is None:
                return arrays, metrics
            examples = [float(next(iter(r.content.metric_records.values()))[self.weighted_by_key]) for r in valid]
            nodes = [reply.metadata.src_node_id for reply in valid]
            records = [{k: v.numpy() for k, v in _only(r.content.array_records).items()} for r in valid]
            works = [dict(reply.content.config_records.get(WORK) or {}) for reply in valid]
            return self.server.finish(server_round, _Answers(nodes, records, examples, works)), metrics

    return FedsimStrategy(**settings)


def _only(records: Mapping[str, Any]) -> Any:
    return next(iter(records.values()))


@dataclass(frozen=True)
class _Answers:
    """What clients sent back: by row, whose it is, its arrays, its examples, the work behind it."""

    nodes: list[int]
    arrays: list[dict[str, Any]]
    examples: list[float]
    works: list[dict[str, Any]]


class _Server:
    """What the server knows between rounds."""

    def __init__(
        self, part: ServerAlgorithm, rule: Aggregator, arrays: Mapping[str, Any], averaged: Sequence[str]
    ) -> None:
        self.part, self.rule, self.own_half = part, rule, not is_plain(part)
        self.names = parameters(arrays, averaged)
        self.carried = others(arrays, self.names)
        self.state: State = part.init(flat(arrays, self.names))
        self.kept: State | None = None  # what the rule keeps
        self.sizes: dict[int, float] = {}
        self.population, self.arrays = 0, dict(arrays)

    def begin(self, arrays: Mapping[str, Any], population: int) -> Message:
        """What clients receive beside the model."""
        self.arrays, self.population = dict(arrays), population
        self.state = {**self.state, "x": flat(arrays, self.names)}
        return {k: v for k, v in self.part.broadcast(self.state).items() if k != "x"}

    def finish(self, number: int, answers: _Answers) -> Any:
        """The next model, as a record of arrays."""
        self._check(answers)
        x = self.state["x"]
        answers, messages = self._usable(answers, self._messages(answers, x))
        if not answers.nodes:
            return record(self.arrays, {})
        share = torch.tensor(answers.examples if self.part.weighting == "samples" else [1.0] * len(answers.nodes))
        weights = (share.double() / share.double().sum()).to(x.dtype)
        if self.kept is None:
            self.kept = self.rule.fresh({k: v[:1] for k, v in messages.items()})
        if self.rule.needs(len(answers.nodes)) is not None:  # too few for the rule: the model stays
            return record(self.arrays, {})
        cohort = self._cohort(answers, x)
        steps = np.array([int(work.get("steps", 1)) for work in answers.works], dtype=np.int64)
        event = cohort.round(number, steps, weights.double().numpy())
        info, facts = describe(self.part, cohort, event), RunFacts(cohort.seed, cohort.num_clients)
        aggregate, self.kept = self.rule.bind_in(messages, weights, self.kept, event, facts)
        aggregate = aggregating(aggregate, None, self.rule, *COMBINES)
        state = {**self.state, CARRIED: x.new_zeros(messages[CARRIED].shape[1])} if self.carried else self.state
        after = finish(self.part, state, messages, info, aggregate)
        made = parted(after["x"], self.arrays, self.names)
        if self.carried:
            changes = parted(after.pop(CARRIED).double(), self._carried_now(), self.carried)
            made |= {k: _moved(self.arrays[k], changes[k]) for k in self.carried}
        self.state = after
        return record({k: made[k] for k in self.arrays}, {})

    def _carried_now(self) -> dict[str, Any]:
        """What models carry, in a type that holds a change of it."""
        return {k: np.asarray(self.arrays[k], dtype=np.float64) for k in self.carried}

    def _messages(self, answers: _Answers, x: torch.Tensor) -> Message:
        messages = {"delta": torch.stack([flat(arrays, self.names) for arrays in answers.arrays]) - x}
        sent = [vectors(arrays) for arrays in answers.arrays]
        messages |= {k: torch.stack([each[k].to(x.dtype) for each in sent]) for k in sent[0]}
        if self.carried:
            before = self._carried_now()
            rows = [np.concatenate([(a[k] - before[k]).ravel() for k in self.carried]) for a in answers.arrays]
            messages[CARRIED] = torch.from_numpy(np.stack(rows)).to(x.dtype)
        return messages

    def _usable(self, answers: _Answers, messages: Message) -> tuple[_Answers, Message]:
        """What is finite: other numbers would spoil the model, whatever the rule."""
        good = torch.stack([v.isfinite().all(-1) for v in messages.values()]).all(0)
        rows = good.nonzero().squeeze(1)
        if len(rows) == len(good):
            return answers, messages
        bad = [node for node, fine in zip(answers.nodes, good.tolist(), strict=True) if not fine]
        LOG.warning("nodes %s sent numbers that are not finite: not used", bad)
        some = [[values[i] for i in rows.tolist()] for values in vars(answers).values()]
        return _Answers(*some), {k: v[rows] for k, v in messages.items()}

    def _cohort(self, answers: _Answers, x: torch.Tensor) -> _Cohort:
        """The population, of which the clients that answered are the first; others are taken for as large as these."""
        self.sizes |= dict(zip(answers.nodes, answers.examples, strict=True))
        count = max(self.population, len(answers.nodes))
        usual = sum(self.sizes.values()) / len(self.sizes)
        total = sum(self.sizes.values()) + max(0, count - len(self.sizes)) * usual
        sizes = np.full(count, usual)
        sizes[: len(answers.nodes)] = answers.examples
        return _Cohort(count, sizes / total, x.dtype, x.device)

    def _check(self, answers: _Answers) -> None:
        """Raise RunError where clients have not done their half; say so where that shows in no number."""
        idle = [node for node, work in zip(answers.nodes, answers.works, strict=True) if not work]
        if idle and self.own_half:
            name = type(self.part).__name__
            raise RunError(f"nodes {idle} did plain local training, of which {name} knows nothing: use train_locally")
        anew = [n for n, w in zip(answers.nodes, answers.works, strict=True) if w.get("fresh") and n in self.sizes]
        if anew:
            LOG.warning("nodes %s lost what they kept between rounds (a SuperNode's restart does that)", anew)


def _moved(before: Any, change: Any) -> Any:
    """An array after a change, in its own type; whole numbers stay exact."""
    if np.issubdtype(before.dtype, np.floating):
        return (before + change).astype(before.dtype)
    return np.asarray(before + np.rint(change).astype(np.int64)).astype(before.dtype)


def _checked(algorithm: Mapping[str, Any], aggregator: Mapping[str, Any]) -> tuple[ServerAlgorithm, Aggregator]:
    """The two parts, where a Strategy can do what they need."""
    part, rule = part_from("algorithm", "name", algorithm), part_from("aggregator", "name", aggregator)
    name = algorithm["name"]
    why = why_not(part)
    if why is not None:
        raise InputError(f"'{name}' {why}, which a Strategy cannot: deploy it as a scenario", key="name")
    for key in _OF_BATCHES:
        if key in algorithm:
            raise InputError("found in a Strategy's algorithm, whose clients' batches decide; allowed: none", key=key)
    part.check_solver()
    if rule.everyone is not None:
        raise InputError(f"{rule.everyone}, and a Strategy does not know its clients' numbers", key="name")
    if not rule.is_linear and not part.needs.through_aggregate:
        found = f"found '{aggregator['name']}', but '{name}' moves by more than what is aggregated"
        raise InputError(f"{found}, so that it would protect nothing; allowed: mean", key="name")
    if not rule.is_linear and part.needs.linear_mixing is not None:
        raise InputError(f"found '{aggregator['name']}', but {part.needs.linear_mixing}; allowed: mean", key="name")
    return part, rule


def why_not(part: Algorithm) -> str | None:
    """What an algorithm needs beyond a Strategy and `train_locally`, or None."""
    if not isinstance(part, ServerAlgorithm):
        return "has its models on a graph"
    needs = part.needs
    if needs.modes is not None and "synchronous" not in needs.modes:
        return "has no rounds of a cohort"
    if needs.everyone is not None or needs.begins_with_everybody:
        return "needs all clients in a round"
    if part.evaluates_on is not None or needs.adversary:
        return "asks clients for more than gradients"
    if needs.own_models or part.tokens is not None or needs.alone is not None or part.sampling is not None:
        return "keeps other models than the common one"
    if needs.compression is not None or needs.own_size:
        return "sends compressed messages"
    if any(getattr(type(part), name) is not getattr(Algorithm, name) for name in _OF_A_SCENARIO):
        return "takes something from a scenario's data"
    return None


def is_plain(part: ServerAlgorithm) -> bool:
    """Whether the client's half is plain local training from the model it receives, which any ClientApp does."""
    bases = (Algorithm, ServerAlgorithm)
    plain = all(getattr(type(part), name) in [getattr(base, name) for base in bases] for name in _CLIENT_HALF)
    return plain and part.relaxed_init == 0


@dataclass(frozen=True)
class _Cohort:
    """The clients there are, of which those that answered are the first."""

    num_clients: int
    importance: Floats
    dtype: torch.dtype
    device: torch.device
    seed: int = 0

    def round(self, number: int, steps: Ints, weights: Floats) -> Contribution:
        """Round `number` of the clients that answered, and the steps that they took."""
        clients = np.arange(len(steps))
        return Contribution(number, clients, np.full(len(steps), number, dtype=np.int64), steps, weights=weights)
