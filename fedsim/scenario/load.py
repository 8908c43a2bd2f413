"""Scenario files: read and checked before anything is computed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedsim.core.documents import Document, override, read_yaml
from fedsim.core.errors import InputError, Problem, unknown
from fedsim.core.modules import beside
from fedsim.core.one_of import older_spellings
from fedsim.core.registry import spelled
from fedsim.scenario.checks import check_sections
from fedsim.scenario.sections import INNER, SECTIONS, Scenario
from fedsim.scenario.table import FormSection, PartSection, PartsSection, Section, ValueSection

LOG = logging.getLogger("fedsim")

_notes: ContextVar[dict[str, str] | None] = ContextVar("notes_of_scenarios", default=None)


@contextmanager
def noting() -> Iterator[None]:
    """Warn at the end, once per key, of what is read in an older spelling meanwhile."""
    if _notes.get() is not None:  # whoever began says it
        yield
        return
    notes: dict[str, str] = {}
    token = _notes.set(notes)
    try:
        yield
    finally:
        _notes.reset(token)
        for note in notes.values():
            LOG.warning("%s", note)


def load(path: str | Path, settings: list[str] | None = None, notes: bool = True) -> Scenario:
    """Read and check a scenario file, with ``key.path=value`` overrides.

    With `notes` a warning says, once per key, what is now spelled otherwise.

    Raises
    ------
    InputError
        One problem per offending key, with file, line, dotted key, what was found and what is allowed.
    """
    document = override(read_yaml(path), settings or [])
    if not notes or _is_written(path):
        token = _notes.set(None)
        try:
            return parse(document)
        finally:
            _notes.reset(token)
    with noting():
        return parse(document)


def _is_written(path: str | Path) -> bool:
    """Whether fedsim wrote the file itself: the scenario of a run directory, which keeps the older spellings."""
    return Path(path).name == "scenario.yaml" and (Path(path).parent / "environment.json").exists()


def given(scenario: Scenario | str | Path | Mapping[str, Any]) -> Scenario:
    """A scenario from itself, a path to its file, or the nested mappings of one."""
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, (str, Path)):
        return load(scenario)
    if not isinstance(scenario, Mapping):
        found = scenario.__name__ if isinstance(scenario, type) else f"a value of type {type(scenario).__name__}"
        raise InputError(f"found {found}; allowed: a Scenario, a path to its file, or its nested mappings")
    with noting():
        return parse(scenario)


def parse(document: Document | Mapping[str, Any]) -> Scenario:
    """Check a scenario given as a document or as nested mappings, which may have classes and functions themselves."""
    if not isinstance(document, Document):
        document = Document(spelled(document))
    folder = str(document.base.resolve())
    if folder not in sys.path:  # so that 'my_module:MyAlgorithm' beside the scenario is found
        sys.path.append(folder)
    try:
        with beside(document.base), older_spellings(document.values) as older:
            scenario = _parse(document)
    except InputError as error:
        raise document.locate(error) from None
    note(document, older)
    return scenario


def note(document: Document, older: Mapping[str, str]) -> None:
    """Keep what `noting` says of `document`: texts by dotted key."""
    notes = _notes.get()
    if notes is not None:
        for key, text in older.items():
            notes.setdefault(key, str(document.locate(InputError(text, key=key))))


def _may_be_absent(row: Section | None) -> bool:
    """Whether null stands for a part that is not there, as in ``--set compression=null``; forms always are."""
    optional = isinstance(row, FormSection) and row.optional is not None
    return optional or (isinstance(row, (PartSection, PartsSection)) and row.required is None)


def _parse(document: Document) -> Scenario:
    sections = {row.path: row for row in SECTIONS.values() if row.top}
    raw = {k: v for k, v in document.values.items() if v is not None or not _may_be_absent(sections.get(k))}
    if isinstance(raw.get("scenario"), str) and "data" not in raw:
        named = document.file or "FILE"
        raise InputError(
            f"found a sweep, which varies a scenario; allowed: a scenario. To run it: fedsim sweep {named}"
        )
    problems = [Problem(unknown("key", k, list(sections)), str(k)) for k in raw if k not in sections]
    for name, row in sections.items():
        if name in raw and not isinstance(row, ValueSection) and not isinstance(raw[name], dict):
            found = "nothing" if raw[name] is None else repr(raw[name])
            problems.append(Problem(f"found {found}, allowed: a mapping", name))
    for row in sections.values():
        if row.required and row.path not in raw:
            problems.append(Problem(f"missing; {row.required}", row.path))
    if problems:
        raise InputError(problems)
    parts: dict[str, Any] = {}
    names: dict[str, str] = {}
    base = document.base
    for attribute, row in SECTIONS.items():
        try:
            parts[attribute], asked = row.read(raw, INNER[row.path], base)
        except InputError as error:
            problems += error.under(row.path).problems
        else:
            names |= {} if asked is None else {row.path: asked}
    if problems:
        raise InputError(problems)
    scenario = Scenario(**parts, names=names, given=frozenset(raw), document=document)
    if problems := check_sections(scenario):
        raise InputError(problems)
    return scenario
