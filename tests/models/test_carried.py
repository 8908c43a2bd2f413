"""Buffers that training changes travel with the model and are averaged, as batch normalisation's statistics are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import own_models
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.clients.worker import Worker
from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.oracle import CARRIED
from fedsim.core.registry import names
from fedsim.engine.assembly import assemble
from fedsim.engine.best import FILE, read_best
from fedsim.engine.export import run_model
from fedsim.models import exported
from fedsim.models.draws import Keyed
from fedsim.models.nature import nature_of
from fedsim.scenario.load import parse

MODELS = ("Normed", "NormedDropped", "Counting")
SIZES = {"Normed": 18, "NormedDropped": 25, "Counting": 65}  # numbers in buffers that training changes
NOT_HERE = ("ensemble", "clusters", "mae", "r2", "f1")  # of samples, clusters or numbers; f1 takes keys
RING = {"topology": {"graph": "ring"}, "algorithm": {"name": "dspodfl"}}


def scenario(name: str, **sections: Any) -> dict[str, Any]:
    local = {"lr": 0.1, "local_epochs": 1, "batch_size": 16}
    return {
        "data": {"dataset": "digits", "clients": 4, "limit": 240, "partition": {"scheme": "dirichlet", "alpha": 1.0}},
        "model": {"name": f"own_models:{name}", **sections.pop("model", {})},
        "algorithm": {"name": "fedavg", **local, **sections.pop("algorithm", {})},
        "run": {"rounds": 5, "eval_every": 5, "dtype": "float64", "eval_samples": 100, **sections.pop("run", {})},
        **sections,
    }


def stepping(name: str, **sections: Any) -> dict[str, Any]:
    """The same with steps, where an epoch may end in a minibatch of one sample."""
    made = scenario(name, **sections)
    del made["algorithm"]["local_epochs"]
    made["algorithm"]["local_steps"] = 2
    return made


def by_hand(name: str, rounds: int) -> tuple[nn.Module, Any]:
    """FedAvg in plain PyTorch: clients train copies, parameters and buffers are averaged with samples as weights."""
    made = assemble(parse(scenario(name)))
    task: Any = made.task
    torch.default_generator.manual_seed(int(rng.key(0, "model")[0]))
    server = getattr(own_models, name)(10).double()
    weights = task.sizes / task.sizes.sum()
    for number in range(1, rounds + 1):
        mean = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in server.state_dict().items()}
        for client in range(4):
            local = getattr(own_models, name)(10).double()
            local.load_state_dict(server.state_dict())
            steps = task.steps_per_epoch(np.array([client]), 16)
            batches = task.plan(np.array([client]), np.array([number]), steps, 16, True).batches
            for step in range(int(steps[0])):
                rows = batches.index[0, step, : int(batches.counts[0, step])]
                with Keyed(int(rng.key(0, "dropout", client, number, step)[0])):
                    loss = nn.functional.cross_entropy(local.train()(task.inputs[rows]), task.targets[rows])
                local.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for p in local.parameters():
                        p -= 0.1 * p.grad
            for k, v in local.state_dict().items():
                mean[k] += float(weights[client]) * v.double()
        for k, v in server.state_dict().items():
            v.copy_(mean[k] if v.is_floating_point() else mean[k].round())
    return server.eval(), task


@pytest.mark.parametrize("name", ["Normed", "Counting"])
def test_fedavg_is_that_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    run = fedsim.run(scenario(name), out=tmp_path / "run")
    module, task = by_hand(name, 5)
    found, wanted = run.state_dict(), module.state_dict()
    assert found.keys() == wanted.keys()
    for k, v in wanted.items():
        far = 1e-10 if v.is_floating_point() else 2  # integers are rounded at the end, by hand in every round
        assert torch.allclose(found[k].double(), v.double(), rtol=0, atol=far), k
    with torch.no_grad():
        loss = nn.functional.cross_entropy(module(task.test_inputs), task.test_targets)
    assert run.metrics["test_loss"].iloc[-1] == pytest.approx(float(loss), abs=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_stacked_is_sharded_is_single(name: str) -> None:
    made = assemble(parse(stepping(name)))
    clients, rounds, steps = np.arange(4), np.array([1, 2, 2, 5]), np.array([1, 3, 2, 0])
    received = {"x": made.task.initial(), **made.task.carried}

    def sent(groups: list[list[int]], chunk: int | None = None) -> Tensor:
        found = torch.empty(4, made.task.dim + SIZES[name], dtype=torch.float64)
        for group in groups:
            rows = np.array(group)
            task = made.task.shard(np.sort(rows)) if len(rows) < 4 else made.task
            worker = Worker(task, parse(stepping(name)).algorithm, chunk)
            message = worker.run(Job(clients[rows], rounds[rows], steps[rows], received))
            found[rows] = torch.cat([message["delta"], message[CARRIED]], 1)
        return found

    together = sent([[0, 1, 2, 3]])
    assert together[:3, made.task.dim :].abs().sum(1).min() > 0
    assert not together[3].any()
    assert torch.equal(together, sent([[2, 0], [3, 1]]))
    assert torch.equal(together, sent([[3], [1], [2], [0]]))
    assert torch.equal(together, sent([[0, 1, 2, 3]], chunk=2))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        RING,
        {"algorithm": {"name": "scaffold"}},
        {"algorithm": {"name": "fedsam"}},
        {"algorithm": {"name": "fedadam"}},
        {"participation": {"mode": "synchronous", "fraction": 0.5}},
        {"adversary": {"eps": 0.1, "steps": 1}},
    ],
    ids=["fedavg", "ring", "scaffold", "fedsam", "fedadam", "cohorts", "adversary"],
)
def test_a_resumed_run_goes_on_as_it_was(sections: dict[str, Any], tmp_path: Path) -> None:
    def run(rounds: int, where: str, resume: bool = False) -> fedsim.Run:
        made = stepping("NormedDropped", **{k: dict(v) for k, v in sections.items()})
        made["run"] |= {"rounds": rounds, "eval_every": 1}
        return fedsim.run(made, out=tmp_path / where, resume=resume)

    whole = run(3, "whole")
    run(2, "parts")
    again = run(3, "parts", resume=True)
    assert torch.equal(whole.params, again.params)
    assert list(whole.metrics["test_loss"]) == list(again.metrics["test_loss"])
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_server_optimiser_does_not_touch_statistics(tmp_path: Path) -> None:
    found = [
        fedsim.run(scenario("Normed", algorithm={"name": name}, run={"rounds": 1}), out=tmp_path / name)
        for name in ("fedavg", "fedadam")
    ]
    assert torch.equal(*[run.state_dict()["first.running_var"] for run in found])
    assert not torch.equal(*[run.params for run in found])


def test_nodes_that_mix_uniformly_share_their_statistics(tmp_path: Path) -> None:
    graph = {"topology": {"graph": "complete", "weights": "metropolis"}, "algorithm": {"name": "dspodfl"}}
    run = fedsim.run(scenario("Normed", **graph, run={"rounds": 2}), out=tmp_path / "run")
    first, second = (run.state_dict(node)["first.running_mean"] for node in (0, 3))
    assert torch.allclose(first, second, rtol=0, atol=1e-12)
    assert first.abs().min() > 0
    assert torch.allclose(run.state_dict()["first.running_mean"], first, rtol=0, atol=1e-12)


def test_bytes_count_the_buffers(tmp_path: Path) -> None:
    run = fedsim.run(scenario("Normed"), out=tmp_path / "run")
    dim = run.params.numel()
    assert run.metrics["bytes_sent"].iloc[-1] == 5 * 4 * 2 * 8 * (dim + SIZES["Normed"])
    found = fedsim.plan(scenario("Normed"))
    assert found["data"]["numbers in buffers"].startswith("18: ")
    assert found["messages"]["one message"] == f"{8 * (dim + 18) / 1024:.4g} KiB"
    assert found["memory"]["one model"] == found["messages"]["one message"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export_has_the_buffers(name: str, suffix: str, tmp_path: Path) -> None:
    run = fedsim.run(stepping(name, run={"rounds": 1}), out=tmp_path / "run")
    run.export(tmp_path / f"model{suffix}")
    loaded, own = exported.load(tmp_path / f"model{suffix}").module.state_dict(), run.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(v, own[k]) and v.dtype == own[k].dtype for k, v in loaded.items())


def test_rows_that_leave_a_buffer_as_it_is_do_not_hide_it() -> None:
    """What a model carries is the same for clients whose first rows are zeros."""
    nature = nature_of(own_models.Counting(10), torch.zeros(8, 64))
    assert nature.buffers.names == ("mean", "steps")


def test_a_module_is_tried_on_no_numbers_that_it_does_not_take() -> None:
    class Positive(own_models.Counting):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x < 0).any()):
                raise ValueError("found a negative number")
            return super().forward(x)

    assert nature_of(Positive(10), torch.ones(8, 64)).buffers.names == ("mean", "steps")


NOISE = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}


@pytest.mark.parametrize(
    "sections,key,says",
    [
        ({"privacy": {"mechanism": "dp_fedavg", **NOISE}}, "privacy.mechanism", "'dp_fedavg', which covers what"),
        ({"compression": {"name": "top_k", "k": 20}}, "compression.name", "found 'top_k'.*no compression"),
        ({"attack": {"name": "sign_flip", "attackers": 1}}, "attack.name", "found 'sign_flip'.*no attack"),
        ({"aggregator": {"name": "median"}}, "aggregator.name", "found 'median', which is no weighted mean"),
        ({"participation": {"mode": "asynchronous"}}, "participation.mode", "'asynchronous', without rounds"),
        ({**RING, "participation": {"mode": "poisson"}}, "participation.mode", "'poisson', without rounds"),
        (
            {"topology": {"graph": "ring"}, "algorithm": {"name": "choco"}},
            "algorithm.name",
            "'choco', which compresses",
        ),
        ({"topology": {"graph": "ring"}, "algorithm": {"name": "sgp"}}, "algorithm.name", "do not sum to 1"),
        ({"adversary": {"eps": 0.1, "steps": 1, "attack_on": "received"}}, "adversary.attack_on", "allowed: local"),
        ({"algorithm": {"name": "diff2", "clip_norm": 1.0}}, "algorithm.name", "'diff2', which needs the gradient of"),
        ({"run": {"kernel": "stacked"}}, "run.kernel", "this model changes buffers while it trains"),
    ],
)
def test_refused_before_anything_is_written(sections: dict[str, Any], key: str, says: str, tmp_path: Path) -> None:
    made = scenario("Normed", **{k: dict(v) for k, v in sections.items()})
    if "diff2" in says:
        del made["algorithm"]["local_epochs"], made["algorithm"]["batch_size"]
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(made, out=tmp_path / "run")
    assert caught.value.problems[0].key == key
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "work,says",
    [
        ({"local_epochs": 1}, ""),
        ({"local_steps": 1, "batch_size": 1}, "found 1, but client 0 has .* samples, which leaves a minibatch of 1"),
    ],
)
def test_a_minibatch_of_one_sample_has_no_statistics(work: dict[str, Any], says: str, tmp_path: Path) -> None:
    made = scenario("NormedDropped", data={"dataset": "digits", "clients": 1})
    made["algorithm"] = {"name": "fedavg", "lr": 0.1, **work}
    task = assemble(parse({**made, "algorithm": {"name": "fedavg", "local_steps": 1}})).task
    size = int(task.sizes[0])
    if "local_epochs" in work:
        made["algorithm"]["batch_size"] = size - 1
        says = f"found {size - 1}, but client 0 has {size} samples, which leaves a minibatch"
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(made, out=tmp_path / "run")
    assert caught.value.problems[0].key == "algorithm.batch_size"
    assert not (tmp_path / "run").exists()
    made["model"] = {"name": "own_models:Normed"}  # a single image has statistics of its pixels
    assemble(parse(made))


@pytest.mark.parametrize("graph", [False, True], ids=["server", "graph"])
def test_measures_and_loggers_see_the_whole_model(graph: bool, tmp_path: Path) -> None:
    """Every metric of classes, a function's and somebody's own probabilities; the best model is exported as it was."""
    metrics: list[dict[str, Any]] = [{"name": n} for n in names("metric") if n not in NOT_HERE]
    metrics += [{"name": "f1", "average": "micro"}, {"name": "sklearn.metrics:log_loss", "of": "probabilities"}]
    run = {"metrics": metrics, "loggers": [{"name": "best", "metric": "test_loss"}, {"name": "csv"}], "rounds": 2}
    made = stepping("Normed", run={**run, "eval_every": 1}, **(RING if graph else {}))
    done = fedsim.run(made, out=tmp_path / "run")
    last = done.metrics.iloc[-1]
    assert last["log_loss"] == pytest.approx(last["test_loss"])
    assert last["micro_f1"] == pytest.approx(last["test_accuracy"])
    assert last[["auc", "top_5_accuracy", "calibration_error", "balanced_accuracy"]].notna().all()
    best, told = read_best(done.dir)
    assert int(told["round"]) == int(done.metrics["test_loss"].idxmin())
    task: Any = assemble(parse(made)).task
    module, _ = run_model(done.dir, best, saved=FILE)
    loss = nn.functional.cross_entropy(module(task.test_inputs), task.test_targets)
    assert float(loss.detach()) == pytest.approx(float(told["value"]), rel=1e-12)  # not with other buffers
