"""What a section of a scenario file is: how it is read, written out again, and described to editors.

`Scenario` (in `sections`) has one field per section, and each field has one of these rows. So a new section is one row.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from fedsim.core.errors import InputError, Problem
from fedsim.core.fields import dump_part, fields_model, make_part, part_from
from fedsim.core.registry import Part, lookup, names

Values = Mapping[str, Any]
Fill = Callable[[Values], Values | None]
"""Keys that a section has where the file says nothing, from the whole file; None where that cannot be told."""

ABSENT: Any = object()


@dataclass(frozen=True, kw_only=True)
class Section(ABC):
    """A section, or (`path` with a dot) a key inside one that is a part of its own.

    Parameters
    ----------
    path : its dotted key.
    required : why a scenario needs it, said where it is missing.
    paths : whether its keys in `PATHS` are relative to the scenario file; they are written out absolute.
    recorded : whether the resolved scenario has it.
    """

    path: str
    required: str | None = None
    paths: bool = False
    recorded: bool = True

    @property
    def top(self) -> bool:
        """Whether it is a section of the file, not a key inside one."""
        return "." not in self.path

    @property
    def last(self) -> str:
        """Its key in the mapping that it is in."""
        return self.path.rpartition(".")[2]

    def given(self, raw: Values) -> Any:
        """What the file has there, or `ABSENT`."""
        found: Any = raw
        for key in self.path.split("."):
            found = found.get(key, ABSENT) if isinstance(found, Mapping) else ABSENT
        return found

    @abstractmethod
    def read(self, raw: Values, inner: tuple[str, ...], base: Path) -> tuple[Any, str | None]:
        """What it stands for, and the name it was asked for by, from the whole file `raw`.

        Parameters
        ----------
        inner : its keys that are rows of their own.
        base : the folder of the scenario file.

        Raises
        ------
        InputError
            With keys relative to the section.
        """

    @abstractmethod
    def write(self, part: Any, name: str | None) -> Any:
        """The section with all defaults, so that reading it gives `part` again; None leaves it out."""

    @abstractmethod
    def schema(self, definitions: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        """JSON Schema of the section; `inner` that of its keys that are rows of their own."""


@dataclass(frozen=True, kw_only=True)
class PartSection(Section):
    """A registered part of some `kind`, or somebody's own, whose name is under `key`.

    Parameters
    ----------
    fill : keys it has where the file does not have them; without it a section that is not there is None.
    """

    kind: str
    key: str = "name"
    fill: Fill | Values | None = None

    def keys(self, raw: Values, inner: tuple[str, ...]) -> dict[str, Any] | None:
        """The section's own keys; None where it is not there, or what it is cannot be told."""
        given = self.given(raw)
        if given is None and not self.top:
            given = ABSENT
        if given is not ABSENT and not isinstance(given, Mapping):
            raise InputError(f"found {given!r}, allowed: a mapping with the key '{self.key}'")
        own = {} if given is ABSENT else {k: v for k, v in given.items() if k not in inner}
        if self.fill is None:
            return None if given is ABSENT else own
        filled = self.fill(raw) if callable(self.fill) else {} if self.key in own else self.fill
        return None if filled is None else {**filled, **own}

    def read(self, raw: Values, inner: tuple[str, ...], base: Path) -> tuple[Any, str | None]:
        keys = self.keys(raw, inner)
        if keys is None:
            return None, None
        part = part_from(self.kind, self.key, keys, inner)
        return part.recorded(base) if isinstance(part, Part) else part, str(keys[self.key])

    def write(self, part: Any, name: str | None) -> Any:
        return None if part is None else {self.key: name, **dump_part(part)}

    def schema(self, definitions: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        """One alternative per registered part, chosen by its name, and one for somebody's own ``pkg.mod:Attr``."""
        own = {
            "type": "object",
            "title": f"your own {self.kind}",
            "properties": {self.key: {"type": "string", "pattern": "^[^:]+:[^:]+$"}, **inner},
            "required": [self.key],
        }
        choices = []
        for name in names(self.kind):
            part = lookup(self.kind, name)
            schema = plain_schema(part, definitions) if dataclasses.is_dataclass(part) else {"properties": {}}
            required = [k for k in schema.get("required", []) if k != self.key]
            choices.append(
                {
                    "type": "object",
                    "title": name,
                    "description": first_paragraph(part),
                    "properties": {self.key: {"const": name}, **schema.get("properties", {}), **inner},
                    "required": required if self.key == "mode" else [self.key, *required],
                    "additionalProperties": False,
                }
            )
        return {"type": "object", "anyOf": [*choices, own]}


@dataclass(frozen=True, kw_only=True)
class FormSection(Section):
    """A section of one form, whatever else the scenario says; all its keys have defaults.

    Parameters
    ----------
    form : a pydantic model or a dataclass.
    optional : without the section it is None, not the form's defaults; the text is an example for the message.
    """

    form: type[Any]
    optional: str | None = None

    def read(self, raw: Values, inner: tuple[str, ...], base: Path) -> tuple[Any, str | None]:
        given = self.given(raw)
        if self.optional is not None and (given is ABSENT or given is None):
            return None, None
        values = {} if given is ABSENT else given
        if isinstance(values, Mapping):
            values = {k: v for k, v in values.items() if k not in inner}
        else:
            raise InputError(f"found {values!r}, allowed: a mapping, e.g. {self.optional}")
        return make_part(self.form, absolute(values, base) if self.paths else values, inner), None

    def write(self, part: Any, name: str | None) -> Any:
        if part is None:
            return None
        return part.model_dump(exclude_none=True) if isinstance(part, BaseModel) else dump_part(part)

    def schema(self, definitions: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        schema = plain_schema(self.form, definitions)
        return {**schema, "properties": {**schema["properties"], **inner}} if inner else schema


@dataclass(frozen=True, kw_only=True)
class ValueSection(Section):
    """One value: the field of `form` that is called as the last key of the path.

    Parameters
    ----------
    optional : where the file has none it is None, not the field's default.
    """

    form: type[BaseModel]
    optional: bool = False

    def read(self, raw: Values, inner: tuple[str, ...], base: Path) -> tuple[Any, str | None]:
        given = self.given(raw)
        if self.optional and (given is ABSENT or given is None):
            return None, None
        try:
            made = make_part(self.form, {} if given is ABSENT else {self.last: given})
        except InputError as error:  # its key is that of the section itself
            raise InputError(Problem(p.message) for p in error.problems) from None
        return getattr(made, self.last), None

    def write(self, part: Any, name: str | None) -> Any:
        return part

    def schema(self, definitions: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        schema: dict[str, Any] = plain_schema(self.form, definitions)["properties"][self.last]
        return schema


@dataclass(frozen=True, kw_only=True)
class NameSection(Section):
    """The name of a registered function of some `kind`, or ``pkg.mod:function``; None where it is not there."""

    kind: str

    def read(self, raw: Values, inner: tuple[str, ...], base: Path) -> tuple[Any, str | None]:
        given = self.given(raw)
        if given is ABSENT:
            return None, None
        lookup(self.kind, given)
        return given, None

    def write(self, part: Any, name: str | None) -> Any:
        return part

    def schema(self, definitions: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        return {"type": "string", "examples": names(self.kind)}


@dataclass(frozen=True)
class Named:
    """A part, and the name it was asked for by."""

    name: str
    part: Any


@dataclass(frozen=True, kw_only=True)
class ListSection(Section):
    """A list of registered parts of a `kind`, each with its name and keys; empty where it is not there."""

    kind: str
    description: str

    def read(self, raw: Values, inner: tuple[str, ...], base: Path) -> tuple[Any, str | None]:
        given = self.given(raw)
        items = [] if given is ABSENT or given is None else given
        if not isinstance(items, list):
            raise InputError(f"found {items!r}, allowed: a list of mappings with the key 'name'")
        made, problems = [], list[Problem]()
        for i, item in enumerate(items):
            try:
                if not isinstance(item, Mapping):
                    raise InputError(f"found {item!r}, allowed: a mapping with the key 'name'")
                made.append(Named(str(item.get("name")), part_from(self.kind, "name", item)))
            except InputError as error:
                problems += error.under(str(i)).problems
        if problems:
            raise InputError(problems)
        return tuple(made), None

    def write(self, part: Any, name: str | None) -> Any:
        return [{"name": item.name, **dump_part(item.part)} for item in part] or None

    def schema(self, definitions: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        one = PartSection(path=self.path, kind=self.kind).schema(definitions, {})
        return {"description": self.description, "type": "array", "items": one}


@dataclass(frozen=True, kw_only=True)
class PartsSection(Section):
    """Any number of registered parts of a `kind`: a mapping from their names to their keys, or to nothing."""

    kind: str

    def read(self, raw: Values, inner: tuple[str, ...], base: Path) -> tuple[Any, str | None]:
        given = self.given(raw)
        made, problems = {}, list[Problem]()
        for name, keys in {} if given is ABSENT else given.items():
            try:
                if keys is not None and not isinstance(keys, Mapping):
                    raise InputError(f"found {keys!r}, allowed: a mapping")
                made[str(name)] = part_from(self.kind, self.kind, {**(keys or {}), self.kind: name})
            except InputError as error:
                problems += error.under(str(name)).problems
        if problems:
            raise InputError(problems)
        return made, None

    def write(self, part: Any, name: str | None) -> Any:
        return {name: dump_part(made) for name, made in part.items()}

    def schema(self, definitions: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name in names(self.kind):
            part = lookup(self.kind, name)
            schema = {k: v for k, v in plain_schema(part, definitions).items() if k in ("properties", "required")}
            keys = {"type": "object", **schema, "additionalProperties": False}
            found[name] = {"description": first_paragraph(part), "anyOf": [{"type": "null"}, keys]}
        own = {"^[^:]+:[^:]+$": {"type": ["object", "null"]}}
        return {"type": "object", "properties": found, "patternProperties": own, "additionalProperties": False}


PATHS = ("path", "test_path", "file")
"""Keys that name files or folders."""


def absolute(section: Values, base: Path) -> dict[str, Any]:
    """The section with its keys `path`, `test_path` and `file` absolute."""

    def fix(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: fix(k, v) for k, v in value.items()}
        if isinstance(value, list):
            return [fix(key, v) for v in value]
        return str((base / value).resolve()) if key in PATHS and isinstance(value, str) else value

    return {k: fix(k, v) for k, v in section.items()}


def first_paragraph(part: Any) -> str:
    """How a part's docstring begins."""
    return (part.__doc__ or "").strip().split("\n\n")[0]


def plain_schema(part: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of a part's keys; what it refers to is added to `definitions`."""
    schema = fields_model(part).model_json_schema(ref_template="#/$defs/{model}", schema_generator=_Generator)
    definitions.update(schema.pop("$defs", {}))
    return schema


class _Generator(GenerateJsonSchema):
    """Defaults that JSON cannot say (a law object, say) are left out instead of being warned about."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing."""
