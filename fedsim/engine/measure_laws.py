"""What a measure promises; ``fedsim check`` holds it to this on small runs (see `fedsim.contract`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.contract.tools import UNSEEDED, LawBrokenError, global_seed, same_from_yaml
from fedsim.core import rng
from fedsim.core.errors import InputError, RunError
from fedsim.core.metrics import TABLE, Measure, MeasuredFunction, Metric, View, columns
from fedsim.engine.run import run
from fedsim.engine.watch import Watched, Watcher

_DATA = {"data": {"dataset": "synthetic", "alpha": 0.5, "beta": 0.5, "clients": 5}, "model": {"name": "linear"}}
_GRAPH = {"algorithm": {"name": "dspodfl", "lr": 0.05}, "topology": {"graph": "ring"}}
_FEDAVG = {"algorithm": {"name": "fedavg", "lr": 0.05}}
_RUNS: dict[str, dict[str, Any]] = {
    "a server, classes": {**_DATA, "algorithm": {"name": "scaffold", "lr": 0.05}},
    "a graph, classes": {**_DATA, **_GRAPH},
    "a server, numbers": {"data": {"dataset": "npz", "clients": 5}, "model": {"name": "linear"}, **_FEDAVG},
    "a server, quadratics": {"algorithm": {"name": "scaffold", "lr": 0.05}},
    "a graph, quadratics": _GRAPH,
}


def measure_laws(measure: Measure) -> Mapping[str, Callable[[], str]]:
    """Laws of one measure, on those of five small runs that its `check` accepts.

    Raises
    ------
    InputError
        It is of something that only other runs have.
    """
    bench = _Bench(measure)
    _ = bench.views
    return {
        "columns as it declares": partial(_columns, bench),
        "same model, same numbers": partial(_same, bench),
        "it changes nothing": partial(_unchanged, bench),
        "what is public needs no protected data": partial(_public, bench),
        "YAML round trip": partial(_from_yaml, measure),
    }


def _from_yaml(measure: Measure) -> str:
    """A function's keys are not fields of the measure: it reads them itself."""
    return "as the scenario has it" if isinstance(measure, MeasuredFunction) else same_from_yaml(measure)


class _Last(Watcher):
    """Keeps the run as it is at its end."""

    def ended(self, run: Watched) -> None:
        self.view = run.now()


@dataclass(frozen=True)
class _Bench:
    """A measure, and the runs that it can be measured in."""

    measure: Measure

    @cached_property
    def views(self) -> list[tuple[str, View]]:
        """Every run's name, and the run at its end.

        Raises
        ------
        InputError
            There is none: what the measure says of the first.
        """
        found: list[tuple[str, View]] = []
        refused: list[InputError] = []
        with tempfile.TemporaryDirectory() as place:
            n, d = 5, 4
            draws = rng.normal(rng.key(3, "contract", np.arange(n)[:, None], np.arange(d)[None, :]))
            file = Path(place) / "quadratic.npz"
            np.savez(file, A=1 + draws**2, b=draws)
            x = rng.normal(rng.key(4, "contract", np.arange(40)[:, None], np.arange(d)[None, :]))
            rows = Path(place) / "numbers.npz"
            np.savez(rows, x_train=x, y_train=x.sum(1), x_test=x[:8], y_test=x[:8].sum(1))
            for i, (name, sections) in enumerate(_RUNS.items()):
                data: dict[str, Any] = {}
                if "data" not in sections:
                    data = {"data": {"dataset": "quadratic", "file": str(file)}}
                elif sections["data"]["dataset"] == "npz":
                    if found:  # it is of classes: few measures of those ask whether there are any
                        continue
                    data = {"data": {**sections["data"], "path": str(rows)}}
                last = _Last()
                settings = {"rounds": 2, "dtype": "float64", "device": "cpu"}
                run({**sections, **data, "run": settings}, Path(place) / str(i), watchers=[last])
                try:
                    self.measure.check(last.view.task)
                    _tried(self.measure, last.view, name)
                except InputError as error:
                    refused.append(error)
                    continue
                except Exception:  # of somebody's own code: the laws say which
                    pass
                found.append((name, last.view))
        if not found:
            raise refused[0]
        return found


def _tried(measure: Measure, view: View, where: str) -> Any:
    """What it measures; InputError where that is of something else than this run has."""
    try:
        return measure.evaluate(view)
    except RunError as error:  # of an algorithm's own state, say
        raise InputError(f"cannot be tried here ({where}: {error}); allowed: to try it in a run of your own") from None


def _measured(measure: Measure, view: View, where: str) -> dict[str, float]:
    found = _tried(measure, view, where)
    if not isinstance(found, Mapping):
        raise LawBrokenError(f"{where}: evaluate gave {type(found).__name__}, allowed: a mapping of columns to numbers")
    try:
        return {str(name): float(value) for name, value in found.items()}
    except (TypeError, ValueError):
        raise LawBrokenError(f"{where}: it measured {dict(found)}, allowed: a number in every column") from None


def _columns(bench: _Bench) -> str:
    declared = list(bench.measure.metrics)
    if not all(isinstance(metric, Metric) for metric in declared):
        raise LawBrokenError(f"metrics are {declared}, allowed: a list of fedsim.Metric")
    said = "none"
    try:
        names = set(columns([bench.measure]))
    except InputError as error:
        raise LawBrokenError(str(error)) from None
    for where, view in bench.views:
        found = set(_measured(bench.measure, view, where))
        if not names <= found:
            raise LawBrokenError(f"{where}: it declares {sorted(names)} in `metrics`, but measured {sorted(found)}")
        if taken := sorted(found & set(TABLE)):
            raise LawBrokenError(f"{where}: it measured {taken}, which every run has; allowed: other names")
        if undeclared := sorted(found - names):
            said = f"{', '.join(undeclared)}: not declared, so without a direction"
    return ", ".join(sorted(names)) or said


def _same(bench: _Bench) -> str:
    count = 0
    for where, view in bench.views:
        found = []
        for state in (1, 2):
            with global_seed(state):
                found.append(_measured(bench.measure, view, where))
        if not _equal(*found):
            raise LawBrokenError(f"{where}: it measured {found[0]}, then {found[1]}; {UNSEEDED}")
        count += 1
    return f"bit for bit in {count} runs"


def _equal(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        v == other[k] or (v != v and other[k] != other[k]) for k, v in one.items()
    )


def _unchanged(bench: _Bench) -> str:
    for where, view in bench.views:
        before = _tensors(view)
        _measured(bench.measure, view, where)
        for (what, then), now in zip(before.items(), _tensors(view).values(), strict=True):
            if not torch.equal(then, now):
                raise LawBrokenError(f"{where}: evaluate changed {what}; make a new tensor, do not work in place")
    return "the model, the state and the data are as they were"


def _tensors(view: View) -> dict[str, Tensor]:
    answers = view.task.answers
    found = {"view.centre": view.centre, "the state x": view.state("x")}
    try:
        inside, shared = answers(view.centre), view.answers
    except InputError:  # quadratics have no test data
        return {name: tensor.clone() for name, tensor in found.items()}
    of_client = answers(view.centre, 0)
    found |= {"test targets": inside.targets, "the test data": inside.outputs, "training data": of_client.outputs}
    found["view.answers"] = shared.outputs if shared.guesses is None else shared.guesses
    found["outputs of view.answers"] = shared.outputs
    return {name: tensor.clone() for name, tensor in found.items()}


class _GuardedTask:
    """A task that refuses what epsilon does not cover."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def evaluate(self, params: Tensor) -> dict[str, float]:
        raise LawBrokenError("it says `public=True`, but looks at the training loss (view.task.evaluate)")

    def answers(self, params: Tensor, client: int | None = None, change: Any = None) -> Any:
        if client is not None:
            raise LawBrokenError(f"it says `public=True`, but looks at the training data of client {client}")
        return self._task.answers(params, client, change)


class _GuardedView:
    """A view of which the same holds."""

    def __init__(self, view: View) -> None:
        self._view, self.task = view, _GuardedTask(view.task)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)

    def kept(self, name: str, clients: Any) -> Tensor:
        raise LawBrokenError(f"it says `public=True`, but looks at what clients keep (view.kept('{name}', ...))")


def _public(bench: _Bench) -> str:
    declared = list(bench.measure.metrics)
    if not declared or not all(metric.public for metric in declared):
        return "it does not say that it is public"
    for where, view in bench.views:
        guarded: Any = _GuardedView(view)
        _measured(bench.measure, guarded, where)
    return "it looks at models and test data alone"
