"""Turning a mapping from a scenario into a registered part, and pydantic's complaints into ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fedsim.errors import InputError, Problem, nearest
from fedsim.registry import lookup, names

P = TypeVar("P")


@functools.cache
def fields_model(part: type[Any]) -> type[BaseModel]:
    """A strict pydantic model with the fields of a registered dataclass (pydantic's own strict dataclasses refuse mappings)."""
    if issubclass(part, BaseModel):
        return part
    hints = get_type_hints(part, include_extras=True)
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(part):
        if f.init:
            made = f.default_factory is not dataclasses.MISSING
            default = (
                Field(default_factory=f.default_factory)
                if made
                else (... if f.default is dataclasses.MISSING else f.default)
            )
            fields[f.name] = (hints[f.name], default)
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(part.__name__, __config__=config, __doc__=part.__doc__, **fields)


def keys_of(part: type[Any]) -> list[str]:
    """The YAML keys of a part."""
    if isinstance(part, type) and issubclass(part, BaseModel):
        return list(part.model_fields)
    return [f.name for f in dataclasses.fields(part) if f.init]


def make_part(part: type[P], values: Mapping[str, Any]) -> P:
    """Build `part` from `values`.

    Raises
    ------
    InputError
        One problem per offending key: unknown (with the nearest valid name), missing, of a wrong type or out of range.
    """
    allowed = keys_of(part)
    problems = [
        Problem(f"unknown key{nearest(k, allowed)}; allowed: {', '.join(allowed) or 'no keys'}", str(k))
        for k in values
        if k not in allowed
    ]
    known = {k: v for k, v in values.items() if k in allowed}
    try:
        checked = fields_model(part).model_validate(known)
        made = (
            checked
            if isinstance(checked, part)
            else part(**{k: getattr(checked, k) for k in type(checked).model_fields})
        )
    except ValidationError as error:
        raise InputError([*problems, *explain(error, known)]) from None
    except InputError as error:
        raise InputError([*problems, *error.problems]) from None
    if problems:
        raise InputError(problems)
    return made


def part_from(kind: str, discriminator: str, section: Mapping[str, Any]) -> Any:
    """The registered part that ``section[discriminator]`` names, built from the section's other keys."""
    if discriminator not in section:
        raise InputError(f"missing; allowed: {', '.join(names(kind))}", key=discriminator)
    try:
        part = lookup(kind, section[discriminator])
    except InputError as error:
        raise error.under(discriminator) from None
    if not (isinstance(part, type) and dataclasses.is_dataclass(part)):
        raise InputError(f"'{section[discriminator]}' is not a dataclass, so its keys are unknown", key=discriminator)
    return make_part(part, {k: v for k, v in section.items() if k != discriminator})


def dump_part(part: Any) -> dict[str, Any]:
    """A part's keys and values in YAML's types, without those that are unset."""
    fields = {k: getattr(part, k) for k in keys_of(type(part))}
    values = fields_model(type(part)).model_construct(**fields).model_dump(mode="json", warnings=False)
    return {k: v for k, v in values.items() if v is not None}


def explain(error: ValidationError, values: Any) -> list[Problem]:
    """One problem per offending key: what was found and what is allowed."""
    messages: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        key = _dotted(item["loc"], values, keep_last=item["type"] in ("missing", "extra_forbidden"))
        messages.setdefault(key, []).append(_allowed(item))
        found.setdefault(key, None if item["type"] == "missing" else _at(values, key, item["input"]))
    return [
        Problem(
            "; or ".join(dict.fromkeys(m))
            if m == ["missing"]
            else f"found {_short(found[k])}, {' or '.join(dict.fromkeys(m))}",
            k or None,
        )
        for k, m in messages.items()
    ]


def _allowed(item: Any) -> str:
    if item["type"] == "missing":
        return "missing"
    if item["type"] == "extra_forbidden":
        return "which is an unknown key here"
    text = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if text.startswith("Input should be "):
        text = "allowed: " + text.removeprefix("Input should be ")
    return text


def _dotted(loc: tuple[Any, ...], values: Any, keep_last: bool) -> str:
    """The part of pydantic's location that exists in the user's values (its union tags do not)."""
    path: list[str] = []
    for i, item in enumerate(loc):
        inside = (isinstance(values, Mapping) and item in values) or (
            isinstance(values, list) and isinstance(item, int) and item < len(values)
        )
        if inside:
            values = values[item]
            path.append(str(item))
        elif keep_last and i == len(loc) - 1:
            path.append(str(item))
    return ".".join(path)


def _at(values: Any, key: str, fallback: Any) -> Any:
    for item in key.split(".") if key else []:
        try:
            values = values[int(item)] if isinstance(values, list) else values[item]
        except (KeyError, ValueError, IndexError, TypeError):
            return fallback
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
