"""Folders that come with fedsim beside its code: scenarios, graphs, reproductions, files for machines."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from fedsim.core.about import DISTRIBUTION


def brought(name: str) -> list[Path]:
    """The files of the folder `name`: those of a checkout, else those that a wheel brought along, else none."""
    sources = Path(__file__).parents[2]
    if (sources / "pyproject.toml").is_file() and (sources / name).is_dir():
        return sorted(file for file in (sources / name).iterdir() if file.is_file())
    try:
        found = files(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    shared = f"share/{DISTRIBUTION}/{name}/"
    return sorted(Path(str(file.locate())).resolve() for file in found if shared in file.as_posix())
