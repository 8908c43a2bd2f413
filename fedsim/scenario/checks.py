"""What fits together in a scenario and what does not: every rule that compares sections is here.

Rules are asked as early as they can be answered: `check_sections` when the file is read, `check_data` with the data,
`check_clients` with the number of clients. What a part alone knows it says itself, and is asked by the same steps or
when the run is assembled: ``check`` of an algorithm or an augmentation, ``check_run`` of a mode, ``bind`` of a privacy
mechanism. All of it comes before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

from fedsim.algorithms.base import GossipAlgorithm, ServerAlgorithm
from fedsim.core.errors import InputError, Problem
from fedsim.core.metrics import TABLE, columns
from fedsim.core.registry import lookup, names
from fedsim.data.division import column_of
from fedsim.data.sets import Dataset, Quadratic, QuadraticFile
from fedsim.messages.aggregators import Aggregator
from fedsim.messages.graph_rules import GraphRule, rule_of
from fedsim.participation.clocked import Clocked
from fedsim.participation.poisson import PoissonGossip
from fedsim.participation.synchronous import Synchronous
from fedsim.scenario.chain_checks import chain_clients, chain_problems
from fedsim.scenario.message_checks import cohort_problems, message_problems
from fedsim.scenario.personal_checks import personal_problems
from fedsim.scenario.rule_checks import rule_clients, rule_problems
from fedsim.scenario.sections import Scenario


def check_sections(s: Scenario) -> list[Problem]:
    """Sections that do not fit together."""
    return [problem for rule in _RULES for problem in rule(s)]


def check_data(s: Scenario, data: Dataset | Quadratic) -> None:
    """Raise InputError where `data` are not what other keys are for."""
    problems: list[Problem] = []
    if isinstance(data, Quadratic):
        for key, why in (("partition", "is already divided"), ("augment", "has no images")):
            if getattr(s, key) is not None:
                problems.append(Problem(f"a quadratic problem {why}: remove the key", f"data.{key}"))
        if s.local_test is not None:
            problems.append(Problem("a quadratic problem has no rows to hold out: remove the key", "data.local_test"))
        if s.adversary is not None:
            problems.append(Problem("a quadratic problem has no inputs to change: remove the section", "adversary"))
        problems += _model_of_quadratic(s)
    else:
        if s.clients is None and data.clients is None and column_of(s.partition) is None:
            problems.append(Problem("missing; allowed: the number of clients to divide the data among", "data.clients"))
        if s.model is None:
            problems.append(_NO_MODEL)
        if s.augment is not None:
            try:
                s.augment.check(tuple(data.train_x.shape[1:]))
            except InputError as error:
                problems += error.under("data.augment").problems
        if s.adversary is not None:
            try:
                s.adversary.check(data)
            except InputError as error:
                problems += error.under("adversary").problems
    if problems:
        raise InputError(problems)


def check_clients(s: Scenario, clients: int) -> None:
    """Raise InputError where keys do not fit that many clients."""
    problems: list[Problem] = []
    for section, part in (("algorithm", s.algorithm), ("participation", s.participation)):
        try:
            part.check(clients)
        except InputError as error:
            problems += error.under(section).problems
    problems += [
        *_work_lists(s, clients),
        *cohort_problems(s, clients),
        *rule_clients(s, clients),
        *chain_clients(s, clients),
    ]
    if problems := problems or list(_everybody(s, clients)):
        raise InputError(problems)


# --- rules on sections ------------------------------------------------------------------------------------------------


def _work(s: Scenario) -> Iterator[Problem]:
    if s.algorithm.local_steps is not None and s.algorithm.local_epochs is not None:
        yield Problem("found both 'local_steps' and 'local_epochs', allowed: one of the two", "algorithm.local_epochs")
    try:
        s.algorithm.check_train()
        s.algorithm.check_solver()
    except InputError as error:
        yield from error.under("algorithm").problems


def _server_or_graph(s: Scenario) -> Iterator[Problem]:
    """An algorithm, a mode, an aggregator and a topology that belong to the same setting."""
    name, setting = s.names["algorithm"], s.algorithm.setting
    if setting != s.participation.setting:
        modes = [m for m in names("participation") if lookup("participation", m).setting == setting]
        allowed = ", ".join(s.algorithm.needs.modes or modes)
        yield Problem(f"'{name}' is a {setting} algorithm, allowed: mode {allowed}", "participation.mode")
    if setting == "gossip" and s.topology is None:
        yield Problem(f"missing; '{name}' runs on a graph, e.g. topology: {{graph: ring}}", "topology")
    if setting == "server" and s.topology is not None:
        found = f"'{name}' has a server and uses no graph: remove the section or choose a gossip algorithm"
        yield Problem(found, "topology")


def _rule_of_graph(s: Scenario) -> Iterator[Problem]:
    """A rule of nodes on a graph, where mixing need not be linear."""
    name, asked = s.names["aggregator"], s.names["algorithm"]
    if s.algorithm.setting == "server":
        if isinstance(s.aggregator, GraphRule):
            message = f"found '{name}', but that is a rule of a graph's nodes; allowed with a server: mean, median, ..."
            yield Problem(message, "aggregator.name")
        return
    rule = rule_of(s.aggregator)
    waits = not isinstance(s.algorithm, GossipAlgorithm) or s.algorithm.waits_for_all()
    if not waits and (rule is None or rule.tolerated is None):
        found = f"nobody knows how many may be late, for '{name}' has no f"
        yield Problem(f"{found}; allowed: all, or a rule such as nna that has", "algorithm.wait")
    if rule is None:
        return
    if type(s.aggregator).fresh is not Aggregator.fresh or s.aggregator.everyone is not None:
        message = f"found '{name}', but it keeps something at the server; allowed on a graph: another, such as median"
        yield Problem(message, "aggregator.name")
    why = s.algorithm.needs.linear_mixing
    if why is not None:
        yield Problem(f"found '{name}', but {why}; allowed with '{asked}': mean", "aggregator.name")
    if isinstance(s.participation, PoissonGossip):
        message = f"found '{name}', but two nodes that mix at a tick hear one neighbour each; allowed: mode gossip"
        yield Problem(message, "participation.mode")
    if s.privacy is not None and s.privacy.linear_mixing is not None:
        found = f"found '{s.names['privacy']}', but {s.privacy.linear_mixing}"
        yield Problem(f"{found}; allowed with such a rule: dp_sgd, or the aggregator mean", "privacy.mechanism")


def _merges(s: Scenario) -> Iterator[Problem]:
    """Nodes that take the plain mean of all models, where that is what was asked for."""
    asked, scheduled = s.participation.merging, getattr(s.participation, "schedule", None) or ()
    if s.privacy is not None and s.privacy.linear_mixing is not None and any(w.links is not None for w in scheduled):
        message = (
            f"'{s.names['privacy']}' accounts for links that are used in every round; allowed: windows without links"
        )
        yield Problem(message, "participation.schedule")
    if asked is None:
        return
    rule, message = s.names["aggregator"], "allowed: merge never, and windows without merge"
    if rule_of(s.aggregator) is not None:
        yield Problem(f"a merge is a plain mean, which '{rule}' would not protect; {message}", asked)
    if s.attack is not None:
        found = f"found beside the attack '{s.names['attack']}'"
        yield Problem(f"{found}, but a merge would average attackers' models, too; {message}", asked)
    if s.privacy is not None:
        yield Problem(
            f"a merge shows models to all nodes, which '{s.names['privacy']}' does not count; {message}", asked
        )


def _mode_of_server(s: Scenario) -> Iterator[Problem]:
    """A mode under which a server algorithm's arithmetic means something."""
    if not isinstance(s.algorithm, ServerAlgorithm) or s.participation.setting != "server":
        return
    name, mode, needs = s.names["algorithm"], s.names["participation"], s.algorithm.needs
    if needs.modes is not None and mode not in needs.modes:
        message = f"{needs.why}; allowed with '{name}': {', '.join(needs.modes)}"
        yield Problem(f"found {mode!r}: {message}", "participation.mode")
    only = needs.arrival_weights
    if only is not None and isinstance(s.participation, Clocked) and s.participation.weights != only:
        yield Problem(f"found '{s.participation.weights}', allowed with '{name}': {only}", "participation.weights")


def _continuous_time(s: Scenario) -> Iterator[Problem]:
    """Poisson clocks know no rounds and take no time."""
    needs = s.algorithm.needs
    if needs.flows and s.participation.setting == "gossip" and not s.participation.continuous:
        name, mode = s.names["algorithm"], s.names["participation"]
        message = f"found '{mode}', but nodes of '{name}' go on between their events; allowed: poisson"
        yield Problem(message, "participation.mode")
    if not (isinstance(s.algorithm, GossipAlgorithm) and isinstance(s.participation, PoissonGossip)):
        return
    if not (needs.continuous_time and needs.compute == needs.links == "sporadic"):
        name = s.names["algorithm"]
        message = f"'{name}' acts by rounds, and Poisson clocks know none; allowed: dspodfl, or mode gossip"
        yield Problem(message, "participation.mode")
    if "system" in s.given:
        yield Problem("ticks of Poisson clocks take no time: remove the section", "system")


def _system_of_graph(s: Scenario) -> Iterator[Problem]:
    if s.algorithm.setting != "gossip":
        return
    for key in ("availability", "departure"):
        if getattr(s.system, key) is not None:
            message = "this is of clients of a server; allowed on a graph: participation.compute, participation.links"
            yield Problem(message, f"system.{key}")
    if s.system.network is not None:
        message = "on a graph latency_ms and bandwidth_mbps of the edges of a graph file count: remove it"
        yield Problem(message, "system.network")


def _backend(s: Scenario) -> Iterator[Problem]:
    if s.backend.name != "ray":
        for key in s.backend.model_dump(exclude_none=True):
            if key != "name":
                yield Problem(f"belongs to the backend 'ray', found '{s.backend.name}'", f"backend.{key}")
    elif s.run.client_state == "disk":
        yield Problem("actors keep what clients keep in their memory, allowed: auto, memory", "run.client_state")
    gpus = s.backend.gpus_per_actor
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        yield Problem(f"found {gpus}, allowed: a fraction up to 1, or whole GPUs", "backend.gpus_per_actor")


def _threads(s: Scenario) -> Iterator[Problem]:
    if s.run.threads is not None and s.run.operator_threads is not None:
        yield Problem("found together with run.threads, allowed: one of the two", "run.operator_threads")


def _model(s: Scenario) -> Iterator[Problem]:
    if isinstance(s.dataset, QuadraticFile):
        yield from _model_of_quadratic(s)
        return
    if s.run.precision == "bf16" and s.run.dtype == "float64":
        yield Problem("found 'bf16' with dtype float64, allowed: full", "run.precision")
    if s.model is None and type(s.dataset).__module__.startswith("fedsim."):  # one's own may be quadratic
        yield _NO_MODEL


def _adversary(s: Scenario) -> Iterator[Problem]:
    """Inputs are attacked where the algorithm is about that."""
    if not s.algorithm.needs.adversary:
        return
    if s.adversary is not None and s.adversary.steps == 0:
        yield Problem(
            f"found 0, but '{s.names['algorithm']}' trains on attacked inputs; allowed: 1 or more", "adversary.steps"
        )
    if s.adversary is None:
        message = f"missing; '{s.names['algorithm']}' trains on inputs that are attacked"
        yield Problem(f"{message}, e.g. adversary: {{eps: 0.1, step: 0.025, steps: 10}}", "adversary")


def _clients(s: Scenario) -> Iterator[Problem]:
    """Clients are evaluated one by one where that is asked for, after at most one kind of tuning."""
    how = s.run.finetune
    if how is None:
        return
    if not s.tests_clients:
        message = "found, but clients are not evaluated; allowed with data.local_test, or run.eval_clients: all"
        yield Problem(message, "run.finetune")
    if (how.steps is None) == (how.epochs is None):
        found = "neither 'steps' nor 'epochs'" if how.steps is None else "both 'steps' and 'epochs'"
        yield Problem(f"found {found}, allowed: one of the two", "run.finetune")


def _columns(s: Scenario) -> Iterator[Problem]:
    """Measures add columns that nobody else has."""
    try:
        columns(s.measures)
    except InputError as error:
        yield from error.under("run.metrics").problems


def _stop(s: Scenario) -> Iterator[Problem]:
    """What ends a run early is measured, and tells nothing that an epsilon would have to cover."""
    if s.stop is None:
        return
    if s.privacy is not None:
        message = "found beside privacy, whose epsilon is that of a number of rounds that no outcome decides"
        yield Problem(f"{message}; allowed: run.rounds alone", "run.stop")
    with suppress(InputError):  # columns that two measures have are said above
        known = {**TABLE, **s.columns}
        try:
            s.stop.check(known)
        except InputError as error:
            yield from error.under("run.stop").problems


def _float32(s: Scenario) -> Iterator[Problem]:
    """Numbers of the algorithm are numbers of the type in which it computes."""
    if s.run.dtype != "float32":
        return
    for key, value in _floats(s.algorithm):
        if math.isfinite(value) and abs(value) > _LARGEST:
            message = f"found {value:g}, allowed with run.dtype float32: at most {_LARGEST:.5g} in size"
            yield Problem(message, f"algorithm.{key}")


def _floats(part: Any) -> Iterator[tuple[str, float]]:
    """Keys and values of a part's floats, also of parts inside it."""
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, float):
            yield field.name, value
        elif is_dataclass(value):
            yield from ((f"{field.name}.{key}", inner) for key, inner in _floats(value))


_LARGEST = (2 - 2**-23) * 2.0**127  # of float32
_NO_MODEL = Problem("missing; e.g. model: {name: linear}", "model")
_RULES: tuple[Callable[[Scenario], Iterable[Problem]], ...] = (
    _work, _float32, _server_or_graph, rule_problems, _rule_of_graph, _merges, _mode_of_server, _continuous_time,
    _system_of_graph, _backend, _threads, _model, _adversary, _clients, _columns, _stop, message_problems,
    chain_problems, personal_problems,
)  # fmt: skip


def _model_of_quadratic(s: Scenario) -> Iterator[Problem]:
    if s.model is not None:
        yield Problem("a quadratic problem has no model: remove the section", "model")
    for key, value, allowed in (("precision", s.run.precision, "full"), ("kernel", s.run.kernel, "auto")):
        if value != allowed:
            yield Problem(f"found '{value}', but a quadratic problem has no model; allowed: {allowed}", f"run.{key}")


# --- rules on the number of clients -----------------------------------------------------------------------------------


def _work_lists(s: Scenario, clients: int) -> Iterator[Problem]:
    """Lists of local work have one number per client."""
    for key in ("local_steps", "local_epochs"):
        work = getattr(s.algorithm, key)
        if work is not None and work.per_client is not None and len(work.per_client) != clients:
            found = f"found a list of {len(work.per_client)} numbers, allowed: {clients} (one per client)"
            yield Problem(found, f"algorithm.{key}")


def _everybody(s: Scenario, clients: int) -> Iterator[Problem]:
    """All clients take part in every round where the algorithm needs them to."""
    if not isinstance(s.participation, Synchronous):
        return
    given = [s.algorithm.needs.everyone, *(part.everyone for part in s.transforms)]
    remembers = next((reason for reason in given if reason is not None), None)  # of whoever was left out, too
    if (why := remembers or s.aggregator.everyone) is None:
        return
    found = {
        f"participation.{k}": f"found {getattr(s.participation, k)!r}" for k in s.participation.leaves_out(clients)
    }
    if remembers is not None:  # a rule skips rounds in which it lacks a message
        found |= dict.fromkeys(s.system.unreliable, "found messages that may not arrive")
        if s.backend.client_errors == "drop":
            found["backend.client_errors"] = "found 'drop'"
    for key, what in found.items():
        yield Problem(f"{what}, but all clients have to take part in every round: {why}", key)
