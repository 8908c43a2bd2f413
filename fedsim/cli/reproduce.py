"""``fedsim reproduce``: a paper's result in its scaled-down form, and how it agrees with what the paper says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.ending import resumable
from fedsim.cli.json_output import AsJson, emit
from fedsim.cli.terminal import say, table
from fedsim.core.errors import InputError
from fedsim.core.libraries import imported_together

if TYPE_CHECKING:
    from fedsim.sweeps.reproduced.files import Reproduction


def complete_name(typed: str) -> list[str]:
    """For the shell."""
    from fedsim.sweeps.reproduced.files import known

    return [name for name in known() if name.startswith(typed)]


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="a reproduction (default: list them), or a file", metavar="NAME|FILE", autocompletion=complete_name
        ),
    ] = None,
    on: Annotated[str | None, typer.Option("--on", help="which of its data (default: the first)")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="the folder of the data", metavar="DIR")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="seconds: few rounds and one seed, to see that it runs")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="override a key of every run", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="where results go (default: reproduced/NAME-DATA)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="keep the runs that are done")] = False,
    as_json: AsJson = False,
) -> None:
    """Reproduce a paper's result at a smaller scale: its number, ours, seeds, time, and a page of it."""
    if name is None:
        _list(as_json)
        return
    with imported_together():
        from fedsim.cli.sweep_view import follow_runs
        from fedsim.sweeps.reproduced import files, page
        from fedsim.sweeps.reproduced import run as runs

    task = files.task(files.find(name), on, data, quick, settings)
    with resumable(), follow_runs(as_json) as started:
        found = runs.reproduce(task, out, resume, settings, started)
    judged = page.verdicts(task.reproduction, found.results)
    if as_json:
        told = [{"says": v.says, "holds": v.holds, "seeds": v.seeds, "of": v.of} for v in judged]
        emit({"dir": str(found.folder), "checks": told, **found.results})
    else:
        header, rows = page.summary(task.reproduction, found.results)
        table(f"{task.reproduction.paper.title} ({task.reproduction.data[task.on].title})", rows, header, right=True)
        if quick:
            say("with --quick nothing of this says anything about the paper: it shows that everything runs")
        table(page.headline(judged), [(page.told(v), v.says) for v in judged])
        for text in page.absent(task.reproduction, found.results):
            say(text)
        say(f": the page of it; {found.results['seconds']:.0f} s of running", bold=str(found.folder / "page.md"))
    failed = [outcome for outcome in found.outcomes if outcome.error is not None]
    for outcome in failed:
        print(f"{outcome.point.label}: {outcome.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    from fedsim.sweeps.reproduced.files import known, read

    made = {name: read(file)[0] for name, file in known().items()}
    if as_json:
        emit({name: _entry(one) for name, one in made.items()})
        return
    if not made:
        raise InputError("found no reproductions beside this fedsim; allowed: one from its wheel or its sources")
    rows = [
        (name if i == 0 else "", one.paper.result if i == 0 else "", on, f"{choice.minutes:g} min", choice.needs)
        for name, one in made.items()
        for i, (on, choice) in enumerate(one.data.items())
    ]
    table("Reproductions", rows, ["name", "what is reproduced", "--on", "takes", "needs"])
    say("fedsim reproduce NAME, or --quick to see that it runs")


def _entry(one: Reproduction) -> dict[str, Any]:
    data = {on: {"minutes": choice.minutes, "needs": choice.needs} for on, choice in one.data.items()}
    return {"title": one.paper.title, "arxiv": one.paper.arxiv, "reproduces": one.paper.result, "data": data}
