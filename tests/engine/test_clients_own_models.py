"""Clients' own models on clients' own rows: against a plain loop, in shards, in continuous time, after local steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedsim
from fedsim import Watcher
from fedsim.backends.shard import Shard
from fedsim.clients.evaluating import assembled, evaluate, tuned
from fedsim.core.client_metrics import ClientTable
from fedsim.core.errors import InputError
from fedsim.core.oracle import PERSONAL
from fedsim.core.own_tests import Asked, Tuning
from fedsim.engine.assembly import Assembly, assemble
from fedsim.engine.run_directory import Run
from fedsim.engine.watch import Watched
from fedsim.objective.batches import SupervisedPlan
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import given

BASE: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 8, "limit": 240, "local_test": 0.3, "partition": {"scheme": "linear"}},
    "model": {"name": "mlp", "hidden": [8]},
    "run": {"rounds": 6, "eval_every": 3, "threads": 1, "device": "cpu"},
}
SERVER = {"algorithm": {"name": "own_clients:Keeps", "lr": 0.1, "local_steps": 2, "batch_size": 8}}
NODES = {"algorithm": {"name": "own_clients:KeepsNode", "lr": 0.1, "batch_size": 8}, "topology": {"graph": "ring"}}
MODES: dict[str, dict[str, Any]] = {
    "synchronous": {**SERVER, "participation": {"fraction": 0.5}},
    "asynchronous": {
        **SERVER,
        "participation": {"mode": "asynchronous"},
        "system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}},
    },
    "gossip": {**NODES, "participation": {"compute": 0.5}},
    "poisson": {**NODES, "participation": {"mode": "poisson"}},
    "nodes": {**NODES, "algorithm": {"name": "dspodfl", "lr": 0.1, "batch_size": 8}},
    "push-sum": {**NODES, "algorithm": {"name": "sgp", "lr": 0.1, "batch_size": 8}},
    "ditto": {"algorithm": {"name": "ditto", "lr": 0.1, "batch_size": 8}, "participation": {"fraction": 0.5}},
    "personal": {"algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 8}},
    "personal nodes": {**NODES, "algorithm": {"name": "dspodfl", "lr": 0.1, "batch_size": 8}},
    "scaffold": {"algorithm": {"name": "scaffold", "lr": 0.1, "local_steps": 2}},
}


class Sees(Watcher):
    """Notes every table, and the model of each of its clients then, by hand."""

    def __init__(self) -> None:
        self.seen: list[tuple[ClientTable, torch.Tensor]] = []

    def began(self, run: Watched) -> None:
        self.now = run.now

    def clients(self, table: ClientTable) -> None:
        self.seen.append((table, self._models(self.now(), table.clients)))

    @staticmethod
    def _models(view: Any, clients: np.ndarray) -> torch.Tensor:
        x, name = view.state("x", clients), view.scenario.names["algorithm"]
        x = x.expand(len(clients), -1)
        if name == "ditto":
            return view.kept("v", clients)
        if "Keeps" in name:
            return 0.5 * (x + view.kept("v", clients))
        if view.task.sharing.everything:
            return x
        split, own = view.task.sharing.params, view.home.personal(clients)[PERSONAL]
        return split.whole(split.common(x), own)


def by_hand(assembly: Assembly, model: torch.Tensor, client: int) -> tuple[float, float]:
    """Accuracy and loss of one model on the client's rows, one row after the other."""
    tests, kernel = assembly.task.tests, assembly.task.kernel  # type: ignore[attr-defined]
    rows = tests.of(client)
    with torch.no_grad():
        out = torch.cat([kernel.outputs(model.unsqueeze(0), tests.inputs[i : i + 1])[0] for i in rows.tolist()])
    y = tests.targets[rows]
    return float((out.argmax(1) == y).double().mean()), float(torch.nn.functional.cross_entropy(out.double(), y))


@pytest.mark.parametrize("mode", MODES)
def test_every_client_is_asked_with_the_model_that_it_would_use(mode: str, tmp_path: Path) -> None:
    sees, settings = Sees(), {**BASE, **MODES[mode]}
    if mode.startswith("personal"):
        settings["model"] = {**BASE["model"], "personal": ["*.weight"]}
    run = fedsim.run(settings, out=tmp_path / "run", watchers=[sees])
    assembly = assemble(given(settings))
    assert [table.round for table, _ in sees.seen] == [0, 3, 6]
    for table, models in sees.seen:
        for i, client in enumerate(table.clients.tolist()):
            accuracy, loss = by_hand(assembly, models[i], client)
            assert table.values["accuracy"][i] == pytest.approx(accuracy, abs=1e-12)
            assert table.values["loss"][i] == pytest.approx(loss, rel=1e-5)
        told = run.clients[run.clients["round"] == table.round]
        assert np.array_equal(told["loss"], table.values["loss"])
    if mode != "scaffold":  # each has another model at the end
        assert len({tuple(m.tolist()) for m in sees.seen[-1][1]}) > 1


MODELS: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear"},
    "mlp": {"name": "mlp", "hidden": [8]},
    "cnn": {"name": "cnn"},
    "stacked": {"name": "own_models:Tied"},
    "batch norm": {"name": "own_models:Normed", "batch_norm": "average"},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tuning", [None, Tuning(3, False, 0.1, 5), Tuning(1, True, 0.1, 8)], ids=str)
def test_shards_say_the_same(model: str, tuning: Tuning | None) -> None:
    """Bit for bit; after local steps to rounding, as local steps are."""
    settings = {**BASE, "model": MODELS[model], **SERVER}
    if tuning is not None:
        settings["run"] = {**BASE["run"], "dtype": "float64"}
    scenario = given(settings)
    assembly = assemble(scenario)
    worker, task = assembly.worker(scenario), assembly.task
    clients = np.arange(8)
    noise = torch.randn(8, task.dim, generator=torch.Generator().manual_seed(3), dtype=task.dtype)
    models = task.initial() + 0.1 * noise
    received = {"x": models, **task.carried}
    asked = Asked(3, tuning=tuning, whole=True)
    whole = evaluate(worker, clients, received, asked)
    assert whole.outputs is not None
    for parts in ([[0, 2, 4, 6], [1, 3, 5, 7]], [[0, 1, 2], [7], [3, 4, 5, 6]], [[c] for c in range(8)]):
        answers = []
        for some in map(np.array, parts):
            shard = Shard(task.shard(some), lambda t: replace(assembly, task=t).worker(scenario), some, drop=False)
            mine = {k: v[torch.as_tensor(some)].numpy() if v.dim() > 1 else v.numpy() for k, v in received.items()}
            answers.append((some, shard.own_answers(some, mine, asked)))
        found = assembled(answers, task.own.sizes)  # type: ignore[union-attr]
        assert np.array_equal(found.right, whole.right)  # type: ignore[arg-type]
        most = 0.0 if tuning is None else 1e-12
        np.testing.assert_allclose(found.losses, whole.losses, rtol=most, atol=0)
        np.testing.assert_allclose(found.outputs, whole.outputs, rtol=most, atol=most)


@pytest.mark.parametrize("tuning", [Tuning(3, False, 0.1, 5), Tuning(2, True, 0.05, 8), Tuning(2, False, 0.2, "full")])
def test_tuning_is_plain_sgd_on_training_rows(tuning: Tuning) -> None:
    task = assemble(given({**BASE, **SERVER, "run": {**BASE["run"], "dtype": "float64"}})).task
    assert isinstance(task, SupervisedTask)
    clients = np.array([1, 4, 6])
    models = task.initial().repeat(3, 1)
    found = tuned(task, models, clients, 5, tuning)
    for i, client in enumerate(clients.tolist()):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
        net.double()
        torch.nn.utils.vector_to_parameters(models[i].clone(), net.parameters())
        one = np.array([client])
        steps = tuning.amount * (
            task.steps_per_epoch(one, tuning.batch_size) if tuning.epochs else np.ones(1, dtype=int)
        )
        plan = task.plan(one, np.array([5 + 2**40]), steps, tuning.batch_size, tuning.epochs)
        assert isinstance(plan, SupervisedPlan)
        own = set(task.indices[task.offsets[client] : task.offsets[client + 1]].tolist())
        for step in range(int(steps[0])):
            batch = plan.batches.index[0, step, : int(plan.batches.counts[0, step])]
            assert set(batch.tolist()) <= own
            loss = torch.nn.functional.cross_entropy(net(task.inputs[batch]), task.targets[batch])
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads, strict=True):
                    p -= tuning.lr * g
        assert torch.allclose(torch.nn.utils.parameters_to_vector(net.parameters()), found[i], rtol=0, atol=1e-12)
    assert torch.equal(models, task.initial().repeat(3, 1))


def test_nothing_of_tuning_is_kept(tmp_path: Path) -> None:
    settings = {**BASE, **SERVER}
    plain = fedsim.run(settings, out=tmp_path / "plain")
    how = {"steps": 4, "lr": 0.3}
    after = fedsim.run({**settings, "run": {**BASE["run"], "finetune": how}}, out=tmp_path / "tuned")
    assert torch.equal(plain.params, after.params)
    same = [c for c in plain.metrics if not c.startswith("client_") and c != "wall"]
    pd.testing.assert_frame_equal(plain.metrics[same], after.metrics[same], check_exact=True)
    last = plain.clients["round"] == 6
    assert after.clients.accuracy[last].mean() > plain.clients.accuracy[last].mean() + 0.1


class Dies(Watcher):
    """Copies the run directory at a moment in which a process may be killed."""

    def __init__(self, place: Path, at: str, after: int) -> None:
        self.place, self.at, self.after = place, at, after

    def began(self, run: Watched) -> None:
        self.dir, self.number = run.dir, 0

    def round(self, number: int, row: Any) -> None:
        self.number = number
        self._copy("round")

    def saving(self) -> None:
        self._copy("saving")

    def _copy(self, at: str) -> None:
        if at == self.at and self.number == self.after:
            shutil.copytree(self.dir, self.place, ignore=shutil.ignore_patterns(".fedsim.lock"))


@pytest.mark.parametrize("at", ["round", "saving"])
def test_a_killed_run_has_every_client_of_every_round_once(at: str, tmp_path: Path) -> None:
    """In the middle of its rounds, and after rows were written and before the checkpoint was."""
    run = {"rounds": 6, "eval_every": 1, "checkpoint_seconds": 1e-9, "eval_clients": 5}
    settings = {**BASE, **MODES["synchronous"], "run": {**BASE["run"], **run}}
    whole = fedsim.run(settings, out=tmp_path / "whole", watchers=[Dies(tmp_path / "run", at, 4)]).clients
    there = Run(tmp_path / "run").clients["round"].max()
    assert there == (3 if at == "round" else 4)
    resumed = fedsim.run(settings, out=tmp_path / "run", resume=True)
    assert resumed.resumed_at == 3
    pd.testing.assert_frame_equal(resumed.clients, whole, check_exact=True)
    assert whole.groupby("round").size().tolist() == [5] * 7
    assert whole.groupby("round").client.apply(tuple).nunique() > 1  # others each time


@pytest.mark.parametrize(
    "sections",
    [{"algorithm": {"name": "ditto", "lambda": 1e30}}, {"run": {"finetune": {"steps": 3, "lr": 1e38}}}],
    ids=["own", "tuned"],
)
def test_a_model_that_has_diverged_is_right_about_nothing(sections: dict[str, Any], tmp_path: Path) -> None:
    """Of what is no number the first class would be the largest, and its share would look like an accuracy."""
    algorithm = {"name": "fedavg", "lr": 0.1, "local_steps": 2, **sections.get("algorithm", {})}
    settings = {"rounds": 2, "eval_every": 2, **sections.get("run", {})}
    run = fedsim.run({**BASE, "algorithm": algorithm, "run": {**BASE["run"], **settings}}, out=tmp_path / "run")
    last = run.clients[run.clients["round"] == 2]
    assert last.loss.isna().any()
    assert (last.accuracy.isna() == last.loss.isna()).all()
    row = run.metrics.iloc[-1]
    assert row[["client_accuracy_mean", "client_accuracy_worst", "client_loss_mean"]].isna().all()
    fedsim.report([run.dir], tmp_path / "report.html")
    lost, said = last.client[last.loss.isna()].tolist(), (run.dir / "log.txt").read_text()
    assert said.count("their models have diverged") == 1
    assert f"of 8 clients on their own test rows is not finite (client {lost[0]} is the first)" in said


def test_attackers_are_left_out(tmp_path: Path) -> None:
    attacked = {**BASE, **SERVER, "attack": {"name": "sign_flip", "attackers": [2, 5]}}
    run = fedsim.run({**attacked, "run": {**BASE["run"], "rounds": 1}}, out=tmp_path / "run")
    assert sorted(run.clients.client.unique()) == [0, 1, 3, 4, 6, 7]


def test_a_private_run_says_that_epsilon_covers_none_of_it(tmp_path: Path) -> None:
    private = {"mechanism": "dp_sgd", "noise_multiplier": 2.0, "clip_norm": 1.0, "sampling_rate": 0.2}
    settings = {**BASE, "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 8}, "privacy": private}
    run = fedsim.run({**settings, "run": {**BASE["run"], "rounds": 1}}, out=tmp_path / "run")
    assert {"client_accuracy_mean", "client_loss_worst"} <= set(run.privacy["oracle_metrics"])


def test_clients_of_the_common_test_data_and_of_quadratics(tmp_path: Path, quadratic: Callable[..., Any]) -> None:
    data = {k: v for k, v in BASE["data"].items() if k != "local_test"}
    run = {**BASE["run"], "rounds": 1, "eval_clients": "all"}
    common = fedsim.run({**BASE, "data": data, **MODES["scaffold"], "run": run}, out=tmp_path / "common")
    row = common.metrics.iloc[-1]
    assert row.client_accuracy_mean == row.client_accuracy_worst == pytest.approx(row.test_accuracy)
    assert row.client_loss_std == 0
    assert set(common.clients.test_samples) == {240}
    nodes = fedsim.run({**BASE, "data": data, **MODES["nodes"], "run": run}, out=tmp_path / "nodes").metrics
    assert nodes.client_accuracy_mean.tolist() == pytest.approx(nodes.node_accuracy.tolist())
    problem = quadratic(n=4, d=3)
    own = fedsim.run(
        {"data": problem.section(), "algorithm": {"name": "fedavg", "lr": 0.1},
         "run": {"rounds": 2, "eval_clients": "all", "dtype": "float64"}}, out=tmp_path / "quadratic",
    )  # fmt: skip
    x = own.params.numpy()
    gaps = x - problem.b
    losses = [0.5 * float(gap @ problem.grad(i, x)) for i, gap in enumerate(gaps)]
    assert own.clients[own.clients["round"] == 2].loss.tolist() == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize(
    ("sections", "key", "said"),
    [
        ({"run": {"eval_clients": 9}}, "run.eval_clients", "found 9, but 8 clients can be evaluated"),
        ({"run": {"finetune": {"steps": 1, "epochs": 1}}}, "run.finetune", "both 'steps' and 'epochs'"),
        ({"run": {"finetune": {"lr": 0.1}}}, "run.finetune", "neither 'steps' nor 'epochs'"),
        ({"data": {"local_test": "natural"}}, "data.local_test", "no test rows of clients' own ids"),
        ({"data": {"local_test": 1.0}}, "data.local_test", "found 1.0"),
        ({"data": {"local_test": None}, "run": {"finetune": {"steps": 1}}}, "run.finetune", "not evaluated"),
    ],
)
def test_what_cannot_be_asked_is_refused(sections: dict[str, Any], key: str, said: str, tmp_path: Path) -> None:
    settings = {**BASE, **MODES["scaffold"]}
    with pytest.raises(InputError, match=said) as caught:
        fedsim.run({k: {**v, **sections.get(k, {})} for k, v in settings.items()}, out=tmp_path / "run")
    assert [problem.key for problem in caught.value.problems] == [key]
    assert not (tmp_path / "run").exists()
