"""Chains of linear layers whose rows are computed one after the other, in one call each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core import crew
from fedsim.core.rules import AdamRule, Affine, Climb, HeavyBall, Rule
from fedsim.core.types import State
from fedsim.models.layout import layout, views
from fedsim.models.losses import loss_function
from fedsim.objective import compiled
from fedsim.objective.chain import ChainKernel
from fedsim.objective.compiled import CompiledChain
from fedsim.objective.kernel import Kernel, Walk
from fedsim.objective.stacked import build_kernel

CPU = torch.device("cpu")
IN, STEPS, SAMPLES = 7, 3, 40
CHAINS: dict[str, Callable[[int], nn.Sequential]] = {
    "softmax": lambda k: nn.Sequential(nn.Linear(IN, k)),
    "no bias": lambda k: nn.Sequential(nn.Linear(IN, 5, bias=False), nn.ReLU(), nn.Linear(5, k, bias=False)),
    "relu": lambda k: nn.Sequential(nn.Flatten(), nn.Linear(IN, 5), nn.ReLU(inplace=True), nn.Linear(5, k)),
    "tanh": lambda k: nn.Sequential(nn.Linear(IN, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Linear(4, k)),
    "sigmoid": lambda k: nn.Sequential(nn.Linear(IN, 5), nn.Identity(), nn.Sigmoid(), nn.Linear(5, k), nn.Tanh()),
}
OUTPUTS = {"cross_entropy": 3, "mse": 2, "logistic": 1}


@pytest.fixture(params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """TorchScript's functions, and the same ones where it has none."""
    compiled._compiled.cache_clear()
    monkeypatch.setattr(compiled, "_EARLY", 0)
    if request.param == "python":

        def refuse(_: object) -> object:
            raise RuntimeError("no TorchScript here")

        monkeypatch.setattr(torch.jit, "script", refuse)
        monkeypatch.delattr(torch.jit, "optimized_execution")
        with pytest.warns(UserWarning, match="TorchScript fails with RuntimeError"):
            function = compiled._function(1)
        assert function is compiled._walk
    else:
        assert compiled._function(1) is not compiled._walk
    yield request.param
    compiled._compiled.cache_clear()


def made(
    name: str, loss: str, rows: int, b: int, weighted: bool, dtype: torch.dtype = torch.float64
) -> tuple[ChainKernel, Tensor, Tensor, Walk, Tensor]:
    """A kernel, models of `rows` clients, samples, which of them each takes in three steps, and learning rates."""
    torch.manual_seed(3)
    k = OUTPUTS[loss]
    kernel = ChainKernel(CHAINS[name](k).to(dtype), loss_function(loss))
    assert kernel.compiled is not None
    x = torch.randn(rows, kernel.layout.total, dtype=dtype)
    index = torch.randint(SAMPLES, (rows, STEPS, b))
    targets = torch.randn(rows, STEPS, b, k, dtype=dtype) if loss == "mse" else torch.randint(max(k, 2), index.shape)
    weights = torch.rand(index.shape, dtype=dtype) / b if weighted else 1.0 / b
    return (
        kernel,
        x,
        torch.randn(SAMPLES, IN, dtype=dtype),
        Walk(index, targets, weights),
        0.2 * torch.rand(rows, 1).to(dtype),
    )


def optimizer(x: Tensor, rule: Rule, lr: float) -> torch.optim.Optimizer | None:
    """PyTorch's own for Adam's rule; weight decay that is added to gradients is added there."""
    if not isinstance(rule, AdamRule):
        return None
    return torch.optim.AdamW([x], lr, (rule.beta1, rule.beta2), rule.eps, weight_decay=rule.shrink)


def remembering(rule: Rule, x: Tensor) -> State:
    """What a rule remembers before its first step."""
    if isinstance(rule, AdamRule):
        return {"m": torch.zeros_like(x), "s": torch.zeros_like(x), "t": torch.zeros_like(x[:, :1])}
    return {"b": torch.zeros_like(x)} if isinstance(rule, HeavyBall) and rule.momentum else {}


def by_autograd(kernel: ChainKernel, loss: str, x: Tensor, inputs: Tensor, walk: Walk, lr: Tensor) -> Tensor:
    """The same steps of one row after the other, as slowly as can be."""
    module, found = kernel.module, []

    def gradient(row: Tensor, i: int, step: int) -> Tensor:
        leaf = row.clone().requires_grad_()
        out = torch.func.functional_call(module, views(leaf, layout(module)), inputs[walk.index[i, step]])
        losses = loss_function(loss)(out, walk.targets[i, step])
        scale = walk.weights[i, step] if isinstance(walk.weights, Tensor) else walk.weights
        return torch.autograd.grad((losses * scale).sum(), leaf)[0]

    for i, row in enumerate(x):
        ball, leaf = torch.zeros_like(row), row.clone()
        adam = optimizer(leaf, walk.rule, float(lr[i]))
        for step in range(walk.index.shape[1]):
            g = gradient(row, i, step)
            if (climb := walk.rule.climb) is not None:
                e = climb.rho * (g / (g.norm() + 1e-7) if climb.normalize else g)
                g = (1 - climb.share) * g + climb.share * gradient(row + e, i, step)
            leaf.data.copy_(row)
            g = g if walk.rule.clip is None else g * min(1.0, walk.rule.clip / max(float(g.norm()), 1e-12))
            g = walk.rule.scale * g + walk.rule.decay * row
            g = g if walk.rule.shift is None else g + walk.rule.shift.expand_as(x)[i]
            if adam is not None:
                leaf.grad = g
                adam.step()
                row = leaf.detach().clone()
                continue
            assert isinstance(walk.rule, HeavyBall)
            ball = walk.rule.momentum * ball + g
            row = row - lr[i] * (g + walk.rule.momentum * ball if walk.rule.nesterov else ball)
        found.append(row)
    return torch.stack(found)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows,b", [(1, 1), (1, 18), (2, 4), (3, 1)])
@pytest.mark.parametrize("loss", OUTPUTS)
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.usefixtures("way")
def test_gradients_and_steps_are_autograds(name: str, loss: str, rows: int, b: int, weighted: bool) -> None:
    kernel, x, inputs, walk, lr = made(name, loss, rows, b, weighted)
    expected = by_autograd(kernel, loss, x, inputs, walk, lr)
    moved, start = torch.full_like(x, float("nan")), x.clone()
    kernel.walk(moved, inputs, walk, lr, start)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)
    slowly = torch.full_like(x, float("nan"))
    Kernel.walk(kernel, slowly, inputs, walk, lr, start)
    torch.testing.assert_close(slowly, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(start, x)
    in_place = x.clone()
    for step in range(STEPS):  # one at a time, gathered before
        weights = walk.weights[:, step] if isinstance(walk.weights, Tensor) else walk.weights
        seen, targets = inputs[walk.index[:, step]], walk.targets[:, step]
        slowly = in_place - lr * kernel.grad(in_place, seen, targets, weights)
        change = kernel.change(in_place, seen, targets, weights, lr)
        torch.testing.assert_close(in_place + change, slowly, rtol=1e-12, atol=1e-14)
        kernel.descend(in_place, seen, targets, weights, lr)
        torch.testing.assert_close(in_place, slowly, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(in_place, moved, rtol=1e-12, atol=1e-14)  # where samples lie shows in the last bit


@pytest.mark.parametrize(
    "rule",
    [
        HeavyBall(momentum=0.5),
        HeavyBall(decay=0.1),
        HeavyBall(momentum=0.5, decay=0.1),
        HeavyBall(momentum=0.5, nesterov=True),
        HeavyBall(clip=0.3),
        HeavyBall(clip=1e3),
        HeavyBall(momentum=0.5, decay=0.1, clip=0.3),
        HeavyBall(momentum=0.5, decay=0.1, clip=0.3, nesterov=True),
        AdamRule(beta1=0.9, beta2=0.99, eps=1e-8),
        AdamRule(beta1=0.5, beta2=0.9, eps=1e-3, decay=0.1, shrink=0.2, clip=0.3),
        HeavyBall(climb=Climb(0.4)),
        HeavyBall(climb=Climb(0.4, normalize=False), scale=0.5),
        HeavyBall(climb=Climb(-0.4)),
        HeavyBall(climb=Climb(-0.4, share=1.5), momentum=0.5),
        AdamRule(beta1=0.9, beta2=0.99, eps=1e-3, climb=Climb(-0.4, normalize=False, share=0.3)),
        HeavyBall(climb=Climb(0.4, share=0.3), clip=0.3, decay=0.1),
        HeavyBall(climb=Climb(0.4, share=0.3), momentum=0.5),
        AdamRule(beta1=0.9, beta2=0.99, eps=1e-3, climb=Climb(0.4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows,b", [(1, 18), (3, 1), (2, 4)])
@pytest.mark.parametrize("name", ["relu", "no bias"])
@pytest.mark.usefixtures("way")
def test_rules_are_autograds(name: str, rows: int, b: int, rule: Rule) -> None:
    """Also where the first steps are taken by themselves: what is remembered goes on."""
    kernel, x, inputs, plain, lr = made(name, "cross_entropy", rows, b, True)
    expected = by_autograd(kernel, "cross_entropy", x, inputs, replace(plain, rule=rule), lr)
    for stops, walking in product(((0, STEPS), (0, 1, STEPS)), (ChainKernel.walk, Kernel.walk)):
        moved, remembered = x.clone(), remembering(rule, x)
        for first, last in pairwise(stops):
            assert isinstance(plain.weights, Tensor)
            part = (slice(None), slice(first, last))
            own = Walk(plain.index[part], plain.targets[part], plain.weights[part], rule, remembered)
            walking(kernel, moved, inputs, own, lr)
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)


class Signs(HeavyBall):
    """A rule of one's own."""

    def step(self, x: Tensor, g: Tensor, lr: Tensor, remembered: State) -> None:
        x.addcmul_(g.sign(), lr, value=-1.0)


class Aside(Climb):
    """An ascent of one's own."""

    def above(self, x: Tensor, g: Tensor) -> Tensor:
        return x + self.rho * g.sign()


@pytest.mark.parametrize("rule", [Signs(), HeavyBall(climb=Aside(0.4))], ids=str)
@pytest.mark.parametrize("rows,b", [(1, 1), (1, 5), (3, 4)])
def test_rules_of_one_s_own_are_followed(rows: int, b: int, rule: Rule) -> None:
    kernel, x, inputs, plain, lr = made("relu", "cross_entropy", rows, b, True)
    assert kernel.walks(x, inputs, b)
    found, walk = [x.clone() for _ in range(3)], replace(plain, rule=rule)
    kernel.walk(found[0], inputs, walk, lr)
    Kernel.walk(kernel, found[1], inputs, walk, lr)
    kernel.walk(found[2], inputs, replace(plain, rule=HeavyBall(climb=rule.climb and Climb(0.4))), lr)
    torch.testing.assert_close(*found[:2], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize("rule", [HeavyBall(), HeavyBall(momentum=0.5), AdamRule(beta1=0.9, beta2=0.99, eps=1e-3)])
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("climb", [None, Climb(0.4, share=0.6)], ids=str)
@pytest.mark.parametrize("one_for_all", [True, False])
@pytest.mark.parametrize("name", ["relu", "no bias"])
@pytest.mark.usefixtures("way")
def test_affine_directions_are_those_of_autograd(
    name: str, one_for_all: bool, climb: Climb | None, clip: float | None, rule: Rule
) -> None:
    kernel, x, inputs, plain, lr = made(name, "cross_entropy", 3, 4, True)
    shift = torch.randn_like(x[0] if one_for_all else x)
    walk = replace(plain, rule=replace(rule, decay=0.1, clip=clip).along(Affine(0.7, 0.2, shift, climb)))
    expected = by_autograd(kernel, "cross_entropy", x, inputs, walk, lr)
    for walking in (ChainKernel.walk, Kernel.walk):
        moved = x.clone()
        walking(kernel, moved, inputs, replace(walk, remembered=remembering(rule, x)), lr)
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)


SOLVERS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.5},
    {"momentum": 0.5, "weight_decay": 0.1, "clip": 0.2},
    {"weight_decay": 0.1},
    {"clip": 0.2},
    {"solver": {"name": "nesterov", "momentum": 0.5}},
    {"solver": {"name": "adamw", "eps": 0.01}},
]
SHARP_ONES = ("fedspeed", "fedsam", "mofedsam", "fedgamma")
RUNS = [
    (name, keys)
    for name, keys in product(
        ("fedavg", "fedadam", "fedprox", "scaffold", "fedcm", "feddyn", "local", *SHARP_ONES), SOLVERS
    )
    if name not in ("scaffold", "fedcm", "mofedsam", "fedgamma") or keys is not SOLVERS[-1]  # which they refuse
]


@pytest.mark.parametrize("steps", [{"local_epochs": 2}, {"local_steps": [4, 1, 6]}])
@pytest.mark.parametrize("name,keys", RUNS)
def test_runs_are_those_of_all_clients_at_once(
    name: str, steps: dict[str, Any], keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients with more and fewer steps, whose last minibatches are smaller."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=random.normal(size=(90, IN)), y=random.integers(0, 3, 90))
    walked: list[Rule] = []
    walk = CompiledChain.walk

    def noted(self: CompiledChain, x: Tensor, inputs: Tensor, path: Walk, *rest: Any) -> None:
        walked.append(path.rule)
        walk(self, x, inputs, path, *rest)

    monkeypatch.setattr(CompiledChain, "walk", noted)
    found = []
    for kernel in ("auto", "stacked"):
        section = {
            "data": {"dataset": "npz", "path": str(tmp_path / "data.npz"), "clients": 3, "test_fraction": 0.2},
            "model": {"name": "mlp", "hidden": [5]},
            "algorithm": {"name": name, "lr": 0.1, "batch_size": 4, **steps, **keys},
            "run": {"rounds": 3, "kernel": kernel, "dtype": "float64"},
        }
        before = len(walked)
        found.append(fedsim.run(section, out=tmp_path / kernel).params)
        assert (len(walked) > before) == (kernel == "auto")
    pull = {"fedprox": 0.01, "feddyn": 0.01, "fedspeed": 0.1}.get(name, 0.0)
    assert {rule.climb for rule in walked} == {Climb(0.1) if name in SHARP_ONES else None}
    rules = {(getattr(rule, "momentum", 0.0), round(rule.decay, 9)) for rule in walked}
    momentum = keys.get("solver", keys).get("momentum", 0.0)
    assert rules == {(momentum, round(keys.get("weight_decay", 0.0) + pull, 9))}
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-13)


def test_python_and_torchscript_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float64):
        kernel, x, inputs, walk, lr = made("relu", "cross_entropy", 3, 5, True, dtype)
        found = []
        for function in (compiled._compiled(), compiled._walk):
            monkeypatch.setattr(compiled, "_function", lambda _, f=function: f)
            found.append(x.clone())
            kernel.walk(found[-1], inputs, walk, lr)
            monkeypatch.undo()
        assert torch.equal(*found)


def test_python_takes_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiling takes, a short run never gets back."""
    monkeypatch.setattr(compiled, "_taken", 0)
    taken = [compiled._function(steps) is compiled._walk for steps in (1, compiled._EARLY - 1, 1, 1)]
    assert taken == [True, True, False, False]
    monkeypatch.setattr(compiled, "_taken", 0)
    assert compiled._function(compiled._EARLY + 1) is compiled._compiled()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_company_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x, inputs, walk, lr = made("tanh", "cross_entropy", 3, 4, True, torch.float32)
    found = []
    for i in range(len(x)):
        assert isinstance(walk.weights, Tensor)
        own = Walk(walk.index[i : i + 1], walk.targets[i : i + 1], walk.weights[i : i + 1])
        found.append(x[i : i + 1].clone())  # wherever in memory that is
        kernel.walk(found[-1], inputs, own, lr[i : i + 1])
    alone = torch.cat(found)
    monkeypatch.setattr(compiled, "_PORTION", 1)
    monkeypatch.setattr(compiled, "_CALL", 1)
    with crew.working(threads):
        together = x.clone()
        kernel.walk(together, inputs, walk, lr)
    assert torch.equal(alone, together)


def test_an_interrupt_ends_the_work_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x, inputs, walk, lr = made("relu", "cross_entropy", 3, 4, True, torch.float32)
    own, calls = compiled._compiled(), []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments[0].data_ptr())
        own(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(compiled, "_function", lambda _: interrupted)
    monkeypatch.setattr(compiled, "_PORTION", 1)
    monkeypatch.setattr(compiled, "_CALL", 1)
    with crew.working(3), pytest.raises(KeyboardInterrupt):
        kernel.walk(x, inputs, walk, lr)
    assert 1 <= len(set(calls)) == len(calls)  # no row takes a second step


def test_no_call_is_of_many_steps_however_small_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x, inputs, walk, lr = made("softmax", "cross_entropy", 1, 4, False, torch.float32)
    many = Walk(walk.index.repeat(1, 2000, 1), walk.targets.repeat(1, 2000, 1), walk.weights)
    own, steps = compiled._compiled(), []

    def noted(*arguments: Any) -> None:
        steps.append(len(arguments[-2]))
        own(*arguments)

    monkeypatch.setattr(compiled, "_function", lambda _: noted)
    kernel.walk(x, inputs, many, lr)
    assert sum(steps) == 6000
    assert max(steps) <= 2048


def test_what_it_takes_is_decided_by_sizes_and_kinds() -> None:
    def of(*layers: nn.Module, loss: str = "cross_entropy") -> CompiledChain | None:
        return CompiledChain.of(layers, loss_function(loss))

    small = of(nn.Linear(10, 3))
    assert small is not None
    rows = torch.zeros(3, 33)
    assert small.takes(rows, torch.zeros(2, 10))
    assert not small.takes(rows, torch.zeros(2, 10, dtype=torch.float64))
    assert not small.takes(rows, torch.zeros(2, 10, dtype=torch.int64))
    assert not small.takes(rows.half(), torch.zeros(2, 10).half())
    assert not small.takes(rows.to("meta"), torch.zeros(2, 10))
    assert [small.walks(*sizes) for sizes in ((3, 1), (4, 1), (4, 2**14))] == [True, False, True]
    deep = of(nn.Linear(10, 3), nn.ReLU(), nn.Linear(3, 3))
    assert deep is not None
    assert [deep.walks(*sizes) for sizes in ((3, 1), (4, 2**14), (4, 2**16))] == [True, False, True]
    assert of(nn.Linear(10, 3), nn.GELU(), nn.Linear(3, 3)) is None
    assert of(nn.ReLU(), nn.Linear(10, 3)) is None
    assert of(nn.Linear(10, 3), nn.ReLU(), nn.Tanh(), nn.Linear(3, 3)) is None
    assert of(nn.Linear(10, 3), loss="multi_margin") is None
    assert of(nn.Linear(10, 3), loss="logistic") is None
    assert of(nn.Linear(10, 1), loss="logistic") is not None


def test_stacked_never_takes_client_by_client() -> None:
    chain, sample = nn.Sequential(nn.Linear(IN, 3)), torch.zeros(IN)
    found = [build_kernel(chain, loss_function("mse"), CPU, sample, way=way) for way in ("auto", "stacked")]
    assert all(isinstance(kernel, ChainKernel) for kernel in found)
    assert [kernel.walks(torch.ones(1, kernel.layout.total), torch.ones(5, IN), 4) for kernel in found] == [True, False]
