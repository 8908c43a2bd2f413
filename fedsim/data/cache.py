"""The cache of decoded images."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.row_files import make_readable


def cache_folder() -> Path | None:
    """``$FEDSIM_CACHE`` (``off``: None), else ``$XDG_CACHE_HOME/fedsim``, else ``~/.cache/fedsim``."""
    chosen = os.environ.get("FEDSIM_CACHE", "")
    if chosen.lower() == "off":
        return None
    try:
        return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"
    except RuntimeError:  # nobody's home
        return None


def cached(identity: Any, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """`make()`, or what it gave before for the same `identity` (JSON-able: file paths, sizes, times, columns).

    Files are uncompressed npz: their checksums expose a damaged one, which is then rebuilt. Written to a temporary name
    and renamed, so that runs may share the folder. What cannot be written costs the speed only, and leaves nothing.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    file = folder / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        if "x" in found and "y" in found:
            return found
    except FileNotFoundError:
        pass
    except Exception:  # damaged or from another program: it is rebuilt below
        pass
    arrays = make()
    _keep(file, arrays)
    return arrays


def _keep(file: Path, arrays: dict[str, Array]) -> None:
    """Write the file, or nothing: what cannot be kept is made again next time."""
    if any(array.dtype.hasobject for array in arrays.values()):
        return
    temporary: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        make_readable(temporary)
        temporary.replace(file)
        temporary = None
    except Exception:  # a full disk, a folder that is a file, ...: it costs the speed only
        pass
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
