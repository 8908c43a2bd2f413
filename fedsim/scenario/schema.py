"""The scenario's JSON Schema, made from the registered parts, so that editors complete and check scenario files."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from fedsim.core.fields import fields_model
from fedsim.core.registry import lookup, names
from fedsim.data.augment import Augment
from fedsim.devices.system import SystemSection
from fedsim.scenario.sections import BackendSection, Heading, RunSection

_SECTIONS = {  # section: (kind of part, the key that names it)
    "model": ("model", "name"),
    "algorithm": ("algorithm", "name"),
    "participation": ("participation", "mode"),
    "aggregator": ("aggregator", "name"),
    "privacy": ("privacy", "mechanism"),
}


def scenario_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a scenario file."""
    definitions: dict[str, Any] = {}
    partition = _alternatives("partition", "scheme", definitions)
    beside = {
        "clients": {"type": "integer", "minimum": 1},
        "partition": partition,
        "augment": _plain(Augment, definitions),
    }
    data = _alternatives("dataset", "dataset", definitions, beside)
    topology = _alternatives(
        "graph", "graph", definitions, {"weights": {"type": "string", "examples": names("mixing")}}
    )
    properties = {
        **_plain(Heading, definitions)["properties"],
        "data": data,
        **{s: _alternatives(kind, key, definitions) for s, (kind, key) in _SECTIONS.items()},
        "topology": topology,
        "system": _plain(SystemSection, definitions),
        "run": _plain(RunSection, definitions),
        "backend": _plain(BackendSection, definitions),
        "audit": _audits(definitions),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fedsim scenario",
        "type": "object",
        "properties": properties,
        "required": ["data", "algorithm"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _alternatives(
    kind: str, discriminator: str, definitions: dict[str, Any], shared: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One alternative per registered part, chosen by its name, and one for somebody's own ``pkg.mod:Attr``."""
    shared = shared or {}
    own = {
        "type": "object",
        "title": f"your own {kind}",
        "properties": {discriminator: {"type": "string", "pattern": "^[^:]+:[^:]+$"}, **shared},
        "required": [discriminator],
    }
    choices = []
    for name in names(kind):
        part = lookup(kind, name)
        schema = _plain(part, definitions) if dataclasses.is_dataclass(part) else {"properties": {}}
        required = [k for k in schema.get("required", []) if k != discriminator]
        choices.append(
            {
                "type": "object",
                "title": name,
                "description": (part.__doc__ or "").strip().split("\n\n")[0],
                "properties": {discriminator: {"const": name}, **schema.get("properties", {}), **shared},
                "required": [discriminator, *required] if discriminator != "mode" else required,
                "additionalProperties": False,
            }
        )
    return {"type": "object", "anyOf": [*choices, own]}


def _audits(definitions: dict[str, Any]) -> dict[str, Any]:
    """A mapping from audits to their keys, or to nothing."""
    found = {}
    for name in names("audit"):
        part = lookup("audit", name)
        schema = {k: v for k, v in _plain(part, definitions).items() if k in ("properties", "required")}
        description = (part.__doc__ or "").strip().split("\n\n")[0]
        keys = {"type": "object", **schema, "additionalProperties": False}
        found[name] = {"description": description, "anyOf": [{"type": "null"}, keys]}
    own = {"^[^:]+:[^:]+$": {"type": ["object", "null"]}}
    return {"type": "object", "properties": found, "patternProperties": own, "additionalProperties": False}


def _plain(part: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = fields_model(part).model_json_schema(ref_template="#/$defs/{model}", schema_generator=_Generator)
    definitions.update(schema.pop("$defs", {}))
    return schema


class _Generator(GenerateJsonSchema):
    """Defaults that JSON cannot say (a law object, say) are left out instead of being warned about."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing."""
