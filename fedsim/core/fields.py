"""Turning a mapping from a scenario into a registered part, and pydantic's complaints into ours."""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import core_schema

from fedsim.core.errors import InputError, Problem, nearest, unknown
from fedsim.core.registry import KINDS, load_object, lookup, names

P = TypeVar("P")

_models: dict[type[Any], type[BaseModel]] = {}


def fields_model(part: type[Any]) -> type[BaseModel]:
    """A strict pydantic model with the fields of a registered dataclass, made once.

    Pydantic's own strict dataclasses refuse mappings.
    """
    if part not in _models:
        _models[part] = part if issubclass(part, BaseModel) else _make_model(part)
    return _models[part]


def _make_model(part: type[Any]) -> type[BaseModel]:
    hints = get_type_hints(part, include_extras=True)
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(part):
        if f.init:
            default: Any = ... if f.default is dataclasses.MISSING else f.default
            if f.default_factory is not dataclasses.MISSING:
                default = Field(default_factory=f.default_factory)
            fields[_key(f.name)] = (hints[f.name], default)
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(part.__name__, __config__=config, __doc__=part.__doc__, **fields)


def keys_of(part: type[Any]) -> list[str]:
    """The YAML keys of a part: its fields' names.

    For ``lambda_`` (a word that Python keeps to itself) it is ``lambda``, for ``init_`` (a method) ``init``.
    """
    return list(_fields(part))


def _fields(part: type[Any]) -> dict[str, str]:
    """YAML keys and the names of the fields they stand for."""
    if isinstance(part, type) and issubclass(part, BaseModel):
        return {k: k for k in part.model_fields}
    return {_key(f.name): f.name for f in dataclasses.fields(part) if f.init}


def _key(field: str) -> str:
    return field[:-1] if keyword.iskeyword(field[:-1]) or field == "init_" else field


def make_part(
    part: type[P], values: Mapping[str, Any], beside: Sequence[str] = (), others: Callable[[str], str] = lambda _: ""
) -> P:
    """Build `part` from `values`; `beside` are keys that its section has besides, which messages name too.

    `others` says of a key that is unknown where it is known.

    Raises
    ------
    InputError
        One problem per offending key: unknown (with the nearest valid name), missing, of a wrong type or out of range.
    """
    fields = _fields(part)
    allowed = list(fields)
    without: Mapping[str, str] = getattr(part, "without", {})
    problems = [
        Problem(
            f"found {_short(values[k])}, but {without[k]}"
            if k in without
            else _unknown_key(k, [*allowed, *beside]) + others(str(k)),
            str(k),
        )
        for k in values
        if k not in allowed
    ]
    known = {k: v for k, v in values.items() if k in allowed}
    try:
        checked = fields_model(part).model_validate(known)
        made = (
            checked
            if isinstance(checked, part)
            else part(**{fields[k]: getattr(checked, k) for k in type(checked).model_fields})
        )
    except ValidationError as error:
        raise InputError([*problems, *explain(error, known, part)]) from None
    except InputError as error:
        raise InputError([*problems, *error.problems]) from None
    except (TypeError, ValueError) as error:  # of somebody's own class: an abstract method, a check of its own
        raise InputError(f"'{part.__name__}' cannot be made: {error}") from error
    if problems:
        raise InputError(problems)
    return made


def part_from(kind: str, discriminator: str, section: Mapping[str, Any], beside: Sequence[str] = ()) -> Any:
    """The part that ``section[discriminator]`` names, built from the section's other keys (`beside`: see `make_part`).

    A kind whose base class has `from_function` (models, graphs) takes somebody's own function, too.

    Raises
    ------
    InputError
        The name is missing or unknown, what it names is no part of this kind, or a key is wrong.
    """
    if discriminator not in section:
        problems = [Problem(f"missing; allowed: {', '.join(names(kind))}", discriminator)]
        problems += [Problem(f"unknown key{hint}", str(k)) for k in section if (hint := nearest(k, [discriminator]))]
        raise InputError(problems)
    name, inherits = section[discriminator], KINDS[kind].base
    assert inherits is not None
    base = load_object(inherits)
    try:
        part = lookup(kind, name)
    except InputError as error:
        raise error.under(discriminator) from None
    keys = {k: v for k, v in section.items() if k != discriminator}
    if isinstance(part, type) and issubclass(part, base) and dataclasses.is_dataclass(part):
        return make_part(part, keys, beside, partial(_known_to, kind))
    if hasattr(base, "from_function") and not (isinstance(part, type) and issubclass(part, base)):
        try:
            return base.from_function(name, part, keys)
        except InputError as error:
            raise InputError(p if p.key else replace(p, key=discriminator) for p in error.problems) from None
    what = "a class" if isinstance(part, type) else type(part).__name__
    message = f"'{name}' is {what}, allowed: a dataclass that inherits {inherits.replace(':', '.')}"
    raise InputError(message, key=discriminator)


class PartOf:
    """Marks a part's field as a part itself: ``Annotated[LocalSolver, PartOf("solver", "solver")]``.

    In YAML it is a mapping, whose `key` has the name of the registered part, or somebody's ``pkg.mod:Attr``.

    Parameters
    ----------
    kind : the kind of part.
    field : the YAML key of the field.
    key : the key of the name.
    many : the field is a tuple of parts; in YAML one of them or a list, a name alone standing for a part without keys.
    """

    def __init__(self, kind: str, field: str, key: str = "name", many: bool = False) -> None:
        self.kind, self.field, self.key, self.many = kind, field, key, many

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        write = core_schema.plain_serializer_function_ser_schema(self._write)
        return core_schema.no_info_plain_validator_function(self._read, serialization=write)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        name = {"anyOf": [{"enum": names(self.kind)}, {"type": "string", "pattern": "^[^:]+:[^:]+$"}]}
        one = {"type": "object", "properties": {self.key: name}, "required": [self.key]}
        if not self.many:
            return one
        either = [one, name]
        return {"anyOf": [*either, {"type": "array", "items": {"anyOf": either}, "minItems": 1}]}

    def _read(self, value: Any) -> Any:
        if not self.many:
            return self._read_one(value)
        several = list(value) if isinstance(value, (list, tuple)) else [value]
        if not several:
            raise ValueError(f"allowed: one of {', '.join(names(self.kind))}, or a list of at least one")
        return tuple(self._read_one({self.key: v} if isinstance(v, str) else v) for v in several)

    def _read_one(self, value: Any) -> Any:
        base = KINDS[self.kind].base
        if base is not None and isinstance(value, load_object(base)):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"allowed: a mapping with the key '{self.key}' ({', '.join(names(self.kind))})")
        try:
            return part_from(self.kind, self.key, value)
        except InputError as error:
            raise error.under(self.field) from None

    def _write(self, part: Any) -> Any:
        if part is None:
            return None
        if self.many:
            written = [self._write_one(one) for one in part]
            return written if len(written) > 1 else written[0]
        return self._write_one(part)

    def _write_one(self, part: Any) -> Any:
        kind = type(part)
        registered = (n for n in names(self.kind) if lookup(self.kind, n) is kind)
        return {self.key: next(registered, f"{kind.__module__}:{kind.__qualname__}"), **dump_part(part)}


def dump_part(part: Any) -> dict[str, Any]:
    """A part's keys and values in YAML's types, without those that are unset."""
    if hasattr(part, "given_keys"):  # made of somebody's own function, whose keys are not fields
        return dict(part.given_keys)
    fields = {k: getattr(part, field) for k, field in _fields(type(part)).items()}
    values = fields_model(type(part)).model_construct(**fields).model_dump(mode="json", warnings=False)
    return {k: v for k, v in values.items() if v is not None}


def explain(error: ValidationError, values: Any, part: type[Any]) -> list[Problem]:
    """One problem per offending key: what was found and what is allowed."""
    messages: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        key = _dotted(item["loc"], values, keep_last=item["type"] in ("missing", "extra_forbidden"))
        messages.setdefault(key, []).append(_allowed(item, part))
        found.setdefault(key, _at(values, key, item["input"]))
    # Of a union, pydantic reports every member that does not fit; the one that got furthest is the one that was meant.
    deepest = [k for k in messages if not any(other.startswith(f"{k}.") for other in messages)]
    return [Problem(_sentence(found[k], list(dict.fromkeys(messages[k]))), k or None) for k in deepest]


_ALLOWED = {  # pydantic's error types in the words of a scenario
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "list_type": "a list",
    "too_short": "a list of at least {min_length} item(s)",
    "too_long": "a list of at most {max_length} item(s)",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "greater than or equal to {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "less than or equal to {le:g}",
    "literal_error": "{expected}",
}


def _allowed(item: Any, part: type[Any]) -> str:
    """``allowed: ...``, or a sentence that says all there is to say."""
    if item["type"] == "missing":
        return f"missing; this key is required{_wanted(part, item['loc'])}"
    if item["type"] == "extra_forbidden":
        return _unknown_key(item["loc"][-1], _nested_keys(part, item["loc"][0]))
    if item["type"] in _ALLOWED:
        words = _ALLOWED[item["type"]].format(**item.get("ctx", {}))
        options = re.findall(r"'([^']*)'", words) if item["type"] == "literal_error" else []
        return f"allowed: {words}{nearest(item['input'], options)}"
    if item["type"] == "union_tag_not_found":
        return f"allowed: a mapping with the key {item['ctx']['discriminator']}"
    if item["type"] == "union_tag_invalid":
        options = re.findall(r"'([^']*)'", item["ctx"]["expected_tags"])
        return unknown(item["ctx"]["discriminator"].strip("'"), item["ctx"]["tag"], options)
    return str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _wanted(part: type[Any], loc: tuple[Any, ...]) -> str:
    """``; allowed: ...`` of a key of the part that is missing, or nothing where its type says nothing."""
    schema = schema_of(part)  # type: ignore[arg-type]
    found = schema.get("properties", {}).get(loc[0]) if len(loc) == 1 else None
    words = in_words(found, schema.get("$defs", {})) if found else ""
    return f"; allowed: {words}" if words else ""


@cache
def schema_of(part: type[Any]) -> Mapping[str, Any]:
    """The JSON schema of a part's keys; nothing where its types have none."""
    try:
        return fields_model(part).model_json_schema()
    except PydanticInvalidForJsonSchema:
        return {}


_KINDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_FEW = 4  # parts that are named where a key is unknown to this one
_RANGES = {
    "exclusiveMinimum": "greater than",
    "minimum": "greater than or equal to",
    "exclusiveMaximum": "less than",
    "maximum": "less than or equal to",
}


def in_words(schema: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in a few words; nothing where there are none for it."""
    if "$ref" in schema:
        return in_words(named.get(str(schema["$ref"]).rpartition("/")[2], {}), named)
    one_of = schema.get("anyOf") or schema.get("oneOf")
    if one_of:
        return " or ".join(dict.fromkeys(words for member in one_of if (words := in_words(member, named))))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type")
    if kind == "array":
        items = in_words(schema.get("items", {}), named)
        return f"a list (each {items})" if items else "a list"
    if kind == "object":
        return "a mapping"
    ranges = " and ".join(f"{words} {schema[name]:g}" for name, words in _RANGES.items() if name in schema)
    return f"{_KINDS.get(str(kind), '')} {ranges}".strip()


def _sentence(found: Any, messages: list[str]) -> str:
    choices = [m.removeprefix("allowed: ") for m in messages if m.startswith("allowed: ")]
    said = [m for m in messages if not m.startswith("allowed: ")]
    if choices:
        said.insert(0, f"found {_short(found)}, allowed: {' or '.join(choices)}")
    elif not said[0].startswith(("found", "missing", "unknown")):
        said[0] = f"found {_short(found)}, {said[0]}"
    return "; ".join(said)


def _unknown_key(key: object, allowed: Sequence[str]) -> str:
    return f"unknown key{nearest(key, allowed)}; allowed: {', '.join(allowed) or 'no keys'}"


def _known_to(kind: str, key: str) -> str:
    """``; a key of ...`` where some other parts of the kind have it, but not so many that this says nothing."""
    parts = ((name, lookup(kind, name)) for name in names(kind))
    having = [n for n, p in parts if isinstance(p, type) and dataclasses.is_dataclass(p) and key in keys_of(p)]
    return f"; it is a key of {', '.join(having)}" if 0 < len(having) <= _FEW else ""


def _nested_keys(part: type[Any], key: Any) -> list[str]:
    """Keys of the mappings that a part's key takes (a law, a schedule)."""

    def models(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in get_args(annotation):
            yield from models(inner)

    return list(
        dict.fromkeys(k for m in models(fields_model(part).model_fields[key].annotation) for k in m.model_fields)
    )


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
