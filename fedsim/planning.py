"""What a scenario would do, without doing it; and the facts of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.aggregators import message_bytes
from fedsim.algorithms.base import GossipAlgorithm
from fedsim.assembly import Assembly, assemble, one_message
from fedsim.config import Scenario, parse
from fedsim.errors import InputError
from fedsim.gossip import Gossip
from fedsim.mixing import expected_mixing, mixing_matrix, spectral_gap, summary
from fedsim.participation import Arrival, Synchronous
from fedsim.registry import names
from fedsim.store import FILE, state_bytes, state_place
from fedsim.topology import build_topology
from fedsim.worker import default_chunk_rows
from fedsim.yaml_files import Document, override, read_yaml

Rows = dict[str, Any]


def plan(scenario: Scenario) -> dict[str, Rows]:
    """Sections of facts about a run: data, model, work, network, memory.

    Loads the data and builds the graph; trains nothing.
    """
    a = assemble(scenario)
    event = _first_round(scenario, a)
    sections = {"scenario": _scenario(scenario), "data": _data(a), "work": _work(scenario, a, event)}
    if a.network is not None:
        sections["network"] = _network(scenario, a)
    if a.privacy is not None:
        sections["privacy"] = a.privacy.facts()
    sections["messages"] = _messages(scenario, a, event)
    sections["memory"] = _memory(scenario, a, event)
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
        scenario = parse(document)
        if scenario.topology is None:
            raise InputError("this scenario has a server and no topology", file=what)
        assembly = assemble(scenario)
        assert assembly.network is not None
        facts = {"name": f"{scenario.name}: {scenario.topology['graph']}", **_network(scenario, assembly)}
        return facts, assembly.network.topology.graphs[0]
    section: Rows = (
        {"graph": "file", "path": str(path.resolve())} if path.exists() and path.is_file() else {"graph": what}
    )
    if section["graph"] == "file" and nodes is not None:
        raise InputError("--nodes goes with a graph's name; a file has its own nodes")
    if "graph" in section and section["graph"] != "file" and path.suffix:
        raise InputError(f"no such file, and no graph of that name; allowed: {', '.join(names('graph'))}", file=what)
    section |= override(Document({}), settings).values
    if weights is not None:
        section["weights"] = weights
    topology, rule = build_topology(section, nodes, 0, Path.cwd())
    graph = topology.graphs[0]
    facts = {
        "name": path.stem if section["graph"] == "file" else what,
        "weights": rule,
        **summary(graph, mixing_matrix(graph, rule)),
    }
    if len(topology.graphs) > 1:
        facts["sequence"] = (
            f"{len(topology.graphs)} graphs, {topology.every} rounds each; these are the facts of the first"
        )
    return facts, graph


def _scenario(s: Scenario) -> Rows:
    raw = s.document.values
    return {
        "name": s.name, "seed": s.seed, "algorithm": raw["algorithm"]["name"], "rounds": s.run.rounds, "hash": s.hash(),
        "run directory": f"runs/{s.name}-{s.hash()}",
    }  # fmt: skip


def _data(a: Assembly) -> Rows:
    sizes = a.task.sizes
    rows: Rows = {"clients": a.task.num_clients, "parameters": a.task.dim}
    if a.counts is not None or sizes.max() > 1:
        rows |= {
            "samples": int(sizes.sum()),
            "samples per client": f"{sizes.min()} to {sizes.max()}, median {int(np.median(sizes))}",
        }
    if a.counts is not None:
        held = (a.counts > 0).sum(1)
        rows["labels per client"] = f"{held.min()} to {held.max()}, mean {held.mean():.1f}"
    return rows


def _first_round(s: Scenario, a: Assembly) -> Arrival:
    for event in s.participation.events(a.task, s.algorithm, s.seed, 0, a.network, a.durations):
        if isinstance(event, Arrival) and len(event.clients):  # a window may close before anybody delivers
            return event
    raise AssertionError("a participation never ends")


def _work(s: Scenario, a: Assembly, event: Arrival) -> Rows:
    _, epochs = s.algorithm.work()
    steps = event.steps
    gradients = a.task.samples_per_step(event.clients, steps, s.algorithm.batch_size, epochs).sum()
    rows: Rows = {"clients in the first round": len(event.clients)}
    if isinstance(s.participation, Synchronous):
        rows["cohort"] = (
            f"{s.participation.cohort_size(a.task.num_clients)} of {a.task.num_clients}, {s.participation.sampling}"
        )
    rows["local steps in the first round"] = f"{steps.min()} to {steps.max()}"
    rows["sample gradients per round"] = f"about {int(gradients):,}"
    rows["sample gradients in all"] = f"about {int(gradients) * s.run.rounds:,}"
    rows["rows per chunk"] = s.run.chunk_rows or default_chunk_rows(a.task, s.algorithm.batch_size)
    rows["device"] = f"{a.device}, {s.run.dtype}" + (", bf16 autocast" if s.run.precision == "bf16" else "")
    return rows


def _network(s: Scenario, a: Assembly) -> Rows:
    """Facts of the graph, and the expected mixing matrix under the scenario's link probabilities."""
    assert a.network is not None
    assert s.topology is not None
    topology, base = a.network.topology, a.network.mixings[0]
    facts: Rows = {"graph": s.topology["graph"], **summary(topology.graphs[0], base.matrix)}
    if len(topology.graphs) > 1:
        facts["sequence"] = (
            f"{len(topology.graphs)} graphs, {topology.every} rounds each; these are the facts of the first"
        )
    if isinstance(s.participation, Gossip) and isinstance(s.algorithm, GossipAlgorithm):
        d = s.participation.compute.draw(a.task.num_clients, s.seed, "node", 1)
        b = s.participation.links.draw(len(base.links), s.seed, "link", 1)
        facts["compute probability"] = (
            f"{d.min():.3g} to {d.max():.3g}, mean {d.mean():.3g} ({s.algorithm.indicators['compute']})"
        )
        facts["link probability"] = (
            f"{b.min():.3g} to {b.max():.3g}, mean {b.mean():.3g} ({s.algorithm.indicators['links']})"
        )
        if s.algorithm.indicators["links"] == "sporadic" and not topology.directed and (b < 1).any():
            facts["expected spectral gap"] = spectral_gap(expected_mixing(base.matrix, base.links, b))
        if s.algorithm.period(d) > 1:
            facts["links used"] = f"in every {s.algorithm.period(d)}th round"
    return facts


def _messages(s: Scenario, a: Assembly, event: Arrival) -> Rows:
    received, sent = one_message(s.algorithm, a.task, a.network is not None)
    down = 0 if a.network is not None else len(event.clients) * message_bytes(received)
    up = event.sends * message_bytes(sent)
    rows: Rows = {"one message": _size(message_bytes(sent)), "sent in the first round": _size(down + up)}
    rows["sent in all"] = f"about {_size((down + up) * s.run.rounds)}"
    return rows


def _memory(s: Scenario, a: Assembly, event: Arrival) -> Rows:
    item = np.dtype(s.run.dtype).itemsize
    model, initial = a.task.dim * item, a.task.initial()
    kept = state_bytes(s.algorithm.init_client(initial.unsqueeze(0))) * a.task.num_clients
    rows: Rows = {"one model": _size(model), "messages of a round": _size(len(event.clients) * model)}
    if kept:
        rows["state of all clients"] = f"{_size(kept)} once every client took part"
        place = state_place(s.run.client_state, kept, initial.device)
        rows["kept"] = {
            "disk": f"in {FILE} of the run directory, up to twice that size between checkpoints",
            "host": "in the machine's memory, beside the GPU",
            "device": "in memory",
        }[place]
    data = getattr(a.task, "inputs", None)
    if data is not None:
        rows["training data"] = _size(data.numel() * data.element_size())
    return rows


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
