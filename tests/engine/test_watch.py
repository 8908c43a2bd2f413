"""Watchers: what they are told, in which order, and that a logger cannot take the run with it."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.core.client_metrics import ClientTable
from fedsim.core.errors import InputError, RunError
from fedsim.engine.best import read_best
from fedsim.engine.run_directory import Run, read_jsonl
from fedsim.engine.watch import Guarded, Row, Watcher

SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 10},
    "run": {"rounds": 4, "eval_every": 2, "device": "cpu", "threads": 1, "trace": True},
}


def logged(*loggers: dict[str, Any], **run: Any) -> dict[str, Any]:
    return {**SCENARIO, "run": {**SCENARIO["run"], "loggers": list(loggers), **run}}


class Interrupt(Watcher):
    """A real Ctrl-C after a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def round(self, number: int, row: Row | None) -> None:
        if number == self.after:
            os.kill(os.getpid(), signal.SIGINT)


def table(run: Run, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (run.dir / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_watchers_are_told_everything_in_order(own: str, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    fedsim.run(logged({"name": f"{own}:Lines", "file": str(heard)}), out=tmp_path / "run")
    assert heard.read_text().splitlines() == [
        "began 0 run (650,) rounds", "round 0 bytes_sent", "scheduled 1", "round 1 None", "scheduled 2",
        "round 2 bytes_sent", "scheduled 3", "round 3 None", "scheduled 4", "round 4 bytes_sent", "saving",
        "ended True", "closed NoneType",
    ]  # fmt: skip


def test_a_resumed_run_is_told_from_its_checkpoint_on(own: str, tmp_path: Path) -> None:
    settings = logged({"name": f"{own}:Lines", "file": str(tmp_path / "heard")})
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "run", watchers=[Interrupt(3)])
    first = (tmp_path / "heard").read_text().splitlines()
    assert first[-4:] == ["scheduled 3", "round 3 None", "saving", "closed KeyboardInterrupt"]
    fedsim.run(settings, out=tmp_path / "run", resume=True)
    more = (tmp_path / "heard").read_text().splitlines()[len(first) :]
    assert more[0] == "began 3 run (650,) rounds"
    assert more[1:3] == ["scheduled 4", "round 4 bytes_sent"]


def test_a_logger_that_raises_is_left_out_and_the_run_goes_on(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fedsim.run(SCENARIO, out=tmp_path / "plain")
    lines = {"name": f"{own}:Lines", "file": str(tmp_path / "heard"), "fails_at": 1}
    run = fedsim.run(logged(lines, {"name": "csv"}), out=tmp_path / "run")
    said = capsys.readouterr().err
    message = f"logger {own}:Lines: OSError: the server is away; it is told nothing more, the run goes on\n"
    assert said.count(message) == 1
    assert (tmp_path / "heard").read_text().splitlines()[-2:] == ["scheduled 1", "closed NoneType"]
    assert torch.equal(run.params, plain.params)
    assert len(table(run)) == len(read_jsonl(run.dir / "metrics.jsonl")) == 3


def _leaves(*_: Any) -> None:
    sys.exit("out of\nlicences")


def _forges(_: Any, _number: int, row: Any) -> None:
    if row is not None:
        row["test_accuracy"] = 42.0
        row.pop("test_loss")


NOBODY = np.zeros(0, dtype=np.int64)
TOLD: dict[str, tuple[Any, ...]] = {
    "began": (None,), "combined": (1,), "round": (1, {"round": 1}), "scheduled": ({"round": 1},),
    "clients": (ClientTable(1, NOBODY, NOBODY, NOBODY, NOBODY, {}),), "saving": (), "ended": (None,), "closed": (None,),
}  # fmt: skip


@pytest.mark.parametrize("method", [*TOLD])
def test_a_logger_that_leaves_by_sys_exit_is_left_out_too(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    guarded = Guarded("mine", type("Leaves", (Watcher,), {method: _leaves})())
    for _ in range(2):
        getattr(guarded, method)(*TOLD[method])
    said = "logger mine: SystemExit: out of licences; it is told nothing more, the run goes on\n"
    assert capsys.readouterr().err == said


def test_what_a_logger_does_to_a_row_is_nothing_to_the_run(tmp_path: Path) -> None:
    forger = Guarded("mine", type("Forges", (Watcher,), {"round": _forges})())
    told: list[dict[str, Any]] = []
    hears = type("Hears", (Watcher,), {"round": lambda _, _n, row: told.append(dict(row)) if row else None})()
    run = fedsim.run(logged({"name": "csv"}), out=tmp_path / "run", watchers=[forger, hears])
    assert told == read_jsonl(run.dir / "metrics.jsonl")
    assert [float(row["test_accuracy"]) for row in table(run)] == [row["test_accuracy"] for row in told]


def test_everybody_hears_what_ended_a_run(tmp_path: Path) -> None:
    closed: list[str] = []

    class Closes(Watcher):
        def closed(self, error: BaseException | None) -> None:
            closed.append(type(error).__name__)

    class Raises(Watcher):
        def round(self, number: int, row: Row | None) -> None:
            raise ValueError("mine")

        def closed(self, error: BaseException | None) -> None:
            raise RuntimeError("again")

    with pytest.raises((ValueError, RuntimeError)):
        fedsim.run(SCENARIO, out=tmp_path / "run", watchers=[Raises(), Closes()])
    diverges = {**SCENARIO, "algorithm": {"name": "fedavg", "lr": 1e38, "local_steps": 50}}
    with pytest.raises(RunError, match="diverged"):
        fedsim.run(diverges, out=tmp_path / "diverged", watchers=[Closes()])
    assert closed == ["ValueError", "RunError"]
    assert read_jsonl(tmp_path / "diverged" / "metrics.jsonl")[-1]["round"] > 0


def test_csv_has_the_rows_of_the_run(tmp_path: Path) -> None:
    run = fedsim.run(logged({"name": "csv", "file": "numbers.csv"}), out=tmp_path / "run")
    recorded = read_jsonl(run.dir / "metrics.jsonl")
    found = table(run, "numbers.csv")
    assert [list(row) for row in found] == [list(row) for row in recorded]
    assert [{k: float(v) for k, v in row.items()} for row in found] == recorded


def test_csv_of_a_resumed_run_is_that_of_an_unbroken_one(tmp_path: Path) -> None:
    settings = logged({"name": "csv"}, eval_every=1, rounds=6)
    whole = fedsim.run(settings, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "parts", watchers=[Interrupt(3)])
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:  # of rounds that were lost with the process
        file.write(",".join(["4", *["0"] * 6]) + "\n")
    resumed = fedsim.run(settings, out=tmp_path / "parts", resume=True)
    assert resumed.resumed_at == 3
    assert [{**row, "wall": ""} for row in table(resumed)] == [{**row, "wall": ""} for row in table(whole)]


def test_csv_takes_a_column_that_comes_late(tmp_path: Path) -> None:
    from fedsim.engine.loggers import Csv
    from fedsim.engine.watch import Watched
    from fedsim.scenario.load import parse

    watcher = Csv().watcher()
    watcher.began(Watched(tmp_path, parse(SCENARIO), {}, lambda: None))  # type: ignore[arg-type,return-value]
    watcher.round(0, {"round": 0, "a": 1.5})
    watcher.round(1, None)
    watcher.round(2, {"round": 2, "a": None, "b": 3})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["round", "a", "b"], ["0", "1.5", ""], ["2", "", "3"]]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("logger", "key", "message"),
    [
        ({"name": "csvs"}, "run.loggers.0.name", "did you mean 'csv'"),
        ({"name": "csv", "file": "../outside.csv"}, "run.loggers.0.file", "allowed: text that matches"),
        ({"name": "csv", "files": "a"}, "run.loggers.0.files", "unknown key"),
        ({"name": "own_measures:F1"}, "run.loggers.0.name", "inherits fedsim.engine.watch.Logger"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tmp_path: Path, logger: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        fedsim.run(logged(logger), out=tmp_path / "run")
    assert caught.value.problems[0].key == key
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_loggers_do_not_change_what_a_run_is_called_and_may_change_when_it_is_resumed(tmp_path: Path) -> None:
    from fedsim.scenario.load import parse

    assert parse(SCENARIO).hash() == parse(logged({"name": "csv"})).hash()
    fedsim.run(SCENARIO, out=tmp_path / "run")
    again = fedsim.run(logged({"name": "csv"}, rounds=6), out=tmp_path / "run", resume=True)
    assert [row["round"] for row in table(again)] == ["6"]


# --- the best model ---------------------------------------------------------------------------------------------------


def best_of(run: Run, metric: str, larger: bool) -> tuple[int, float]:
    rows = [(row["round"], row[metric]) for row in read_jsonl(run.dir / "metrics.jsonl")]
    value = (max if larger else min)(v for _, v in rows)
    return next(n for n, v in rows if v == value), value


class Models(Watcher):
    """The model after every round."""

    def began(self, run: Any) -> None:
        self.run, self.found = run, dict[int, torch.Tensor]()

    def round(self, number: int, row: Row | None) -> None:
        self.found[number] = self.run.now().centre.clone()


@pytest.mark.parametrize("graph", [False, True], ids=["server", "graph"])
def test_the_best_model_is_kept(graph: bool, tmp_path: Path) -> None:
    """With a step that is too long the loss rises and falls."""
    settings = logged({"name": "best", "metric": "test_loss"}, eval_every=1, rounds=6)
    settings["algorithm"] = {"name": "dpsgd" if graph else "fedavg", "lr": 1.0 if graph else 3.0, "batch_size": 10}
    if graph:
        settings["topology"] = {"graph": "ring"}
    models = Models()
    whole = fedsim.run(settings, out=tmp_path / "whole", watchers=[models])
    number, value = best_of(whole, "test_loss", larger=False)
    assert 0 < number < 6
    params, told = read_best(whole.dir)
    assert (told["round"], float(told["value"]), told["metric"]) == (str(number), value, "test_loss")
    assert torch.equal(params, models.found[number])
    assert torch.equal(whole.best_params, params)
    assert "layout" in told
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "parts", watchers=[Interrupt(3)])
    resumed = fedsim.run(settings, out=tmp_path / "parts", resume=True)
    assert read_best(resumed.dir)[1] == told
    assert torch.equal(resumed.best_params, params)


def test_a_best_model_is_exported_and_never_an_older_run_s(tmp_path: Path) -> None:
    run = fedsim.run(logged({"name": "best"}), out=tmp_path / "run")
    file = tmp_path / "best.pt"
    assert CliRunner().invoke(app, ["export", str(run.dir), str(file), "--best"]).exit_code == 0
    exported = torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(torch.cat([v.flatten() for v in exported.values()]), run.best_params)
    again = fedsim.run(SCENARIO, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"has no best\.safetensors"):
        _ = again.best_params


@pytest.mark.parametrize(
    ("metric", "message"),
    [("test_acuracy", "did you mean 'test_accuracy'"), ("bytes_sent", "of which no value is the best")],
)
def test_a_metric_without_a_best_is_refused(metric: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fedsim.run(logged({"name": "best", "metric": metric}), out=tmp_path / "run")
    assert caught.value.problems[0].key == "run.loggers.0.metric"
    assert not (tmp_path / "run").exists()
