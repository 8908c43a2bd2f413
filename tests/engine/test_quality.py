"""Measures of classes, probabilities and numbers against scikit-learn, and functions of somebody's own."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import metrics as sk

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.core.metrics import read_columns
from fedsim.core.registry import lookup, names
from fedsim.engine.assembly import assemble
from fedsim.engine.quality import calibration_error
from fedsim.engine.run_directory import read_jsonl

RUN: dict[str, Any] = {"rounds": 3, "eval_every": 3, "device": "cpu", "threads": 1}
DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 200},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 8, "local_steps": 3},
    "run": RUN,
}


def table(folder: Path, classes: int | None) -> dict[str, Any]:
    """A table of `classes`, or of numbers, in which class 0 is rare."""
    draws = np.random.default_rng(5)
    x = draws.normal(size=(120, 3))
    score = x @ [1.0, -2.0, 0.5] + draws.normal(size=120)
    y = score if classes is None else (score > 1).astype(np.int64) + (score > 2.5) * (classes > 2)
    np.savez(folder / "t.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    return {"dataset": "npz", "path": str(folder / "t.npz"), "clients": 3}


def measured(settings: dict[str, Any], out: Path, *metrics: dict[str, Any]) -> tuple[dict[str, Any], Any, np.ndarray]:
    """The last row of a run, what its model says of the test data, and the classes' probabilities or the outputs."""
    run = fedsim.run({**settings, "run": {**settings["run"], "metrics": list(metrics)}}, out=out)
    task = assemble(fedsim.load(run.dir / "scenario.yaml")).task
    centre = run.params.mean(0) if run.params.dim() == 2 else run.params
    answers = task.answers(centre)
    outputs = answers.outputs.double().numpy()
    if answers.guesses is not None:
        outputs = task.probabilities(centre.unsqueeze(0))[0].double().numpy()
    return read_jsonl(run.dir / "metrics.jsonl")[-1], answers, outputs


@pytest.mark.parametrize("bins", [0, 1_000_001, 10**12])
def test_bins_that_fit_no_memory(bins: int, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        measured(DIGITS, tmp_path / "run", {"name": "calibration_error", "bins": bins})
    assert caught.value.problems[0].key == "run.metrics.0.bins"
    assert not (tmp_path / "run").exists()


OF_CLASSES = [
    {"name": "macro_f1"}, {"name": "f1", "average": "micro"}, {"name": "f1", "average": "weighted"},
    {"name": "balanced_accuracy"}, {"name": "auc"}, {"name": "calibration_error", "bins": 10},
]  # fmt: skip


@pytest.mark.parametrize("case", ["digits", "gossip", "three", "two", "logistic"])
def test_measures_of_classes_are_what_scikit_learn_says(case: str, tmp_path: Path) -> None:
    settings = DIGITS
    if case == "gossip":
        settings = {**DIGITS, "algorithm": {"name": "dpsgd", "lr": 0.1}, "topology": {"graph": "ring"}}
    elif case != "digits":
        settings = {**DIGITS, "data": table(tmp_path, 3 if case == "three" else 2)}
    if case == "logistic":
        settings = {**settings, "model": {"name": "linear", "loss": "logistic"}}
    row, answers, p = measured(settings, tmp_path / "run", *OF_CLASSES)
    true, guesses = answers.targets.numpy(), answers.guesses.numpy()
    assert p.shape[0] == len(true)
    assert row["micro_f1"] == pytest.approx(row["test_accuracy"], abs=1e-12)
    for average in ("macro", "micro", "weighted"):
        expected = sk.f1_score(true, guesses, average=average, zero_division=0)
        assert row[f"{average}_f1"] == pytest.approx(expected, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes guessed that the test data have not
        assert row["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(true, guesses), abs=1e-12)
    if p.shape[1] == 2:
        assert row["auc"] == pytest.approx(sk.roc_auc_score(true, p[:, 1]), abs=1e-12)
    else:
        expected = sk.roc_auc_score(true, p / p.sum(1, keepdims=True), multi_class="ovr", labels=range(p.shape[1]))
        assert row["auc"] == pytest.approx(expected, abs=1e-6)
    confidence, error = p.max(1), 0.0
    for k in range(10):
        inside = (confidence > k / 10) & (confidence <= (k + 1) / 10)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - (true == p.argmax(1))[inside].mean())
    assert row["calibration_error"] == pytest.approx(error, abs=1e-6)
    declared, problem = read_columns(tmp_path / "run")
    assert problem is None
    assert [declared[c].larger_is_better for c in ("auc", "calibration_error")] == [True, False]


@pytest.mark.parametrize("k", [1, 3])
def test_the_k_largest(k: int, tmp_path: Path) -> None:
    row, answers, _ = measured(DIGITS, tmp_path / "run", {"name": "top_k_accuracy", "k": k})
    expected = sk.top_k_accuracy_score(answers.targets.numpy(), answers.outputs.numpy(), k=k, labels=range(10))
    assert row[f"top_{k}_accuracy"] == pytest.approx(expected, abs=1e-12)


def test_a_model_that_says_the_same_of_all_classes_is_right_about_none(tmp_path: Path) -> None:
    metrics = [{"name": "top_k_accuracy", "k": 5}, {"name": "auc"}]
    settings = {**DIGITS, "model": {"name": "linear", "init": "zeros"}, "run": {**RUN, "rounds": 1, "metrics": metrics}}
    row = read_jsonl(fedsim.run(settings, out=tmp_path / "run").dir / "metrics.jsonl")[0]
    assert (row["top_5_accuracy"], row["auc"]) == (0.0, 0.5)


def test_measures_of_numbers_are_what_scikit_learn_says(tmp_path: Path) -> None:
    row, answers, outputs = measured(
        {**DIGITS, "data": table(tmp_path, None)}, tmp_path / "run", {"name": "mae"}, {"name": "r2"},
        {"name": "sklearn.metrics:max_error"},
    )  # fmt: skip
    true = answers.targets.double().numpy().ravel()
    assert row["mae"] == pytest.approx(sk.mean_absolute_error(true, outputs.ravel()), rel=1e-12)
    assert row["r2"] == pytest.approx(sk.r2_score(true, outputs.ravel()), rel=1e-12)
    assert row["max_error"] == pytest.approx(sk.max_error(true, outputs.ravel()), rel=1e-12)


def test_a_calibrated_and_an_overconfident_forecast() -> None:
    confidence = torch.full((100,), 0.8, dtype=torch.float64)
    assert calibration_error(confidence, (torch.arange(100) < 80).double(), 15) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(confidence, (torch.arange(100) < 50).double(), 15) == pytest.approx(0.3, abs=1e-12)


@pytest.mark.parametrize("name", sorted(set(names("metric")) - {"ensemble", "clusters"}))
def test_what_cannot_be_measured_here_is_refused(name: str, tmp_path: Path) -> None:
    numbers = {"mae", "r2"}
    data = {"dataset": "digits", "clients": 4, "limit": 200} if name in numbers else table(tmp_path, None)
    settings = {**DIGITS, "data": data, "run": {**RUN, "metrics": [{"name": name}]}}
    with pytest.raises(InputError, match=r"found (classes|a regression|the loss 'mse')") as caught:
        fedsim.run(settings, out=tmp_path / "run")
    assert caught.value.problems[0].key == "run.metrics.0.name"
    assert not (tmp_path / "run").exists()
    assert lookup("metric", name).__doc__


# --- functions --------------------------------------------------------------------------------------------------------

OWN = """
import numpy as np
import torch

def gap(targets, guesses, by=1.0):
    return by * abs(float(np.mean(targets)) - float(np.mean(guesses)))

def surprise(targets, probabilities):
    return -np.log(probabilities[np.arange(len(targets)), targets]).mean()

def many(targets, guesses):
    return {"a": 1.0}

def large(targets, guesses):
    return 10**400

def on_a_graph(targets, guesses):
    return torch.tensor(0.25, requires_grad=True) * 2

def spoils(targets, guesses):
    guesses[:] = 0
    targets[:] = 0
    return 0.0

def late(targets, guesses):
    if (guesses == guesses[0]).mean() < 0.99:
        raise ValueError("too good")
    return 1.0

NUMBER = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_functions.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_functions", None)
    yield "own_functions"
    sys.modules.pop("own_functions", None)


def test_functions_of_targets_and_guesses(functions: str, tmp_path: Path) -> None:
    row, answers, _ = measured(
        DIGITS, tmp_path / "run",
        {"name": f"{functions}:spoils"},  # it has copies
        {"name": "sklearn.metrics:matthews_corrcoef", "larger_is_better": True, "unit": "share"},
        {"name": "sklearn.metrics:fbeta_score", "column": "f2", "beta": 2.0, "average": "macro"},
        {"name": f"{functions}:gap", "by": 2.0},
        {"name": f"{functions}:surprise", "of": "probabilities", "larger_is_better": False},
        {"name": "balanced_accuracy"},
    )  # fmt: skip
    true, guesses = answers.targets.numpy(), answers.guesses.numpy()
    assert row["matthews_corrcoef"] == pytest.approx(sk.matthews_corrcoef(true, guesses), abs=1e-12)
    assert row["f2"] == pytest.approx(sk.fbeta_score(true, guesses, beta=2, average="macro"), abs=1e-12)
    assert row["gap"] == pytest.approx(2 * abs(true.mean() - guesses.mean()))
    assert row["surprise"] == pytest.approx(row["test_loss"], rel=1e-5)
    assert row["surprise"] == pytest.approx(sk.log_loss(true, softmax(answers.outputs.double().numpy(), 1)), rel=1e-5)
    assert row["balanced_accuracy"] == pytest.approx(sk.recall_score(true, guesses, average="macro"))
    said = json.loads((tmp_path / "run" / "columns.json").read_text())
    found = [said[c]["larger_is_better"] for c in ("matthews_corrcoef", "f2", "surprise")]
    assert found == [True, None, False]
    again = fedsim.load(tmp_path / "run" / "scenario.yaml")
    assert [m.metrics[0].name for m in again.measures][:3] == ["spoils", "matthews_corrcoef", "f2"]


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    "metric,key,message",
    [
        ({"name": "own_functions:many"}, "run.metrics.0", "returned dict, allowed: one number"),
        ({"name": "own_functions:large"}, "run.metrics.0", "returned a whole number beyond what numbers hold"),
        ({"name": "own_functions:gap", "bye": 1.0}, "run.metrics.0", "unexpected keyword argument 'bye'"),
        ({"name": "own_functions:gap", "column": "a b"}, "run.metrics.0.column", "found 'a b', allowed: a letter"),
        ({"name": "own_functions:gap", "column": "test_loss"}, "run.metrics.0", "every run has it"),
        ({"name": "own_functions:gap", "of": "everything"}, "run.metrics.0.of", "guesses"),
        ({"name": "own_functions:NUMBER"}, "run.metrics.0.name", "is int, allowed: a dataclass"),
        ({"name": "own_functions:surprise"}, "run.metrics.0", "failed: IndexError"),
        (
            {"name": "top_k_accuracy", "k": 10},
            "run.metrics.0.k",
            "allowed: fewer than the model has outputs, 10",
        ),
        ({"name": "top_k_accuracy", "k": 0}, "run.metrics.0.k", "greater than 0"),
        ({"name": "f1", "average": "mean"}, "run.metrics.0.average", "macro"),
    ],
)
def test_what_is_wrong_is_said_first(metric: dict[str, Any], key: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fedsim.run({**DIGITS, "run": {**RUN, "metrics": [metric]}}, out=tmp_path / "run")
    assert [problem.key for problem in caught.value.problems] == [key]
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_function_that_fails_later_fails_the_run(functions: str, tmp_path: Path) -> None:
    settings = {**DIGITS, "model": {"name": "linear", "init": "zeros"}}
    settings["run"] = {**RUN, "metrics": [{"name": f"{functions}:late"}]}
    with pytest.raises(RunError, match=r"'own_functions:late' failed: ValueError: too good"):
        fedsim.run(settings, out=tmp_path / "run")


@pytest.mark.filterwarnings("error")
def test_a_tensor_on_a_graph_is_a_number(functions: str, tmp_path: Path) -> None:
    settings = {**DIGITS, "run": {**RUN, "metrics": [{"name": f"{functions}:on_a_graph"}]}}
    assert set(fedsim.run(settings, out=tmp_path / "run").metrics["on_a_graph"]) == {0.5}
