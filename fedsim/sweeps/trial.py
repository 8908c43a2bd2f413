"""One run of a sweep: here, or as a trial in a process of a Ray cluster."""

from __future__ import annotations

import pickle
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.blame import blamed
from fedsim.core.errors import FedsimError, InputError, RunError
from fedsim.core.lock import owned
from fedsim.core.modules import Places
from fedsim.engine.run import run
from fedsim.engine.watch import Row, Watcher
from fedsim.scenario.sections import Scenario
from fedsim.sweeps.home import pack

TRACEBACK = "error.txt"


def attempt(scenario: Scenario, place: Path, resume: bool, watchers: Sequence[Watcher]) -> None:
    """`run`, in which every exception is one of the run's: what somebody's own parts raise ends no other run.

    Raises
    ------
    InputError
        The scenario is wrong.
    RunError
        The run failed; the traceback of an unexpected exception is in ``error.txt`` of its directory.
    """
    try:
        run(scenario, place, resume=resume, watchers=watchers)
    except FedsimError:
        raise
    except Exception as error:
        place.mkdir(parents=True, exist_ok=True)
        (place / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        what = blamed(error) or f"{type(error).__name__}: {error}"
        raise RunError(f"{what} (traceback in {TRACEBACK} of its directory)") from error


@dataclass(frozen=True)
class Work:
    """What trials share.

    Attributes
    ----------
    scenarios : pickled, for the machine that runs them has to find somebody's own modules first.
    places : where the runs' directories are on the machine that started the sweep.
    token : a file beside them; a machine that sees it sees the directories.
    modules : where that machine finds modules, somebody's own too.
    home : the actor that receives directories from machines that do not; None where all do.
    metric : what bad runs are stopped by, if they are.
    """

    scenarios: list[bytes]
    places: list[str]
    token: str
    modules: Places
    home: Any = None
    metric: str | None = None


def trial(config: Mapping[str, Any], work: Work) -> None:
    """One run, in a process of the cluster; tells Ray Tune its metrics and what ended it."""
    from ray import tune

    work.modules.adopt()
    number = config["number"]

    try:
        _run(number, work, _Reports(work.metric))
    except _Stopped:
        sys.exit(0)  # as Ray Tune ends a trial
    except FedsimError as error:
        tune.report({"error": str(error), "input": isinstance(error, InputError), "round": 10**9})


class _Stopped(BaseException):
    """Ray Tune stops the trial: by SystemExit, which from anybody else is an error of the run."""


class _Reports(Watcher):
    """Tells Ray Tune the metrics of a run, `needed` among them where it stops bad runs by it."""

    def __init__(self, needed: str | None) -> None:
        self._needed = needed

    def round(self, number: int, row: Row | None) -> None:
        from ray import tune

        if row is not None:
            if self._needed is not None and self._needed not in row:
                raise RunError(f"found stop.metric: {self._needed}; allowed: a metric of the run: {', '.join(row)}")
            try:
                tune.report({k: v for k, v in row.items() if isinstance(v, (int, float))})
            except SystemExit as error:
                raise _Stopped from error


def _run(number: int, work: Work, reports: Watcher) -> None:
    try:
        scenario: Scenario = pickle.loads(work.scenarios[number])
    except Exception as error:
        where = "a module that this machine lacks: install it there, or submit the sweep with its folder"
        raise RunError(f"{type(error).__name__}: {error} ({where}, by ray job submit --working-dir)") from error
    place = Path(work.places[number])
    if Path(work.token).exists():
        with owned(place, group=work.token):  # a trial is begun again only where its process has ended
            attempt(scenario, place, resume=True, watchers=[reports])
        return
    import ray

    away = Path(tempfile.mkdtemp(prefix="fedsim-")) / place.name
    try:
        attempt(scenario, away, resume=False, watchers=[reports])
    finally:  # of runs that fail or are stopped too: what they recorded
        if away.exists():
            ray.get(work.home.receive.remote(number, pack(away)))
        shutil.rmtree(away.parent, ignore_errors=True)
