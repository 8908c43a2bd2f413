"""``fedsim examples``: the scenarios and graphs that the documentation names, for who installed fedsim without them."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Annotated

import typer

import fedsim
from fedsim.cli.terminal import say
from fedsim.core.about import DISTRIBUTION
from fedsim.core.errors import InputError

_FOLDERS = ("scenarios", "topologies", "deploy")


def examples(
    folder: Annotated[Path, typer.Argument(help="where they go: a new or empty folder", metavar="DIR")] = Path("."),
) -> None:
    """Copy what the documentation names to DIR: scenarios, topologies (graphs), deploy (files for machines)."""
    found = {name: _files(name) for name in _FOLDERS}
    if not all(found.values()):
        raise InputError(
            f"found no scenarios beside this fedsim; allowed: {DISTRIBUTION} from its wheel or its sources"
        )
    for name in _FOLDERS:
        if (folder / name).exists():
            raise InputError(f"DIR: found {folder / name}, which is there already; allowed: a folder without it")
    try:
        for name, sources in found.items():
            (folder / name).mkdir(parents=True)
            for source in sources:
                shutil.copyfile(source, folder / name / source.name)
    except OSError as error:
        raise InputError(f"DIR: cannot be written to {folder}: {error.strerror}") from None
    for name, sources in found.items():
        say(f" has {len(sources)} files", bold=str(folder / name))
    say(f"try: fedsim run {folder / 'scenarios' / 'quickstart.yaml'}")


def _files(name: str) -> list[Path]:
    """Those of a checkout, else those that a wheel brought along."""
    sources = Path(fedsim.__file__).parent.parent
    if (sources / "pyproject.toml").is_file() and (sources / name).is_dir():
        return sorted(file for file in (sources / name).iterdir() if file.is_file())
    try:
        brought = files(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    shared = f"share/{DISTRIBUTION}/{name}/"
    return sorted(Path(str(file.locate())) for file in brought if shared in file.as_posix())
