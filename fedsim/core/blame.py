"""Whose code an exception comes from: parts that people bring may raise anything, and are then named in a sentence."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from fedsim.core.errors import reason
from fedsim.core.modules import plain_name
from fedsim.core.registry import is_named

_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def blamed(error: BaseException) -> str | None:
    """A sentence that names the part whose code raised `error`: class, method, file and line, and what it says.

    None where no code of anybody's own was running: then the fault is ours.
    """
    walked = list(traceback.walk_tb(error.__traceback__))
    first = next((i for i, (frame, _) in enumerate(walked) if _is_ours(frame)), len(walked))
    frames = [(frame, line) for frame, line in walked[first:] if _is_own(frame)]  # not whoever called us
    if not frames:
        return _called_wrongly(error)
    entry, (last, line) = frames[0][0], frames[-1]
    said = reason(error) if str(error).strip() else "nothing more"
    return f"{_called(entry)} ({last.f_code.co_filename}:{line}) raised {type(error).__name__}: {said}"


def _called_wrongly(error: BaseException) -> str | None:
    """The same where we could not even call it: a function of somebody's own that takes other arguments."""
    told = re.match(r"([\w.]+)\(\) ((?:takes|missing|got) .*)", str(error)) if isinstance(error, TypeError) else None
    for name in [m for m in list(sys.modules) if told is not None and is_named(m)]:
        assert told is not None
        first, *others = told[1].split(".")
        found: object = vars(sys.modules[name]).get(first)  # some modules make whatever they are asked for, or raise
        for attribute in others:
            found = getattr(found, attribute, None)
        code = getattr(found, "__code__", None)
        if code is not None:
            return f"your own {plain_name(name)}:{told[1]} ({code.co_filename}:{code.co_firstlineno}) {told[2]}"
    return None


def _called(frame: FrameType) -> str:
    """The function of a frame, with the class of the part whose method it is."""
    code, myself = frame.f_code, frame.f_locals.get("self", frame.f_locals.get("cls"))
    if myself is None:
        return f"your own {code.co_qualname}"
    part = myself if isinstance(myself, type) else type(myself)
    return f"your own {plain_name(part.__module__)}:{part.__qualname__}.{code.co_name}"


def _is_ours(frame: FrameType) -> bool:
    return _PACKAGE in Path(frame.f_code.co_filename).resolve().parents


def _is_own(frame: FrameType) -> bool:
    """Whether a frame's code is neither ours nor a library's, or of a library that somebody named."""
    if is_named(str(frame.f_globals.get("__name__", ""))):
        return True
    name = frame.f_code.co_filename
    if name.startswith("<") and not name.startswith("<ipython"):
        return False
    file = Path(name).resolve()
    homes = file.parents
    return _PACKAGE not in homes and not any(home in homes for home in _LIBRARIES) and "site-packages" not in file.parts
