"""What groups of runs are called: the keys in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_FIRST = ("algorithm.name", "participation.mode", "topology.graph", "data.dataset", "model.name")
_SPEAKS_FOR_ITSELF = ("name", "mode", "graph", "dataset", "scheme")


def labels_of(settings: Sequence[Mapping[str, str]], differing: Sequence[str]) -> list[str]:
    """The fewest differing keys, best known first, that tell the groups apart; each adds to those before it."""
    chosen: list[str] = []
    distinct = 1
    for key in sorted(differing, key=lambda k: (_FIRST.index(k) if k in _FIRST else len(_FIRST), k.count("."))):
        count = len({tuple(one.get(k) for k in [*chosen, key]) for one in settings})
        if count > distinct:
            chosen.append(key)
            distinct = count
    last = [key.rpartition(".")[2] for key in chosen]
    return [
        ", ".join(
            _said(key if last.count(short) > 1 else short, one.get(key))
            for key, short in zip(chosen, last, strict=True)
        )
        for one in settings
    ]


def _said(key: str, value: str | None) -> str:
    if value is None:
        return f"no {key}"
    return value if key in _SPEAKS_FOR_ITSELF else f"{key}={value}"


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of nested mappings with dots, and their values as text."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
