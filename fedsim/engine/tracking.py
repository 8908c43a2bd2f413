"""Loggers that hand a run's metrics to trackers people have: TensorBoard, MLflow and Weights & Biases.

Each is an optional extra through the tracker's own library, imported when a run asks for it. All of them get the same:
every finite number of a row of ``metrics.jsonl`` under the name of its column, with the round as the step, and the
scenario. Rounds that a resumed run tells again are not told to a tracker twice.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from fedsim.core.about import install
from fedsim.core.errors import InputError
from fedsim.core.metrics import Metric
from fedsim.core.registry import register
from fedsim.engine.watch import Logger, Watched, Watcher

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=128)]


_ADDRESSES = ("http://", "https://")


def _library(module: str, extra: str) -> Any:
    """A tracker's library; InputError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"found {extra}, but its library cannot be imported ({error}); {install(extra)}"
        raise InputError(message, key="name") from None


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row trackers are told: finite numbers, but for the round, which is the step."""
    pairs = {k: v for k, v in row.items() if k != "round" and isinstance(v, int | float)}
    return {k: float(v) for k, v in pairs.items() if math.isfinite(v)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A scenario's keys with dots, and their values as text, a list in JSON."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


class _Tracker(Watcher, ABC):
    """Tells every evaluation once: a resumed run remembers in a file of its directory how far it had come.

    Parameters
    ----------
    file : of the run directory, with what the tracker calls the run.
    """

    def __init__(self, file: str) -> None:
        self._file, self._told, self._kept = Path(file), -1, dict[str, Any]()

    def began(self, run: Watched) -> None:
        self._file = run.dir / self._file.name
        if run.resumed_at and self._file.exists():
            self._kept = json.loads(self._file.read_text(encoding="utf-8"))
            self._told = min(int(self._kept["told"]), run.resumed_at)
        else:
            self._file.unlink(missing_ok=True)
        self._kept |= self.open(run, self._kept)

    def round(self, number: int, row: Mapping[str, Any] | None) -> None:
        if row is not None and number > self._told:
            self.tell(number, numbers(row))
            self._told = number

    def saving(self) -> None:
        self._file.write_text(json.dumps({**self._kept, "told": self._told}, indent=2) + "\n", encoding="utf-8")

    def ended(self, run: Watched) -> None:
        self.saving()

    @abstractmethod
    def open(self, run: Watched, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        """Begin, or go on with what `kept` names; what to keep."""

    @abstractmethod
    def tell(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of an evaluation."""


@register.logger("tensorboard")
@dataclass(frozen=True, kw_only=True)
class TensorBoard(Logger):
    """Event files in the run directory; ``tensorboard --logdir`` takes one run, or a folder of runs or a sweep.

    Parameters
    ----------
    folder : of the event files, in the run directory.
    """

    folder: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "tensorboard"

    @property
    def writes(self) -> Mapping[str, str]:
        return {self.folder: "folder", f"{self.folder}.json": "folder"}

    def watcher(self) -> Watcher:
        _library("tensorboard", "tensorboard")
        return _Events(self.folder)


class _Events(_Tracker):
    def __init__(self, folder: str) -> None:
        super().__init__(f"{folder}.json")
        self._folder = folder
        self._writer: Any = None

    def open(self, run: Watched, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        from torch.utils.tensorboard import SummaryWriter

        place = run.dir / self._folder
        if not kept and place.is_dir():
            for old in place.glob("events.out.tfevents.*"):  # of the run that was in this directory before
                old.unlink()
        purge = self._told + 1 if kept else None  # events of rounds that were lost with their process
        self._writer = SummaryWriter(str(place), purge_step=purge)
        if not kept:
            text = yaml.safe_dump(run.scenario.resolved(), sort_keys=False)
            self._writer.add_text("scenario", "\n".join(f"    {line}" for line in text.splitlines()))
        return {"folder": self._folder}

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def saving(self) -> None:
        if self._writer is not None:
            self._writer.flush()
        super().saving()

    def closed(self, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()


@register.logger("mlflow")
@dataclass(frozen=True, kw_only=True)
class MLflow(Logger):
    """A run in MLflow: keys of the scenario as parameters, metrics by round, the scenario as an artifact.

    Parameters
    ----------
    store : a folder, from the scenario's, or the ``http(s)://`` address of a tracking server. Default: ``mlruns`` in
        the run directory. Runs to be compared in MLflow go to one store.
    experiment : its name there.
    """

    store: str | None = None
    experiment: _Name = "fedsim"

    def check(self, columns: Mapping[str, Metric]) -> None:
        if self.store is not None and not self._named(self.store):
            message = (
                f"found {self.store!r}, allowed: a folder, or the http:// or https:// address of a tracking server"
            )
            raise InputError(message, key="store")

    @staticmethod
    def _named(store: str) -> bool:
        return bool(store.strip()) and (store.startswith(_ADDRESSES) or "://" not in store)

    @property
    def writes(self) -> Mapping[str, str]:
        return {"mlflow.json": "name", **({"mlruns": "store"} if self.store is None else {})}

    def watcher(self) -> Watcher:
        _library("mlflow", "mlflow")
        return _MlflowRun(self.store, self.experiment)


class _MlflowRun(_Tracker):
    def __init__(self, store: str | None, experiment: str) -> None:
        super().__init__("mlflow.json")
        self._store, self._experiment = store, experiment
        self._client: Any = None
        self._id = ""
        self._last: dict[str, int] = {}  # step of each metric that the store has

    def open(self, run: Watched, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        # since MLflow 3.7 a folder has to be asked for; a database would need SQLAlchemy
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = kept.get("store") or self._uri(run)
        self._client = MlflowClient(tracking_uri=uri)
        if kept:
            self._id = kept["run"]
            self._client.update_run(self._id, status="RUNNING")
            for name in self._client.get_run(self._id).data.metrics:  # a process that was killed told more than it kept
                self._last[name] = max(point.step for point in self._client.get_metric_history(self._id, name))
            return {}
        experiment = self._client.get_experiment_by_name(self._experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        name = run.scenario.name or run.dir.name
        made = self._client.create_run(number, run_name=name, tags={"directory": str(run.dir.resolve())})
        self._id = made.info.run_id
        resolved = run.scenario.resolved()
        params = [Param(k, v[:500]) for k, v in flat(resolved).items()]  # longer ones are in the artifact
        for i in range(0, len(params), 100):  # of one call
            self._client.log_batch(self._id, params=params[i : i + 100])
        self._client.log_text(self._id, yaml.safe_dump(resolved, sort_keys=False), "scenario.yaml")
        return {"store": uri, "run": self._id, "experiment": self._experiment}

    def _uri(self, run: Watched) -> str:
        if self._store is None:
            return (run.dir / "mlruns").resolve().as_uri()
        if self._store.startswith(_ADDRESSES):
            return self._store
        return (run.scenario.base / Path(self._store).expanduser()).resolve().as_uri()

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        fresh = [Metric(k, v, now, step) for k, v in values.items() if step > self._last.get(k, -1)]
        self._client.log_batch(self._id, metrics=fresh)

    def closed(self, error: BaseException | None) -> None:
        if self._client is not None and self._id:
            status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self._client.set_terminated(self._id, status)


@register.logger("wandb")
@dataclass(frozen=True, kw_only=True)
class Wandb(Logger):
    """A run of Weights & Biases: the scenario as its configuration, metrics by round.

    Parameters
    ----------
    project : its name there.
    connection : ``offline`` writes files to the run directory alone, for ``wandb sync``; ``online`` sends them as the
        run goes on.
    """

    project: _Name = "fedsim"
    connection: Literal["offline", "online"] = "offline"

    @property
    def writes(self) -> Mapping[str, str]:
        return {"wandb": "name", "wandb.json": "name"}

    def watcher(self) -> Watcher:
        _library("wandb", "wandb")
        return _WandbRun(self.project, self.connection)


class _WandbRun(_Tracker):
    def __init__(self, project: str, connection: str) -> None:
        super().__init__("wandb.json")
        self._project, self._connection = project, connection
        self._run: Any = None

    def open(self, run: Watched, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        import wandb

        self._run = wandb.init(
            project=self._project,
            name=run.scenario.name or run.dir.name,
            id=kept.get("run"),
            resume="allow" if kept else None,
            dir=str(run.dir),
            mode=self._connection,
            config=run.scenario.resolved(),
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="round")
        return {"run": self._run.id, "project": self._project}

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"round": step, **values}, step=step)

    def closed(self, error: BaseException | None) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)
