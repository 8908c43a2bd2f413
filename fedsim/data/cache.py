"""The cache of decoded images."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.arrays import Array


def cache_folder() -> Path | None:
    """``$FEDSIM_CACHE`` (``off``: None), else ``$XDG_CACHE_HOME/fedsim``, else ``~/.cache/fedsim``."""
    chosen = os.environ.get("FEDSIM_CACHE", "")
    if chosen.lower() == "off":
        return None
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"


def cached(identity: Any, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """`make()`, or what it gave before for the same `identity` (JSON-able: file paths, sizes, times, columns).

    Files are uncompressed npz: their checksums expose a damaged one, which is then rebuilt. Written to a temporary name
    and renamed, so that runs may share the folder. A folder that cannot be written costs the speed only.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    file = folder / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        pass
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error):
        pass  # damaged or from another program: rebuilt below
    arrays = make()
    temporary: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        os.replace(temporary, file)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return arrays
