"""A scenario in, a run directory out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.core.crew import working
from fedsim.core.errors import InputError
from fedsim.core.lock import owned
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.engine.run_directory import Run
from fedsim.engine.watch import Progress, Watcher
from fedsim.scenario.load import given
from fedsim.scenario.sections import Scenario


def run(
    scenario: Scenario | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    watchers: Sequence[Watcher] = (),
) -> Run:
    """Run a scenario and return its run directory.

    Parameters
    ----------
    scenario : a `Scenario`, a path to a file, or the nested mappings of one.
    out : the run directory; default ``runs/<name>-<hash of the resolved scenario>``.
    resume : continue from the directory's checkpoint; the numbers are those of an unbroken run.
    progress : called after every round.
    watchers : are told how the run goes.

    Raises
    ------
    InputError
        The scenario is wrong, or another process writes into the directory.
    RunError
        The run failed, e.g. diverged; what was recorded stays readable.
    KeyboardInterrupt
        Interrupted (Ctrl-C or SIGTERM); a checkpoint was written.
    """
    scenario = given(scenario)
    folder = Path(out) if out is not None else Path("runs") / f"{scenario.name}-{scenario.hash()}"
    try:
        with owned(folder), working(scenario.run.threads):
            simulation = Simulation(scenario, assemble(scenario), folder, resume)
            try:
                return simulation.run(progress, *watchers)
            finally:
                simulation.backend.close()
    except InputError as error:  # what only a recorded run or the backend shows
        raise scenario.document.locate(error) from None
