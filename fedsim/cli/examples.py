"""``fedsim examples``: what the documentation names beside the code, for who installed fedsim without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.terminal import say
from fedsim.core.about import DISTRIBUTION
from fedsim.core.brought import brought
from fedsim.core.errors import InputError

_FOLDERS = ("scenarios", "topologies", "deploy", "reproductions")


def examples(
    folder: Annotated[Path, typer.Argument(help="where they go: a new or empty folder", metavar="DIR")] = Path("."),
) -> None:
    """Copy what the documentation names to DIR: scenarios, topologies (graphs), reproductions, deploy (machines)."""
    found = {name: brought(name) for name in _FOLDERS}
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
