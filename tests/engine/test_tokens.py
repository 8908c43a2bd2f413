"""Token ids in runs: plain PyTorch loops, sums over tokens, the laws of backends, and what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.tokens import IGNORED, compact
from fedsim.engine.assembly import assemble
from fedsim.models.build import flatten, load_flat
from fedsim.scenario.load import parse

DRAW = np.random.default_rng(7)
ROWS, POSITIONS, VOCABULARY, PAD = 26, 6, 9, 8
X = DRAW.integers(0, 8, (ROWS, POSITIONS))
Y = np.concatenate([X[:, 1:], DRAW.integers(0, 8, (ROWS, 1))], 1)
for i, length in enumerate(DRAW.integers(2, POSITIONS + 1, ROWS)):
    X[i, length:] = Y[i, length:] = PAD
CLIENTS = [np.arange(0, 5), np.arange(5, 12), np.arange(12, 20)]
WHO = np.repeat([0, 1, 2], [5, 7, 8])
TRANSFORMER = {"name": "transformer", "width": 8, "heads": 2, "layers": 1}
LSTM = {"name": "char_lstm", "embedding": 3, "hidden": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    split = {"x_train": X[:20], "x_test": X[20:], "who_train": WHO, "who_test": np.zeros(6, int)}
    np.savez(folder / "every.npz", **split, y_train=Y[:20], y_test=Y[20:])
    np.savez(folder / "last.npz", **split, y_train=Y[:20, 1], y_test=Y[20:, 1])
    return folder


def section(folder: Path, model: dict[str, Any], file: str = "every.npz", **sections: Any) -> dict[str, Any]:
    own = {"ignore_index": PAD} if file == "every.npz" else {}
    return {
        "data": {
            "dataset": "npz", "path": str(folder / file), "task": "tokens", "num_classes": VOCABULARY, **own,
            "partition": {"scheme": "natural_id", "partition_by": "who"}, **sections.pop("data", {}),
        },
        "model": model,
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 3, "batch_size": "full",
                      **sections.pop("algorithm", {})},
        "run": {"rounds": 3, "dtype": "float64", **sections.pop("run", {})},
        **sections,
    }  # fmt: skip


def mean_loss(module: nn.Module, rows: Any, y: np.ndarray[Any, Any] = Y) -> Tensor:
    """Over all tokens of some rows that count, as PyTorch has it."""
    targets = torch.tensor(y[rows])
    return F.cross_entropy(module(torch.tensor(X[rows])).flatten(0, -2), targets.flatten(), ignore_index=PAD)


@pytest.mark.parametrize("model", [TRANSFORMER, LSTM], ids=lambda m: str(m["name"]))
@pytest.mark.parametrize("kernel", ["rows", "stacked"])
@pytest.mark.parametrize("solver", ["sgd", "adamw"])
def test_a_plain_loop(folder: Path, model: dict[str, Any], kernel: str, solver: str) -> None:
    """Rows of different lengths: each step is along the gradient of the mean over the minibatch's tokens."""
    keys = {"solver": {"name": "adamw", "weight_decay": 0.1}} if solver == "adamw" else {}
    scenario = section(folder, model, algorithm=keys, run={"kernel": kernel})
    run = fedsim.run(scenario, out=folder / f"{model['name']}-{kernel}-{solver}")
    module = copy.deepcopy(assemble(parse(scenario)).task.kernel.module)  # type: ignore[attr-defined]
    for _ in range(3):
        total = torch.zeros(run.params.shape, dtype=torch.float64)
        for rows in CLIENTS:
            own = copy.deepcopy(module)
            made = torch.optim.AdamW(own.parameters(), 0.05, weight_decay=0.1) if keys else torch.optim.SGD(
                own.parameters(), 0.05)  # fmt: skip
            for _ in range(3):
                made.zero_grad()
                mean_loss(own, rows).backward()
                made.step()
            total += len(rows) / 20 * flatten(own)
        load_flat(module, total)
    assert (run.params - flatten(module)).abs().max() <= 1e-10
    last = run.metrics.iloc[-1]
    with torch.no_grad():
        test, train = mean_loss(module, slice(20, None)), mean_loss(module, slice(0, 20))
        right = (module(torch.tensor(X[20:])).argmax(-1).numpy() == Y[20:]) & (Y[20:] != PAD)
    assert last["test_loss"] == pytest.approx(float(test), abs=1e-9)
    assert last["train_loss"] == pytest.approx(float(train), abs=1e-9)
    assert last["perplexity"] == pytest.approx(math.exp(float(test)), rel=1e-9)
    assert last["test_accuracy"] == pytest.approx(right.sum() / (Y[20:] != PAD).sum())


@pytest.mark.parametrize("file", ["every.npz", "last.npz"])
@pytest.mark.parametrize("tests", [0.3, "natural"])
def test_every_client_by_itself(folder: Path, file: str, tests: float | str) -> None:
    """Of each client's own rows, or of the test rows of its id, the means are over the targets that count."""
    y = Y if file == "every.npz" else np.where(np.arange(26)[:, None] % 3 == 0, PAD, Y)[:, 1]
    arrays = dict(np.load(folder / file)) | {"y_train": y[:20], "y_test": y[20:]}
    np.savez(folder / "own.npz", **arrays)
    data = {"local_test": tests, "ignore_index": PAD}
    scenario = section(folder, TRANSFORMER if file == "every.npz" else LSTM, "own.npz", data=data)
    run = fedsim.run(scenario, out=folder / f"own-{tests}-{file}")
    last, module = run.clients[run.clients["round"] == 3].set_index("client"), run.model().double()
    held = assemble(parse(scenario)).task.tests  # type: ignore[attr-defined]
    assert last.index.tolist() == ([0, 1, 2] if tests == 0.3 else [0])
    for client in last.index:
        rows = held.of(client) + (0 if tests == 0.3 else 20)
        with torch.no_grad():
            out, targets = module(torch.tensor(X[rows])).flatten(0, -2), torch.tensor(y[rows]).flatten()
        kept = targets != PAD
        loss = float(F.cross_entropy(out[kept], targets[kept]))
        assert last.loss[client] == pytest.approx(loss, rel=1e-9)
        assert last.perplexity[client] == pytest.approx(math.exp(loss), rel=1e-9)
        assert last.accuracy[client] == pytest.approx(float((out.argmax(-1) == targets)[kept].double().mean()))
        assert last.test_samples[client] == len(rows)
        assert last.name[client] == str(client)


def test_one_target_per_row(folder: Path) -> None:
    """As in LEAF; rows whose target is to be ignored weigh nothing."""
    for ignored in (None, 3):
        keys = {} if ignored is None else {"ignore_index": ignored}
        scenario = section(folder, LSTM, "last.npz", data=keys, run={"rounds": 1}, algorithm={"local_steps": 1})
        run = fedsim.run(scenario, out=folder / f"last-{ignored}")
        module = copy.deepcopy(assemble(parse(scenario)).task.kernel.module)  # type: ignore[attr-defined]
        total = torch.zeros(run.params.shape, dtype=torch.float64)
        for rows in CLIENTS:
            own = copy.deepcopy(module)
            y = torch.tensor(Y[rows, 1])
            F.cross_entropy(own(torch.tensor(X[rows])), y, ignore_index=-1 if ignored is None else ignored).backward()
            step = torch.cat([p.grad.flatten() for p in own.parameters() if p.grad is not None])
            total += len(rows) / 20 * (flatten(own) - 0.05 * step)
        assert (run.params - total).abs().max() <= 1e-10
        assert {"perplexity", "test_accuracy"} <= set(run.metrics)


@pytest.mark.parametrize("model", [TRANSFORMER, LSTM], ids=lambda m: str(m["name"]))
def test_chunks_and_resume_make_no_difference(folder: Path, model: dict[str, Any]) -> None:
    keys = {"local_steps": 4, "batch_size": 3, "momentum": 0.5}
    whole = fedsim.run(section(folder, model, algorithm=keys), out=folder / f"{model['name']}-whole")
    alone = fedsim.run(section(folder, model, algorithm=keys, run={"chunk_rows": 1}), out=folder / f"{model['name']}-1")
    assert (whole.params - alone.params).abs().max() <= 1e-12
    out = folder / f"{model['name']}-resumed"
    fedsim.run(section(folder, model, algorithm=keys, run={"rounds": 1}), out=out)
    again = fedsim.run(section(folder, model, algorithm=keys), out=out, resume=True)
    assert torch.equal(whole.params, again.params)


def test_a_plan_says_how_gradients_are_computed(folder: Path) -> None:
    def said(model: dict[str, Any], **run: Any) -> Any:
        return fedsim.plan(section(folder, model, run=run))["work"]["local gradients"]

    assert said(TRANSFORMER) == said(LSTM) == "clients at once, as a sequence of layers"
    assert said({**TRANSFORMER, "dropout": 0.1}) == "clients at once, under torch.func.vmap"
    assert said({**LSTM, "hidden": 64}) == said(TRANSFORMER, kernel="rows") == "one client after the other"


def test_a_shard_has_the_weights_of_the_whole(folder: Path) -> None:
    """Also where no row of its own is short."""
    task: Any = assemble(parse(section(folder, TRANSFORMER))).task
    for clients in ([0], [1, 2], [2]):
        part, who = task.shard(np.array(clients)), np.array(clients)
        ones = np.ones(len(who), dtype=np.int64)
        here, there = (t.plan(who, ones, 2 * ones, 3, True).batches for t in (part, task))
        assert torch.equal(here.weights, there.weights)
        assert torch.equal(here.targets, there.targets)
        assert torch.equal(part.gather(here.index, None), task.gather(there.index, None))


def test_integers_are_stored_small_and_seen_wide(folder: Path) -> None:
    task: Any = assemble(parse(section(folder, TRANSFORMER))).task
    assert task.inputs.dtype == torch.uint8
    assert task.gather(torch.tensor([0, 1]), None).dtype == torch.int64
    kinds = [compact(np.array([0, n])).dtype for n in (255, 256, 40_000, 2**40)]
    assert kinds == [np.uint8, np.int16, np.int32, np.int64]


@pytest.mark.parametrize(
    "algorithm,topology",
    [("dpsgd", "ring"), ("choco", "ring"), ("scaffold", None), ("fedprox", None), ("fedspeed", None)],
)
def test_other_algorithms(folder: Path, algorithm: str, topology: str | None) -> None:
    keys: dict[str, Any] = {"topology": {"graph": topology}} if topology else {}
    if algorithm == "choco":
        keys["compression"] = {"name": "top_k", "k": 20}
    scenario = section(folder, TRANSFORMER, run={"metrics": [{"name": "macro_f1"}]}, **keys)
    scenario["algorithm"] = {"name": algorithm, "lr": 0.1, "batch_size": 4, "local_steps": 2}
    if algorithm == "choco":
        scenario["algorithm"] |= {"gamma": 0.2}
    run = fedsim.run(scenario, out=folder / algorithm)
    first, last = run.metrics.iloc[0], run.metrics.iloc[-1]
    assert last["train_loss"] < first["train_loss"]
    assert 0 <= last["macro_f1"] <= 1
    if topology:
        task: Any = assemble(parse(scenario)).task
        counted = int((task.test_targets != IGNORED).sum())
        assert (last["node_accuracy"] * 3 * counted) == pytest.approx(round(last["node_accuracy"] * 3 * counted))


def test_privacy_clips_the_gradient_of_a_row(folder: Path) -> None:
    private = {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 0.0, "delta": 1e-5, "sampling_rate": 1.0}
    scenario = section(folder, LSTM, privacy=private, run={"rounds": 1})
    scenario["algorithm"] = {"name": "fedavg", "lr": 0.1, "local_steps": 1}
    run = fedsim.run(scenario, out=folder / "private")
    module = copy.deepcopy(assemble(parse(scenario)).task.inner.kernel.module)  # type: ignore[attr-defined]
    total = torch.zeros(run.params.shape, dtype=torch.float64)
    for rows in CLIENTS:
        for row in rows:
            module.zero_grad()
            mean_loss(module, [row]).backward()
            g = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            total += g * min(1.0, 1.0 / float(g.norm())) / 20
    assert (run.params - (flatten(module) - 0.1 * total)).abs().max() <= 1e-10


@pytest.mark.parametrize(
    "change,key,message",
    [
        ({"model": {"name": "mlp"}}, "model.name", "one answer per sample"),
        ({"model": {**TRANSFORMER, "vocabulary": 5}}, "model.vocabulary",
         r"found id [5-8] in row \d+ of the training data, but '0.tokens' has 5 entries; allowed: ids 0 to 4"),
        ({"adversary": {"eps": 0.1, "step": 0.1, "steps": 1}}, "adversary", "that are integers"),
        ({"attack": {"name": "backdoor", "attackers": 1, "target": 0}}, "attack.name", "targets at every position"),
        ({"data": {"partition": {"scheme": "dirichlet", "alpha": 1.0}, "clients": 3}}, "data.partition.scheme",
         "divides by label, found token targets; allowed: iid"),
        ({"data": {"augment": {"flip": True}}}, "data.augment", "images"),
        ({"data": {"num_classes": 4}}, "data.num_classes", r"the target of row \d+ has the id \d; allowed: 0 to 3"),
        ({"data": {"task": "classification", "ignore_index": None}}, "data.task", "one-hot"),
        ({"data": {"task": "regression"}}, "data.ignore_index", "only with 'task: tokens'"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)  # fmt: skip
def test_refused_before_anything_is_written(folder: Path, change: dict[str, Any], key: str, message: str) -> None:
    scenario = section(folder, TRANSFORMER, data=change.pop("data", {}) if "data" in change else {}) | change
    out = folder / "refused"
    with pytest.raises(InputError, match=message) as caught:
        fedsim.run(scenario, out=out)
    assert (caught.value.problems[0].key or "").startswith(key)
    assert not out.exists()


def test_a_backdoor_of_one_target_writes_a_token(folder: Path) -> None:
    attack = {"name": "backdoor", "attackers": 1, "target": 0, "patch": 2}
    for value, refused in ((1.5, True), (9.0, True), (7.0, False)):
        scenario = section(folder, LSTM, "last.npz", attack={**attack, "value": value})
        if refused:
            with pytest.raises(InputError, match=f"found {value:g}, but samples are token ids; allowed: 0 to 8"):
                fedsim.run(scenario, out=folder / "backdoor")
        else:
            assert "attack_success" in fedsim.run(scenario, out=folder / "backdoor").metrics


@pytest.mark.parametrize("name", ["inverting_gradients", "iha", "lira"])
def test_audits_that_know_no_tokens(folder: Path, name: str) -> None:
    from fedsim.audit.command import audit

    with pytest.raises(InputError, match=r"found integers|found token targets"):
        audit(parse(section(folder, TRANSFORMER) | {"audit": {name: {}}}))


def test_label_flips_leave_what_is_ignored(folder: Path) -> None:
    attack = {"name": "label_flip", "attackers": 1}
    plain: Any = assemble(parse(section(folder, TRANSFORMER))).task
    task: Any = assemble(parse(section(folder, TRANSFORMER, attack=attack))).task
    flipped = task.targets[len(plain.targets) :]
    assert (flipped == IGNORED).any()
    assert int(flipped[flipped != IGNORED].min()) >= 0
    assert task._targets_each is not None
    assert len(task._targets_each) == len(task.targets)
