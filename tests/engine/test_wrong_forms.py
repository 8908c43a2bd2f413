"""A part that hands back tensors of a wrong form is named, before anything is broadcast: on every seam, everywhere."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedsim.backends.placement import split
from fedsim.backends.shard import Shard
from fedsim.cli.app import main
from fedsim.clients.worker import Worker
from fedsim.contract.check import check
from fedsim.core.errors import RunError
from fedsim.core.returned import WrongFormError, aggregating, by_row, formed, same_form
from fedsim.engine.assembly import assemble
from fedsim.engine.run import run
from fedsim.participation.base import Arrival, Dispatch
from fedsim.scenario.load import parse

MODULE = """
from dataclasses import dataclass

import numpy as np
import torch

from fedsim import *
from fedsim.messages.graph_rules import GraphRule
from fedsim.messages.edge_attacks import EdgeAttack
from fedsim.messages.pre import PreAggregation
from fedsim.algorithms.dspodfl import DGD


@dataclass(frozen=True, kw_only=True)
class ScalarRule(Aggregator):
    def __call__(self, values, weights):
        return weights.sum() * values.median()


@dataclass(frozen=True, kw_only=True)
class AllRows(Aggregator):
    def __call__(self, values, weights):
        return values


@dataclass(frozen=True, kw_only=True)
class KeepDim(Aggregator):
    def __call__(self, values, weights):
        return weights.sum() * values.mean(dim=0, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Wider(Aggregator):
    def __call__(self, values, weights):
        return (weights @ values).to(torch.float32)


@dataclass(frozen=True, kw_only=True)
class ListRule(Aggregator):
    def __call__(self, values, weights):
        return (weights @ values).tolist()


@dataclass(frozen=True, kw_only=True)
class ScalarBound(Aggregator):
    def bind(self, messages, weights, state):
        return (lambda values, given=None: values.mean()), state


@dataclass(frozen=True, kw_only=True)
class ScalarPre(PreAggregation):
    def change(self, rows, f, arrived, run):
        return lambda values, vector: values.mean(0, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class ScalarNear(GraphRule):
    def combine(self, near):
        return near.values.mean()


@dataclass(frozen=True, kw_only=True)
class ScalarMix(GraphRule):
    def combine(self, near):
        return near.own

    def mix(self, heard):
        return heard.values.mean()


@dataclass(frozen=True, kw_only=True)
class NoExpand(Attack):
    def messages(self, honest, own, key, arrived, run):
        return honest.mean(0)


@dataclass(frozen=True, kw_only=True)
class NoExpandEdges(EdgeAttack):
    def tell(self, target, key, arrived, run):
        return target.known.mean()


@dataclass(frozen=True, kw_only=True)
class NoDim(Compressor):
    def __call__(self, v, u):
        return v.mean(-1)

    def bits(self, d, number):
        return 8


@dataclass(frozen=True, kw_only=True)
class ScalarSend(MessageTransform):
    def send(self, message, kept, job, run):
        return {k: v.mean() for k, v in message.items()}, kept


@dataclass(frozen=True, kw_only=True)
class ScalarReceive(MessageTransform):
    def receive(self, message, arrived, run):
        return {k: v.mean(0) for k, v in message.items()}


@dataclass(frozen=True, kw_only=True)
class ScalarStep(LocalSolver):
    def step(self, x, v, lr, state):
        return (x - lr * v).mean(), state


class _Base:
    def direction(self, oracle, x, received, client):
        return oracle.grad(x).mean()


@dataclass(frozen=True, kw_only=True)
class Direction(_Base, ServerAlgorithm):
    pass


@dataclass(frozen=True, kw_only=True)
class GraphDirection(_Base, DGD):
    pass


@dataclass(frozen=True, kw_only=True)
class LocalStep(ServerAlgorithm):
    def local_step(self, oracle, local, received, client):
        return {"x": local["x"].mean(-1, keepdim=True)}


@dataclass(frozen=True, kw_only=True)
class Sends(ServerAlgorithm):
    def message(self, local, received, client, effort):
        return {"delta": (local["x"] - received["x"]).mean()}, {}, client


@dataclass(frozen=True, kw_only=True)
class SendsLater(ServerAlgorithm):
    def message(self, local, received, client, effort):
        delta = local["x"] - received["x"]
        return {"delta": delta if len(delta) == 1 else delta.mean(-1)}, {}, client


@dataclass(frozen=True, kw_only=True)
class Combines(ServerAlgorithm):
    def combine(self, state, messages, round, aggregate):
        return {"x": (state["x"] + aggregate(messages["delta"])).mean()}


@dataclass(frozen=True, kw_only=True)
class Keeps(ServerAlgorithm):
    def init_client(self, params):
        return {"h": params.mean()}


@dataclass(frozen=True, kw_only=True)
class GraphCombines(DGD):
    def combine(self, state, messages, round, aggregate):
        return {"x": aggregate(messages["x"]).mean(0)}


@dataclass(frozen=True, kw_only=True)
class Unseeded(Attack):
    def messages(self, honest, own, key, arrived, run):
        return own + float(np.random.default_rng().normal())


@dataclass(frozen=True, kw_only=True)
class Good(Aggregator):
    def __call__(self, values, weights):
        return weights @ values
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrongform.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))


def scenario(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 6, "limit": 120},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"rounds": 2, "eval_every": 1, "device": "cpu", "threads": 1, "dtype": "float64"},
        "seed": 3,
        **sections,
    }


ON_A_GRAPH = {
    "algorithm": {"name": "dgd", "lr": 0.1},
    "topology": {"graph": "ring"},
}
ATTACKED = {"attackers": [1], "allow_disconnected": True}
D = 650
SERVER: dict[str, tuple[dict[str, Any], str, str]] = {  # what is set, the method that is named, and what is said
    "scalar": ({"aggregator": {"name": "wrongform:ScalarRule"}}, "ScalarRule.__call__", f"float64 [] -> {D}"),
    "rows": ({"aggregator": {"name": "wrongform:AllRows"}}, "AllRows.__call__", f"float64 [6, {D}] -> {D}"),
    "keepdim": ({"aggregator": {"name": "wrongform:KeepDim"}}, "KeepDim.__call__", f"float64 [1, {D}] -> {D}"),
    "dtype": ({"aggregator": {"name": "wrongform:Wider"}}, "Wider.__call__", f"float32 [{D}] -> {D}"),
    "no tensor": ({"aggregator": {"name": "wrongform:ListRule"}}, "ListRule.__call__", f"list -> {D}"),
    "bind": ({"aggregator": {"name": "wrongform:ScalarBound"}}, "ScalarBound.bind", f"float64 [] -> {D}"),
    "pre": (
        {"aggregator": {"name": "median", "pre": {"name": "wrongform:ScalarPre"}}},
        "ScalarPre.change",
        f"float64 [1, {D}] -> 6, {D}",
    ),
    "attack": (
        {"attack": {"name": "wrongform:NoExpand", "attackers": [1, 2]}},
        "NoExpand.messages",
        f"[{D}] -> 2, {D}",
    ),
    "compressor": ({"compression": {"name": "wrongform:NoDim"}}, "NoDim.__call__", f"float64 [6] -> 6, {D}"),
    "send": ({"attack": {"name": "wrongform:ScalarSend"}}, "ScalarSend.send", f"'delta' torch.float64 [] -> 6, {D}"),
    "receive": (
        {"attack": {"name": "wrongform:ScalarReceive"}},
        "ScalarReceive.receive",
        f"'delta' torch.float64 [{D}] -> 6, {D}",
    ),
    "solver": (
        {"algorithm": {"name": "fedavg", "solver": {"name": "wrongform:ScalarStep"}}},
        "ScalarStep.step",
        f"float64 [] -> 6, {D}",
    ),
    "direction": ({"algorithm": {"name": "wrongform:Direction"}}, "Direction.direction", f"float64 [] -> 6, {D}"),
    "local_step": (
        {"algorithm": {"name": "wrongform:LocalStep"}},
        "LocalStep.local_step",
        f"'x' torch.float64 [6, 1] -> 6, {D}",
    ),
    "message": ({"algorithm": {"name": "wrongform:Sends"}}, "Sends.message", f"'delta' torch.float64 [] -> 1, {D}"),
    "later": (
        {"algorithm": {"name": "wrongform:SendsLater"}},
        "SendsLater.message",
        f"'delta' torch.float64 [6] -> 6, {D}",
    ),
    "combine": ({"algorithm": {"name": "wrongform:Combines"}}, "Combines.combine", f"'x' torch.float64 [] -> {D}"),
    "init_client": ({"algorithm": {"name": "wrongform:Keeps"}}, "Keeps.init_client", f"'h' torch.float64 [] -> 1, {D}"),
}
GRAPH: dict[str, tuple[dict[str, Any], str, str]] = {
    "server's rule": ({"aggregator": {"name": "wrongform:ScalarRule"}}, "ScalarRule.__call__", f"float64 [] -> {D}"),
    "combine": ({"aggregator": {"name": "wrongform:ScalarNear"}}, "ScalarNear.combine", f"float64 [] -> 6, {D}"),
    "mix": ({"aggregator": {"name": "wrongform:ScalarMix"}}, "ScalarMix.mix", f"float64 [] -> 6, {D}"),
    "attack": ({"attack": {"name": "wrongform:NoExpand", **ATTACKED}}, "NoExpand.messages", f"[{D}] -> 1, {D}"),
    "tell": (
        {"attack": {"name": "wrongform:NoExpandEdges", **ATTACKED}},
        "NoExpandEdges.tell",
        f"float64 [] -> 1, {D}",
    ),
    "compressor": (
        {"algorithm": {"name": "choco"}, "compression": {"name": "wrongform:NoDim"}},
        "NoDim.__call__",
        f"float64 [6] -> 6, {D}",
    ),
    "direction": ({"algorithm": {"name": "wrongform:GraphDirection"}}, "GraphDirection.direction", f"[] -> 6, {D}"),
    "state": (
        {"algorithm": {"name": "wrongform:GraphCombines"}},
        "GraphCombines.combine",
        f"'x' torch.float64 [{D}] -> 6, {D}",
    ),
}


def check_said(error: WrongFormError, method: str, what: str) -> None:
    made, allowed = what.split(" -> ")
    text = str(error)
    assert text.startswith(f"your own wrongform:{method} ("), text
    assert "wrongform.py:" in text
    assert "\n" not in text
    assert made in text.partition(" made ")[2].partition("allowed: ")[0], text
    assert f"[{allowed}]" in text.partition("allowed: ")[2], text


@pytest.mark.parametrize("case", SERVER)
def test_at_a_server(case: str, tmp_path: Path) -> None:
    sections, method, what = SERVER[case]
    with pytest.raises(WrongFormError) as wrong:
        run(scenario(**sections), tmp_path / "out")
    check_said(wrong.value, method, what)


@pytest.mark.parametrize("case", GRAPH)
def test_on_a_graph(case: str, tmp_path: Path) -> None:
    sections, method, what = GRAPH[case]
    with pytest.raises(WrongFormError) as wrong:
        run(scenario(**{**ON_A_GRAPH, **sections}), tmp_path / "out")
    check_said(wrong.value, method, what)


@pytest.mark.parametrize("case", GRAPH)
def test_in_a_shard(case: str) -> None:
    """One shard of all nodes, in this process."""
    sections, method, _ = GRAPH[case]
    s = parse(scenario(**{**ON_A_GRAPH, **sections}))
    with pytest.raises(WrongFormError, match=f"wrongform:{method} "):
        one_round(s)


def one_round(s: Any) -> None:
    a = assemble(s)
    everybody = np.arange(a.task.num_clients)
    build = partial(Worker, algorithm=s.algorithm, pipeline=a.pipeline)
    shard = Shard(a.task.shard(everybody), build, everybody, False, a.mixing(s))
    shard.start()
    events = s.participation.events(a.setting(s))
    job = next(e for e in events if isinstance(e, Dispatch))
    event = next(e for e in events if isinstance(e, Arrival))
    part = split(event.mixing.matrix, np.zeros(len(everybody), dtype=np.int64), 1, event.clients)[0]
    out = shard.begin(1, job.rounds, job.steps, part)
    while not out[-1][0]:
        out = shard.resume()


def test_a_good_one_runs(tmp_path: Path) -> None:
    good = run(scenario(aggregator={"name": "wrongform:Good"}), tmp_path / "good").params
    assert torch.equal(good, run(scenario(), tmp_path / "mean").params)


def test_check_names_the_method_and_the_form() -> None:
    results = check("wrongform:NoExpand", ["attackers=2"])
    said = [r.detail for r in results if not r.passed]
    assert said
    assert all("your own wrongform:NoExpand.messages (" in detail for detail in said)
    assert any("allowed: torch.float64 [2, " in detail for detail in said)


def test_numbers_that_differ_in_every_call_get_one_advice() -> None:
    said = {r.name: r.detail for r in check("wrongform:Unseeded", ["attackers=2"]) if not r.passed}
    seed, order = said.pop("same seed, same numbers"), said["honest messages count, not their order"]
    assert "it draws from a generator that the seed does not reach" in seed
    assert order.endswith("may follow from 'same seed, same numbers', which has to hold first")
    assert all("may follow from" in detail for detail in said.values())


def test_the_command_line_says_it_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yaml").write_text(yaml.safe_dump(scenario(aggregator={"name": "wrongform:ScalarRule"})), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["fedsim", "run", "s.yaml", "--out", "o"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert told.count("wrongform:ScalarRule.__call__") == 1
    assert "Traceback" not in told
    assert f"made torch.float64 [], allowed: torch.float64 [{D}]" in told


def test_looking_at_forms() -> None:
    x, part = torch.zeros(3), object()
    assert formed(x, (3,), torch.float32, part, "f") is x
    assert aggregating(lambda v, w: w @ v, None, part, "f")(torch.ones(2, 3), torch.ones(4, 2)).shape == (4, 3)
    for wrong in ({"a": x[None, None]}, {"a": torch.zeros(5, 3)}, {"a": 1.0}, {"b": x}, [x]):
        with pytest.raises(WrongFormError):
            by_row(wrong, {"a": x}, 2, x, part, "f")
    for other in ({}, {"a": x.double()}, {"a": torch.zeros(1, 3)}, None):
        with pytest.raises(RunError):
            same_form(other, {"a": x}, part, "f")
