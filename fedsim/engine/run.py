"""A scenario in, a run directory out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from fedsim.core.crew import working
from fedsim.core.disk import cannot_write, is_full
from fedsim.core.errors import InputError, RunError
from fedsim.core.lock import owned
from fedsim.core.metrics import TABLE
from fedsim.engine.assembly import assemble
from fedsim.engine.log_file import kept_log
from fedsim.engine.loop import Simulation
from fedsim.engine.run_directory import Run
from fedsim.engine.shown import bar
from fedsim.engine.signals import terminable
from fedsim.engine.watch import Progress, Watcher
from fedsim.scenario.load import given
from fedsim.scenario.sections import Scenario


def run(
    scenario: Scenario | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | Literal[False] | None = None,
    watchers: Sequence[Watcher] = (),
) -> Run:
    """Run a scenario and return its run directory.

    Parameters
    ----------
    scenario : a `Scenario`, a path to a file, or the nested mappings of one.
    out : the run directory; default ``runs/<name>-<hash of the resolved scenario>``.
    resume : continue from the directory's checkpoint; the numbers are those of an unbroken run.
    progress : called after every round with its number (0 before the first one) and, where it was evaluated, its row
        of metrics, else None. Left out, a notebook (Jupyter, VS Code, Colab) shows a bar with the latest metrics;
        False: it does not.
    watchers : are told how the run goes.

    Raises
    ------
    InputError
        The scenario or an argument is wrong, or another process writes into the directory.
    RunError
        The run failed, e.g. diverged; what was recorded stays readable.
    KeyboardInterrupt
        Interrupted (Ctrl-C, or SIGTERM unless the program answers it itself). In a round a checkpoint was written at
        its end; before the first one, `resume` begins anew. What was recorded stays.
    """
    scenario = given(scenario)
    folder = _folder(out, scenario)
    if not (progress is None or progress is False or callable(progress)):
        raise InputError(f"progress: found {progress!r}, allowed: a function of a round and its row, None or False")
    try:
        with (
            terminable(), owned(folder), working(*scenario.run.crew), kept_log() as log,
            _shown(scenario, progress) as told,
        ):  # fmt: skip
            return _run(scenario, folder, resume, [log, told, *watchers])
    except InputError as error:  # what only a recorded run or the backend shows
        raise scenario.document.locate(error) from None


def _folder(out: str | Path | None, scenario: Scenario) -> Path:
    if out is None:
        return Path("runs") / f"{scenario.name}-{scenario.hash()}"
    if not isinstance(out, str | Path) or out == "":
        raise InputError(f"out: found {out!r}, allowed: the path of a directory")
    return Path(out)


def _shown(scenario: Scenario, progress: Progress | Literal[False] | None) -> AbstractContextManager[Progress | None]:
    if progress is None:
        return bar(scenario.name, scenario.run.rounds, {**TABLE, **scenario.columns})
    return nullcontext(progress or None)


def _run(scenario: Scenario, folder: Path, resume: bool, told: Sequence[Watcher | Progress | None]) -> Run:
    """The run; what the disk refuses, or somebody's own module that would end the process, ends it with a sentence."""
    try:
        simulation = Simulation(scenario, assemble(scenario), folder, resume)
        try:
            return simulation.run(*told)
        finally:
            simulation.backend.close()
    except OSError as error:
        if is_full(error) or not folder.exists():
            raise cannot_write(folder / "a file", error) from error
        raise
    except SystemExit as error:
        raise RunError(f"a module that the scenario names ended the run by sys.exit({error.code!r})") from error
