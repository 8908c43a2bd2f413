"""``--json``: standard output has one JSON value and nothing else, whatever modules of somebody's own print."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Any, TextIO

import typer

_outs: list[TextIO] = []


@contextmanager
def alone() -> Iterator[None]:
    """While it lasts, what is printed goes to standard error, also by other languages; `emit` has the real output."""
    given, out = sys.stdout, sys.stdout
    given.flush()
    real = _is_real(given)
    if real:
        out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    _outs.append(out)
    try:
        yield
    finally:
        _outs.pop()
        sys.stdout = given
        if real:
            os.dup2(out.fileno(), 1)
            with suppress(OSError):  # nobody reads it any more
                out.close()


def emit(value: Any) -> None:
    """Print `value` as JSON on standard output; numbers that JSON does not know (NaN, infinity) are null."""
    print(json.dumps(_known(value), allow_nan=False), file=_outs[-1] if _outs else sys.stdout, flush=True)


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _known(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_known(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_real(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


def _asked(ctx: typer.Context, asked: bool) -> bool:
    if asked:
        ctx.with_resource(alone())
    return asked


AsJson = Annotated[bool, typer.Option("--json", help="print the result as one JSON object", callback=_asked)]
