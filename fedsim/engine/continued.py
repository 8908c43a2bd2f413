"""Whether the run in a directory is the one that a scenario would continue, and what is lost where it is not."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fedsim.core.documents import read_yaml
from fedsim.core.errors import InputError, Problem
from fedsim.scenario.load import load
from fedsim.scenario.sections import BackendSection, Scenario
from fedsim.scenario.stopping import Stop
from fedsim.scenario.table import PATHS

log = logging.getLogger("fedsim")

_MAY_DIFFER = (
    "run.rounds",
    "run.threads",
    "run.checkpoint_seconds",
    "run.loggers",
    "run.stop",
    *(f"run.stop.{key}" for key in Stop.model_fields),
    *(f"backend.{key}" for key in BackendSection.model_fields),
)
"""Keys of a resumed scenario that may differ from the recorded one's: how many rounds there are, and at which it stops,
checkpoints, loggers, the place."""

_SAME = "--resume continues the same scenario (run.rounds may grow): give another --out, or leave --resume out"


def check_same(folder: Path, scenario: Scenario) -> None:
    """The run in `folder` has this scenario, but for keys that do not change its numbers."""
    recorded = folder / "scenario.yaml"
    if not recorded.exists():
        return
    try:
        old = _flat(read_yaml(recorded).values)
    except InputError as error:
        raise InputError(
            "is not the YAML that fedsim wrote; --resume cannot continue this run", None, str(recorded)
        ) from error
    named = {k: v for k, v in old.items() if k.rpartition(".")[2] in PATHS and isinstance(v, str)}
    with suppress(InputError):  # if it has something that is not there any more, the comparison names it
        again = load(recorded, notes=False).to_yaml()  # with the defaults of keys that have come since
        old |= _flat(yaml.safe_load(again))
    old |= {k: str((scenario.base / v).resolve()) for k, v in named.items()}  # earlier versions left some relative
    new = _flat(yaml.safe_load(scenario.to_yaml()))
    problems = [
        Problem(f"found {new.get(key)!r}, but the run in {folder} has {old.get(key)!r}; {_SAME}", key)
        for key in {**new, **old}
        if key not in _MAY_DIFFER and new.get(key) != old.get(key)
    ]
    if problems:
        raise scenario.document.locate(InputError(problems))


def say_replaced(folder: Path, scenario: Scenario) -> None:
    """Warn where a new run in `folder` takes the place of one that it does not record again."""
    try:
        done = json.loads((folder / "metrics.jsonl").read_bytes().splitlines()[-1])["round"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return  # there is none, or nothing that anybody can read
    found = f"{folder} had a run with rows to round {done}"
    try:
        check_same(folder, scenario)
    except InputError:
        log.warning("%s, of another scenario: this run takes its place", found)
        return
    if (folder / "checkpoint").exists() and not (folder / "params.safetensors").exists():
        log.warning("%s, not finished: it begins anew; with --resume it would have gone on", found)


def check_rounds(folder: Path, done: int, scenario: Scenario) -> None:
    if done > scenario.run.rounds:
        found = f"found {scenario.run.rounds}, but the run in {folder} is at round {done}"
        message = f"{found}; allowed with --resume: at least {done}"
        raise scenario.document.locate(InputError(message, key="run.rounds"))


def check_fixed(recorded: Path, scenario: Scenario) -> None:
    """A run whose rounds depend on how many it has goes on with as many."""
    why = scenario.participation.fixed_rounds
    if why is None or not (recorded / "scenario.yaml").exists():
        return
    before = load(recorded / "scenario.yaml", notes=False).run.rounds
    if before != scenario.run.rounds:
        message = f"found {scenario.run.rounds}, allowed with --resume: {before}, as the run has, since {why}"
        raise scenario.document.locate(InputError(message, key="run.rounds"))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(values, dict):
        return {prefix.removesuffix("."): values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
