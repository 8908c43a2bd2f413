"""One owner per folder: two processes that write into one folder would mix their results.

The owner's name (machine, process, when that began) is in a file of the folder. An owner that is dead, as far as this
machine can tell, is followed by the next one; of another machine nobody here can tell, so a person has to.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError

FILE = ".fedsim.lock"
_PROC = Path("/proc")
_PATIENCE = 1.0
"""Seconds in which a lock that was just made gets its content."""

_HELD: ContextVar[frozenset[Path]] = ContextVar("folders that are owned in this thread", default=frozenset())


@contextmanager
def owned(folder: Path, group: str | None = None) -> Iterator[None]:
    """While this lasts, `folder` belongs to this thread alone; it is made where it is missing.

    Nested calls for one folder are one. A folder that was made here and is still empty at the end is removed.

    Parameters
    ----------
    group : processes that somebody else lets run one after another only; an owner of the same group has ended.

    Raises
    ------
    InputError
        Somebody else has the folder, or it cannot be written to.
    """
    place = folder.absolute()
    if place in _HELD.get():
        yield
        return
    made = _make(folder)
    try:
        name = _acquire(folder, group)
    except BaseException:
        _remove(made)
        raise
    before = _HELD.set(_HELD.get() | {place})
    try:
        yield
    finally:
        _HELD.reset(before)
        _release(place / FILE, name)
        _remove(made)


def owner(folder: Path) -> str | None:
    """The process that has `folder`, in words; None where nobody does, or surely writes there no more."""
    found = _read(folder / FILE)
    return None if found is None or _ended(found, None) else f"process {found['pid']} on {found['host']}"


def _acquire(folder: Path, group: str | None) -> str:
    """Write the lock file; gives the word by which its owner knows it again."""
    file, me = folder / FILE, {**_here(), "group": group, "name": uuid.uuid4().hex}
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            _create(file, json.dumps(me).encode() + b"\n")
        except FileExistsError:
            owner = _read(file)
            if owner is None and time.monotonic() < deadline:  # it is gone again, or was made a moment ago
                time.sleep(0.01)
            elif owner is None:
                raise InputError(
                    f"is locked, and its lock file says not by whom; allowed: another --out, or, if nobody writes "
                    f"there any more, rm {file}", file=str(folder),
                ) from None  # fmt: skip
            elif not _ended(owner, group):
                raise InputError(_refusal(owner, file), file=str(folder)) from None
            else:
                _take_away(file, owner)
        except FileNotFoundError:  # whoever was here before has just removed the empty folder
            if time.monotonic() > deadline:
                raise InputError("cannot be used: it is removed again and again", file=str(folder)) from None
            _make(folder)
        except OSError as error:
            raise _unusable(folder, error) from None
        else:
            return str(me["name"])


def _create(file: Path, content: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(handle, content)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _take_away(file: Path, dead: Mapping[str, Any]) -> None:
    """Remove the lock of a dead owner, unless somebody else did and may have made a lock of their own."""
    with suppress(OSError), file.open("r+b") as found:
        fcntl.flock(found, fcntl.LOCK_EX)  # of those who are here for the same reason, one at a time
        if os.fstat(found.fileno()).st_ino == file.stat().st_ino and _read(file) == dead:
            file.unlink()


def _release(file: Path, name: str) -> None:
    owner = _read(file)
    if owner is not None and owner.get("name") == name:
        with suppress(OSError):
            file.unlink()


def _read(file: Path) -> dict[str, Any] | None:
    """The owner; None where the file is gone or says nothing."""
    try:
        owner = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"host", "pid", "start", "boot", "pids"} <= set(owner) else None


def _here() -> dict[str, Any]:
    """This process: `boot` and `pids` say which start of the machine, and which container's numbers, its pid is of."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "boot": _text(_PROC / "sys/kernel/random/boot_id"),
        "pids": _namespace(),
    }


def _ended(owner: Mapping[str, Any], group: str | None) -> bool:
    """Whether the owner surely writes no more."""
    if group is not None and owner.get("group") == group:
        return True
    here = _here()
    if owner["host"] != here["host"]:
        return False
    if owner["boot"] != here["boot"]:
        return True  # the machine was started anew
    if owner["pids"] != here["pids"] or type(owner["pid"]) is not int:
        return False  # in a container whose processes are not seen from here
    return not _lives(owner["pid"]) or _start(owner["pid"]) != owner["start"]


def _refusal(owner: Mapping[str, Any], file: Path) -> str:
    here = _here()
    who = f"process {owner['pid']} on {owner['host']}, which has written there since {owner.get('since')}"
    if (owner["host"], owner["pids"]) == (here["host"], here["pids"]):
        return f"belongs to {who}; allowed: another --out, or wait until it has ended"
    return (
        f"belongs to {who}; whether it still runs cannot be seen from {here['host']}; allowed: another --out, or, if "
        f"it has ended, rm {file}"
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return _fields(pid)[:1] != ["Z"]


def _start(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None where this cannot be known."""
    fields = _fields(pid)
    return fields[19] if len(fields) > 19 else None


def _fields(pid: int) -> list[str]:
    """What ``/proc/PID/stat`` says after the program's name: the state first."""
    return (_text(_PROC / str(pid) / "stat") or "").rpartition(")")[2].split()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _namespace() -> int | None:
    try:
        return (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return None


def _make(folder: Path) -> list[Path]:
    """Make a folder; gives those that were missing, the innermost first."""
    place = folder.absolute()
    try:
        missing = [p for p in (place, *place.parents) if not p.exists()]
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None
    return missing


def _unusable(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot be used as run directory: {error.strerror}", file=str(folder))


def _remove(made: list[Path]) -> None:
    for folder in made:
        with suppress(OSError):  # it has something in it
            folder.rmdir()
