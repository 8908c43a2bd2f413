"""What fits together in a scenario and what does not."""

from __future__ import annotations

from fedsim.algorithms.base import GossipAlgorithm, ServerAlgorithm
from fedsim.core.errors import InputError, Problem
from fedsim.data.sets import QuadraticFile
from fedsim.messages.aggregators import Aggregator, Mean, TrimmedMean
from fedsim.participation.clocked import Clocked
from fedsim.participation.poisson import PoissonGossip
from fedsim.scenario.message_checks import message_problems
from fedsim.scenario.sections import MODES, Scenario


def crosscheck(s: Scenario) -> list[Problem]:
    """Sections that do not fit together."""
    found: list[Problem] = []
    name = s.names["algorithm"]
    if s.algorithm.local_steps is not None and s.algorithm.local_epochs is not None:
        found.append(
            Problem("found both 'local_steps' and 'local_epochs', allowed: one of the two", "algorithm.local_epochs")
        )
    try:
        s.algorithm.check_solver()
    except InputError as error:
        found += error.under("algorithm").problems
    if s.algorithm.setting != s.participation.setting:
        mode = MODES[s.algorithm.setting]
        found.append(
            Problem(f"'{name}' is a {s.algorithm.setting} algorithm, allowed: mode {mode}", "participation.mode")
        )
    if s.algorithm.setting == "gossip" and s.topology is None:
        found.append(Problem(f"missing; '{name}' runs on a graph, e.g. topology: {{graph: ring}}", "topology"))
    if s.algorithm.setting == "server" and s.topology is not None:
        found.append(
            Problem(
                f"'{name}' has a server and uses no graph: remove the section or choose a gossip algorithm", "topology"
            )
        )
    if s.algorithm.setting == "gossip" and not isinstance(s.aggregator, Mean):
        found.append(Problem("gossip mixes with a matrix, allowed: mean", "aggregator.name"))
    mode, needs = s.names["participation"], s.algorithm.needs
    if s.algorithm.setting == "server" and not needs.through_aggregate and not _is_linear(s.aggregator):
        message = (
            f"found '{s.names['aggregator']}', but '{name}' moves its state along sums of messages that pass no "
            "aggregator, so that it would protect nothing; allowed: mean, or another that is linear"
        )
        found.append(Problem(message, "aggregator.name"))
    if isinstance(s.algorithm, ServerAlgorithm) and needs.modes is not None and mode not in needs.modes:
        message = f"{needs.why}; allowed with '{name}': {', '.join(needs.modes)}"
        found.append(Problem(f"found {mode!r}: {message}", "participation.mode"))
    only = needs.arrival_weights
    if only is not None and isinstance(s.participation, Clocked) and s.participation.weights != only:
        found.append(
            Problem(f"found '{s.participation.weights}', allowed with '{name}': {only}", "participation.weights")
        )
    if isinstance(s.algorithm, GossipAlgorithm) and isinstance(s.participation, PoissonGossip):
        if not (needs.continuous_time and needs.compute == needs.links == "sporadic"):
            message = f"'{name}' acts by rounds, and Poisson clocks know none; allowed: dspodfl, or mode gossip"
            found.append(Problem(message, "participation.mode"))
        if "system" in s.given:
            found.append(Problem("ticks of Poisson clocks take no time: remove the section", "system"))
    for key in ("availability", "departure"):
        if s.algorithm.setting == "gossip" and getattr(s.system, key) is not None:
            message = "this is of clients of a server; allowed on a graph: participation.compute, participation.links"
            found.append(Problem(message, f"system.{key}"))
    if s.algorithm.setting == "gossip" and s.system.network is not None:
        found.append(
            Problem(
                "on a graph latency_ms and bandwidth_mbps of the edges of a graph file count: remove it",
                "system.network",
            )
        )
    if s.backend.name != "ray":
        given = [key for key in s.backend.model_dump(exclude_none=True) if key != "name"]
        found += [Problem(f"belongs to the backend 'ray', found '{s.backend.name}'", f"backend.{k}") for k in given]
    elif s.run.client_state == "disk":
        found.append(
            Problem("actors keep what clients keep in their memory, allowed: auto, memory", "run.client_state")
        )
    gpus = s.backend.gpus_per_actor
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        found.append(Problem(f"found {gpus}, allowed: a fraction up to 1, or whole GPUs", "backend.gpus_per_actor"))
    quadratic = isinstance(s.dataset, QuadraticFile)
    if quadratic and s.model is not None:
        found.append(Problem("a quadratic problem has no model: remove the section", "model"))
    if quadratic:
        found += [
            Problem(f"found '{value}', but a quadratic problem has no model; allowed: {allowed}", f"run.{key}")
            for key, value, allowed in (("precision", s.run.precision, "full"), ("kernel", s.run.kernel, "auto"))
            if value != allowed
        ]
    elif s.run.precision == "bf16" and s.run.dtype == "float64":
        found.append(Problem("found 'bf16' with dtype float64, allowed: full", "run.precision"))
    if not quadratic and s.model is None:
        found.append(Problem("missing; e.g. model: {name: linear}", "model"))
    found += message_problems(s)
    return found


def _is_linear(aggregator: Aggregator) -> bool:
    """Whether it is a weighted sum of messages, which protects against none of them."""
    return aggregator.linear or (isinstance(aggregator, TrimmedMean) and aggregator.trim == 0)
