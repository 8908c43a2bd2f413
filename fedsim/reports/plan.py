"""What a scenario would do, without doing it; and the facts of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.algorithms.base import Algorithm, GossipAlgorithm, ServerAlgorithm
from fedsim.clients.store import FILE, state_bytes, state_place
from fedsim.clients.worker import default_chunk_rows, fresh_rows
from fedsim.core.arrays import Floats
from fedsim.core.documents import Document, override, read_yaml
from fedsim.core.errors import InputError
from fedsim.core.registry import names
from fedsim.data.labels import shown
from fedsim.engine.assembly import Assembly, assemble
from fedsim.engine.outcomes import merge_bytes
from fedsim.graphs.facts import summary
from fedsim.graphs.mixing import expected_mixing, spectral_gap
from fedsim.graphs.topology import Topology, build_topology
from fedsim.participation.base import Arrival, Ended
from fedsim.participation.gossip import Gossip
from fedsim.participation.poisson import PoissonGossip
from fedsim.participation.record import whole
from fedsim.participation.synchronous import Synchronous
from fedsim.reports.attack import attack_facts
from fedsim.reports.client_tests import client_facts
from fedsim.reports.coming import coming_facts
from fedsim.reports.neighbourhoods import rule_facts
from fedsim.reports.numbers import size
from fedsim.reports.processes import between_processes
from fedsim.reports.rules import server_rule_facts
from fedsim.reports.sampling import sampling_facts
from fedsim.scenario.load import given, parse
from fedsim.scenario.sections import Scenario

Rows = dict[str, Any]
_NAMED = 20  # nodes whose names are shown
_LOOKED_AT = 10_000  # rounds among which there is one in which somebody delivers
_TYPICAL = 20  # rounds that stand for all
_MOST = 2_000_000  # nodes and links in all the rounds that are looked at where they differ


def plan(scenario: Scenario | str | Path | Mapping[str, Any]) -> dict[str, Rows]:
    """Sections of facts about a run: data, model, work, network, memory.

    Loads the data and builds the graph; trains nothing. The scenario is given as to `fedsim.run`.
    """
    scenario = given(scenario)
    a = assemble(scenario)
    named, scenario = _scenario(scenario), a.settled(scenario)
    rounds = _rounds(scenario, a)
    sections = {"scenario": named, "data": _data(a), "work": _work(scenario, a, rounds)}
    if facts := (a.algorithm or scenario.algorithm).facts():
        sections["algorithm"] = dict(facts)
    if samples := sampling_facts(scenario, a):
        sections["samples"] = samples
    if a.network is not None:
        sections["network"] = _network(scenario, a) | coming_facts(scenario, a) | rule_facts(scenario, a)
    if rule := server_rule_facts(scenario, a):
        sections["aggregator"] = rule
    if attack := attack_facts(scenario, a):
        sections["attack"] = attack
    if a.privacy.claims:
        sections["privacy"] = a.privacy.facts()
    if tests := client_facts(scenario, a):
        sections["clients one by one"] = tests
    sections["messages"] = _messages(scenario, a, rounds)
    if scenario.backend.name == "ray":
        sections["between processes"] = between_processes(scenario, a, rounds[0])
    sections["memory"] = _memory(scenario, a, rounds[0])
    return sections


def describe_topology(what: str, nodes: int | None, settings: list[str], weights: str | None) -> tuple[Rows, Any]:
    """Facts and the graph of a registered graph name, a graph file, or a scenario's topology.

    Raises
    ------
    InputError
        No such graph, file or key, or the graph is not connected.
    """
    path = Path(what)
    if path.suffix in (".yaml", ".yml"):
        document = override(read_yaml(path), settings)
        return scenario_topology(parse(document), what)
    section: Rows = (
        {"graph": "file", "path": str(path.resolve())} if path.exists() and path.is_file() else {"graph": what}
    )
    if section["graph"] == "file" and nodes is not None:
        raise InputError("--nodes goes with a graph's name; a file has its own nodes")
    if "graph" in section and section["graph"] != "file" and path.suffix and ":" not in path.name:
        raise InputError(f"no such file, and no graph of that name; allowed: {', '.join(names('graph'))}", file=what)
    section |= override(Document({}), settings).values
    if weights is not None:
        section["weights"] = weights
    topology, rule = build_topology(section, nodes, 0, Path.cwd())
    graph = topology.graphs[0]
    facts = {
        "name": path.stem if section["graph"] == "file" else what,
        "weights": rule,
        **_named(topology),
        **summary(graph, topology.matrix(rule)),
    }
    if len(topology.graphs) > 1:
        facts["sequence"] = (
            f"{len(topology.graphs)} graphs, {topology.every} rounds each; these are the facts of the first"
        )
    return facts, graph


def scenario_topology(scenario: Scenario, file: str | None = None) -> tuple[Rows, Any]:
    """The same of a scenario's topology."""
    if scenario.topology is None:
        raise InputError("this scenario has a server and no topology", file=file)
    assembly = assemble(scenario)
    assert assembly.network is not None
    scenario = assembly.settled(scenario)
    facts = {"name": f"{scenario.name}: {scenario.names['topology']}", **_network(scenario, assembly)}
    return facts, assembly.network.topology.graphs[0]


def _scenario(s: Scenario) -> Rows:
    ends = {} if s.stop is None else {"may end earlier": s.stop.said}
    return {
        "name": s.name, "seed": s.seed, "algorithm": s.names["algorithm"], "rounds": s.run.rounds, **ends,
        "hash": s.hash(),
        "run directory": f"runs/{s.name}-{s.hash()}",
    }  # fmt: skip


def _data(a: Assembly) -> Rows:
    sizes = a.task.sizes
    rows: Rows = {"clients": a.task.num_clients, "parameters": a.task.dim}
    if a.stays.get("parameters"):
        rows["parameters"] = f"{a.task.dim} that train and travel"
        rows["frozen parameters"] = f"{a.stays['parameters']}: they stay as they are, once on a device"
    if a.task.sharing.params.own:
        own = a.task.sharing.params.numbers
        rows["parameters"] = f"{a.task.dim} that train, of which {a.task.dim - own} travel"
        rows["personal parameters"] = f"{own}: they stay with each client; test_accuracy has them as they are at first"
    if a.task.carried:
        numbers = sum(v.numel() for v in a.task.carried.values())
        travel = "they travel beside parameters and are averaged"
        if a.task.sharing.buffers.own:
            travel = f"{a.task.sharing.buffers.numbers} of them stay with each client, the others are averaged"
        rows["numbers in buffers"] = f"{numbers}: training changes them; {travel}"
    if a.counts is not None or sizes.max() > 1:
        rows |= {
            "samples": int(sizes.sum()),
            "samples per client": f"{sizes.min()} to {sizes.max()}, median {int(np.median(sizes))}",
        }
    if a.counts is not None:
        held = (a.counts > 0).sum(1)
        rows["labels per client"] = f"{held.min()} to {held.max()}, mean {held.mean():.1f}"
    return rows | ({} if a.about is None else _meaning(a.about))


def _meaning(about: Mapping[str, Any]) -> Rows:
    """Names of columns, classes and clients, and what people should know about how the data were read."""
    inputs, target, clients = about.get("input", {}), about.get("target", {}), about.get("clients", {})
    rows: Rows = {}
    if "columns" in inputs:
        rows["inputs"] = shown([_column(c) for c in inputs["columns"]])
    elif inputs:
        rows["inputs"] = f"{inputs['kind']} of shape {inputs['shape']}"
    if "tokenizer" in inputs:
        rows["tokens"] = f"{inputs['vocabulary']} by the tokenizer {inputs['tokenizer']['name']}"
    if target.get("positions"):
        rows["targets"] = f"the next token at {target['positions']} positions"
    if target.get("classes"):
        rows["classes"] = shown(target["classes"])
        rows["numbering"] = target["numbering"]
    if target.get("columns"):
        rows["target"] = ", ".join(target["columns"])
    if clients.get("names"):
        rows[f"clients by {clients['partition_by']}"] = shown(clients["names"])
    if about.get("notes"):
        rows["notes"] = list(about["notes"])
    return rows


def _column(column: Mapping[str, Any]) -> str:
    return f"{column['name']} ({len(column['categories'])} categories)" if "categories" in column else column["name"]


def _rounds(s: Scenario, a: Assembly) -> list[Arrival]:
    """The first round in which anybody delivers; where it is unlike the others, some of those too, or all there are.

    Raises
    ------
    InputError
        Nobody does in all the rounds that are looked at.
    """
    last = min(max(s.run.rounds, _LOOKED_AT), 10 * _LOOKED_AT)  # a round may have nobody by chance
    looked, found = _differing(s, a), list[Arrival]()
    wanted = max(1 + (_TYPICAL if _begins_apart(s) else 0), looked)
    parts: list[Arrival] = []
    for event in s.participation.events(a.setting(s)):
        counts = isinstance(event, Arrival) and (len(event.clients) or parts or (found and looked > 1))
        if isinstance(event, Arrival) and counts:  # a window may close before anybody delivers
            parts.append(event)
            if event.closes:
                found.append(whole(parts))
                parts.clear()
        if isinstance(event, Ended) and not found:
            raise InputError(f"nobody ever delivers: {event.reason}", key="system")
        over = isinstance(event, Arrival) and event.closes and event.number >= last
        if len(found) == wanted or (over and found):
            break
        if found and isinstance(event, Arrival) and event.closes and 1 < wanted <= event.number:
            break
        if over:
            keys = "deadline, sampling, dropout, window, timeout"
            raise InputError(f"nobody delivers in the first {last:,} rounds: look at {keys}", key="participation")
    return found


def _differing(s: Scenario, a: Assembly) -> int:
    """How many rounds to look at: cohorts are drawn and arrivals follow a clock, so that one does not stand for others;
    where links come and go, or have windows, no few do."""
    each = a.task.num_clients + (0 if a.network is None else len(a.network.mixings[0].links))
    most = max(min(s.run.rounds, _LOOKED_AT, _MOST // each), 1)
    if a.network is None or (a.network.topology.presence is None and not getattr(s.participation, "schedule", None)):
        return min(most, _TYPICAL)
    return most


def _begins_apart(s: Scenario) -> bool:
    """Whether the first round costs something else than the others."""
    a = s.algorithm
    special = a.needs.begins_with_everybody or type(a).gradients is not Algorithm.gradients
    return isinstance(a, ServerAlgorithm) and special


def _in_all(s: Scenario, costs: list[int]) -> float:
    """A cost of all rounds from that of the first ones: the mean of the later ones stands for those to come."""
    later = costs[1:] or costs
    return costs[0] + (s.run.rounds - 1) * sum(later) / len(later)


def _work(s: Scenario, a: Assembly, rounds: list[Arrival]) -> Rows:
    steps = rounds[0].steps
    gradients = [s.algorithm.gradients(a.task, e.clients, e.rounds, e.steps) for e in rounds]
    rows: Rows = {"clients in the first round": len(steps)}
    if isinstance(s.participation, Synchronous):
        rows["cohort"] = (
            f"{s.participation.cohort_size(a.task.num_clients)} of {a.task.num_clients}, {s.participation.sampling}"
        )
    rows["local steps in the first round"] = f"{steps.min()} to {steps.max()}"
    if len(set(gradients)) > 1:
        rows["sample gradients in the first round"] = f"{gradients[0]:,}"
    rows["sample gradients per round"] = f"about {np.mean(gradients[1:] or gradients):,.0f}"
    rows["sample gradients in all"] = f"about {s.algorithm.before(a.task).gradients + _in_all(s, gradients):,.0f}"
    if a.algorithm is not None and a.algorithm.lr != s.algorithm.lr:
        rows["lr from theory"] = f"{a.algorithm.lr:.6g}"
    if a.task.computed:
        rows["local gradients"] = a.task.computed
    rows["rows per chunk"] = s.run.chunk_rows or default_chunk_rows(a.task, s.algorithm.batch_size)
    rows["device"] = f"{a.device}, {s.run.dtype}" + (", bf16 autocast" if s.run.precision == "bf16" else "")
    return rows


def _network(s: Scenario, a: Assembly) -> Rows:
    """Facts of the graph, and the expected mixing matrix under the scenario's link probabilities."""
    assert a.network is not None
    topology, base = a.network.topology, a.network.mixings[0]
    found = summary(topology.graphs[0], base.matrix)
    if not found["notes"]:
        del found["notes"]
    facts: Rows = {"graph": s.names["topology"], **_named(topology), **found}
    if len(topology.graphs) > 1:
        facts["sequence"] = (
            f"{len(topology.graphs)} graphs, {topology.every} rounds each; these are the facts of the first"
        )
    if topology.presence is not None:
        facts["links"] = "they come and go; these are the facts of all links together"
        facts["weights of a round"] = f"{a.network.weights}, of the links that are there"
    if isinstance(s.participation, PoissonGossip):
        d = s.participation.compute.draw(a.task.num_clients, s.seed, "node", 1)
        b = s.participation.links.draw(len(base.links), s.seed, "link", 1)
        facts["ticks of nodes per second"] = f"{d.min():.6g} to {d.max():.6g}, {d.sum():.6g} in all"
        b = b * base.share
        facts["communications per second"] = f"{b.sum():.6g}; of a link {b.min():.6g} to {b.max():.6g}"
    if isinstance(s.participation, Gossip) and isinstance(s.algorithm, GossipAlgorithm):
        d = s.participation.compute.draw(a.task.num_clients, s.seed, "node", 1)
        b = s.participation.links.draw(len(base.links), s.seed, "link", 1)
        facts["compute probability"] = f"{_range(d)} ({s.algorithm.needs.compute})"
        facts["link probability"] = f"{_range(b)} ({s.algorithm.needs.links})"
        fixed = not topology.directed and topology.presence is None
        if s.algorithm.needs.links == "sporadic" and fixed and (b < 1).any():
            facts["expected spectral gap"] = spectral_gap(expected_mixing(base.matrix, base.links, b))
        if s.algorithm.period(d) > 1:
            facts["links used"] = f"in every {s.algorithm.period(d)}th round"
    return facts


def _range(values: Floats) -> str:
    """The smallest, the largest and the mean, or the one value that all have."""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}, mean {values.mean():.3g}"


def _named(topology: Topology) -> Rows:
    """The nodes by number, where they have names."""
    if topology.names is None:
        return {}
    shown = [f"{i} {name}" for i, name in enumerate(topology.names[:_NAMED])]
    more = len(topology.names) - len(shown)
    return {"names of nodes": [*shown, f"and {more} more"] if more else shown}


def _messages(s: Scenario, a: Assembly, rounds: list[Arrival]) -> Rows:
    received, sent = a.one_message(s)
    down = 0 if a.network is not None else s.algorithm.received_size(received)
    up = a.pipeline.row_bytes(sent) * a.mixing(s).exchanges
    traffic = [len(e.clients) * down + e.sends * up for e in rounds]
    more = rounds[0].sends * (a.pipeline.row_bytes(sent, first=True) - a.pipeline.row_bytes(sent))  # once
    rows: Rows = {"one message": size(a.pipeline.row_bytes(sent)), "sent in the first round": size(traffic[0] + more)}
    merges = s.participation.merges_in(s.run.rounds)
    if merges:
        each = merge_bytes(s.algorithm, a.task)
        rows["merges of all nodes"] = f"{merges}, {size(each)} each"
        more += merges * each
    more += s.algorithm.before(a.task).bytes
    rows["sent in all"] = f"about {size(_in_all(s, traffic) + more)}"
    facts = dict(a.pipeline.facts(sent))
    if facts and down:
        facts["to clients"] = f"{size(down)}: the broadcast counts in full"
    return {**rows, **facts}


def _memory(s: Scenario, a: Assembly, event: Arrival) -> Rows:
    item = np.dtype(s.run.dtype).itemsize
    initial, model = a.task.initial(), a.task.untrained().numel() * item
    kept = state_bytes(fresh_rows(s.algorithm, a.task, a.pipeline)) * a.task.num_clients
    rows: Rows = {"one model": size(model)}
    if a.stays.get("bytes"):
        rows["what does not train"] = f"{size(a.stays['bytes'])} of frozen parameters and buffers, once on a device"
    rows |= {"messages of a round": size(len(event.clients) * model)}
    if a.network is not None and s.algorithm.needs.flows:
        vectors = len(s.algorithm.init(initial.unsqueeze(0))) + len(fresh_rows(s.algorithm, a.task, a.pipeline))
        rows["states of all nodes"] = f"{vectors} vectors each, {size(vectors * model * a.task.num_clients)}"
    if kept:
        rows["state of all clients"] = f"{size(kept)} once every client took part"
        place = state_place(s.run.client_state, kept, initial.device)
        rows["kept"] = {
            "disk": f"in {FILE} of the run directory, up to twice that size between checkpoints",
            "host": "in the machine's memory, beside the GPU",
            "device": "in memory",
        }[place]
    data = getattr(a.task, "inputs", None)
    if data is not None:
        rows["training data"] = size(data.numel() * data.element_size())
    return rows
