"""The command line. Everything heavy is imported inside the commands, so that ``fedsim --help`` is quick."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedsim.cli.ending import Commands, interruptible, out_of_memory, own_fault, resumable, say_interrupted
from fedsim.cli.examples import examples
from fedsim.cli.export import export
from fedsim.cli.json_output import AsJson, emit
from fedsim.cli.new import new
from fedsim.cli.parts import describe, list_parts
from fedsim.cli.progress import run_progress, told_steps
from fedsim.cli.reproduce import reproduce
from fedsim.cli.runs import runs
from fedsim.cli.terminal import cell, console, metrics_line, say, table
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.libraries import imported_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.scenario.sections import Scenario

app = typer.Typer(
    help="Simulate federated and decentralized learning: one scenario file, thousands of clients.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ScenarioFile = Annotated[str, typer.Argument(help="scenario file (YAML)", metavar="SCENARIO")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="override a key: key.path=value", metavar="KEY=VALUE")
]
Out = Annotated[Path | None, typer.Option("--out", help="where results go")]
Resume = Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint")]


def _version(asked: bool) -> None:
    if asked:
        from fedsim import __version__

        print(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="where a part of your own raises, print the traceback, too")
    ] = False,
) -> None:
    """Simulate federated and decentralized learning: one scenario file, thousands of clients."""
    Commands.tracebacks = traceback


@app.command()
def run(
    scenario: ScenarioFile, settings: Settings = None, out: Out = None, resume: Resume = False, as_json: AsJson = False
) -> None:
    """Run a scenario; results go to a run directory."""
    with imported_together():
        from fedsim.engine.run import run as simulate
        from fedsim.engine.run_directory import read_jsonl
        from fedsim.scenario.load import load

    checked = load(scenario, settings)
    with resumable(), run_progress(checked.name, checked.run.rounds, as_json, checked.columns) as progress:
        result = simulate(checked, out, resume, progress)
    last = read_jsonl(result.dir / "metrics.jsonl")[-1]
    if as_json:
        ending = {} if result.stopped is None else {"stopped": result.stopped}
        about = {"dir": str(result.dir), "resumed_at": result.resumed_at, **ending}
        emit({**about, "metrics": last, "warnings": result.warnings})
        return
    if resume and result.resumed_at == last["round"]:
        say("already finished, nothing to do")
    elif resume:
        say(f"resumed at round {result.resumed_at}" if result.resumed_at else "nothing to resume, started anew")
    if result.stopped is not None:
        say(result.stopped)
    say(f": {metrics_line(last, result.columns)}", bold=str(result.dir))


@app.command()
def plan(
    scenario: ScenarioFile,
    settings: Settings = None,
    schedule: Annotated[
        bool, typer.Option("--schedule", help="follow the virtual clock: who delivers when, without training")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="with --schedule: where its picture goes (PNG, SVG or PDF)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a scenario would do: sizes, memory, bytes per round, graph checks. Runs nothing."""
    with imported_together():
        from fedsim.scenario.load import load

    checked = load(scenario, settings)
    if schedule:
        _schedule(checked, out, as_json)
        return
    if out is not None:
        raise InputError("--out: found without --schedule, whose picture it is; allowed: both")
    from fedsim.reports.plan import plan as make_plan

    sections = make_plan(checked)
    if as_json:
        emit(sections)
        return
    for title, rows in sections.items():
        table(title, [(k, cell(v)) for k, v in rows.items()])


@app.command()
def sweep(
    sweep_file: Annotated[str, typer.Argument(help="sweep file (YAML)", metavar="SWEEP")],
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    retry_failed: Annotated[bool, typer.Option(help="with --resume: run those that failed again")] = True,
    parallel: Annotated[int | None, typer.Option(min=1, help="runs at a time, on Ray (default: one by one)")] = None,
    address: Annotated[str | None, typer.Option(help="Ray: local, auto or HOST:PORT", metavar="ADDRESS")] = None,
    cpus: Annotated[float, typer.Option("--cpus-per-run", min=0.01, help="on Ray: CPUs of each run")] = 1.0,
    gpus: Annotated[float, typer.Option("--gpus-per-run", min=0.0, help="on Ray: GPUs of each run")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Run the variations of a scenario, one after another or side by side, and compare them."""
    with imported_together():
        from fedsim.cli.sweep_view import follow_runs, follow_sweep, print_summary, say_warned
        from fedsim.core.cores import available
        from fedsim.core.metrics import TABLE, merged
        from fedsim.sweeps.book import summary
        from fedsim.sweeps.run import sweep as run_sweep
        from fedsim.sweeps.tune import Together

    together = None
    if parallel is not None or address is not None:
        together = Together(address or "local", parallel or available(), cpus, gpus)

    follow = nullcontext((None, None)) if as_json or together is None else follow_sweep()
    with resumable(), follow_runs(as_json or together is not None) as started, follow as (told, ended):
        outcomes = run_sweep(sweep_file, out, resume, settings, started, together, retry_failed, told, ended)
    rows = summary(outcomes)
    if as_json:
        emit(rows)
    else:
        columns, _ = merged({**TABLE, **o.point.scenario.columns} for o in outcomes)
        print_summary(console(), str(outcomes[0].dir.parent), rows, columns)
        say_warned(outcomes)
    failed = {o.point.label: o.error for o in outcomes if o.error is not None}
    for label, error in failed.items():
        print(f"{label}: {error}", file=sys.stderr)
    if failed:
        raise typer.Exit(2 if any(isinstance(error, InputError) for error in failed.values()) else 1)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="run directories, or folders of them", metavar="DIR...")],
    out: Annotated[
        Path | None, typer.Option("--out", help="the HTML file (default: report.html in the first DIR)")
    ] = None,
    sections: Annotated[
        list[str] | None, typer.Option("--section", help="a section of your own: PKG.MOD:NAME, or {name: ..., keys}")
    ] = None,
) -> None:
    """Make one self-contained HTML page with figures; several runs are compared."""
    with imported_together():
        from fedsim.reports.report import write_report

    say("", bold=str(write_report(directories, out, sections or [])))


@app.command()
def audit(
    scenario: ScenarioFile,
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="an audit (default: those of the scenario)", metavar="NAME")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="where results go (default: audits/NAME-HASH)")] = None,
    as_json: AsJson = False,
) -> None:
    """Attack what a scenario's run gives away: epsilon lower bounds, membership inference, reconstruction."""
    from fedsim.audit import command
    from fedsim.scenario.load import load

    checked = load(scenario, settings)
    try:
        with told_steps(as_json) as tell:
            report = command.audit(checked, attacks or [], tell)
    except KeyboardInterrupt:
        say_interrupted("nothing was written")
        raise typer.Exit(130) from None
    place = command.write(report, out or Path("audits") / f"{checked.name}-{checked.hash()}")
    if as_json:
        emit(report.to_json())
    else:
        for done in report.audits:
            table(done.name, command.rows(done.finding.results))
        say("", bold=str(place))
    for alarm in report.alarms:
        print(f"ALARM: {alarm}", file=sys.stderr)
    if report.alarms:
        raise typer.Exit(1)


@app.command()
def topology(
    what: Annotated[
        str, typer.Argument(help="a graph's name, a graph file, or a scenario", metavar="NAME|FILE|SCENARIO")
    ],
    nodes: Annotated[int | None, typer.Option("--nodes", "-n", help="number of nodes (for a name)")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="a key of the graph or the scenario: key=value")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="mixing weights")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="where the picture goes (PNG, SVG or PDF)")] = None,
    as_json: AsJson = False,
) -> None:
    """Spectral gap, diameter, degrees of a graph, and a picture."""
    from fedsim.reports.plan import describe_topology

    facts, graph = describe_topology(what, nodes, settings or [], weights)
    if as_json:
        emit(facts)
    else:
        table(str(facts.get("name", what)), [(k, cell(v)) for k, v in facts.items() if k != "name"])
    if out is not None or not as_json:
        from fedsim.figures.topology import topology_figure

        place = out or Path(f"{Path(what).stem}.png")
        _picture(topology_figure(graph, str(facts.get("name", what))), place, as_json)


@app.command()
def deploy(
    scenario: ScenarioFile,
    folder: Annotated[Path, typer.Argument(help="where the app goes: a new or empty folder", metavar="DIR")],
    settings: Settings = None,
    wheel: Annotated[
        bool, typer.Option("--wheel", help="put a wheel of this fedsim beside it, to install it from")
    ] = False,
) -> None:
    """Write a Flower app that runs the scenario on real clients, ready for `flwr run`."""
    from fedsim.deployment.app import deploy as write_app
    from fedsim.scenario.load import load

    for name in write_app(load(scenario, settings), folder, wheel):
        say(f"  {folder / name}")
    say(" has the commands", bold=str(folder / "README.md"))


@app.command()
def check(
    part: Annotated[str, typer.Argument(help="a registered name or PKG.MOD:NAME")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="a key of the part: key=value")] = None,
    kind: Annotated[str | None, typer.Option(help="algorithm, aggregator, ..., where the name does not tell")] = None,
) -> None:
    """Check what parts of its kind promise: an algorithm's stacked = sharded = single, same seed same numbers, ..."""
    from fedsim.contract.check import check as laws_of

    results = laws_of(part, settings or [], kind)
    rows = [("passed" if r.passed else "FAILED", r.name, r.detail) for r in results]
    table(part, rows, ["", "law", "detail"])
    if not all(r.passed for r in results):
        raise typer.Exit(1)


app.command()(export)
app.command()(examples)
app.command("list")(list_parts)
app.command()(describe)
app.command()(runs)
app.command()(new)
app.command()(reproduce)


@app.command()
def schema() -> None:
    """Print the scenario's JSON Schema, for editors."""
    from fedsim.scenario.schema import scenario_schema

    print(json.dumps(scenario_schema(), indent=2))


def main() -> NoReturn:
    """Entry point: exit code 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""
    with interruptible():
        _main()
    sys.exit(0)


def _main() -> None:
    try:
        app(prog_name="fedsim", standalone_mode=True)  # also where it was called as a module
    except InputError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except FedsimError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # a part of somebody's own may raise anything; OSError: a full disk, say
        said = own_fault(error) or out_of_memory(error) or (str(error) if isinstance(error, OSError) else None)
        if said is None:
            raise
        print(said, file=sys.stderr)
        sys.exit(1)


def _schedule(scenario: Scenario, out: Path | None, as_json: bool) -> None:
    """``plan --schedule``: tables of the first combines and of the clients, and a picture."""
    from fedsim.reports.timeline import follow
    from fedsim.reports.timeline_tables import client_rows, combine_rows, headline

    timeline = follow(scenario)
    if as_json:
        emit(timeline.to_json())
    else:
        for title, (header, rows) in (
            ("first combines", combine_rows(timeline)),
            ("clients (means over the whole schedule)", client_rows(timeline)),
        ):
            table(title, rows, header)
        say(headline(timeline))
    if out is not None:
        from fedsim.reports.timeline_tables import timeline_figure

        title = f"{timeline.name} ({timeline.mode})"
        figure = timeline_figure(timeline, title)
        _picture(figure, out, as_json)


def _picture(figure: Figure, place: Path, quiet: bool) -> None:
    try:
        figure.savefig(place, dpi=150, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise InputError(f"--out: the picture cannot be written to {place}: {error}") from None
    if not quiet:
        say(f"picture: {place}")


if __name__ == "__main__":
    main()
