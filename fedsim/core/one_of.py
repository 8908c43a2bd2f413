"""One-of-many keys of a scenario (a law, a schedule): ``{model: NAME, ...}``, a discriminated union of pydantic's.

`OneOf` marks such a union. It also reads a plain number, list or word where that is allowed, and the older spelling
``{NAME: value, ...}``, of which `older_spellings` keeps a note; and it words what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError, WithJsonSchema, model_serializer
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError, core_schema

from fedsim.core.errors import nearest, unknown

T = TypeVar("T")
_Path = tuple[str | int, ...]

_heard: ContextVar[list[tuple[Any, Mapping[str, Any]]] | None] = ContextVar("older_spellings", default=None)


class Form(BaseModel):
    """One form of a union marked with `OneOf`; its field `model` has the name as a ``Literal``.

    `older` are the fields that the older spelling gives under `older_name` (default: the form's name), one as a value,
    two as a list: ``{uniform: [1, 3]}`` for ``{model: uniform, low: 1, high: 3}``.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    older: ClassVar[tuple[str, ...]] = ()
    older_name: ClassVar[str | None] = None

    def written(self) -> Any:
        """The form as run directories have it, in the older spelling, so that the same run keeps the same hash."""
        given = [getattr(self, name) for name in self.older]
        rest = {name: getattr(self, name) for name in type(self).model_fields if name not in ("model", *self.older)}
        name = self.older_name or getattr(self, "model")  # noqa: B009 - the forms declare it
        return {name: given[0] if len(given) == 1 else given, **{k: v for k, v in rest.items() if v is not None}}


class Chosen(RootModel[T], Generic[T]):
    """Base of the objects whose `root` is one of several forms."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_serializer
    def _written(self) -> Any:
        return self.root.written() if isinstance(self.root, Form) else self.root


@dataclass(frozen=True)
class OneOf:
    """Marks a union of forms: ``Annotated[Step | Cosine, Discriminator("model"), OneOf(...)]``.

    Parameters
    ----------
    allowed : the end of the message about a value that is no form at all, ``allowed: ...``.
    plain : the mapping that a plain value (a number, a list, a word) stands for; None: it stands for none.
    plain_type : the type of plain values, for the JSON Schema.
    what : what a form is called in messages.
    """

    allowed: str
    plain: Callable[[Any], dict[str, Any] | None] = lambda _: None
    plain_type: Any = None
    what: str = "law"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        members = get_args(get_args(source)[0] if hasattr(source, "__metadata__") else source)
        forms = {name: form for form in members for name in get_args(form.model_fields["model"].annotation)}
        reader = _Reader(self, forms)
        union = handler(source)
        choices = [handler.generate_schema(t) for t in (self.plain_type, reader.older_type()) if t is not None]
        return core_schema.no_info_wrap_validator_function(
            reader.read, union, json_schema_input_schema=core_schema.union_schema([union, *choices])
        )


class _Reader:
    """Reads what stands for one of `forms`."""

    def __init__(self, union: OneOf, forms: Mapping[str, type[BaseModel]]) -> None:
        self.union, self.forms = union, forms
        self.older: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Keys of the older spelling: the name of the form, and its fields under that key."""
        for name, form in forms.items():
            if issubclass(form, Form) and form.older:
                self.older[form.older_name or name] = name, form.older

    def older_type(self) -> Any:
        """The type of mappings in the older spelling (None: there is none)."""
        if not self.older:
            return None
        keys = [
            k for name, old in self.older.values() for k in self.forms[name].model_fields if k not in ("model", *old)
        ]
        schema = {
            "type": "object",
            "deprecated": True,
            "propertyNames": {"enum": list(dict.fromkeys([*self.older, *keys]))},
            "oneOf": [{"required": [name]} for name in self.older],
        }
        return Annotated[dict[str, Any], WithJsonSchema(schema)]

    def read(self, value: Any, handler: Callable[[Any], Any]) -> Any:
        if isinstance(value, tuple(self.forms.values())):
            return handler(value)
        places: dict[str, _Path] = {}  # where the value has what is now a field of the form
        plain = self.union.plain(value)
        if plain is not None:
            made, places = plain, dict.fromkeys(plain, ())
        elif not isinstance(value, Mapping):
            raise ValueError(self.union.allowed)
        elif "model" in value:
            made = dict(value)
            if made["model"] not in list(self.forms):
                raise ValueError(unknown(self.union.what, made["model"], list(self.forms)))
        else:
            made, places = self._from_older(value)
        try:
            read = handler(made)
        except ValidationError as error:
            raise _moved(error, made["model"], self.forms[made["model"]], places) from None
        heard = _heard.get()
        if heard is not None and plain is None and "model" not in value:
            heard.append((value, made))
        return read

    def _from_older(self, value: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, _Path]]:
        """``{NAME: value, ...}`` as ``{model: NAME, ...}``, and where it has each field."""
        given = [k for k in value if k in self.older]
        if len(given) > 1:
            raise ValueError(f"found {'both ' if len(given) == 2 else ''}{' and '.join(given)}, {self.union.allowed}")
        if not given:
            known = {"model", *(k for form in self.forms.values() for k in form.model_fields)}
            strange = [k for k in value if k not in known]
            names = list(self.older) or list(self.forms)
            if strange:
                hints = [nearest(k, ["model", *names]) for k in strange]
                raise _error(
                    [
                        _item(f"unknown key{hint}; {self.union.allowed}", (str(k),), value[k])
                        for k, hint in zip(strange, hints, strict=True)
                    ]
                )
            raise ValueError(self.union.allowed)
        key = given[0]
        name, fields = self.older[key]
        rest = {k: v for k, v in value.items() if k != key}
        if len(fields) == 1:
            return {"model": name, fields[0]: value[key], **rest}, {fields[0]: (key,)}
        pair = value[key]
        if not isinstance(pair, list) or len(pair) != len(fields):
            long = isinstance(pair, list) and len(pair) > len(fields)
            length = f" of at {'most' if long else 'least'} {len(fields)} item(s)" if isinstance(pair, list) else ""
            raise _error([_item(f"allowed: a list{length}, [{', '.join(fields)}]", (key,), pair)])
        made = {"model": name, **dict(zip(fields, pair, strict=True)), **rest}
        return made, {field: (key, i) for i, field in enumerate(fields)}


def _moved(error: ValidationError, name: str, form: type[BaseModel], places: Mapping[str, _Path]) -> ValidationError:
    """The same errors where the user's own value has what is wrong, without the union's tag."""
    moved: list[InitErrorDetails] = []
    for item in error.errors(include_url=False):
        loc = item["loc"][1:] if item["loc"][:1] == (name,) else item["loc"]
        kind: Any = item["type"]
        if kind == "extra_forbidden" and len(loc) == 1:
            keys = list(form.model_fields)
            kind = _custom(f"unknown key{nearest(loc[0], keys)}; allowed with {name}: {', '.join(keys)}")
        elif kind == "value_error" or not _is_known(kind, item.get("ctx")):
            kind = _custom(item["msg"].removeprefix("Value error, "))
        at = (*places.get(str(loc[0]), loc[:1]), *loc[1:]) if loc else ()
        moved.append(InitErrorDetails(type=kind, loc=at, input=item["input"], ctx=item.get("ctx", {})))
    return _error(moved)


def _is_known(kind: Any, context: Any) -> bool:
    """Whether `kind` is one of pydantic's own errors."""
    try:
        PydanticKnownError(kind, context)
    except KeyError:
        return False
    return True


def _custom(message: str) -> PydanticCustomError:
    return PydanticCustomError("one_of", "{message}", {"message": message})


def _item(message: str, loc: _Path, value: Any) -> InitErrorDetails:
    return InitErrorDetails(type=_custom(message), loc=loc, input=value)


def _error(items: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("one of", items)


@contextmanager
def older_spellings(whole: Any) -> Iterator[dict[str, str]]:
    """A note for each dotted key of `whole` whose mapping is read in the older spelling meanwhile."""
    notes: dict[str, str] = {}
    heard: list[tuple[Any, Mapping[str, Any]]] = []
    token = _heard.set(heard)
    try:
        yield notes
    finally:
        _heard.reset(token)
    places = {id(value): (value, made) for value, made in heard}
    for key, value in _mappings(whole, ""):
        if id(value) in places:
            older, newer = (_short(_flow(mapping)) for mapping in (value, places[id(value)][1]))
            notes[key] = f"found the older spelling {older}, which is now {newer}"


def _mappings(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in `value` with its dotted key."""
    if isinstance(value, Mapping):
        yield key, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from _mappings(inner, f"{key}.{name}" if key else str(name))


def _flow(value: Any) -> str:
    """A value as YAML has it in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    return f"[{', '.join(_flow(v) for v in value)}]" if isinstance(value, list) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]} ... {text[-20:]}"
