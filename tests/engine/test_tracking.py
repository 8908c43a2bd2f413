"""Trackers people have: TensorBoard and MLflow say what they were told; Weights & Biases where it is installed."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.run_directory import read_jsonl
from fedsim.engine.tracking import flat, numbers
from fedsim.engine.watch import OF_THE_RUN, Logger, Row, Watcher

SCENARIO: dict[str, Any] = {
    "name": "told",
    "data": {"dataset": "digits", "clients": 4, "limit": 100},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 10},
    "run": {"rounds": 6, "eval_every": 2, "device": "cpu", "threads": 1},
}


def logged(*loggers: dict[str, Any], **run: Any) -> dict[str, Any]:
    return {**SCENARIO, "run": {**SCENARIO["run"], "loggers": list(loggers), **run}}


class Interrupt(Watcher):
    """A real Ctrl-C after a round."""

    def round(self, number: int, row: Row | None) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)


Told = dict[str, dict[int, float]]


def expected(run: fedsim.Run) -> Told:
    """The columns of a run: their values by round."""
    found: Told = {}
    for row in read_jsonl(run.dir / "metrics.jsonl"):
        for name, value in numbers(row).items():
            found.setdefault(name, {})[row["round"]] = value
    return found


def events(folder: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    scalars = {name: {event.step: event.value for event in read.Scalars(name)} for name in read.Tags()["scalars"]}
    assert all(len(read.Scalars(name)) == len(values) for name, values in scalars.items())  # none twice
    assert "scenario/text_summary" in read.Tags()["tensors"]
    return scalars


def mlflow_run(folder: Path, store: Path) -> tuple[Any, Told]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.as_uri())
    number = json.loads((folder / "mlflow.json").read_text())["run"]
    found = client.get_run(number)
    histories = {name: client.get_metric_history(number, name) for name in found.data.metrics}
    told = {name: {point.step: point.value for point in history} for name, history in histories.items()}
    assert all(len(history) == len(told[name]) for name, history in histories.items())  # none twice
    return found, told


def test_what_trackers_are_told_is_what_the_run_records(tmp_path: Path) -> None:
    both = [{"name": "tensorboard"}, {"name": "mlflow", "store": str(tmp_path / "store"), "experiment": "digits"}]
    run = fedsim.run(logged(*both), out=tmp_path / "run")
    rows = expected(run)
    told = events(run.dir / "tensorboard")
    assert told.keys() == rows.keys()
    for name, values in rows.items():
        assert told[name] == pytest.approx(values, rel=1e-6), name
    found, told = mlflow_run(run.dir, tmp_path / "store")
    assert told == rows
    assert found.data.params["algorithm.lr"] == "0.1"
    assert found.data.params["algorithm.name"] == "fedavg"
    assert (found.info.run_name, found.info.status) == ("told", "FINISHED")
    scenario = tmp_path / "store" / found.info.experiment_id / found.info.run_id / "artifacts" / "scenario.yaml"
    assert fedsim.load(scenario).hash() == fedsim.load(run.dir / "scenario.yaml").hash()
    assert not (run.dir / "mlruns").exists()


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = logged({"name": "tensorboard"}, {"name": "mlflow"})
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "run", watchers=[Interrupt()])
    store = tmp_path / "run" / "mlruns"
    assert mlflow_run(tmp_path / "run", store)[0].info.status == "KILLED"
    run = fedsim.run(settings, out=tmp_path / "run", resume=True)
    assert run.resumed_at == 3
    found, told = mlflow_run(run.dir, store)
    assert found.info.status == "FINISHED"
    assert told == expected(run)
    assert list(events(run.dir / "tensorboard")["test_loss"]) == [0, 2, 4, 6]
    again = fedsim.run(settings, out=tmp_path / "run")  # from the beginning: a run of its own
    assert list(events(again.dir / "tensorboard")["test_loss"]) == [0, 2, 4, 6]
    other, told = mlflow_run(again.dir, store)
    assert other.info.run_id != found.info.run_id
    assert told == expected(again)


def test_what_a_killed_process_told_after_its_checkpoint_is_not_told_again(tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    settings, store = logged({"name": "mlflow"}), tmp_path / "run" / "mlruns"
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "run", watchers=[Interrupt()])
    rows = expected(fedsim.run(settings, out=tmp_path / "whole"))
    names = list(rows)
    late = [Metric(name, rows[name][4], 0, 4) for name in names[: len(names) // 2]]  # killed in the middle of a batch
    number = json.loads((tmp_path / "run" / "mlflow.json").read_text())["run"]
    MlflowClient(tracking_uri=store.as_uri()).log_batch(number, metrics=late)
    run = fedsim.run(settings, out=tmp_path / "run", resume=True)
    told = mlflow_run(run.dir, store)[1]
    told.pop("wall"), rows.pop("wall")
    assert told == rows


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_library_that_is_missing_is_named_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"pip install 'fedsim-learn\[{name}\]'") as caught:
        fedsim.run(logged({"name": "csv"}, {"name": name}), out=tmp_path / "run")
    assert caught.value.problems[0].key == "run.loggers.1.name"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "logger,key",
    [
        ({"name": "tensorboard", "folder": "../there"}, "folder"), ({"name": "mlflow", "experiment": ""}, "experiment"),
        ({"name": "wandb", "connection": "maybe"}, "connection"), ({"name": "mlflow", "uri": "x"}, "uri"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_written(logger: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fedsim.run(logged(logger), out=tmp_path / "run")
    assert caught.value.problems[0].key == f"run.loggers.0.{key}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("store", ["", "  ", "sqlite:///runs.db", "file:///tmp/runs", "s3://bucket/runs"])
def test_a_store_that_is_neither_a_folder_nor_a_server(store: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed: a folder, or the http") as caught:
        fedsim.run(logged({"name": "mlflow", "store": store}), out=tmp_path / "run")
    assert caught.value.problems[0].key == "run.loggers.0.store"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "logger,key,file",
    [
        ({"name": "csv", "file": "partition.csv"}, "file", "partition.csv"),
        ({"name": "csv", "file": "Partition.csv"}, "file", "Partition.csv"),
        ({"name": "tensorboard", "folder": "checkpoint"}, "folder", "checkpoint"),
        ({"name": "tensorboard", "folder": "metrics.jsonl"}, "folder", "metrics.jsonl"),
        ({"name": "tensorboard", "folder": "data"}, "folder", "data.json"),
        ({"name": "tensorboard", "folder": "clients.parquet.new"}, "folder", "clients.parquet.new"),
    ],
)
def test_loggers_leave_the_files_of_the_run_alone(logger: dict[str, Any], key: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"writes '{file}', which the run itself writes") as caught:
        fedsim.run(logged(logger), out=tmp_path / "run")
    assert caught.value.problems[0].key == f"run.loggers.0.{key}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "logger", [{"name": "csv"}, {"name": "tensorboard"}, {"name": "mlflow", "store": "a"}, {"name": "best"}]
)
def test_two_loggers_do_not_write_one_file(logger: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which run\.loggers\.0 writes, too") as caught:
        fedsim.run(logged(logger, {"name": "csv", "file": "other.csv"}, logger), out=tmp_path / "run")
    assert caught.value.problems[0].key.startswith("run.loggers.2.")
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True, kw_only=True)
class Fresh(Logger):
    """Somebody's own, with a file whose name ends as those of files that are not whole yet."""

    @property
    def writes(self) -> Mapping[str, str]:
        return {"rows.new": "name"}

    def watcher(self) -> Watcher:
        return Watcher()


def test_two_loggers_do_not_write_one_file_that_ends_in_new(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which run\.loggers\.0 writes, too"):
        fedsim.run(logged({"name": Fresh}, {"name": Fresh}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_file_of_a_run_is_known(tmp_path: Path) -> None:
    """What a run writes of itself is in the list that loggers keep away from."""
    run = fedsim.run(logged(trace=True), out=tmp_path / "run")
    assert {file.name for file in run.dir.iterdir()} - {".fedsim.lock"} <= set(OF_THE_RUN)


def test_a_store_that_cannot_be_written_takes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    run = fedsim.run(logged({"name": "mlflow", "store": str(tmp_path / "file")}), out=tmp_path / "run")
    assert run.metrics["test_accuracy"].iloc[-1] > 0
    assert capsys.readouterr().err.startswith("logger mlflow: ")


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb, an optional extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = fedsim.run(logged({"name": "wandb", "project": "digits"}), out=tmp_path / "run")
    (made,) = (run.dir / "wandb").glob("offline-run-*")
    assert list(made.glob("*.wandb"))
    assert json.loads((run.dir / "wandb.json").read_text())["told"] == 6


def test_numbers_and_keys() -> None:
    row = {"round": 3, "a": 1, "b": None, "c": math.inf, "d": 0.5, "merged": True}
    assert numbers(row) == {"a": 1.0, "d": 0.5, "merged": 1.0}
    assert flat({"a": {"b": 1, "c": [1, None]}, "d": "x"}) == {"a.b": "1", "a.c": "[1, null]", "d": "x"}


def test_runs_of_a_sweep_are_told_each_by_itself(tmp_path: Path) -> None:
    names = ("csv", "best", "tensorboard", "mlflow")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(logged(*({"name": name} for name in names), rounds=2)))
    sweep = {"name": "s", "scenario": "s.yaml", "grid": {"algorithm.lr": [0.1, 0.2]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    losses = []
    for outcome in fedsim.sweep(tmp_path / "sweep.yaml", out=tmp_path / "out"):
        assert outcome.run is not None
        rows = expected(outcome.run)
        assert events(outcome.dir / "tensorboard")["test_loss"] == pytest.approx(rows["test_loss"], rel=1e-6)
        assert mlflow_run(outcome.dir, outcome.dir / "mlruns")[1] == rows
        assert len((outcome.dir / "metrics.csv").read_text().splitlines()) == 3
        assert outcome.run.best_params.shape == outcome.run.params.shape
        losses.append(rows["test_loss"][2])
    assert losses[0] != losses[1]


@pytest.mark.skipif(find_spec("flwr") is None, reason="needs flwr")
def test_a_deployment_tells_them(tmp_path: Path) -> None:
    from flower_loopback import Deployment

    names = ("csv", "best", "tensorboard", "mlflow")
    settings = logged(*({"name": name} for name in names), rounds=2)
    run = Deployment(tmp_path / "app", settings, 4).run()
    rows = expected(run)
    assert events(run.dir / "tensorboard")["test_loss"] == pytest.approx(rows["test_loss"], rel=1e-6)
    assert mlflow_run(run.dir, run.dir / "mlruns")[1] == rows
    assert len((run.dir / "metrics.csv").read_text().splitlines()) == 3
    assert run.best_params.shape == run.params.shape
