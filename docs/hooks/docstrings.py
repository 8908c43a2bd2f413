"""Docstrings of the package as mkdocstrings reads them.

Here a parameter is ``name : what it is.``, with its type in the signature alone. numpy's style has a type in that
place. So what stands there is moved to the line below.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(?:Parameters|Attributes)\n-{3,}\n", re.MULTILINE)
_ENTRY = re.compile(r"^(\w+(?:, \w+)*) : (?=\S)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


class Docstrings(griffe.Extension):
    """Called by griffe for everything that it finds."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = told(obj.docstring.value)


def told(text: str) -> str:
    """The text with its parameters in numpy's style."""
    text = _ROLE.sub(r"`\1`", text)
    found = _SECTION.search(text)
    if found is None:
        return text
    after = re.search(r"^\w[\w ]*\n-{3,}\n", text[found.end() :], re.MULTILINE)
    end = len(text) if after is None else found.end() + after.start()
    return text[: found.end()] + _ENTRY.sub(r"\1\n    ", text[found.end() : end]) + text[end:]
