"""Dropout: masks are functions of seed, client, round, step and place, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
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
from fedsim.core.types import clip_norm
from fedsim.engine.assembly import assemble
from fedsim.models.draws import Keyed
from fedsim.models.layout import load_flat
from fedsim.models.nature import nature_of
from fedsim.objective.training import DrawingKernel
from fedsim.scenario.load import parse

MODELS = ("Dropped", "DroppedConvolutions", "Attention", "Recurrent", "Stochastic")
X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
LAYERS: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "channels": lambda: nn.Dropout1d(0.5),
    "alpha": lambda: nn.AlphaDropout(0.3),
    "feature alpha": lambda: nn.FeatureAlphaDropout(0.3),
    "a function": lambda: lambda x: nn.functional.dropout2d(x.unsqueeze(1), 0.4),
    "lstm": lambda: nn.LSTM(8, 5, 2, dropout=0.4),
    "gru": lambda: nn.GRU(8, 5, 2, dropout=0.4),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "noise": lambda: lambda x: x + torch.randn_like(x) + torch.rand(x.shape) + torch.empty_like(x).normal_(),
    "given p": lambda: lambda x: torch.bernoulli(torch.full_like(x, 0.3)) * x,
}


def scenario(name: str, **sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 4},
        "model": {"name": f"own_models:{name}", **sections.pop("model", {})},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 7, **sections.pop("algorithm", {})},
        "run": {"rounds": 3, "dtype": "float64", "eval_samples": 50, **sections.pop("run", {})},
        **sections,
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_draws_depend_on_the_key_alone(layer: str) -> None:
    torch.manual_seed(0)
    module, before = LAYERS[layer](), torch.get_rng_state()

    def out(key: int) -> Tensor:
        with Keyed(key):
            found = module(X)
        return found[0] if isinstance(found, tuple) else found

    first = out(3)
    torch.manual_seed(7)
    assert torch.equal(first, out(3))
    assert not torch.equal(first, out(4))
    torch.manual_seed(0)
    LAYERS[layer]()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("before", [True, False])
def test_draws_of_hooks_are_found(before: bool) -> None:
    module = nn.Sequential(nn.Linear(8, 3))
    assert nature_of(module, X).plain
    if before:
        module[0].register_forward_pre_hook(lambda _, given: (given[0] + torch.randn_like(given[0]),))
    else:
        module[0].register_forward_hook(lambda _module, _given, out: out + torch.randn_like(out))
    assert nature_of(module, X).draws


def test_draws_of_a_forward_of_ones_own_are_found() -> None:
    module = nn.Sequential(nn.Linear(8, 3))
    own = module[0].forward
    module[0].forward = lambda x: own(x) + torch.randn(3)
    assert nature_of(module, X).draws


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_a_mask_drops_as_often_as_it_should(p: float) -> None:
    n = 200_000
    with Keyed(1):
        kept = nn.functional.dropout(torch.ones(n, dtype=torch.float64), p)
    assert set(kept.unique().tolist()) == {0.0, 1 / (1 - p)}
    assert abs(float((kept == 0).double().mean()) - p) < 4 * (p * (1 - p) / n) ** 0.5
    with Keyed(1):
        assert torch.equal(nn.functional.dropout(torch.ones(5), 1.0), torch.zeros(5))
        assert torch.equal(nn.functional.dropout(torch.ones(5), 0.0), torch.ones(5))


def test_attention_that_drops_nothing_is_left_alone() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    with Keyed(1) as keyed:
        found = layer(X, X, X, need_weights=False)[0]
    assert keyed.draws == 0
    assert torch.equal(found, layer(X, X, X, need_weights=False)[0])


def test_places_in_a_forward_pass_have_masks_of_their_own() -> None:
    ones = torch.ones(1000)
    with Keyed(1) as keyed:
        a, b = nn.functional.dropout(ones, 0.5), nn.functional.dropout(ones, 0.5)
    assert keyed.draws == 2
    assert 350 < int((a == b).sum()) < 650


@pytest.mark.parametrize("way", ["rows", "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_stacked_is_sharded_is_single(name: str, way: str) -> None:
    """Client by client bit for bit; where vmap takes clients together to rounding."""
    made = assemble(parse(scenario(name, algorithm={"local_steps": 3}, run={"kernel": way})))
    clients, rounds, steps = np.arange(4), np.array([1, 2, 2, 5]), np.array([1, 3, 2, 0])
    x = made.task.initial()

    def deltas(groups: list[list[int]], chunk: int | None = None) -> Tensor:
        found = torch.empty(4, made.task.dim, dtype=torch.float64)
        for group in groups:
            rows = np.array(group)
            task = made.task.shard(np.sort(rows)) if len(rows) < 4 else made.task
            worker = Worker(task, parse(scenario(name)).algorithm, chunk)
            found[rows] = worker.run(Job(clients[rows], rounds[rows], steps[rows], {"x": x}))["delta"]
        return found

    far = 0.0 if way == "rows" else 1e-13
    together = deltas([[0, 1, 2, 3]])
    assert together[:3].abs().sum(1).min() > 0
    for other in (deltas([[2, 0], [3, 1]]), deltas([[3], [1], [2], [0]]), deltas([[0, 1, 2, 3]], chunk=2)):
        assert float((together - other).abs().max()) <= far


@pytest.mark.parametrize("name", MODELS)
def test_both_ways_are_one(name: str) -> None:
    """Also of minibatches that are not whole, of which vmap takes those of one size together."""
    data = {"dataset": "digits", "clients": 5, "limit": 60, "partition": {"scheme": "dirichlet", "alpha": 0.5}}
    found = []
    for way in ("rows", "auto"):
        made = assemble(parse(scenario(name, data=data, run={"kernel": way})))
        job = Job(np.arange(5), np.ones(5, dtype=np.int64), np.full(5, 3), {"x": made.task.initial()})
        found.append(Worker(made.task, parse(scenario(name, algorithm={"batch_size": 14})).algorithm).run(job)["delta"])
        stacked = isinstance(made.task.kernel, DrawingKernel)  # type: ignore[attr-defined]
        assert stacked == (way == "auto" and name in ("Dropped", "Attention"))
    assert float((found[0] - found[1]).abs().max()) < 1e-13
    assert found[0].abs().sum(1).min() > 0


def samples_of(task: Any, private: bool) -> Any:
    """Minibatches of three clients, drawn for a private step or an ordinary one."""
    who, rounds, steps = np.array([0, 1, 3]), np.array([2, 1, 1]), np.array([2, 2, 2])
    if private:
        return task.poisson_plan(who, rounds, steps, np.array([0.1, 0.05, 0.2]))
    return task.plan(who, rounds, steps, 5, False)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_samples_are_those_of_a_loop(name: str, private: bool) -> None:
    """Each sample has masks of its own, whatever it is computed with, and the same ones at two models."""
    task: Any = assemble(parse(scenario(name, data={"dataset": "digits", "clients": 4, "limit": 100}))).task
    plan = samples_of(task, private)
    at = torch.stack([task.initial() * s for s in (1.0, 1.1, 0.9)])
    oracle = plan.oracle(1, 3, torch.ones(3, 1, dtype=torch.float64))
    torch.default_generator.manual_seed(int(rng.key(0, "model")[0]))
    module = getattr(own_models, name)(10).double().train()

    def one(x: Tensor, row: int, place: int) -> Tensor:
        load_flat(module, x)
        key = rng.fold(oracle.batch.keys[row, None], oracle.batch.positions[row, place])
        sample = task.inputs[oracle.batch.index[row, place]][None]
        with Keyed(int(key[0])):
            loss = nn.functional.cross_entropy(module(sample), oracle.batch.targets[row, place][None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])

    wanted, differences = torch.zeros_like(at), torch.zeros_like(at)
    grads = oracle.per_sample_grad(at)
    assert int(oracle.batch.counts.sum()) > 3
    for row in range(3):
        for place in range(int(oracle.batch.counts[row])):
            g, other = one(at[row], row, place), one(at[row] * 1.01, row, place)
            assert torch.allclose(grads[row, place], g, rtol=0, atol=1e-12)
            wanted[row] += clip_norm(g, 0.7)
            differences[row] += clip_norm(g - other, 0.01)
    assert torch.allclose(oracle.clipped_sum(at, 0.7), wanted, rtol=0, atol=1e-12)
    assert torch.allclose(oracle.clipped_sum(at, 0.01, at * 1.01), differences, rtol=0, atol=1e-12)
    alone = [plan.oracle(1, 3, oracle.lr).clipped_sum(at, 0.7), samples_of(task, private).oracle(1, 2, oracle.lr[:2])]
    assert torch.equal(alone[0], oracle.clipped_sum(at, 0.7))
    assert torch.allclose(alone[1].clipped_sum(at[:2], 0.7), wanted[:2], rtol=0, atol=1e-12)


def test_a_step_is_that_of_a_plain_loop() -> None:
    made = assemble(parse(scenario("Dropped")))
    worker = Worker(made.task, parse(scenario("Dropped")).algorithm)
    client, round_ = 2, 4
    one, rounds = np.array([client]), np.array([round_])
    found = worker.run(Job(one, rounds, np.array([2]), {"x": made.task.initial()}))["delta"][0]
    torch.default_generator.manual_seed(int(rng.key(0, "model")[0]))
    module = own_models.Dropped(10).double()
    before = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.equal(before, made.task.initial())
    batches = made.task.plan(one, rounds, np.array([2]), 7, False).batches  # type: ignore[attr-defined]
    for step in range(2):
        inputs = made.task.inputs[batches.index[0, step]]  # type: ignore[attr-defined]
        with Keyed(int(rng.key(0, "dropout", client, round_, step)[0])):
            loss = nn.functional.cross_entropy(module(inputs), batches.targets[0, step])
        module.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.1 * p.grad
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.allclose(found, after - before, rtol=0, atol=1e-14)


def test_evaluations_drop_nothing(tmp_path: Path) -> None:
    run = fedsim.run(scenario("Dropped"), out=tmp_path / "run")
    task = assemble(parse(scenario("Dropped"))).task
    assert run.metrics["test_loss"].iloc[-1] == task.evaluate(run.params)["test_loss"]
    module = run.model().train()
    with torch.no_grad():
        module.drop.p, dropping = 0.0, nn.functional.cross_entropy
        x, y = task.test_inputs, task.test_targets  # type: ignore[attr-defined]
        loss = dropping(module.eval()(x), y)
    assert float(loss) == pytest.approx(run.metrics["test_loss"].iloc[-1], abs=1e-12)


@pytest.mark.parametrize("graph", [False, True])
def test_evaluations_of_clients_own_models_drop_nothing(graph: bool, tmp_path: Path) -> None:
    made = scenario(
        "Dropped",
        **(
            {"topology": {"graph": "ring"}, "algorithm": {"name": "gossip_local"}}
            if graph
            else {"algorithm": {"name": "local"}}
        ),
    )
    made["data"]["local_test"] = 0.3
    run = fedsim.run(made, out=tmp_path / "run")
    columns = [c for c in run.metrics if c.startswith("client_")]
    assert len(columns) > 5
    for key, value in (("chunk_rows", 1), ("kernel", "rows")):
        made["run"][key] = value
        again = fedsim.run(made, out=tmp_path / key)
        assert np.allclose(again.metrics[columns], run.metrics[columns], rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"topology": {"graph": "ring"}, "algorithm": {"name": "dspodfl"}},
        {"algorithm": {"name": "scaffold"}},
        {"algorithm": {"name": "fedsam"}},
        {"participation": {"mode": "asynchronous"}},
        {"compression": {"name": "top_k", "k": 20}},
        {"attack": {"name": "sign_flip", "attackers": 1}, "aggregator": {"name": "median"}},
        {"adversary": {"eps": 0.1, "steps": 2}},
        {"privacy": {"mechanism": "dp_fedavg", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}},
        {"privacy": {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5,
                     "sampling_rate": 0.1}, "algorithm": {"batch_size": None}},
        {"algorithm": {"name": "diff2", "clip_norm": 1.0, "batch_size": None, "local_steps": None}},
    ],
    ids=lambda s: "-".join(s) or "fedavg",
)  # fmt: skip
def test_a_resumed_run_goes_on_as_it_was(sections: dict[str, Any], tmp_path: Path) -> None:
    def run(rounds: int, where: str, resume: bool = False) -> fedsim.Run:
        made = scenario("Dropped", **{k: dict(v) for k, v in sections.items()})
        made["run"]["rounds"] = rounds
        made["algorithm"] = {k: v for k, v in made["algorithm"].items() if v is not None}
        return fedsim.run(made, out=tmp_path / where, resume=resume)

    whole = run(3, "whole")
    run(2, "parts")
    assert torch.equal(whole.params, run(3, "parts", resume=True).params)


@pytest.mark.parametrize(
    "sections,key,says",
    [
        ({"algorithm": {"name": "fsgld", "surrogate": {"name": "laplace", "covariance": "diagonal"}},
          "participation": {"clients_per_round": 1}}, "algorithm.surrogate.name", "no curvature that is known"),
        ({"run": {"kernel": "stacked"}}, "run.kernel", "draws random numbers in a way that torch.func.vmap cannot"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(sections: dict[str, Any], key: str, says: str, tmp_path: Path) -> None:
    made = scenario("Stochastic" if key == "run.kernel" else "Dropped", **sections)
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(made, out=tmp_path / "run")
    assert caught.value.problems[0].key == key
    assert not (tmp_path / "run").exists()
