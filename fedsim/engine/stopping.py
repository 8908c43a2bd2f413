"""Early stopping: what ``run.stop`` has seen of a run, and the sentence with which it ends it.

Its memory is a function of the rows of ``metrics.jsonl``, so that a resumed run has the same one without a copy of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError, unknown
from fedsim.core.metrics import TABLE
from fedsim.core.oracle import Task
from fedsim.engine.rows import rows
from fedsim.messages.poison import Backdoor
from fedsim.scenario.sections import Scenario
from fedsim.scenario.stopping import Stop

FILE = "stop.json"
"""In the directory of a run that ended early: after which round, and why."""

_DIRECTED = [m for m in TABLE.values() if m.larger_is_better is not None]
_OF_TASKS = {m.name for m in _DIRECTED if m.figure in ("progress", "optimum")}
_OF_GRAPHS = {m.name for m in _DIRECTED if m.figure == "gossip"}


@dataclass
class EarlyStop:
    """What a rule has seen of a run.

    Attributes
    ----------
    larger : whether larger values of its metric are better.
    best, at : the best value so far, and its round; no value yet: None.
    waited : evaluations in a row without an improvement.
    why : why the run ends; None: it goes on.
    """

    rule: Stop
    larger: bool
    best: float | None = field(init=False, default=None)
    at: int = field(init=False, default=0)
    waited: int = field(init=False, default=0)
    why: str | None = field(init=False, default=None)

    def see(self, row: Mapping[str, Any]) -> None:
        """An evaluation's row; a value that is not finite is no improvement.

        Raises
        ------
        InputError
            The run does not measure the metric.
        """
        rule = self.rule
        if rule.metric not in row:
            raise InputError(unknown("column of this run", rule.metric, list(row)), key="run.stop.metric")
        found = row[rule.metric]
        value = float(found) if isinstance(found, int | float) and math.isfinite(found) else None
        if self.why is not None:
            return
        if value is not None and self._improves(value):
            self.best, self.at, self.waited = value, row["round"], 0
        else:
            self.waited += 1
        if value is not None and rule.target is not None and self._reaches(value, rule.target):
            self.why = f"{rule.metric} is {value:.6g}, and the target was {rule.target:g}"
        elif rule.patience is not None and self.waited >= rule.patience:
            self.why = self._impatient()

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return True
        gain = value - self.best if self.larger else self.best - value
        return gain > self.rule.min_delta

    def _reaches(self, value: float, target: float) -> bool:
        return value >= target if self.larger else value <= target

    def _impatient(self) -> str:
        if self.best is None:
            return f"{self.rule.metric} was no finite number in {self.waited} evaluations"
        way = "rose" if self.larger else "fell"
        by = f" by more than {self.rule.min_delta:g}" if self.rule.min_delta else ""
        last = f"after round {self.at} ({self.best:.6g})"
        return f"{self.rule.metric} never {way}{by} in {self.waited} evaluations {last}"


def early_stop(scenario: Scenario, task: Task, graph: bool) -> EarlyStop | None:
    """The rule of a run that has seen nothing yet; None where it has none.

    Raises
    ------
    InputError
        The run does not measure the rule's metric; before anything is written.
    """
    rule = scenario.stop
    if rule is None:
        return None
    absent = (_OF_TASKS - set(task.metrics)) | (set() if graph else _OF_GRAPHS)
    absent |= set() if isinstance(scenario.attack, Backdoor) else {"attack_success"}
    if rule.metric in absent:
        known = {**TABLE, **scenario.columns}
        allowed = [name for name, m in known.items() if m.larger_is_better is not None and name not in absent]
        raise InputError(unknown("column of this run", rule.metric, allowed), key="run.stop.metric")
    return EarlyStop(rule, bool({**TABLE, **scenario.columns}[rule.metric].larger_is_better))


def seen(folder: Path) -> Iterable[Mapping[str, Any]]:
    """The evaluations that a run's directory has, but for one of models that were merged at its end."""
    return (row for row, _ in rows(folder / "metrics.jsonl") if not row.get("merged"))


def write_stop(folder: Path, stop: EarlyStop, number: int, rounds: int) -> str:
    """``stop.json`` of a run that ends after round `number`; the sentence that says so."""
    said = f"stopped early after round {number} of {rounds}: {stop.why}"
    facts = {"round": number, "rounds": rounds, "metric": stop.rule.metric, "best": stop.best, "best_round": stop.at}
    (folder / FILE).write_text(json.dumps({**facts, "said": said}, indent=2) + "\n", encoding="utf-8")
    return said


def read_stop(folder: Path) -> str | None:
    """The sentence with which a run ended early; None where it did not."""
    file = folder / FILE
    if not file.exists():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["said"])
    except (OSError, ValueError, LookupError, TypeError):
        return f"stopped early; {FILE}, which says why, is damaged"
