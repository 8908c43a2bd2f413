"""Runs whose inputs are attacked: units, keys of random starts, every kind of gradient, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adversary_makers import EPS, on_digits

from fedsim.core.errors import InputError
from fedsim.data.named import Cifar10
from fedsim.data.sets import Digits, made
from fedsim.data.splits import Split
from fedsim.engine.assembly import assemble
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import parse

Make = Callable[..., Any]
CPU = torch.device("cpu")
ONE_STEP = {"eps": EPS, "step": EPS, "steps": 1}


# --- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize,top", [("none", 16.0), ("unit", 1.0), ("standard", None)])
def test_pixel_range_of_every_scaling(normalize: Any, top: float | None) -> None:
    data = Digits(normalize=normalize).load(None, 0, None)  # type: ignore[arg-type]
    assert data.pixels is not None
    assert torch.equal(data.train_x.min(), data.pixels.low.min())
    assert torch.equal(data.train_x.max(), data.pixels.high.max())
    if top is not None:
        assert float(data.pixels.unit) == top


def test_channels_are_scaled_by_their_own_spread() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4)).astype(np.float32)
    images[0, :, 0, 0], images[1, :, 0, 0] = 0, 255
    split = Split(images, np.arange(20) % 10, 10)
    data = made("cifar10", split, split, "standard", None, top=255.0, stats=Cifar10.stats)
    assert data.pixels is not None
    np.testing.assert_allclose(data.pixels.unit.flatten(), 1 / np.array([0.2470, 0.2435, 0.2616]), rtol=1e-6)
    assert torch.equal(data.train_x[0, :, 0, 0], data.pixels.low.flatten())
    assert torch.equal(data.train_x[1, :, 0, 0], data.pixels.high.flatten())


def test_eps_is_the_same_whatever_the_scaling() -> None:
    """The same model in other units, attacked with the same eps, is as wrong."""
    found = []
    for normalize in ("unit", "standard", "none"):
        s = on_digits({"eps": 0.1, "steps": 5}, run={"dtype": "float64", "device": "cpu"}, model={"name": "linear"})
        task = assemble(parse({**s, "data": {**s["data"], "normalize": normalize}})).task
        assert isinstance(task, SupervisedTask)
        assert task.pixels is not None
        torch.manual_seed(0)
        w, low, unit = torch.randn(10, 64).double(), task.pixels.low.double(), task.pixels.unit.double()
        params = torch.cat([(w / unit.flatten()).flatten(), -(w / unit.flatten()).sum(1) * float(low.flatten()[0])])
        found.append(task.evaluate(params))
    for other in found[1:]:
        assert other["robust_loss"] == pytest.approx(found[0]["robust_loss"], rel=1e-5)
        assert other["robust_accuracy"] == found[0]["robust_accuracy"]
    assert found[0]["robust_loss"] > found[0]["test_loss"] + 0.5


# --- keys: a start depends on client, round, step and sample alone ----------------------------------------------------

STARTED = {"eps": 0.2, "steps": 2, "random_start": True}


def test_chunks_and_the_cohort_do_not_matter(run_scenario: Make) -> None:
    whole = run_scenario(**on_digits(STARTED), run={"rounds": 3})
    chunked = run_scenario(**on_digits(STARTED), run={"rounds": 3, "chunk_rows": 1})
    assert (whole.params - chunked.params).abs().max() < 1e-12
    other = run_scenario(**on_digits({**STARTED, "random_start": False}), run={"rounds": 3})
    assert (whole.params - other.params).abs().max() > 1e-4


@pytest.mark.parametrize("on", ["local", "received"])
def test_shards_attack_alike(on: str) -> None:
    s = on_digits({**STARTED, "attack_on": on}, run={"dtype": "float64", "device": "cpu"})
    task = assemble(parse(s)).task
    clients, rounds, steps = np.array([1, 3]), np.array([4, 4]), np.array([2, 2])
    x = torch.stack([task.initial(), 1.1 * task.initial()])
    seen = []
    for part, rows in ((task, [0, 1]), (task.shard(np.array([3])), [1]), (task.shard(np.array([1, 3])), [0, 1])):
        plan = part.plan(clients[rows], rounds[rows], steps[rows], 5, False)
        plan.begin({"x": 0.5 * x[rows]})
        seen.append(plan.oracle(1, len(rows), x.new_full((len(rows), 1), 0.1)).seen(x[rows]))  # type: ignore[attr-defined]
    torch.testing.assert_close(seen[1][0], seen[0][1], rtol=0, atol=1e-12)
    assert torch.equal(seen[2], seen[0])


def test_starts_are_of_the_sample_wherever_it_is_in_a_minibatch() -> None:
    """In another minibatch of the same step, of the whole data, each sample becomes the same."""
    task = assemble(parse(on_digits(STARTED, run={"dtype": "float64", "device": "cpu"}))).task
    one, x = np.array([1]), task.initial().unsqueeze(0)
    found = {}
    for batch in (5, "full"):
        oracle: Any = task.plan(one, one, one, batch, False).oracle(0, 1, x.new_full((1, 1), 0.1))  # type: ignore[arg-type]
        found[batch] = dict(zip(oracle.batch.positions[0].tolist(), oracle.seen(x)[0], strict=True))
    for position, sample in found[5].items():
        torch.testing.assert_close(sample, found["full"][position], rtol=0, atol=1e-12)
    later: Any = task.plan(one, 1 + one, one, "full", False).oracle(0, 1, x.new_full((1, 1), 0.1))
    assert float((later.seen(x)[0][0] - found["full"][0]).abs().max()) > 1e-3


# --- with every kind of gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["local", "received"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_clipped_sums_are_those_of_the_samples_one_by_one(norm: str, on: str) -> None:
    s = on_digits({**STARTED, "norm": norm, "attack_on": on}, run={"dtype": "float64", "device": "cpu"})
    task = assemble(parse(s)).task
    clients, ones = np.array([0, 2]), np.array([1, 1])
    plan = task.poisson_plan(clients, ones, ones, np.array([0.7, 0.4]))
    torch.manual_seed(2)
    x, minus = (torch.randn(2, task.dim, dtype=torch.float64) for _ in range(2))
    plan.begin({"x": task.initial()})
    oracle = plan.oracle(0, 2, x.new_full((2, 1), 0.1))
    grads = oracle.per_sample_grad(x)
    length = grads.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(oracle.clipped_sum(x, 0.5), (grads * (0.5 / length).clamp(max=1)).sum(1))
    change = grads - oracle.per_sample_grad(minus)
    length = change.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(oracle.clipped_sum(x, 0.5, minus), (change * (0.5 / length).clamp(max=1)).sum(1))


def test_one_sample_changes_nothing_of_the_others() -> None:
    """What bounds the sensitivity of a private run: gradients on two data sets differ in one sample's alone."""
    s = on_digits(STARTED, run={"dtype": "float64", "device": "cpu"})
    task = assemble(parse(s)).task
    assert isinstance(task, SupervisedTask)
    index = int(task.indices[task.offsets[1] + 3])
    other = task.to(CPU)
    other.inputs = task.inputs.clone()
    other.inputs[index] = task.inputs[index].flip(-1)
    one, lr = np.array([1]), torch.full((1, 1), 0.1, dtype=torch.float64)
    x = task.initial().unsqueeze(0)
    grads = [t.plan(one, one, one, "full", False).oracle(0, 1, lr).per_sample_grad(x)[0] for t in (task, other)]
    differ = (grads[0] - grads[1]).abs().amax(-1) > 1e-12
    assert differ.nonzero().flatten().tolist() == [3]


def test_a_private_run_without_noise_or_clip_is_the_plain_one(run_scenario: Make) -> None:
    adversary = {"eps": 0.1, "steps": 2}
    keys = {"algorithm": {"name": "fal", "lr": 0.2, "local_steps": 2, "batch_size": "full"}}
    plain = run_scenario(**on_digits(adversary, **keys), run={"rounds": 3})
    private = {"mechanism": "dp_sgd", "noise_multiplier": 0.0, "clip_norm": 1e9}
    run = run_scenario(**on_digits(adversary, **keys, privacy=private), run={"rounds": 3})
    assert (run.params - plain.params).abs().max() < 1e-12
    assert run.metrics["gradients"].iloc[-1] == plain.metrics["gradients"].iloc[-1]
    assert "robust_loss" in run.metrics


ALGORITHMS: dict[str, dict[str, Any]] = {
    "scaffold": {"algorithm": {"name": "scaffold", "lr": 0.1, "local_steps": 2, "batch_size": 5}},
    "fedsam": {"algorithm": {"name": "fedsam", "lr": 0.1, "local_steps": 2, "batch_size": 5}},
    "dspodfl": {
        "algorithm": {"name": "dspodfl", "lr": 0.1, "batch_size": 5}, "topology": {"graph": "ring"},
    },
    "fedbuff": {
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 5},
        "participation": {"mode": "fedbuff", "buffer": 2, "weights": "identical"},
    },
    "attackers": {"aggregator": {"name": "trimmed_mean", "f": 1}, "attack": {"name": "alie", "attackers": [2]}},
    "top_k": {"compression": {"name": "top_k", "k": 20, "feedback": "ef21"}},
    "poisson": {
        "algorithm": {"name": "dspodfl", "lr": 0.1, "batch_size": 5}, "topology": {"graph": "ring"},
        "participation": {"mode": "poisson"},
    },
    "bvr": {"algorithm": {"name": "diff2_bvr", "lr": 0.1, "clip_norm": 1.0, "difference_clip": 1.0, "inner_clip": 1.0},
            "privacy": {"mechanism": "gaussian_bvr", "difference_noise_multiplier": 0.1, "inner_noise_multiplier": 0.1,
                        "noise_multiplier": 0.1}},
}  # fmt: skip


@pytest.mark.parametrize("on", ["local", "received"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_any_algorithm_trains_with_it(run_scenario: Make, name: str, on: str) -> None:
    adversary = {"eps": 0.3, "steps": 2, "attack_on": on}
    run = run_scenario(**on_digits(adversary, **ALGORITHMS[name]), run={"rounds": 4})
    clean = run_scenario(**on_digits(None, **ALGORITHMS[name]), run={"rounds": 4})
    assert (run.params - clean.params).abs().max() > 1e-6
    assert run.metrics["gradients"].iloc[-1] == 3 * clean.metrics["gradients"].iloc[-1]
    assert run.metrics["robust_loss"].iloc[-1] > run.metrics["test_loss"].iloc[-1]


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fal without": ({"adversary": None, "algorithm": {"name": "fal"}}, r"adversary: missing; 'fal' trains on inputs"),
    "eps below 0": ({"adversary": {"eps": -0.1}}, r"adversary\.eps: found -0\.1"),
    "eps of bytes": ({"adversary": {"eps": 8}}, r"adversary\.eps: found 8, but in pixel units no two images are more"),
    "eps of bytes in l2": ({"adversary": {"eps": 8.1, "norm": "l2"}}, r"adversary\.eps: found 8\.1, .* up to 8,"),
    "no eps": ({"adversary": {"steps": 3}}, r"adversary\.eps: missing"),
    "no steps at all": ({"adversary": {"eps": 0.1, "steps": 0}}, r"adversary\.eval_steps: missing; with steps 0"),
    "fal without steps": (
        {"adversary": {"eps": 0.1, "steps": 0, "eval_steps": 3}, "algorithm": {"name": "fal"}},
        r"adversary\.steps: found 0, but 'fal' trains on attacked inputs",
    ),
    "other norm": ({"adversary": {"eps": 0.1, "norm": "l1"}}, r"adversary\.norm: found 'l1'"),
    "unknown key": ({"adversary": {"eps": 0.1, "stps": 3}}, r"adversary\.stps: unknown key .did you mean 'steps'"),
    "no mapping": ({"adversary": 3}, r"adversary: found 3, allowed: a mapping"),
    "table": (
        {"data": {"dataset": "synthetic", "clients": 4, "iid": True}}, r"adversary: found inputs of shape 60 that are",
    ),
    "own data": ({"data": {"dataset": "adversary_makers:Points", "pixels": False}}, "found inputs of shape"),
    "rounds inputs": ({"model": {"name": "adversary_makers:rounding"}}, r"adversary: the model's loss has no gradient"),
    "as an attack": ({"attack": {"name": "adversary", "attackers": 1}}, r"attack\.name: unknown"),
    "no model received": (
        {"adversary": {"eps": 0.1, "attack_on": "received"}, "algorithm": {"name": "adversary_makers:Shifted"}},
        r"adversary\.attack_on: found received, but with 'adversary_makers:Shifted' clients receive shifted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    changed, says = REFUSED[case]
    s = {**on_digits({"eps": 0.1}), **changed}
    with pytest.raises(InputError, match=says):
        assemble(parse({k: v for k, v in s.items() if v is not None}))


def test_a_quadratic_has_no_inputs(quadratic: Make) -> None:
    s = {"data": quadratic().section(), "algorithm": {"name": "fal"}, "adversary": {"eps": 0.1}}
    with pytest.raises(InputError, match="adversary: a quadratic problem has no inputs to change"):
        assemble(parse(s))


def test_tokens_are_refused(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (30, 4)), rng.integers(0, 2, 30)
    np.savez(tmp_path / "tokens.npz", x=x, y=y)
    s = on_digits({"eps": 0.1}, data={"dataset": "npz", "path": str(tmp_path / "tokens.npz"), "clients": 3})
    with pytest.raises(InputError, match="adversary: found inputs of shape 4 that are integers"):
        assemble(parse(s))


def test_resolved_and_null() -> None:
    s = parse(on_digits({"eps": 0.1}))
    written = s.resolved()["adversary"]
    assert {**written, "step": None, "eval_steps": None} == {
        "eps": 0.1, "step": None, "steps": 10, "norm": "linf", "random_start": False, "attack_on": "local",
        "eval_steps": None,
    }  # fmt: skip
    assert parse(s.resolved()).adversary == s.adversary
    assert s.adversary is not None
    assert s.adversary.length == pytest.approx(0.025)
    assert replace(s.adversary, step=0.01).length == 0.01
    off = parse({**on_digits(None), "adversary": None})
    assert off.adversary is None
    assert "adversary" not in off.resolved()


def test_theory_of_clean_data_is_not_taken_for_that_of_attacked() -> None:
    s = on_digits({"eps": 0.1}, model={"name": "linear"})
    for adversary, known in ((None, True), ({"eps": 0.1}, False)):
        task = assemble(parse({k: v for k, v in {**s, "adversary": adversary}.items() if v is not None})).task
        assert (task.smoothness(task.importance) is not None) is known
