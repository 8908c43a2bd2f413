"""The run directory: what a run leaves behind, written so that an interrupted run loses nothing and can be resumed."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim import __version__
from fedsim.clients.store import FILE as CLIENTS
from fedsim.core import cores, crew
from fedsim.core.disk import write_whole
from fedsim.core.errors import InputError, RunError
from fedsim.core.metrics import TABLE, Metric, best, read_columns
from fedsim.core.row_files import RowStream, write_tensors
from fedsim.engine.attackers import FILE as ATTACK
from fedsim.engine.best import FILE as BEST
from fedsim.engine.best import read_best
from fedsim.engine.checkpoint import Checkpoint, load_checkpoint
from fedsim.engine.client_rows import FILE as CLIENT_ROWS
from fedsim.engine.client_rows import check_rows, evaluated_rounds, keep_rows, read_clients
from fedsim.engine.continued import check_fixed, check_rounds, check_same, say_replaced
from fedsim.engine.export import export_model, run_model
from fedsim.engine.failures import FILE as FAILURES
from fedsim.engine.failures import kept_failures
from fedsim.engine.log_file import FILE as LOG_FILE
from fedsim.engine.rows import kept, rows
from fedsim.engine.samples import FILE as SAMPLES
from fedsim.engine.samples import ROWS as SAMPLE_ROWS
from fedsim.engine.shown import curves, table
from fedsim.engine.stopping import FILE as STOP
from fedsim.engine.stopping import read_stop
from fedsim.graphs.topology import Topology
from fedsim.privacy.releases import FILE as RELEASES
from fedsim.privacy.releases import recounted
from fedsim.scenario.load import load
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.engine.client_model import ClientModel

LAST = 10
"""Evaluations at the end of a run whose mean stands beside the last one and the best one."""
_PACKAGES = ("torch", "numpy", "scipy", "networkx", "datasets", "flwr-datasets", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """A finished run; ``Run("runs/first")`` is that of a directory.

    Attributes
    ----------
    dir : the run directory, a `Path` or its text.
    resumed_at : the round it was continued from; 0 where it began at the beginning.
    warnings : what is odd about it, a sentence each; they were logged, too (logger ``fedsim``).
    """

    dir: Path
    resumed_at: int = 0
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dir", Path(self.dir))

    @cached_property
    def metrics(self) -> Any:
        """``metrics.jsonl`` as a pandas DataFrame, one row per evaluation."""
        import pandas as pd

        return pd.DataFrame(read_jsonl(self.dir / "metrics.jsonl"))

    @cached_property
    def clients(self) -> Any:
        """``clients.parquet`` as a pandas DataFrame, one row per evaluation and client."""
        return read_clients(self.dir).to_pandas()

    @cached_property
    def columns(self) -> dict[str, Metric]:
        """What the columns of `metrics` mean: words, unit, direction."""
        return read_columns(self.dir)[0]

    @cached_property
    def trace(self) -> list[dict[str, Any]]:
        """``trace.jsonl``, one mapping per round."""
        return read_jsonl(self.dir / "trace.jsonl")

    @cached_property
    def privacy(self) -> dict[str, Any]:
        """``privacy.json`` of a private run: what was spent, and what that means."""
        path = self.dir / "privacy.json"
        if not path.exists():
            raise RunError(f"{self.dir} has no privacy.json: its scenario has no section 'privacy'")
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return recounted(report, self.dir)

    @cached_property
    def params(self) -> Tensor:
        """Final parameters: ``[d]`` for a server, ``[n, d]`` for gossip."""
        path = self.dir / "params.safetensors"
        if not path.exists():
            raise RunError(
                f"{self.dir} holds no final parameters: the run is not finished (fedsim run --resume continues it)"
            )
        return load_file(path)["params"]

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario with every default, as ``scenario.yaml`` has it."""
        return load(self.dir / "scenario.yaml")

    @property
    def best_params(self) -> Tensor:
        """The parameters ``[d]`` that ``run.loggers: [{name: best}]`` kept; RunError where there are none."""
        return read_best(self.dir)[0]

    @property
    def stopped(self) -> str | None:
        """Why it ended before its last round, where ``run.stop`` ended it: a sentence."""
        return read_stop(self.dir)

    def model(self, node: int | None = None, client: str | int | None = None) -> nn.Module:
        """The trained model as a PyTorch module; on a graph the mean model, or a node's.

        `client`, a number or a name, asks for the model that this client uses: its own where it has one, after
        ``run.finetune`` where there is such a key. It takes encoded inputs: :mod:`fedsim.models.exported` applies a
        model to rows as they are in the file.
        """
        if client is None:
            return run_model(self.dir, self.params, node)[0]
        own = self._own(client, node)
        return run_model(self.dir, own.params, carried=own.carried)[0]

    def state_dict(self, node: int | None = None, client: str | int | None = None) -> dict[str, Tensor]:
        """The trained parameters and buffers by name, as :meth:`model` has them."""
        return dict(self.model(node, client).state_dict())

    def plot(self, *columns: str, x: str = "round") -> Figure:
        """Curves of columns of `metrics`, of the telling ones if none is named, against the column `x`."""
        return curves(read_jsonl(self.dir / "metrics.jsonl"), self.columns, columns, x, self.scenario.name)

    def _repr_html_(self) -> str:
        """What a notebook shows: the first and the last of the telling metrics."""
        finished = self.stopped or ((self.dir / "params.safetensors").exists() and "finished")
        file = self.dir / "metrics.jsonl"  # which is not there before the first evaluation
        measured, columns = (read_jsonl(file), self.columns) if file.exists() else ([], {})
        return table(str(self.dir), finished or "not finished", measured, columns)

    def export(
        self, file: str | Path, node: int | None = None, client: str | int | None = None, best: bool = False
    ) -> dict[str, Any]:
        """Write the model with all that is needed to apply it, and say what it is.

        `node` and `client` are as in :meth:`model`; `best`: the one that the logger ``best`` kept. See
        :func:`fedsim.engine.export.export_model`.
        """
        if best:
            for key, found in (("node", node), ("client", client)):
                if found is not None:
                    message = f"found {found} together with best, which is the common model; allowed: one of the two"
                    raise InputError(message, key=key)
            return export_model(self.dir, self.best_params, Path(file), saved=BEST)
        if client is None:
            return export_model(self.dir, self.params, Path(file), node)
        own = self._own(client, node)
        return export_model(self.dir, own.params, Path(file), carried=own.carried, which=own.which)

    def _own(self, client: str | int, node: int | None) -> ClientModel:
        from fedsim.engine.client_model import client_model

        if node is not None:
            raise InputError(f"found {node} together with client {client}; allowed: one of the two", key="node")
        _ = self.params  # of a finished run
        return client_model(self.dir, client)


def find_checkpoint(folder: Path, scenario: Scenario) -> Checkpoint | None:
    """What a run in `folder` continues from, None where there is nothing; nothing is written.

    A run may be resumed with more rounds, and with other keys of `RunSection` that do not change its numbers.

    Raises
    ------
    InputError
        The folder holds another scenario, or more rounds, or cannot be read.
    RunError
        The checkpoint is damaged, or rows that it implies are missing.
    """
    try:
        check_same(folder, scenario)
        checkpoint = load_checkpoint(folder)
    except OSError as error:
        raise InputError(f"cannot be used as run directory: {error.strerror}", file=str(folder)) from None
    if checkpoint is not None:
        check_same(checkpoint.place, scenario)
        check_rounds(folder, checkpoint.progress["round"], scenario)
        check_fixed(checkpoint.place, scenario)
        done = checkpoint.progress["round"]
        lines = kept(folder, done, scenario)["metrics.jsonl"]
        if scenario.tests_clients:
            said = json.loads(lines[-1])
            values = [name for name in scenario.client_metrics if f"client_{name}_mean" in said]
            alike = scenario.algorithm.setting == "server"  # nodes of a graph may come and go
            check_rows(folder, evaluated_rounds(scenario, done), done, values, scenario.algorithm.choices, alike)
    return checkpoint


def open_directory(folder: Path, scenario: Scenario, checkpoint: Checkpoint | None, resume: bool) -> None:
    """Make `folder` ready for a run that begins, or (`resume`) goes on, from `checkpoint` where there is one.

    What was recorded after the checkpoint is cut off: the resumed run records it again.

    Raises
    ------
    InputError
        The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            if not resume:
                say_replaced(folder, scenario)
            clear(folder, releases=not resume)
        else:
            done = checkpoint.progress["round"]
            for name, lines in kept(folder, done, scenario).items():
                write_whole(folder / name, "".join(line + "\n" for line in lines))
            if scenario.tests_clients:
                keep_rows(folder, evaluated_rounds(scenario, done))
            if (failed := kept_failures(folder, done)) is not None:
                write_whole(folder / FAILURES, "".join(line + "\n" for line in failed))
            (folder / STOP).unlink(missing_ok=True)
            if done < scenario.run.rounds:
                (folder / "params.safetensors").unlink(missing_ok=True)
        if not scenario.run.trace:
            (folder / "trace.jsonl").unlink(missing_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)  # of an attempt of a sweep that is made again
        write_whole(folder / "scenario.yaml", scenario.to_yaml())
        write_whole(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot be used as run directory: {error.strerror}", file=str(folder)) from None


def save_params(
    folder: Path, params: Tensor | RowStream, metadata: Mapping[str, str], buffers: Tensor | RowStream | None = None
) -> None:
    """``params.safetensors`` with the layout of the flat vector in its metadata, and `buffers` where models have them.

    Of a graph they are rows like `params`.
    """
    temporary = folder / "params.safetensors.new"
    rest = {} if buffers is None else {"buffers": buffers}
    write_tensors(temporary, {"params": params, **rest}, dict(metadata))
    temporary.replace(folder / "params.safetensors")


def save_report(folder: Path, report: Mapping[str, Any]) -> None:
    """``privacy.json``: what a private run has spent, and what that means; nothing where there is nothing to say."""
    if not report:
        return
    write_whole(folder / "privacy.json", json.dumps(report, indent=2) + "\n")


def save_topology(folder: Path, topology: Topology) -> None:
    """``topology.graphml``: the graph of a run, of several that take turns the first."""
    import networkx as nx

    nx.write_graphml(topology.graphs[0], folder / "topology.graphml")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that a crash cut short is left out."""
    return [row for row, _ in rows(path)]


def environment() -> dict[str, Any]:
    """What a run's numbers may depend on besides its scenario."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cores": cores.available(),
        "threads": crew.size(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": {"fedsim": __version__, **{name: _version(name) for name in _PACKAGES}},
    }


@cache
def _version(name: str) -> str | None:
    """A file has to be read and parsed for each."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def clear(folder: Path, releases: bool = True) -> None:
    """Remove what an earlier run left; what it released, and which scenario it was of, only where nothing is continued.

    A trial of a sweep continues what it finds, and a scenario that is still there would be that of the run before.
    """
    if releases:
        for name in (RELEASES, "scenario.yaml"):
            (folder / name).unlink(missing_ok=True)
    for name in ("checkpoint", "checkpoint.new", "checkpoint.old"):  # before the rows that they refer to
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (
        "metrics.jsonl", "trace.jsonl", "params.safetensors", "topology.graphml", "report.html", "privacy.json",
        ATTACK, BEST, CLIENTS, CLIENT_ROWS, FAILURES, LOG_FILE, SAMPLES, SAMPLE_ROWS, STOP,
    ):  # fmt: skip
        (folder / name).unlink(missing_ok=True)


def bests(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Metric] = TABLE) -> dict[str, float]:
    """The best, and the mean of the last `LAST` evaluations, of every column of ``metrics.jsonl`` with a direction.

    The last evaluation is beside them in the rows: the best alone picks its round by looking at the test set.
    """
    found = {}
    for key, declared in columns.items():
        values = [row[key] for row in rows if isinstance(row.get(key), (int, float))]
        top = best(values, declared)
        if top is not None:
            last = values[-LAST:]
            found[f"{key}_best"], found[f"{key}_mean_of_last_{LAST}"] = top, sum(last) / len(last)
    return found
