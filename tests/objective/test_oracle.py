"""Minibatches, metrics and quadratic objectives behind the gradient oracle."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedsim.core.oracle import Plan
from fedsim.core.rules import AdamRule, HeavyBall, Rule
from fedsim.data.sets import Dataset, Quadratic
from fedsim.models import losses
from fedsim.models.build import flatten, views
from fedsim.objective import supervised
from fedsim.objective.quadratic import QuadraticTask
from fedsim.objective.supervised import SupervisedTask

CPU = torch.device("cpu")


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


# --- minibatches: on one-hot inputs a gradient says which samples it is of ------------------------

SIZES = [1, 3, 7, 20]
TOTAL = sum(SIZES)


@pytest.fixture
def reveal() -> SupervisedTask:
    """Four clients; sample j is the unit vector e_j with target 1, so at w = 0 its gradient is -2 e_j."""
    order = np.random.default_rng(0).permutation(TOTAL)
    rows = [np.sort(part) for part in np.split(order, np.cumsum(SIZES)[:-1])]
    eye, ones = torch.eye(TOTAL), torch.ones(TOTAL)
    data = Dataset("reveal", eye, ones, eye, ones, None)
    module = chain(nn.Flatten(), nn.Linear(TOTAL, 1, bias=False))
    nn.init.zeros_(module[1].weight)
    return SupervisedTask(data, rows, module.double(), "mse", losses.mse, 5, CPU, torch.float64)


def shares(task: SupervisedTask, clients: Any, round_: int, steps: int, batch: Any, epochs: bool) -> np.ndarray:
    """The weight of every sample in every client's minibatches, ``[m, steps, TOTAL]``."""
    clients = np.asarray(clients)
    count = np.full(len(clients), steps)
    plan = task.plan(clients, np.full(len(clients), round_), count, batch, epochs)
    x = torch.zeros(len(clients), TOTAL, dtype=torch.float64)
    lr = torch.ones(len(clients), 1, dtype=torch.float64)
    return np.stack([plan.oracle(k, len(clients), lr).grad(x).numpy() / -2 for k in range(steps)], axis=1)


def own(task: SupervisedTask, i: int) -> np.ndarray:
    return np.isin(np.arange(TOTAL), task.indices[task.offsets[i] : task.offsets[i + 1]])


@pytest.mark.parametrize("loss", ["cross_entropy", "multi_margin", "logistic"])
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])
def test_classes_may_be_integers_of_any_type(kind: torch.dtype, loss: str) -> None:
    x = torch.randn(30, 4)
    y = (x[:, 0] > 0).long()
    module = nn.Linear(4, 1 if loss == "logistic" else 2)
    found = []
    for labels in (y, y.to(kind)):
        data = Dataset("own", x[:20], labels[:20], x[20:], labels[20:], 2)
        rows = [np.arange(8), np.arange(8, 20)]
        task = SupervisedTask(data, rows, module, loss, losses.loss_function(loss), 0, CPU, torch.float32)
        plan = task.plan(np.arange(2), np.zeros(2, dtype=np.int64), np.full(2, 3), 4, False)
        models = task.initial().expand(2, -1).contiguous()
        plan.descend(models, torch.full((2, 1), 0.1), range(3))
        found.append((models, task.evaluate(models[0]), task.answers(models[0]).targets))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("batch", [1, 2, 5, 20, 64])
def test_a_minibatch_is_drawn_without_replacement(reveal: SupervisedTask, batch: int) -> None:
    held = shares(reveal, [0, 1, 2, 3], 1, 6, batch, epochs=False)
    for i, size in enumerate(SIZES):
        count = min(size, batch)
        for step in range(6):
            assert np.isclose(held[i, step][held[i, step] > 0], 1 / count, rtol=1e-14).all()
            assert (held[i, step] > 0).sum() == count
            assert not held[i, step][~own(reveal, i)].any()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 20, 64])
def test_an_epoch_covers_every_sample_once(reveal: SupervisedTask, batch: int) -> None:
    clients = np.arange(4)
    per_epoch = reveal.steps_per_epoch(clients, batch)
    assert per_epoch.tolist() == [-(-size // batch) for size in SIZES]
    held = shares(reveal, clients, 2, 3 * int(per_epoch.max()), batch, epochs=True)
    for i, size in enumerate(SIZES):
        for epoch in range(3):
            walked = held[i, epoch * per_epoch[i] : (epoch + 1) * per_epoch[i]]
            counts = (walked > 0).sum(1)
            assert counts.tolist() == [
                min(batch, size - k * batch) for k in range(per_epoch[i])
            ]  # the last is the rest
            for minibatch, count in zip(walked, counts, strict=True):
                assert np.isclose(minibatch[minibatch > 0], 1 / count, rtol=1e-14).all()
            assert np.array_equal((walked > 0).sum(0), own(reveal, i).astype(int))


def test_full_is_everything(reveal: SupervisedTask) -> None:
    for epochs in (False, True):
        held = shares(reveal, [3, 1, 0], 1, 2, "full", epochs)
        for row, i in enumerate([3, 1, 0]):
            assert np.allclose(held[row], own(reveal, i) / SIZES[i], rtol=1e-14)
    assert reveal.steps_per_epoch(np.arange(4), "full").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("epochs", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 30])
def test_minibatches_do_not_depend_on_who_else_is_there(reveal: SupervisedTask, epochs: bool, batch: int) -> None:
    together = shares(reveal, [0, 1, 2, 3], 4, 5, batch, epochs)
    for clients in ([2], [3, 0], [1, 2, 0], [3, 2, 1, 0]):
        assert np.array_equal(shares(reveal, clients, 4, 5, batch, epochs), together[clients])
    assert np.array_equal(shares(reveal, [2], 4, 2, batch, epochs), together[[2], :2])  # nor on how long it goes on


def test_minibatches_depend_on_round_step_and_client(reveal: SupervisedTask) -> None:
    held = shares(reveal, [3], 1, 4, 5, epochs=False)[0] > 0
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(held, 2))
    assert not np.array_equal(shares(reveal, [3], 2, 4, 5, epochs=False)[0] > 0, held)
    epochs = shares(reveal, [3], 1, 8, 5, epochs=True)[0] > 0
    assert not np.array_equal(epochs[:4], epochs[4:])  # shuffled anew in every epoch


def test_every_sample_is_drawn_equally_often(reveal: SupervisedTask) -> None:
    rounds = 800
    counts = np.zeros(TOTAL)
    for start in range(rounds):
        counts += shares(reveal, [3], start, 1, 5, epochs=False)[0, 0] > 0
    frequency = counts[own(reveal, 3)] / rounds
    assert np.abs(frequency - 5 / 20).max() < 5 * np.sqrt(0.25 * 0.75 / rounds)


@pytest.mark.parametrize("epochs,batch", [(False, 5), (True, 4), (False, "full"), (True, "full")])
def test_gradients_are_counted_as_they_are_evaluated(reveal: SupervisedTask, epochs: bool, batch: Any) -> None:
    for steps in (1, 2, 7):
        held = shares(reveal, [0, 1, 2, 3], 3, steps, batch, epochs)
        evaluated = (held > 0).sum((1, 2))
        counted = reveal.samples_per_step(np.arange(4), np.full(4, steps), batch, epochs)
        assert counted.tolist() == evaluated.tolist()


def test_an_oracle_answers_twice_with_the_same_samples_and_pads_with_zeros(reveal: SupervisedTask) -> None:
    clients = np.array([3, 2, 1])
    plan = reveal.plan(clients, np.ones(3, dtype=np.int64), np.full(3, 2), 5, False)
    oracle = plan.oracle(1, 3, torch.ones(3, 1, dtype=torch.float64))
    x = torch.randn(3, TOTAL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = oracle.grad(x)
    assert torch.equal(oracle.grad(x), g)
    each = oracle.per_sample_grad(x)
    assert each.shape == (3, 5, TOTAL)
    counts = torch.tensor([5, 5, 3])
    assert torch.equal((each.abs().sum(-1) > 0).sum(1), counts)
    assert not each[2, 3:].any()
    assert (each.sum(1) / counts[:, None] - g).abs().max() < 1e-14
    fewer = plan.oracle(1, 2, torch.ones(2, 1, dtype=torch.float64))
    assert (fewer.grad(x[:2]) - g[:2]).abs().max() < 1e-14


# --- evaluation -----------------------------------------------------------------------------------


def classification(eval_samples: int | None = None) -> SupervisedTask:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=random), torch.randint(3, (60,), generator=random)
    data = Dataset("points", x[:40], y[:40], x[40:], y[40:], 3)
    module = chain(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()
    rows = [np.arange(0, 10), np.arange(10, 40)]
    return SupervisedTask(
        data, rows, module, "cross_entropy", losses.cross_entropy, 0, CPU, torch.float64, eval_samples
    )


def test_metrics_of_a_model() -> None:
    task = classification()
    params = torch.randn(task.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = views(params, task.kernel.layout)
    found = task.evaluate(params)
    for part, inputs, targets in (
        ("train", task.inputs, task.targets),
        ("test", task.test_inputs, task.test_targets),
    ):
        out = functional_call(task.kernel.module, model, (inputs,))
        assert found[f"{part}_loss"] == pytest.approx(float(losses.cross_entropy(out, targets).mean()), rel=1e-13)
    accuracy = float((out.argmax(-1) == targets).double().mean())
    assert found["test_accuracy"] == accuracy
    assert set(found) == set(task.metrics)
    assert task.sizes.tolist() == [10, 30]
    assert task.importance.tolist() == [0.25, 0.75]


def test_the_loss_of_all_is_the_weighted_loss_of_the_clients() -> None:
    task = classification()
    x = task.initial()
    plan = task.plan(np.array([0, 1]), np.ones(2, dtype=np.int64), np.ones(2, dtype=np.int64), "full", False)
    rows = plan.oracle(0, 2, torch.ones(2, 1, dtype=torch.float64)).grad(x.expand(2, -1))
    flat = x.clone().requires_grad_()
    out = functional_call(task.kernel.module, views(flat, task.kernel.layout), (task.inputs,))
    (everything,) = torch.autograd.grad(losses.cross_entropy(out, task.targets).mean(), flat)
    assert (torch.as_tensor(task.importance) @ rows - everything).abs().max() < 1e-13
    assert torch.equal(x, flatten(task.kernel.module))


def test_node_accuracy_is_the_mean_of_the_models_own() -> None:
    task = classification()
    models = torch.randn(5, task.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = [task.evaluate(row)["test_accuracy"] for row in models]
    assert len(set(alone)) > 1
    assert task.node_accuracy(models) == pytest.approx(np.mean(alone), abs=1e-15)


def test_the_widest_layer_bounds_how_many_models_are_evaluated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = classification()  # 20 test rows, 5 hidden units and 3 outputs
    models = torch.randn(5, task.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected, outputs, seen = task.node_accuracy(models), task.kernel.outputs, []
    monkeypatch.setattr(task.kernel, "outputs", lambda x, inputs: (seen.append(len(x)), outputs(x, inputs))[1])
    monkeypatch.setattr(supervised, "_EVAL_FLOATS", 2 * 20 * 5)
    assert task.node_accuracy(models) == expected
    assert seen == [2, 2, 1]


def test_evaluation_on_a_sample_is_the_same_sample_every_time() -> None:
    some, other, all_ = classification(eval_samples=8), classification(eval_samples=8), classification(eval_samples=999)
    x = some.initial()
    assert len(some.test_inputs) == 8
    assert some.evaluate(x) == some.evaluate(x) == {**other.evaluate(x)}
    assert all_.evaluate(x) == classification().evaluate(x)


# --- quadratics -----------------------------------------------------------------------------------


def quadratic_task(noise: float = 0.0, dense: bool = True, d: int = 3) -> QuadraticTask:
    random = np.random.default_rng(0)
    A = random.uniform(0.5, 2.0, (4, d))
    if dense:
        A = np.stack([q @ np.diag(a) @ q.T for a in A for q in [np.linalg.qr(random.standard_normal((d, d)))[0]]])
    arrays = (A, random.standard_normal((4, d)), random.standard_normal(d), np.array([0.1, 0.2, 0.3, 0.4]))
    return QuadraticTask(Quadratic(*(torch.as_tensor(a) for a in arrays), noise), 9, CPU, torch.float64)


@pytest.mark.parametrize("dense", [True, False])
def test_quadratic_gradients_and_metrics(dense: bool) -> None:
    task = quadratic_task(dense=dense)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    A = task.A if dense else torch.diag_embed(task.A)
    gap = x - task.b
    values = 0.5 * torch.einsum("ni,nij,nj->n", gap, A, gap)
    expected = torch.autograd.grad(values.sum(), x)[0]
    clients = np.array([2, 0, 3])
    oracle = task.plan(clients, np.ones(3), np.ones(3), 1, False).oracle(0, 3, torch.ones(3, 1))
    rows = x.detach()[clients]
    assert (oracle.grad(rows) - expected[clients]).abs().max() < 1e-14
    assert torch.equal(oracle.per_sample_grad(rows), oracle.grad(rows).unsqueeze(1))
    centre = x.detach()[0]
    gap = centre - task.b
    loss = (torch.as_tensor(task.importance) * 0.5 * torch.einsum("ni,nij,nj->n", gap, A, gap)).sum()
    best = torch.linalg.solve(
        torch.einsum("n,nij->ij", torch.as_tensor(task.importance), A),
        torch.einsum("n,nij,nj->i", torch.as_tensor(task.importance), A, task.b),
    )
    found = task.evaluate(centre)
    assert found["train_loss"] == pytest.approx(float(loss), rel=1e-14)
    assert found["optimum_distance"] == pytest.approx(float((centre - best).norm()), rel=1e-12)


def test_no_distance_without_one_minimiser() -> None:
    A = torch.zeros(2, 3, dtype=torch.float64)
    A[:, 0] = 1.0
    data = Quadratic(A, torch.ones(2, 3).double(), torch.zeros(3).double(), torch.tensor([0.5, 0.5]).double())
    assert set(QuadraticTask(data, 0, CPU, torch.float64).evaluate(torch.zeros(3).double())) == {"train_loss"}


def test_the_noise_of_a_quadratic() -> None:
    """Independent N(0, sigma^2) per coordinate, client, round and step; the same for every question to one oracle."""
    sigma, rounds, steps, d = 0.7, 400, 5, 6
    noisy, exact = quadratic_task(sigma, d=d), quadratic_task(d=d)
    clients, x = np.arange(4), torch.zeros(4, d, dtype=torch.float64)
    lr = torch.ones(4, 1)
    drawn = np.empty((rounds, steps, 4, d))
    for r in range(rounds):
        plan, plain = (t.plan(clients, np.full(4, r), np.full(4, steps), 1, False) for t in (noisy, exact))
        for k in range(steps):
            oracle = plan.oracle(k, 4, lr)
            first = oracle.grad(x)
            assert torch.equal(first, oracle.grad(x))
            drawn[r, k] = (first - plain.oracle(k, 4, lr).grad(x)).numpy()
    n = drawn.size
    assert len(np.unique(drawn.round(12))) > 0.999 * n
    assert abs(drawn.mean()) < 5 * sigma / np.sqrt(n)
    assert abs(drawn.var() / sigma**2 - 1) < 5 * np.sqrt(2 / n)
    flat = drawn.reshape(rounds * steps, 4 * d)
    off = np.corrcoef(flat.T)[~np.eye(4 * d, dtype=bool)]
    assert np.abs(off).max() < 5.5 / np.sqrt(len(flat))
    alone = noisy.plan(np.array([2]), np.array([7]), np.array([3]), 1, False).oracle(1, 1, lr[:1]).grad(x[2:3])
    whole = noisy.plan(clients, np.full(4, 7), np.full(4, 3), 1, False).oracle(1, 4, lr).grad(x)
    assert (alone[0] - whole[2]).abs().max() < 1e-14


@pytest.mark.parametrize("epochs,batch", [(False, 5), (True, 4), (False, "full")])
def test_a_plans_prepared_steps_are_those_of_its_oracles(reveal: SupervisedTask, epochs: bool, batch: Any) -> None:
    """Also of the first clients alone, where the others are done, and of the very last one."""
    clients, steps = np.array([3, 2, 1]), np.array([4, 3, 1])
    x = torch.randn(3, TOTAL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    plan = reveal.plan(clients, np.full(3, 2), steps, batch, epochs)
    one, other = x.clone(), x.clone()
    for count, taken in ((3, range(1)), (2, range(1, 3)), (1, range(3, 4))):
        for step in taken:
            plan.oracle(step, count, lr[:count]).descend(one[:count])
        plan.descend(other[:count], lr[:count], taken)
        assert torch.equal(one, other)
    assert not (one == x).all(-1).any()


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("alike", [False, True])
def test_a_first_step_from_elsewhere_is_that_of_a_copy(reveal: SupervisedTask, batch: int, alike: bool) -> None:
    """Bit for bit, and it leaves what it starts from as it is; later steps go on from where it came to."""
    clients, steps = np.array([3, 2, 1]), np.array([3, 3, 3])
    start = torch.randn(3, TOTAL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = start[:1].expand(3, -1) if alike else start
    lr, before = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64), start.clone()
    plan = reveal.plan(clients, np.full(3, 2), steps, batch, False)
    one, other = start.clone(), torch.full((3, TOTAL), float("nan"), dtype=torch.float64)
    for steps_taken, begin in ((range(1), start), (range(1, 3), None)):
        plan.descend(one, lr, steps_taken)
        plan.descend(other, lr, steps_taken, begin)
        assert torch.equal(one, other)
    assert torch.equal(start, before)
    assert not torch.equal(one, start)


@pytest.mark.parametrize(
    "rule",
    [
        HeavyBall(),
        HeavyBall(momentum=0.5),
        HeavyBall(momentum=0.5, decay=0.1),
        HeavyBall(decay=0.1),
        HeavyBall(momentum=0.5, clip=0.1, nesterov=True),
        AdamRule(beta1=0.9, beta2=0.99, eps=1e-3),
    ],
    ids=str,
)
def test_any_plans_walk_is_that_of_its_oracles(reveal: SupervisedTask, rule: Rule) -> None:
    """Compiled or step by step: the same to rounding, and what is remembered goes on."""
    clients, lr = np.array([3, 2, 1]), torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    start = torch.randn(3, TOTAL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = reveal.plan(clients, np.full(3, 2), np.full(3, 4), 5, True)
    found = []
    for walk in (plan.walk, partial(Plan.walk, plan)):
        x, remembered = torch.empty_like(start), {k: torch.zeros_like(start) for k in "bms"}
        remembered["t"] = torch.zeros_like(lr)
        if not getattr(rule, "momentum", 1):
            del remembered["b"]
        walk(x, lr, range(1), start, rule, remembered)
        walk(x, lr, range(1, 4), None, rule, remembered)
        found.append(x)
    assert plan.walks(start)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
    assert not torch.equal(found[0], start)
