"""What a part says of itself, for who asks for it by its name: its keys with defaults and ranges, and its sources.

Everything is read from the part: keys from its fields, what they mean and which papers it is of from docstrings. So
nothing here knows a part's name, and somebody's own part is described as the built-in ones are.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

from pydantic import BaseModel

from fedsim.core.fields import fields_model, in_words, schema_of

REQUIRED: Any = object()
"""The default of a key that has none and has to be given."""

_ARXIV = re.compile(r"(?<![\d.])(\d{4}\.\d{4,5})(?!\d)")
_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)
_ENTRY = re.compile(r"^(\w+(?:, \w+)*) : ", re.MULTILINE)


@dataclass(frozen=True)
class Key:
    """A YAML key of a part.

    Attributes
    ----------
    name : the key.
    default : in YAML's types; None where the key is unset by default, `REQUIRED` where it has to be given.
    allowed : its values in a few words; empty where its type says nothing.
    says : what it means, from the docstrings of the part and of what it inherits; empty where they say nothing.
    """

    name: str
    default: Any
    allowed: str
    says: str

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def keys(part: Any) -> list[Key]:
    """The keys of a registered part or a section, own ones before those that it inherits; none of a function."""
    if not (isinstance(part, type) and (is_dataclass(part) or issubclass(part, BaseModel))):
        return []
    schema = schema_of(part)
    known, named = schema.get("properties", {}), schema.get("$defs", {})
    said = _meanings(part)
    required = schema.get("required", [])
    defaults = fields_model(part).model_construct().model_dump(mode="json", warnings=False)
    own = [k for c in part.__mro__ for k in inspect.get_annotations(c)]
    order = sorted(
        known, key=lambda k: own.index(k) if k in own else own.index(f"{k}_") if f"{k}_" in own else len(own)
    )
    return [
        Key(k, REQUIRED if k in required else defaults.get(k), in_words(known[k], named),
            said.get(k) or _plain(known[k].get("description", "")))
        for k in order
    ]  # fmt: skip


def prose(part: Any) -> str:
    """What the docstring says before its first list of parameters."""
    text = inspect.getdoc(part) or "" if not isinstance(part, type) else inspect.cleandoc(part.__doc__ or "")
    found = _SECTION.search(text)
    return _unmarked((text[: found.start()] if found else text).strip())


def story(part: Any) -> str:
    """What the module of a part says of where it comes from and which variant it is; empty where no paper is named."""
    text = _module_text(part)
    return _unmarked(text) if _headline_papers(text) else ""


def papers(part: Any) -> list[str]:
    """The arXiv identifiers of the papers a part is of.

    They are those of the sentences of its own docstring that begin with ``Source``, else all that it names. Where it
    has neither they are those of its module: of the first paragraph, and of sentences that begin with ``Source``.
    """
    own = part.__doc__ or ""
    sources = _sources(own)
    return list(
        dict.fromkeys(_numbers(sources) if sources else _numbers([own]) or _headline_papers(_module_text(part)))
    )


def _headline_papers(text: str) -> list[str]:
    return _numbers([text.partition("\n\n")[0], *_sources(text)])


def _sources(text: str) -> list[str]:
    """What follows ``Source`` at the beginning of a sentence, to the end of its paragraph."""
    paragraphs = (" ".join(p.split()) for p in text.split("\n\n"))
    return [found[1] for p in paragraphs if (found := re.search(r"(?:^|[.] )(Sources?\b.*)", p))]


def _numbers(texts: Iterable[str]) -> list[str]:
    return [number for text in texts for number in _ARXIV.findall(text)]


def _module_text(part: Any) -> str:
    return inspect.cleandoc(importlib.import_module(part.__module__).__doc__ or "")


def _meanings(part: type[Any]) -> dict[str, str]:
    """What docstrings say of keys, those of the part before those of what it inherits."""
    texts = [inspect.cleandoc(k.__doc__) for k in part.__mro__ if k.__module__ != "builtins" and k.__doc__]
    found: dict[str, str] = {}
    for read in (_listed, _told, _mentioned):
        for text in texts:
            for name, says in read(text):
                found.setdefault(name, says)
    return found


def _listed(text: str) -> Iterator[tuple[str, str]]:
    """Of the section ``Parameters``: ``name, other : what they are``, continued on indented lines."""
    pieces = _SECTION.split(text)
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if title == "Parameters":
            entries = _ENTRY.split(body)
            for entry, says in zip(entries[1::2], entries[2::2], strict=True):
                for name in entry.split(", "):
                    yield name, _plain(says)


def _told(text: str) -> Iterator[tuple[str, str]]:
    """Of the prose: `` `name`: what it is``, up to the next name or the end of the paragraph."""
    before = _SECTION.split(text)[0]
    for paragraph in before.split("\n\n"):
        pieces = re.split(r"(?:^|(?<=[.;] )|(?<=\n))((?:`\w+`(?:, | and )?)+)(?: \([^)]*\))?: ", paragraph)
        for names, says in zip(pieces[1::2], pieces[2::2], strict=True):
            for name in re.findall(r"`(\w+)`", names):
                yield name, _plain(says)


def _mentioned(text: str) -> Iterator[tuple[str, str]]:
    """Of the prose: names with the first sentence that has them in backticks."""
    before = " ".join(_SECTION.split(text)[0].split())
    for sentence in re.split(r"(?<=[.;]) (?=[A-Z`(])", before):
        for name in re.findall(r"(?<!`)`(\w+)`(?!`)", sentence):
            yield name, _unmarked(sentence)


def _plain(text: str) -> str:
    return _unmarked(" ".join(text.split()))


def _unmarked(text: str) -> str:
    """Without the marks that documentation tools want: ``code``, :func:`name`."""
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text.replace("``", ""))
