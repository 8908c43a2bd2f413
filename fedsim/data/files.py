"""Where data files are: paths that exist, and the files of each split in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.core.errors import InputError, nearest


def find(path: str, base: Path, key: str = "path") -> Path:
    """`path` relative to `base`, which must exist.

    Raises
    ------
    InputError
        Nothing is there; the message names the nearest existing parent's similar entries.
    """
    full = (base / Path(path).expanduser()).resolve()
    if full.exists():
        return full
    siblings = [p.name for p in full.parent.iterdir()] if full.parent.is_dir() else []
    where = "" if full.parent.is_dir() else f"; not even the folder {full.parent} exists"
    raise InputError(f"no file or folder {full}{nearest(full.name, siblings)}{where}", key=key)


def parquet_files(path: Path, names: Sequence[str] = ("train", "test")) -> dict[str, list[Path]]:
    """Each split's files of a folder in hub format (``train*.parquet``, ``test*.parquet``), or of one file."""
    if path.is_file():
        return {names[0]: [path]}
    found = {split: sorted(path.glob(f"{split}*.parquet")) for split in names}
    if not found[names[0]]:
        present = sorted(p.name for p in path.iterdir())[:10]
        raise InputError(
            f"no {names[0]}*.parquet in {path}; found there: {', '.join(present) or 'nothing'}", key="path"
        )
    return {split: files for split, files in found.items() if files}
