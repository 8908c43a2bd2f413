"""Inputs that are attacked before gradients are taken: exact values, identities, every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adversary_makers import EPS, W0, on_digits, points, sections
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.core import crew, rng
from fedsim.data.pixels import PixelRange
from fedsim.models.build import views
from fedsim.models.losses import loss_function
from fedsim.objective import minibatch
from fedsim.objective.adversary import Adversary
from fedsim.objective.stacked import build_kernel

Make = Callable[..., Any]
CPU = torch.device("cpu")
ONE_STEP = {"eps": EPS, "step": EPS, "steps": 1}


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
    monkeypatch.setattr(minibatch, "_USES", 1)
    with crew.working(2):
        torch.testing.assert_close(minibatch.changed(kernel, x, inputs, change), whole, rtol=0, atol=1e-12)
