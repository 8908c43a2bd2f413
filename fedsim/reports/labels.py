"""What groups of runs are called: the keys in which they differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_FIRST = ("algorithm.name", "participation.mode", "topology.graph", "data.dataset", "model.name")
_SPEAKS_FOR_ITSELF = ("name", "mode", "graph", "dataset", "scheme")
_SILENT = ("backend", "run.loggers", "run.trace", "run.checkpoint_seconds", "run.client_state", "run.threads")
"""Where and how a run is computed and who is told: they change no number, so no group is called after them."""


def labels_of(settings: Sequence[Mapping[str, str]], differing: Sequence[str]) -> list[str]:
    """The fewest differing keys, best known first, that tell the groups apart; each adds to those before it."""
    chosen: list[str] = []
    distinct = 1
    telling = [key for key in differing if not any(key == s or key.startswith(f"{s}.") for s in _SILENT)]
    for key in sorted(telling, key=lambda k: (_FIRST.index(k) if k in _FIRST else len(_FIRST), k.count("."))):
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


def told_apart(labels: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Labels that are alike get their folders: the last part of the path, or all of it where that is alike, too."""
    twice = {label for label in labels if labels.count(label) > 1}
    ends = [folder.resolve().name for folder in folders]
    named = [end if ends.count(end) == 1 else str(folder) for end, folder in zip(ends, folders, strict=True)]
    return [
        label if label not in twice else ", ".join(part for part in (label, name) if part)
        for label, name in zip(labels, named, strict=True)
    ]


def without_seed(name: str) -> str:
    """A run's name without what it says of its seed."""
    return re.sub(r"(^|_)seed=\d+(?=_|$)", "", name).strip("_")


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
