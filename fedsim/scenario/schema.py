"""The scenario's JSON Schema, made from the registered parts, so that editors complete and check scenario files."""

from __future__ import annotations

from typing import Any

from fedsim.scenario.sections import SECTIONS


def scenario_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a scenario file."""
    definitions: dict[str, Any] = {}
    rows = list(SECTIONS.values())

    def schema(path: str) -> dict[str, Any]:
        row = next(r for r in rows if r.path == path)
        inner = {r.last: schema(r.path) for r in rows if r.path.startswith(f"{path}.")}
        return row.schema(definitions, inner)

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fedsim scenario",
        "type": "object",
        "properties": {row.path: schema(row.path) for row in rows if row.top},
        "required": [row.path for row in rows if row.required],
        "additionalProperties": False,
        "$defs": definitions,
    }
