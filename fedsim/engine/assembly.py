"""From a checked scenario to the objects a run is made of: data, model, objective, network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.algorithms.base import Algorithm, GossipAlgorithm, numbers_of, one_message
from fedsim.clients.mixing import Mixing
from fedsim.clients.phases import Schedule
from fedsim.clients.store import ClientStore
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.global_draws import GlobalDraws
from fedsim.core.job import RunFacts
from fedsim.core.limits import check_room
from fedsim.core.modules import beside
from fedsim.core.oracle import Task
from fedsim.core.registry import lookup
from fedsim.core.types import Message
from fedsim.data.division import Division, divided
from fedsim.data.partition import label_counts
from fedsim.data.sets import Dataset, Quadratic, described
from fedsim.data.tokenized import tokens_of
from fedsim.devices.system import Durations
from fedsim.engine.attackers import attacked, attackers_of
from fedsim.engine.elsewhere import Held, Told, load_data
from fedsim.engine.export import start_of
from fedsim.engine.training_checks import check_carried, check_training
from fedsim.graphs.network import Network, build_network
from fedsim.graphs.topology import topology_of
from fedsim.messages.base import Pipeline
from fedsim.messages.graph_rules import rule_of
from fedsim.models.build import NO_TOKENS, build_model
from fedsim.models.checks import takes, typical_rows
from fedsim.models.layout import stays
from fedsim.models.losses import Loss
from fedsim.objective.own_rows import client_tests, own_rows
from fedsim.objective.quadratic import QuadraticTask
from fedsim.objective.supervised import SupervisedTask
from fedsim.participation.base import Participation, Setting
from fedsim.participation.durations import durations_of
from fedsim.privacy.base import Bound, NoPrivacy
from fedsim.scenario.checks import check_clients, check_data
from fedsim.scenario.sections import Scenario


@dataclass(frozen=True)
class Assembly:
    """Everything a run needs, built and checked.

    `counts` ``[clients, labels]`` is the partition's table (None without labels).
    """

    task: Task
    network: Network | None
    device: torch.device
    dtype: torch.dtype
    counts: np.ndarray[Any, Any] | None
    layout: Mapping[str, str]
    """Names and shapes of the model's parameters in the flat vector, as JSON strings for file metadata."""
    durations: Durations | None = None
    """How long jobs (and, for gossip, messages) take; None where a gossip round simply takes a second."""
    privacy: Bound = field(default_factory=NoPrivacy)
    """The privacy mechanism, bound to this run; `task` has its oracle."""
    pipeline: Pipeline = field(default_factory=Pipeline)
    """What happens to messages: at clients what `privacy` does, then compression; attacks as they arrive."""
    algorithm: Algorithm | None = None
    """The scenario's algorithm with what it takes from the data (a step size from theory); None: as it is."""
    about: Mapping[str, Any] | None = None
    """What the data mean: columns, scaling, classes, clients' names (``data.json``); None for a quadratic problem."""

    stays: Mapping[str, int] = field(default_factory=dict)
    """Of the model what does not train; see `fedsim.models.layout.stays`. Empty for a quadratic problem."""

    parts: tuple[Participation, Algorithm] | None = None
    """The scenario's mode and algorithm with what they found out about the run; None where there was nothing."""

    def settled(self, scenario: Scenario) -> Scenario:
        """The scenario with what was found out about the run in the place of keys that are ``auto``."""
        if self.parts is None:
            return scenario
        return replace(scenario, participation=self.parts[0], algorithm=self.parts[1])

    def setting(self, scenario: Scenario) -> Setting:
        """What the scenario's participation mode makes events for."""
        s = self.settled(scenario)
        return Setting(
            s.seed, s.run.rounds, self.task, s.algorithm, s.participation, s.aggregator, self.network, self.durations
        )

    def worker(self, scenario: Scenario, store: ClientStore | None = None) -> Worker:
        """The local work of any of the run's clients, in whatever process; what leaves it has passed `pipeline`."""
        return Worker(self.task, self.algorithm_of(scenario), scenario.run.chunk_rows, store, self.pipeline)

    def algorithm_of(self, scenario: Scenario) -> Algorithm:
        """The algorithm that server and clients compute with: the scenario's, with all that it took from the run."""
        return self.algorithm or self.settled(scenario).algorithm

    def one_message(self, scenario: Scenario) -> tuple[Message, Message]:
        """What one client receives and what leaves it, before compression, with what privacy adds: rows."""
        received, sent = one_message(scenario.algorithm, self.task, gossip=self.network is not None)
        told, said = self.privacy.beside(self.task.initial())
        return {**received, **told}, {**sent, **said}

    def mixing(self, scenario: Scenario) -> Mixing:
        """How the nodes of a graph mix."""
        rule, algorithm = rule_of(scenario.aggregator), scenario.algorithm
        if not isinstance(algorithm, GossipAlgorithm):
            return Mixing()
        late = 0 if rule is None or algorithm.waits_for_all() else rule.tolerated or 0
        return Mixing(rule, _exchanges(scenario), late)


@dataclass(frozen=True)
class Material:
    """What a supervised task is made of: all rows, whose they are, and the model; an audit changes it before use."""

    data: Dataset
    rows: list[Ints]
    module: nn.Module
    loss_name: str
    loss: Loss


Change = Callable[[Material], Material]


def assemble(
    scenario: Scenario, change: Change | None = None, held: Held | None = None, told: Told | None = None
) -> Assembly:
    """Load the data, divide it, build model and graph.

    Parameters
    ----------
    change : exchanges data and model before they are used.
    held : the data where they are not the scenario's.
    told : what the clients say of data that they hold themselves.

    Raises
    ------
    InputError
        Anything that only shows once data, model and graph are there, with file, line and dotted key.
    """
    try:
        with beside(scenario.base):
            return _assemble(scenario, change, held, told)
    except InputError as error:
        raise scenario.document.locate(error) from None


def _assemble(s: Scenario, change: Change | None, held: Held | None, told: Told | None) -> Assembly:
    device, dtype = choose_device(s.run.device), getattr(torch, s.run.dtype)
    with _section("data", s):
        data = load_data(s, None if told is None else told.scaling) if held is None else held.data
    check_data(s, data)
    counts, layout, about, kept = None, {}, None, dict[str, int]()
    supervised: SupervisedTask | None = None
    task: Task
    if isinstance(data, Quadratic):
        task = QuadraticTask(data, s.seed, device, dtype)
        layout = {"layout": json.dumps([["x", [task.dim]]])}
    else:
        supervised, counts, layout, about = _supervised(s, data, device, dtype, change, held)
        task, kept = supervised, dict(stays(supervised.kernel.module))
        check_carried(s, task)
        if told is not None:
            told.tell(supervised)
    with _section("algorithm"):
        Schedule.of(s.algorithm, task)
    check_clients(s, task.num_clients)
    if held is None:  # a machine of a deployment sees its own data alone; its server has the whole
        s = _settled(s, task)
    network: Network | None = None
    if s.topology is not None and isinstance(s.algorithm, GossipAlgorithm):
        with _section("topology", s):
            needs, name = s.algorithm.needs, s.names["topology"]
            topology, weights = topology_of(s.topology, s.mixing, task.num_clients, s.seed, s.base, name, needs.columns)
            network = build_network(topology, weights, type(s.algorithm).__name__, needs.symmetric, needs.columns)
    facts = RunFacts(
        s.seed, task.num_clients, attackers_of(s, task.num_clients, network), s.participation.clocked,
        None if network is None else network.mixings[0].links,
    )  # fmt: skip
    with _section("aggregator"):
        s.aggregator.check_run(facts)
    task = attacked(s, task, facts)
    if network is not None:
        _check_coming(s, network)
        _check_rule(s, network, facts)
    durations = None
    received, sent = one_message(s.algorithm, task, gossip=network is not None)
    if s.adversary is not None and s.adversary.attack_on == "received" and "x" not in received:
        message = (
            f"found received, but with '{s.names['algorithm']}' clients receive {', '.join(received)} and no model x"
        )
        raise InputError(f"{message}; allowed: local", key="adversary.attack_on")
    facts = replace(facts, numbers=numbers_of(s.algorithm, task, gossip=network is not None))
    transforms = Pipeline(s.transforms, facts)
    transforms.check(sent)
    if network is not None:
        links = [_exchanges(s) * ticks for ticks in network.link_ticks(transforms.row_bytes(sent))]
        if "system" in s.given or any(ticks.any() for ticks in links):
            with _section("system"):
                durations = durations_of(s.system, s.algorithm, task, transforms)
            durations.links = links
    else:
        with _section("system"):
            durations = durations_of(s.system, s.algorithm, task, transforms)
    parts: tuple[Participation, Algorithm] | None = None
    setting = Setting(s.seed, s.run.rounds, task, s.algorithm, s.participation, s.aggregator, network, durations)
    if held is None:  # a machine of a deployment does not know the other clients' sizes; its server has checked this
        mode, algorithm = s.participation.settled(setting)
        if mode is not s.participation or algorithm is not s.algorithm:
            parts, s = (mode, algorithm), replace(s, participation=mode, algorithm=algorithm)
            setting = replace(setting, participation=mode, algorithm=algorithm)
        mode.check_run(setting)
    task = s.algorithm.objective(task, s.participation.picked(task))
    privacy: Bound = NoPrivacy()
    if s.privacy is not None:
        privacy = s.privacy.bind(setting)
        task = privacy.task(task)
    if supervised is not None:
        check_training(s, supervised)
    pipeline = replace(transforms, links=(*privacy.links, *transforms.links))
    return Assembly(
        task, network, device, dtype, counts, layout, durations, privacy, pipeline, s.algorithm, about, kept, parts
    )


def _exchanges(s: Scenario) -> int:
    """How often nodes of a graph mix in a round, one exchange after the other."""
    mixings = s.algorithm.mixings() if isinstance(s.algorithm, GossipAlgorithm) else 1
    return mixings * (1 if s.privacy is None else s.privacy.exchanges)


def _settled(s: Scenario, task: Task) -> Scenario:
    """The scenario with what its algorithm takes from the data."""
    own = s.own_compressor
    with _section("algorithm"):
        return replace(s, algorithm=s.algorithm.settled(task, None if own is None else own.alpha(task.dim)))


def _check_coming(s: Scenario, network: Network) -> None:
    """Raise InputError where a graph's links and nodes come and go, and the mode or the attack knows nothing of it."""
    presence = network.topology.presence
    if presence is None:
        return
    if not s.participation.comes_and_goes:
        message = f"found '{s.names['participation']}', but links come and go; allowed: gossip, poisson"
        raise InputError(message, key="participation.mode")
    if s.attack is not None and presence.nodes.changes:
        message = f"found '{s.names['attack']}', but nodes come and go; allowed: nodes that are always there"
        raise InputError(message, key="attack.name")


def _check_rule(s: Scenario, network: Network, run: RunFacts) -> None:
    """Raise InputError where an honest node of some graph has too few neighbours for the rule that it runs."""
    rule = rule_of(s.aggregator)
    if rule is None:
        return
    late = 0 if not isinstance(s.algorithm, GossipAlgorithm) or s.algorithm.waits_for_all() else rule.tolerated or 0
    with _section("aggregator"):
        for mixing in network.mixings:
            honest = np.arange(mixing.n) if run.honest is None else run.honest
            node = int(honest[mixing.hears[honest].argmin()])
            hears = max(int(mixing.hears[node]) - late, 0)
            try:
                rule.check(hears)
            except InputError as error:
                (problem,) = error.problems
                found = f"node {node} has its own message and hears {hears}: {problem.message}"
                most = rule.most(int(mixing.hears[node]), late=late > 0)
                fewer = "another rule" if most is None else f"at most {most}"
                raise InputError(f"{found}; allowed: {fewer}, or more neighbours", problem.key) from None


def _supervised(
    s: Scenario,
    data: Dataset,
    device: torch.device,
    dtype: torch.dtype,
    change: Change | None,
    held: Held | None,
) -> tuple[SupervisedTask, Any, dict[str, str], dict[str, Any]]:
    with _section("data", s):
        data = replace(data, tokens=tokens_of(data))
        division = divided(s.partition, data, s.clients, s.seed, s.local_test) if held is None else Division(held.rows)
    with _section("model", s):
        assert s.model is not None
        targets = int(data.train_y.shape[1]) if data.train_y.dim() > 1 else 1
        tried, tokens = typical_rows(data.train_x, data.test_x), data.tokens or NO_TOKENS
        weights = start_of(s.model)
        module, loss_name = build_model(
            s.model, tuple(data.train_x.shape[1:]), data.num_classes, s.seed, dtype, targets, s.names["model"], tried,
            tokens, {"training": data.train_x, "test": data.test_x}, weights,
        )  # fmt: skip
        if not tried.is_floating_point() and not takes(module, tried):
            data = replace(data, train_x=data.train_x.to(dtype), test_x=data.test_x.to(dtype))
        takes_type = str(data.train_x.dtype if data.train_x.is_floating_point() else torch.int64).removeprefix("torch.")
    made = Material(data, division.rows, module, loss_name, lookup("loss", loss_name))
    if change is not None:
        made = change(made)
    data, rows, how = made.data, made.rows, s.run
    with _section("run"):
        task = SupervisedTask(
            data, rows, made.module, loss_name, made.loss, s.seed, device, dtype,
            how.eval_samples, s.augment, how.precision, how.kernel,
            None if s.adversary is None or data.pixels is None else s.adversary.on(data.pixels),
        )  # fmt: skip
    if s.tests_clients and held is None:
        task.tests = client_tests(
            task, division.held, division.natural if s.local_test == "natural" else None, made.data
        )
    elif s.tests_clients and held is not None:
        task.tests = own_rows(*task.place(made.data.test_x, made.data.test_y), held.tests)
    with _section("model"):
        task.sharing = s.model.stays.of(made.module, task.kernel.layout, task.kernel.nature.buffers)
    with _section("adversary"):
        task.seen.check(task.kernel, task.untrained(), task.inputs[:1], task.targets[:1])
    if held is not None:
        task.sizes = held.sizes
        task.importance = held.sizes / held.sizes.sum() if held.importance is None else held.importance
    labels = data.num_classes if tokens.single else None
    if labels is not None:
        check_room(8 * len(rows) * labels, f"a table of {len(rows)} clients and {labels} classes")
    counts = None if labels is None else label_counts(data.train_y.numpy(), rows, labels)
    shapes = task.kernel.layout
    layout = [[n, list(shape)] for n, shape in zip(shapes.names, shapes.shapes, strict=True)]
    vocabulary = {} if tokens.vocabulary is None else {"vocabulary": tokens.vocabulary}
    buffers = task.kernel.nature.buffers
    counted = {"buffers": json.dumps(list(buffers.names))} if buffers.total else {}
    prescribed = {} if data.importance is None else {"importance": task.importance.tolist()}
    about = {
        **described(data), "input": {**described(data)["input"], "model_takes": takes_type, **vocabulary},
        "clients": {**division.record(), **prescribed},
        "notes": [*data.notes, *division.notes, *(() if weights is None else weights.notes)],
    }  # fmt: skip
    return task, counts, {"layout": json.dumps(layout), "loss": loss_name, **counted}, about


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one.

    Raises
    ------
    InputError
        A GPU was asked for that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"found {name}, but PyTorch sees {torch.cuda.device_count()} CUDA devices; allowed: auto, cpu",
            key="run.device",
        )
    return device


class _section:
    """Puts the section's name before the keys of problems raised inside; given the scenario, watches its own parts."""

    def __init__(self, name: str, scenario: Scenario | None = None) -> None:
        asked = {} if scenario is None else scenario.names
        self.name, self.draws = name, GlobalDraws(asked[path] for path in asked if path.partition(".")[0] == name)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, InputError):
            raise error.under(self.name) from None
        self.draws.look()
