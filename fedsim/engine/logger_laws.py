"""What a logger promises; ``fedsim check`` holds it to this on a small run (see `fedsim.contract`).

In a run a logger that raises is told nothing more, and the run goes on; here it is not kept from raising.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from fedsim.contract.tools import LawBrokenError, same_from_yaml
from fedsim.core.errors import RunError
from fedsim.engine.run import run
from fedsim.engine.run_directory import Run
from fedsim.engine.watch import Logger, Row, Watcher

_ROUNDS, _BROKEN = 4, 2
_SCENARIO = {
    "data": {"dataset": "synthetic", "alpha": 0.5, "beta": 0.5, "clients": 5},
    "model": {"name": "linear"},
    "algorithm": {"name": "scaffold", "lr": 0.05},
}


def logger_laws(logger: Logger) -> Mapping[str, Callable[[], str]]:
    """Laws of one logger, on a run of four rounds."""
    return {
        "a watcher for every run": partial(_watchers, logger),
        "a run is told to its end": partial(_told, logger),
        "the run is as it is without it": partial(_same, logger),
        "a resumed run is told again": partial(_resumed, logger),
        "it can be closed at any time": partial(_closed, logger),
        "YAML round trip": partial(same_from_yaml, logger),
    }


def _watchers(logger: Logger) -> str:
    one, other = logger.watcher(), logger.watcher()
    for found in (one, other):
        if not isinstance(found, Watcher):
            raise LawBrokenError(f"watcher() gave {type(found).__name__}, allowed: a fedsim.Watcher")
    if one is other:
        raise LawBrokenError("watcher() gave the same watcher twice; make one for every run: runs may be side by side")
    return type(one).__name__


class _Stop(Exception):
    """Ends a run in its middle."""


def _run(folder: Path, *watchers: Watcher, resume: bool = False, stop: int | None = None, rounds: int = _ROUNDS) -> Run:
    def progress(number: int, _row: Row | None) -> None:
        if number == stop:
            raise _Stop

    settings = {"rounds": rounds, "eval_every": 1, "dtype": "float64", "device": "cpu", "trace": True}
    return run({**_SCENARIO, "run": settings}, folder, resume, progress, watchers)


def _told(logger: Logger) -> str:
    with tempfile.TemporaryDirectory() as place:
        _run(Path(place) / "run", logger.watcher())
    return f"{_ROUNDS} rounds"


def _same(logger: Logger) -> str:
    with tempfile.TemporaryDirectory() as place:
        alone, told = _run(Path(place) / "alone"), _run(Path(place) / "told", logger.watcher())
        if not torch.equal(alone.params, told.params):
            change = float((alone.params - told.params).abs().max())
            raise LawBrokenError(
                f"with it the final model differs by up to {change:.1e}; what it is shown is not its own"
            )
        rows = [run.metrics.drop(columns="wall") for run in (alone, told)]
        if not rows[0].equals(rows[1]):
            raise LawBrokenError("with it metrics.jsonl has other rows; it must not change the rows it is told")
    return "bit for bit"


def _resumed(logger: Logger) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        _run(folder, logger.watcher(), rounds=_BROKEN)
        _run(folder, logger.watcher(), resume=True)
    return f"from round {_BROKEN} on"


def _closed(logger: Logger) -> str:
    """Before the run began, too: what is told before it may have raised."""
    logger.watcher().closed(RunError("the run could not begin"))
    with tempfile.TemporaryDirectory() as place:
        try:
            _run(Path(place) / "run", logger.watcher(), stop=_BROKEN)
        except _Stop:
            return f"before the run, and in round {_BROKEN}"
    raise LawBrokenError(f"the run went on after round {_BROKEN}, which was to end it")
