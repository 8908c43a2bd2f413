"""A client never uses noise twice, whatever it is asked, and spends no more than its own budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment
from safetensors.torch import load_file, save_file

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.flower.arrays import to_arrays
from fedsim.deployment.flower.records import Order
from fedsim.deployment.node_config import NodeConfig
from fedsim.deployment.work import Client
from fedsim.engine.assembly import assemble
from fedsim.privacy.ledger import BudgetExceeded
from fedsim.scenario.load import parse

N = 3
BASE: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": N, "limit": 90, "partition": {"scheme": "iid"}},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": "full"},
    "run": {"rounds": 5, "dtype": "float64", "device": "cpu"},
}
CASES: dict[str, dict[str, Any]] = {
    "local_dp": {"privacy": {"mechanism": "local_dp", "clip_norm": 0.05}},
    "local_dp-scaffold": {
        "algorithm": {"name": "scaffold", "lr": 0.1, "batch_size": "full"},
        "privacy": {"mechanism": "local_dp", "clip_norm": 0.05},
    },
    "dp_sgd": {"privacy": {"mechanism": "dp_sgd", "clip_norm": 0.05}},
    "gaussian": {
        "algorithm": {"name": "diff2", "lr": 0.5, "batch_size": "full", "restart_every": 1, "clip_norm": 1.0},
        "privacy": {"mechanism": "gaussian", "trust": "local"},
    },
    "muffliato": {
        "algorithm": {"name": "dgd", "lr": 0.1, "batch_size": "full"},
        "topology": {"graph": "ring"},
        "privacy": {"mechanism": "muffliato", "clip_norm": 0.05, "trust": "local"},
    },
}


class Asked:
    """Client 1 of a case: ``Asked(folder, name).answer(round, model)`` is what leaves it, ``[k]``."""

    def __init__(self, folder: Path, name: str, z: float = 1.0, **node: Any) -> None:
        sections = {**BASE, **CASES[name]}
        sections["privacy"] = {**sections["privacy"], "noise_multiplier": z}
        self.scenario = parse(sections)
        self.node = NodeConfig(1, N, state_dir=folder, **node)
        self.client = Client(self.scenario, self.node, "1")

    def reopened(self) -> Asked:
        """The same client in another process."""
        self.client = Client(self.scenario, self.node, "1")
        return self

    def received(self, model: float) -> Any:
        algorithm, x = self.scenario.algorithm, self.client.assembly.task.initial() + model
        gossip = self.client.assembly.network is not None
        message = algorithm.broadcast(algorithm.init(x.expand(N, -1).clone() if gossip else x))
        return to_arrays({k: v[:1] if v.dim() > 1 else v for k, v in message.items()})

    def answer(self, round: int, model: float = 0.0, builds_on: int = 0, number: int = 1, steps: int = 1) -> Any:
        order = Order("1", 1, number, round, steps, builds_on, 0)
        _, arrays = self.client.work(order, self.received(model))
        return np.concatenate([arrays[k].ravel() for k in sorted(arrays)])

    def noise(self, quiet: Asked, round: int, model: float) -> Any:
        return self.answer(round, model) - quiet.answer(round, model)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.client.folder / "answers.jsonl").read_text().splitlines()]

    def spent(self) -> int:
        return sum("job" in row for row in self.rows())


def correlation(a: Any, b: Any) -> float:
    moved = (a != 0) & (b != 0)
    return float(np.corrcoef(a[moved], b[moved])[0, 1])


@pytest.mark.parametrize("name", CASES)
def test_another_model_gets_other_noise(name: str, tmp_path: Path) -> None:
    quiet, one = Asked(tmp_path / "quiet", name, z=0.0), Asked(tmp_path / "noisy", name)
    first, second = one.noise(quiet, 1, 0.0), one.noise(quiet, 1, 0.01)
    assert float(np.abs(first).max()) > 1e-6
    assert abs(correlation(first, second)) < 0.2
    assert one.spent() == 2


@pytest.mark.parametrize("name", CASES)
def test_the_same_job_gets_the_same_answer_and_costs_nothing(name: str, tmp_path: Path) -> None:
    one = Asked(tmp_path, name)
    first = one.answer(1)
    one.answer(1, model=0.01)
    assert np.array_equal(one.answer(1, number=9), first)  # another job number: the server counts anew when it resumes
    assert np.array_equal(one.reopened().answer(1), first)
    assert one.spent() == 2


@pytest.mark.parametrize("name", CASES)
def test_no_more_than_the_run_has_is_ever_answered(name: str, tmp_path: Path) -> None:
    """Five rounds are planned: five answers, whatever their rounds and whoever asks for them, and not one more."""
    one = Asked(tmp_path, name)
    for round in (1, 7, 1_000_000):
        one.answer(round)
    one.reopened()
    one.answer(1, model=0.5)
    first = one.answer(2)
    for round in (3, 1_000_001):
        with pytest.raises(BudgetExceeded, match="budget is used up"):
            one.answer(round)
    with pytest.raises(BudgetExceeded):
        one.reopened().answer(3)
    assert np.array_equal(one.answer(2), first)  # what has left already may leave again
    assert one.spent() == 5


def test_many_steps_are_many_releases(tmp_path: Path) -> None:
    with pytest.raises(BudgetExceeded):
        Asked(tmp_path, "dp_sgd").answer(1, steps=6)


def test_a_client_may_spend_less_than_the_scenario(tmp_path: Path) -> None:
    whole = Asked(tmp_path / "whole", "local_dp").client.answers
    assert whole is not None
    assert whole.budget is not None
    one = Asked(tmp_path / "less", "local_dp", budget=0.65 * whole.budget)
    for round in (1, 2):
        one.answer(round)
    with pytest.raises(BudgetExceeded, match=f"the budget is {0.65 * whole.budget:g}"):
        one.answer(3)
    assert one.spent() == 2
    with pytest.raises(InputError, match=r"budget: --node-config: found 'much', allowed: an epsilon > 0"):
        NodeConfig.read({"partition-id": 0, "num-partitions": 3, "budget": "much"})


def test_an_answer_that_comes_out_otherwise_is_another_release(tmp_path: Path) -> None:
    """As after a change of threads or libraries: the same job, other bits."""
    one = Asked(tmp_path, "local_dp")
    first = one.answer(1)
    data = one.client.folder / "data.safetensors"
    tensors = load_file(data)
    save_file({**tensors, "x": tensors["x"] * 1.0001}, data, {"about": json.dumps({"classes": 10})})
    second = one.reopened().answer(1)
    assert float(np.abs(second - first).max()) > 1e-2  # not the tiny difference of two clean answers
    assert one.spent() == 2
    assert np.array_equal(one.answer(1), second)
    assert np.array_equal(one.reopened().answer(1), second)
    assert one.spent() == 2


def test_state_that_differs_makes_another_job(tmp_path: Path) -> None:
    """SCAFFOLD's second round from the same model, after two first rounds from different ones."""
    one = Asked(tmp_path, "local_dp-scaffold")
    one.answer(1)
    first = one.answer(2, builds_on=1)
    one.answer(1, model=0.01)
    assert not np.array_equal(one.answer(2, builds_on=1), first)
    assert one.spent() == 4


def test_what_did_not_leave_costs_nothing_and_a_cut_line_is_void(tmp_path: Path) -> None:
    one = Asked(tmp_path, "local_dp")
    first = one.answer(1)
    file = one.client.folder / "answers.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for left in (lines[0], lines[0][:-9], lines[0] + lines[1][:-9]):
        file.write_text(left)
        assert np.array_equal(one.reopened().answer(1), first)
        assert [sorted(row) for row in one.rows()] == [["job", "round", "serial", "steps"], ["answer", "serial"]]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"serial": 1}', "\x00\x00"])
def test_a_damaged_ledger_releases_nothing(line: str, tmp_path: Path) -> None:
    one = Asked(tmp_path, "local_dp")
    one.answer(1)
    file = one.client.folder / "answers.jsonl"
    file.write_text(line + "\n" + file.read_text())
    with pytest.raises(RunError, match=r"answers\.jsonl is damaged"):
        one.reopened().answer(2)


def test_other_data_get_another_secret(tmp_path: Path) -> None:
    one = Asked(tmp_path, "local_dp")
    before = one.client.secret
    (one.client.folder / "data.safetensors").unlink()
    assert one.reopened().client.secret != before


def test_samples_that_epsilon_counts_on_are_secret(tmp_path: Path) -> None:
    """The noise is tiny beside what another sample changes, and the sample is not that of the scenario's seed.

    The noise of two runs differs by at most 2e-5 (five standard deviations of 1e-3 * 0.5 * 0.1 / 9, mean of three
    clients). Samples that differ move the largest coordinate by about 1e-3: which ones are drawn is chance.
    """
    privacy = {"mechanism": "dp_sgd", "clip_norm": 0.5, "sampling_rate": 0.3, "noise_multiplier": 1e-3}
    sections = {
        **BASE,
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "privacy": privacy,
        "run": BASE["run"] | {"rounds": 1},
    }
    simulated = fedsim.run(sections, out=tmp_path / "simulated").params
    first = Deployment(tmp_path / "a", sections, N).run().params
    second = Deployment(tmp_path / "b", sections, N).run().params
    apart = [float((a - b).abs().max()) for a, b in ((first, simulated), (second, simulated), (first, second))]
    assert min(apart) > 1e-4


def cohorts(trace: list[dict[str, Any]]) -> list[list[int]]:
    return [row["clients"] for row in trace]


def test_who_takes_part_is_secret_where_epsilon_counts_on_it(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        **BASE, "participation": {"sampling": "poisson", "fraction": 0.5},
        "run": {**BASE["run"], "rounds": 12, "trace": True},
        "privacy": {"mechanism": "dp_fedavg", "clip_norm": 0.5, "noise_multiplier": 4.0},
    }  # fmt: skip
    simulated = fedsim.run(sections, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", sections, N)
    first = cohorts(app.run(settings="run.rounds=8").trace)
    assert first != cohorts(simulated.trace)[:8]
    resumed = cohorts(app.run(resume=True).trace)  # the same secret goes on
    assert resumed[:8] == first
    assert len(resumed) == 12
    assert cohorts(Deployment(tmp_path / "other", sections, N).run(settings="run.rounds=8").trace) != first
    assert assemble(app.scenario).privacy is not None


def test_a_clocked_run_that_asks_again_gets_other_noise(tmp_path: Path) -> None:
    """Resumed from a checkpoint of its beginning, a clocked run gives its clients the same rounds with other models."""
    sections: dict[str, Any] = {
        **BASE, "participation": {"mode": "asynchronous"}, "run": {**BASE["run"], "rounds": 4},
        "privacy": {"mechanism": "local_dp", "clip_norm": 0.05, "noise_multiplier": 1.0},
    }  # fmt: skip
    app = Deployment(tmp_path, sections, N)
    sent: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def note(message: Any, reply: Any) -> Any:
        if message.metadata.group_id and "arrays" in reply.content:
            place = reply.content["fedsim"]["client"], int(message.metadata.group_id)
            model = message.content["arrays"]["x"].numpy().tobytes().hex()
            sent.setdefault(place, {})[model] = torch.from_numpy(reply.content["arrays"]["delta"].numpy().copy())
        return reply

    for node in app.grid.nodes.values():
        node.spoil, node.config["budget"] = note, 1e6
    app.run(settings="run.rounds=1")
    checkpoint = tmp_path / "results" / "checkpoint"
    kept = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    app.run(resume=True)
    twice: list[list[torch.Tensor]] = []
    for delay, slow in [(d, n) for d in (0.1, 1.0, 5.0) for n in app.grid.nodes]:  # until others come first
        for name, content in kept.items():
            (checkpoint / name).write_bytes(content)
        for number, node in app.grid.nodes.items():
            node.delay = delay * (number == slow)
        app.run(resume=True)
        twice = [list(answers.values()) for answers in sent.values() if len(answers) > 1]
        if twice:
            break
    assert twice
    for answers in twice:
        clean = 2 * 0.05  # two clipped messages are at most that far apart
        assert float(torch.linalg.vector_norm(answers[0] - answers[1])) > 10 * clean


@pytest.mark.parametrize("same", [True, False])
def test_a_server_adds_its_noise_once(same: bool, tmp_path: Path) -> None:
    """Resumed from its first checkpoint, it makes two rounds again: from the same answers, or from others."""
    sections = {**BASE, "privacy": {"mechanism": "dp_fedavg", "clip_norm": 0.5, "noise_multiplier": 1.0}}
    app = Deployment(tmp_path, sections, N)
    app.run(settings="run.rounds=1")
    folder = tmp_path / "results"
    kept = {file.name: file.read_bytes() for file in (folder / "checkpoint").iterdir()}
    first = app.run(resume=True, settings="run.rounds=3")
    before, spent = first.params, first.privacy["epsilon"]
    assert not any("seed is known" in words for words in first.privacy["not_covered"])
    for name, content in kept.items():
        (folder / "checkpoint" / name).write_bytes(content)

    def other(message: Any, reply: Any) -> Any:
        if message.metadata.group_id and not same:
            delta = reply.content["arrays"]["delta"].numpy() * (1 - 1e-9)
            reply.content["arrays"]["delta"] = type(reply.content["arrays"]["delta"])(delta)
        return reply

    app.grid.nodes[101].spoil = other
    again = app.run(resume=True, settings="run.rounds=3")
    words = {json.loads(line).get("word") for line in (folder / "releases.jsonl").read_text().splitlines()}
    if same:
        assert torch.equal(again.params, before)
        assert again.privacy["epsilon"] == spent
        assert words == {None}
    else:
        assert float((again.params - before).abs().max()) > 1e-2
        assert again.privacy["epsilon"] > spent
        assert len(words) == 2
