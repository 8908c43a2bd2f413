"""Samples of a run: a kill and a resume lose and repeat none, a damaged file is told, and what they say together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.engine.assembly import assemble
from fedsim.engine.export import export_model
from fedsim.engine.quality import calibration_error
from fedsim.engine.run_directory import read_jsonl
from fedsim.engine.samples import FILE, ROWS
from fedsim.engine.watch import Watcher
from fedsim.reports.plan import plan
from fedsim.scenario.load import given

CHAINS, ROUNDS, BURN_IN, THIN = 3, 12, 3, 2
KEPT = [5, 7, 9, 11]
SCENARIO: dict[str, Any] = {
    "data": {"dataset": "synthetic", "clients": 4, "alpha": 1.0, "beta": 1.0, "dimension": 3, "num_classes": 3,
             "max_samples": 40},
    "model": {"name": "linear", "init": "zeros"},
    "algorithm": {"name": "fsgld", "lr": 2e-3, "local_steps": 2, "batch_size": 5, "chains": CHAINS,
                  "burn_in": BURN_IN, "thin": THIN, "surrogate": "none"},
    "participation": {"clients_per_round": 1},
    "run": {"rounds": ROUNDS, "eval_every": 4, "device": "cpu", "threads": 1, "metrics": [{"name": "ensemble"}],
            "checkpoint_seconds": 1e-9},
}  # fmt: skip


class KilledError(BaseException):
    """As a process ends that is killed: nobody tidies up."""


class Kill(Watcher):
    """Ends a run right after the state of a round was kept."""

    def __init__(self, at: int) -> None:
        self.at = at

    def combined(self, number: int) -> None:
        if number == self.at:
            raise KilledError


class States(Watcher):
    """The states of all rounds."""

    def __init__(self) -> None:
        self.seen: dict[int, torch.Tensor] = {}

    def began(self, run: Any) -> None:
        self.now = run.now

    def combined(self, number: int) -> None:
        self.seen[number] = self.now().state("x").clone()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run(SCENARIO, out=tmp_path_factory.mktemp("samples") / "whole").dir


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(folder / "metrics.jsonl")]


def same(one: Path, other: Path) -> None:
    a, b = load_file(one / FILE), load_file(other / FILE)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert rows(one)[-1] == rows(other)[-1]


def test_samples_are_the_states_of_their_rounds(tmp_path: Path) -> None:
    states = States()
    run = fedsim.run(SCENARIO, out=tmp_path / "run", watchers=[states])
    found = load_file(run.dir / FILE)
    assert found["rounds"].tolist() == KEPT
    assert torch.equal(found["samples"], torch.stack([states.seen[n] for n in KEPT]))
    assert not (run.dir / ROWS).exists()


@pytest.mark.parametrize("at", [2, 5, 8, 9, 12])
def test_a_killed_run_loses_and_repeats_nothing(tmp_path: Path, whole: Path, at: int) -> None:
    with pytest.raises(KilledError):
        fedsim.run(SCENARIO, out=tmp_path / "run", watchers=[Kill(at)])
    assert not (tmp_path / "run" / FILE).exists()
    run = fedsim.run(SCENARIO, out=tmp_path / "run", resume=True)
    assert run.resumed_at == at - 1
    same(run.dir, whole)
    assert rows(run.dir) == rows(whole)


def test_a_finished_run_goes_on(tmp_path: Path, whole: Path) -> None:
    short = {**SCENARIO, "run": {**SCENARIO["run"], "rounds": 8}}
    fedsim.run(short, out=tmp_path / "run")
    assert load_file(tmp_path / "run" / FILE)["rounds"].tolist() == [5, 7]
    same(fedsim.run(SCENARIO, out=tmp_path / "run", resume=True).dir, whole)
    same(fedsim.run(SCENARIO, out=tmp_path / "run", resume=True).dir, whole)  # nothing is left to do


def test_a_run_from_the_beginning_forgets_the_last_one(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / ROWS).write_bytes(b"of another run")
    same(fedsim.run(SCENARIO, out=tmp_path / "run").dir, whole)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("finished", [False, True], ids=["killed", "finished"])
def test_a_damaged_file_is_told_and_nothing_is_written(tmp_path: Path, damage: str, finished: bool) -> None:
    if finished:
        fedsim.run({**SCENARIO, "run": {**SCENARIO["run"], "rounds": 10}}, out=tmp_path / "run")
    else:
        with pytest.raises(KilledError):
            fedsim.run(SCENARIO, out=tmp_path / "run", watchers=[Kill(10)])
    file = tmp_path / "run" / (FILE if finished else ROWS)
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) - 40])
    else:
        content[len(content) - 60] ^= 1
        file.write_bytes(content)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=rf"{file.name} is (damaged|missing)|samples.* is missing"):
        fedsim.run(SCENARIO, out=tmp_path / "run", resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir() if p.name in before} == before


def test_a_run_that_is_too_short_says_that_it_kept_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = fedsim.run({**SCENARIO, "run": {**SCENARIO["run"], "rounds": 4}}, out=tmp_path / "run")
    assert "no sample was kept" in caplog.text
    assert load_file(run.dir / FILE)["samples"].shape == (0, CHAINS, 12)


@pytest.mark.parametrize("chain,which", [(None, "the mean of the chains'"), (2, "chain 2's")])
def test_an_exported_model_is_of_chains(tmp_path: Path, whole: Path, chain: int | None, which: str) -> None:
    params = load_file(whole / "params.safetensors")["params"]
    about = export_model(whole, params, tmp_path / "model.pt", chain)
    assert about["which"] == which
    made = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]
    expected = params.mean(0) if chain is None else params[chain]
    torch.testing.assert_close(torch.cat([v.flatten() for v in made.values()]), expected)


def test_plan_says_the_size(whole: Path) -> None:
    facts = plan(SCENARIO)["samples"]
    size, said = (whole / FILE).stat().st_size, int(facts[FILE].split()[0].replace(",", ""))
    assert 0 <= size - said < 1000  # but for names and the layout
    assert facts["samples kept"] == f"{CHAINS * len(KEPT)}, {CHAINS} in each of {len(KEPT)} rounds"


def test_the_ensemble_is_the_mean_of_the_samples(whole: Path) -> None:
    task: Any = assemble(given(SCENARIO)).task
    found = rows(whole)
    assert [row["ensemble_size"] for row in found] == [0, 0, 2 * CHAINS, 4 * CHAINS]
    assert found[1]["ensemble_log_likelihood"] is None
    models = load_file(whole / FILE)["samples"].flatten(0, 1)
    mean = np.zeros((len(task.test_targets), 3))
    for model in models:
        weight, bias = model[:9].view(3, 3), model[9:]
        mean += torch.softmax(task.test_inputs @ weight.T + bias, -1).double().numpy() / len(models)
    y = task.test_targets.numpy()
    assert found[-1]["ensemble_log_likelihood"] == pytest.approx(np.log(mean[np.arange(len(y)), y]).mean(), abs=1e-6)
    assert found[-1]["ensemble_accuracy"] == pytest.approx((mean.argmax(1) == y).mean())
    error = 0.0
    for low in range(15):
        inside = (mean.max(1) > low / 15) & (mean.max(1) <= (low + 1) / 15)
        if inside.any():
            gap = (mean.argmax(1) == y)[inside].mean() - mean.max(1)[inside].mean()
            error += abs(gap) * inside.mean()
    assert found[-1]["ensemble_calibration_error"] == pytest.approx(error, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.95, 0.85, 0.65, 0.55], dtype=torch.float64)
    right = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    for bins, sums in ((2, abs(2 - 3.0)), (5, abs(1 - 1.8) + 0.35 + 0.55), (10, 0.05 + 0.85 + 0.35 + 0.55)):
        assert calibration_error(confidence, right, bins) == pytest.approx(sums / 4)


@pytest.mark.parametrize(
    "change,says",
    [
        ({"algorithm": {"name": "fedavg"}}, "run.metrics.0.name: is of samples, and 'fedavg' keeps none"),
        ({"model": {"name": "linear", "loss": "multi_margin"}}, "run.metrics.0.name: is of probabilities"),
    ],
    ids=["no samples", "no probabilities"],
)
def test_an_ensemble_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        fedsim.run({**SCENARIO, **change}, out=tmp_path / "run")
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()
