"""In what groups of runs are compared where one is called the first: rounds, or virtual time where rounds differ.

A round is one arrival under ``asynchronous``, a span of time under ``fixed_interval``, everybody's work under
``synchronous``. Numbers of such rounds say nothing of each other, and only a clock that all runs have does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.engine.replies import is_deployment
from fedsim.reports.groups import Group, Record

_MODE = "participation.mode"
_SPANS = {
    "fixed_interval": "participation.window",
    "poisson": "participation.window",
    "fedbuff": "participation.buffer",
}
"""Modes whose rounds are as long as a key says."""


@dataclass(frozen=True)
class Pace:
    """What is compared.

    Attributes
    ----------
    column : ``round``, ``time``, or nothing where neither can be compared.
    differs : the key that makes rounds of different kinds; nothing where they are alike.
    reason : why there is no time either.
    """

    column: str = "round"
    differs: str = ""
    reason: str = ""

    @property
    def said(self) -> str:
        """A sentence about it; nothing where rounds are compared."""
        kinds = f"their rounds are of different kinds ({self.differs})"
        if self.column == "time":
            return f" Virtual time is compared here, since {kinds}."
        return f" Which was first is not said: {kinds}, and {self.reason}." if self.differs else ""


def pace_of(groups: Sequence[Group]) -> Pace:
    """In what the groups are compared."""
    runs = [run for group in groups for run in group.counted]
    differs = _differs(runs)
    if not differs:
        return Pace()
    real = [is_deployment(run.dir) for run in runs]
    if any(real):
        reason = "the seconds of deployments are those of real machines and networks"
    elif not all(map(_clocked, runs)):
        reason = "not all of them have a virtual clock"
    else:
        return Pace("time", differs)
    return Pace("", differs, reason)


def when(run: Record, name: str, level: float) -> tuple[float, float]:
    """Round and virtual second of the first evaluation at which a metric is at least `level`; nan where none is."""
    rounds, times = run.column("round"), run.column("time")
    there = np.flatnonzero(np.isfinite(rounds) & (run.column(name) >= level))
    return (float(rounds[there[0]]), float(times[there[0]])) if len(there) else (math.nan, math.nan)


def _differs(runs: Sequence[Record]) -> str:
    """The key in which the runs' rounds are of different kinds; nothing where they are of one kind."""
    modes = {mode_of(run) for run in runs}
    if len(modes) > 1:
        return _MODE
    key = _SPANS.get(next(iter(modes), ""))
    return key if key is not None and len({str(run.value(key)) for run in runs}) > 1 else ""


def mode_of(run: Record) -> str:
    """The participation mode; where a scenario leaves it out, that of its setting."""
    return str(run.value(_MODE) or ("synchronous" if run.value("topology") is None else "gossip"))


def _clocked(run: Record) -> bool:
    """Whether its seconds say how long something took; on a graph without any durations a round counts as one."""
    times = run.column("time")
    if not len(times) or not np.isfinite(times).all():
        return False
    return mode_of(run) != "gossip" or bool((times != run.column("round")).any())
