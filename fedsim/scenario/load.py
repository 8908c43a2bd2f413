"""Scenario files: read and checked before anything is computed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from fedsim.core.documents import Document, override, read_yaml
from fedsim.core.errors import InputError, Problem, unknown
from fedsim.core.fields import dump_part, make_part, part_from
from fedsim.core.registry import lookup
from fedsim.core.types import Count
from fedsim.data.augment import Augment
from fedsim.devices.system import SystemSection
from fedsim.scenario.checks import crosscheck
from fedsim.scenario.sections import MODES, BackendSection, Heading, RunSection, Scenario, absolute

SECTIONS = (
    "name", "seed", "data", "model", "algorithm", "topology", "participation", "system", "aggregator", "privacy", "run",
    "backend", "audit",
)  # fmt: skip

_BESIDE_DATASET = ("clients", "partition", "augment")
"""Keys of `data` that are not the data set's own."""


def load(path: str | Path, settings: list[str] | None = None) -> Scenario:
    """Read and check a scenario file, with ``key.path=value`` overrides.

    Raises
    ------
    InputError
        One problem per offending key, with file, line, dotted key, what was found and what is allowed.
    """
    document = override(read_yaml(path), settings or [])
    return parse(document)


def parse(document: Document | Mapping[str, Any]) -> Scenario:
    """Check a scenario given as a document or as nested mappings."""
    if not isinstance(document, Document):
        document = Document(dict(document))
    folder = str(document.base.resolve())
    if folder not in sys.path:  # so that 'my_module:MyAlgorithm' beside the scenario is found
        sys.path.append(folder)
    try:
        return _parse(document)
    except InputError as error:
        raise document.locate(error) from None


def _parse(document: Document) -> Scenario:
    raw = document.values
    problems = [Problem(unknown("key", k, SECTIONS), str(k)) for k in raw if k not in SECTIONS]
    for name in SECTIONS[2:]:
        if name in raw and not isinstance(raw[name], dict):
            found = "nothing" if raw[name] is None else repr(raw[name])
            problems.append(Problem(f"found {found}, allowed: a mapping", name))
    problems += [
        Problem("missing; every scenario needs this section", name) for name in ("data", "algorithm") if name not in raw
    ]
    if problems:
        raise InputError(problems)

    def section(name: str, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except InputError as error:
            problems.extend((error.under(name) if name else error).problems)
            return None

    data = raw["data"]
    heading = section("", lambda: make_part(Heading, {k: raw[k] for k in ("name", "seed") if k in raw}))
    dataset = section(
        "data",
        lambda: part_from("dataset", "dataset", {k: v for k, v in data.items() if k not in _BESIDE_DATASET}),
    )
    clients = (
        section("data", lambda: make_part(_Clients, {"clients": data.get("clients")})).clients
        if _is_count(data)
        else None
    )
    if not _is_count(data):
        problems.append(Problem(f"found {data['clients']!r}, allowed: a whole number above 0", "data.clients"))
    partition = section("data.partition", lambda: _named("partition", "scheme", data.get("partition")))
    augment = section("data.augment", lambda: _augment(data.get("augment")))
    model = section("model", lambda: _named("model", "name", raw.get("model")))
    algorithm = section("algorithm", lambda: part_from("algorithm", "name", raw["algorithm"]))
    topology = section("topology", lambda: _graph(raw.get("topology")))
    mode = raw.get("participation") or {}
    if "mode" not in mode and (setting := _setting(raw["algorithm"])):
        mode = {"mode": MODES[setting], **mode}
    participation = (
        section("participation", lambda: part_from("participation", "mode", mode)) if "mode" in mode else None
    )
    aggregator = section(
        "aggregator", lambda: part_from("aggregator", "name", {"name": "mean", **raw.get("aggregator", {})})
    )
    privacy = (
        section("privacy", lambda: part_from("privacy", "mechanism", raw["privacy"])) if "privacy" in raw else None
    )
    system = section("system", lambda: make_part(SystemSection, absolute(raw.get("system", {}), document.base)))
    section("audit", lambda: _check_audits(raw.get("audit", {})))
    run = section("run", lambda: make_part(RunSection, raw.get("run", {})))
    backend = section("backend", lambda: make_part(BackendSection, raw.get("backend", {})))
    if problems:
        raise InputError(problems)
    assert participation is not None
    scenario = Scenario(
        heading.name,
        heading.seed,
        dataset,
        clients,
        partition,
        augment,
        model,
        algorithm,
        topology,
        participation,
        system,
        aggregator,
        privacy,
        run,
        backend,
        document,
    )
    problems += crosscheck(scenario)
    if problems:
        raise InputError(problems)
    return scenario


class _Clients(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    clients: Count | None = None


def _is_count(data: dict[str, Any]) -> bool:
    value = data.get("clients")
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _named(kind: str, discriminator: str, section: Any) -> dict[str, Any] | None:
    """A section whose part is built later, from the data; its keys are checked now where they are known."""
    if section is None:
        return None
    if not isinstance(section, dict):
        raise InputError(f"found {section!r}, allowed: a mapping with the key '{discriminator}'")
    if ":" in str(section.get(discriminator, "")):
        try:
            lookup(kind, section[discriminator])
        except InputError as error:
            raise error.under(discriminator) from None
        return dict(section)
    return (
        {discriminator: section[discriminator], **dump_part(part_from(kind, discriminator, section))}
        if discriminator in section
        else part_from(kind, discriminator, section)
    )


def _augment(section: Any) -> Augment | None:
    if section is None:
        return None
    if not isinstance(section, dict):
        raise InputError(f"found {section!r}, allowed: a mapping, e.g. {{flip: true, crop: 4}}")
    return make_part(Augment, section)


def _graph(section: dict[str, Any] | None) -> dict[str, Any] | None:
    if section is None:
        return None
    weights = {k: v for k, v in section.items() if k == "weights"}
    named = _named("graph", "graph", {k: v for k, v in section.items() if k != "weights"})
    if weights:
        try:
            lookup("mixing", weights["weights"])
        except InputError as error:
            raise error.under("weights") from None
    return {**(named or {}), **weights}


def _check_audits(audits: Mapping[str, Any]) -> None:
    """The section is for ``fedsim audit``; a run only checks it."""
    problems: list[Problem] = []
    for name, keys in audits.items():
        try:
            if keys is not None and not isinstance(keys, dict):
                raise InputError(f"found {keys!r}, allowed: a mapping")
            part_from("audit", "audit", {**(keys or {}), "audit": name})
        except InputError as error:
            problems += error.under(str(name)).problems
    if problems:
        raise InputError(problems)


def _setting(algorithm: Mapping[str, Any]) -> str | None:
    """Where an algorithm runs, also when something is wrong with its keys."""
    try:
        return getattr(lookup("algorithm", algorithm.get("name")), "setting", None)
    except InputError:
        return None
