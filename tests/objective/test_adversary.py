"""Inputs that are attacked before gradients are taken: exact values, identities, units, keys, every kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adversary_makers import EPS, W0, points
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.core import crew, rng
from fedsim.core.errors import InputError
from fedsim.data.named import Cifar10
from fedsim.data.pixels import PixelRange
from fedsim.data.sets import Digits, made
from fedsim.data.splits import Split
from fedsim.engine.assembly import assemble
from fedsim.models.build import views
from fedsim.models.losses import loss_function
from fedsim.objective import minibatch
from fedsim.objective.adversary import Adversary
from fedsim.objective.stacked import build_kernel
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import parse

Make = Callable[..., Any]
CPU = torch.device("cpu")
ONE_STEP = {"eps": EPS, "step": EPS, "steps": 1}


def sections(adversary: dict[str, Any] | None, outputs: int = 1, **algorithm: Any) -> dict[str, Any]:
    model = {"name": "adversary_makers:Binary", "outputs": outputs}
    return {
        "data": {"dataset": "adversary_makers:Points"},
        "model": {**model, "loss": "logistic" if outputs == 1 else "cross_entropy"},
        "algorithm": {
            "name": "fedavg" if adversary is None else "fal", "lr": 0.1, "local_steps": 5, "batch_size": "full",
            "weighting": "uniform", **algorithm,
        },
        **({} if adversary is None else {"adversary": adversary}),
    }  # fmt: skip


def on_digits(adversary: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "seed": 3,
        "data": {"dataset": "digits", "clients": 4, "limit": 60, "normalize": "standard"},
        "model": {"name": "mlp", "hidden": [8]},
        "algorithm": {"name": "fedavg", "lr": 0.2, "local_steps": 3, "batch_size": 5},
        **({} if adversary is None else {"adversary": adversary}),
        **more,
    }  # fmt: skip


# --- exact values of a linear model: one step with step = eps is the inner maximum ------------------------------------

EXACT = {  # K, rounds, attack_on: w, b, robust loss
    (1, 1, "local"): ([0.2805393571, -0.1867069709, 0.0745472459], 0.0024488791, 0.7275166251),
    (5, 1, "local"): ([0.2243924601, -0.1630250265, 0.0081260355], 0.0088133524, 0.7014039726),
    (5, 1, "received"): ([0.2207308021, -0.1608350762, -0.0077609702], 0.0088066619, None),
    (5, 40, "local"): ([-0.0258781804, -0.2792821369, -0.291097009], 0.0017966668, 0.6675382976),
    (5, 40, "received"): ([-0.0186280789, -0.2699710929, -0.2751967134], 0.0048665065, None),
}


@pytest.mark.parametrize("steps,rounds,on", EXACT)
def test_exact_values(run_scenario: Make, steps: int, rounds: int, on: str) -> None:
    w, b, loss = EXACT[steps, rounds, on]
    run = run_scenario(**sections({**ONE_STEP, "attack_on": on}, local_steps=steps), run={"rounds": rounds})
    np.testing.assert_allclose(run.params.numpy(), [*w, b], rtol=0, atol=5.1e-11)
    if loss is not None:
        assert run.metrics["robust_loss"].iloc[-1] == pytest.approx(loss, abs=5.1e-11)
    assert run.metrics["gradients"].iloc[-1] == 12 * steps * rounds * 2  # one of the attack and one of the step


def exact_inner_maximum(steps: int, rounds: int) -> Any:
    """FedAvg on ``log(1 + exp(-y (w x + b) + eps |w|_1))``, whose gradient is written out."""
    x, labels = points()
    w, b = np.array(W0), 0.0
    for _ in range(rounds):
        ends = []
        for xc, yc in zip(x, 2 * labels - 1, strict=True):
            v, c = w.copy(), b
            for _ in range(steps):
                s = 1 / (1 + np.exp(yc * (xc @ v + c) - 0.1 * np.abs(v).sum())) / 4
                v, c = v - 0.1 * (-(s * yc) @ xc + 0.1 * s.sum() * np.sign(v)), c + 0.1 * (s * yc).sum()
            ends.append([*v, c])
        *w, b = np.mean(ends, axis=0)
        w = np.array(w)
    return np.array([*w, b])


def test_one_step_of_eps_is_fedavg_on_the_robust_loss(run_scenario: Make) -> None:
    run = run_scenario(**sections(ONE_STEP), run={"rounds": 6})
    assert np.abs(run.params.numpy() - exact_inner_maximum(5, 6)).max() < 1e-15


@pytest.mark.parametrize("outputs", [1, 2])
def test_many_short_steps_are_one_of_eps(run_scenario: Make, outputs: int) -> None:
    """The inner maximum of a linear model, of two classes too, is in a corner of the cube."""
    once = run_scenario(**sections(ONE_STEP, outputs), run={"rounds": 6})
    often = run_scenario(**sections({"eps": EPS, "step": EPS / 4, "steps": 10}, outputs), run={"rounds": 6})
    assert (once.params - often.params).abs().max() < 1e-15
    clean = run_scenario(**sections(None, outputs), run={"rounds": 6})
    assert (once.params - clean.params).abs().max() > 1e-3


def test_two_classes_move_as_one_output_at_twice_the_rate(run_scenario: Make) -> None:
    """Of two softmax rows w = w_1 - w_0 takes the logistic model's steps twice over."""
    one = run_scenario(**sections(ONE_STEP, lr=0.2), run={"rounds": 6})
    two = run_scenario(**sections(ONE_STEP, outputs=2), run={"rounds": 6})
    rows = two.params[:6].view(2, 3)
    found = torch.cat([rows[1] - rows[0], (two.params[7] - two.params[6]).view(1)])
    assert (found - one.params).abs().max() < 1e-15


@pytest.mark.parametrize("keys", [{}, {"random_start": True}, {"norm": "l2"}, {"attack_on": "received"}], ids=str)
def test_eps_0_is_fedavg_bit_for_bit(run_scenario: Make, keys: dict[str, Any]) -> None:
    plain = run_scenario(**on_digits(None), run={"rounds": 4})
    run = run_scenario(**on_digits({"eps": 0.0, "steps": 2, **keys}), run={"rounds": 4})
    assert torch.equal(plain.params, run.params)
    last = run.metrics.iloc[-1]
    assert (last["robust_loss"], last["robust_accuracy"]) == (last["test_loss"], last["test_accuracy"])
    assert last["gradients"] == 3 * plain.metrics["gradients"].iloc[-1]


def test_steps_0_measures_what_an_adversary_does_to_clean_training(run_scenario: Make) -> None:
    plain = run_scenario(**on_digits(None), run={"rounds": 4})
    run = run_scenario(**on_digits({"eps": 0.3, "steps": 0, "eval_steps": 5}), run={"rounds": 4})
    assert torch.equal(plain.params, run.params)
    last = run.metrics.iloc[-1]
    assert last["gradients"] == plain.metrics["gradients"].iloc[-1]
    assert last["robust_loss"] > last["test_loss"] + 0.1
    attacked = run_scenario(**on_digits({"eps": 0.3, "steps": 5}), run={"rounds": 4})
    assert attacked.metrics["robust_loss"].iloc[-1] < last["robust_loss"]


# --- every kernel -----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """No chain: it runs under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(x.flatten(1) + torch.tanh(self.first(x.flatten(1))))
        return found


MODULES: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    "closed first": lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(6, 3)),
    "autograd first": lambda: nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(6, 5, bias=False), nn.Linear(5, 3)),
    "vmap": Residual,
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("way", ["auto", "rows"])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_by_inputs(name: str, way: Any, rows: int) -> None:
    torch.manual_seed(1)
    module, loss = MODULES[name]().double(), loss_function("cross_entropy")
    inputs, targets = torch.randn(rows, 4, 1, 2, 3, dtype=torch.float64), torch.randint(0, 3, (rows, 4))
    kernel = build_kernel(module, loss, CPU, inputs[0, 0], way=way)
    x = torch.randn(rows, kernel.layout.total, dtype=torch.float64)
    before = inputs.clone()
    with torch.no_grad():
        found = kernel.input_grad(x, inputs, targets)
    assert torch.equal(inputs, before)
    assert not inputs.requires_grad
    assert not found.requires_grad
    for i in range(rows):
        leaf = inputs[i].clone().requires_grad_()
        out = functional_call(module, views(x[i], kernel.layout), (leaf,))
        expected = torch.autograd.grad(loss(out, targets[i]).sum(), leaf)[0]
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_raises_the_loss_within_its_bounds(norm: Any) -> None:
    """Channels of unlike scale: 0.1 in pixels is another distance in each."""
    torch.manual_seed(0)
    low, high = torch.tensor([-1.0, -3.0]).view(2, 1, 1), torch.tensor([1.0, 1.0]).view(2, 1, 1)
    pixels = PixelRange(low.double(), high.double())
    x = torch.randn(2, 2 * 9 * 3 + 3, dtype=torch.float64)
    inputs = pixels.low + pixels.unit * torch.rand(2, 5, 2, 3, 3, dtype=torch.float64)
    targets = torch.randint(0, 3, (2, 5))
    loss = loss_function("cross_entropy")
    kernel = build_kernel(nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).double(), loss, CPU, inputs[0, 0])
    keys = np.arange(10, dtype=np.uint64).reshape(2, 5)
    for start in (False, True):
        pgd = Adversary(eps=0.1, step=0.04, steps=6, norm=norm, random_start=start).on(pixels)
        z = pgd.attack(kernel, x, inputs, targets, keys)
        change = ((z - inputs) / pixels.unit).flatten(2)
        size = change.abs().amax(-1) if norm == "linf" else change.norm(dim=-1)
        assert float(size.max()) <= 0.1 + 1e-12
        assert float(size.median()) == pytest.approx(0.1, abs=0.02)
        assert bool(((z >= pixels.low) & (z <= pixels.high)).all())
        for i in range(2):
            clean, attacked = (loss(kernel.outputs(x[i : i + 1], v[i])[0], targets[i]) for v in (inputs, z))
            assert bool((attacked > clean).all())


def test_samples_outside_of_the_range_stay_where_they_are() -> None:
    pixels = PixelRange(torch.zeros(()).double(), torch.ones(()).double())
    inputs, targets = torch.tensor([[[[-2.0, 0.5, 3.0]]]]).double(), torch.zeros(1, 1, dtype=torch.int64)
    kernel = build_kernel(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double(), loss_function("cross_entropy"), CPU,
                          inputs[0, 0])  # fmt: skip
    x = torch.tensor([[1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 0.0, 0.0]]).double()
    z = Adversary(eps=0.25, steps=3).on(pixels).attack(kernel, x, inputs, targets, np.zeros((1, 1), dtype=np.uint64))
    assert z.flatten().tolist() == [-2.0, 0.25, 3.0]
    assert float((z - inputs).abs().max()) <= 0.25


@pytest.mark.parametrize("units", [1, 2])
def test_a_gradient_however_small_has_a_direction(units: int) -> None:
    """The squares of a saturated model's gradients vanish in float32; the step is as long as any other."""
    high = torch.tensor([1.0, 2.0]) if units == 2 else torch.tensor(1.0)
    pixels = PixelRange(torch.zeros_like(high), high)
    inputs, targets = torch.tensor([[[0.5, 0.5], [0.5, 0.6]]]), torch.zeros(1, 2, dtype=torch.int64)
    kernel = build_kernel(nn.Sequential(nn.Linear(2, 2)), loss_function("cross_entropy"), CPU, inputs[0, 0])
    keys = np.zeros((1, 2), dtype=np.uint64)
    for gap in (1.0, 30.0, 45.0, 52.0, 60.0, 80.0):
        x = torch.tensor([[0.0, 0.0, -3.0, 4.0, gap, 0.0]])
        g = kernel.input_grad(x, inputs, targets)
        assert float(g.abs().max()) > 0
        z = Adversary(eps=0.2, step=0.1, steps=1, norm="l2").on(pixels).attack(kernel, x, inputs, targets, keys)
        toward = torch.tensor([-3.0, 4.0]) * pixels.unit
        expected = inputs + 0.1 * pixels.unit * toward / toward.norm()
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)


def test_random_starts_fill_the_cube() -> None:
    """Of an attack without steps: every pixel by itself, as far up as down."""
    pixels = PixelRange(torch.tensor(-1.0).double(), torch.tensor(3.0).double())
    inputs, targets = torch.ones(1, 400, 9, dtype=torch.float64), torch.zeros(1, 400, dtype=torch.int64)
    kernel = build_kernel(nn.Sequential(nn.Linear(9, 2)).double(), loss_function("cross_entropy"), CPU, inputs[0, 0])
    pgd = Adversary(eps=0.1, random_start=True).on(pixels)
    x, keys = torch.zeros(1, 20, dtype=torch.float64), rng.key(0, "test", np.arange(400))[None]
    drawn = (pgd.attack(kernel, x, inputs, targets, keys, 0) - inputs)[0] / (0.1 * 4)
    assert float(drawn.abs().max()) < 1
    assert float(drawn.abs().max()) > 0.99
    assert float(drawn.mean()) == pytest.approx(0, abs=4 / (3 * 3600) ** 0.5)
    assert float(drawn.square().mean()) == pytest.approx(1 / 3, abs=0.02)
    assert len(drawn.unique()) > 3300  # of 3600 out of 65,536


def test_threads_share_a_lone_client_s_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs, targets = torch.rand(1, 64, 6, dtype=torch.float64), torch.randint(0, 3, (1, 64))
    kernel = build_kernel(nn.Sequential(nn.Linear(6, 3)).double(), loss_function("cross_entropy"), CPU, inputs[0, 0])
    x, keys = torch.randn(1, 21, dtype=torch.float64), np.arange(64, dtype=np.uint64)[None]
    pgd = Adversary(eps=0.1, random_start=True).on(PixelRange(torch.tensor(0.0), torch.tensor(1.0)))

    def change(part: slice) -> Tensor:
        return pgd.attack(kernel, x, inputs[:, part], targets[:, part], keys[:, part])

    whole = minibatch.changed(kernel, x, inputs, change)
    monkeypatch.setattr(minibatch, "_PRODUCTS", 1)
    with crew.working(2):
        torch.testing.assert_close(minibatch.changed(kernel, x, inputs, change), whole, rtol=0, atol=1e-12)


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
