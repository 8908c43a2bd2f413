"""``fedsim runs``: a table of run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.json_output import AsJson, emit
from fedsim.cli.terminal import cell, table


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="folders of run directories (default: runs)", metavar="[DIR]...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List run directories: what they are of, how far they came, and whether they still go on."""
    from fedsim.reports.listing import list_runs

    found = list_runs(folders or [Path("runs")])
    if as_json:
        emit([run.to_json() for run in found])
        return
    rows = [
        (
            str(run.dir),
            run.name,
            run.algorithm,
            run.data,
            "" if run.rounds is None else f"{0 if run.round is None else run.round}/{run.rounds}",
            "" if run.metric is None else f"{run.metric[0]} {cell(run.metric[1])}",
            run.written,
            f"{run.state}: {run.why}" if run.why else run.state,
        )
        for run in found
    ]
    table("runs", rows, ["directory", "name", "algorithm", "data", "rounds", "last", "written", "state"])
