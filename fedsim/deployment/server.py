"""The ServerApp of a deployment: the simulation's own loop, with a Flower backend and a wall clock."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedsim.core.disk import cannot_write
from fedsim.core.errors import InputError, RunError
from fedsim.core.global_draws import others_draw
from fedsim.core.lock import owned
from fedsim.deployment.agreement import FILE as AGREED
from fedsim.deployment.agreement import Agreement
from fedsim.deployment.evaluation import asks_clients, check_who, examination, examiner
from fedsim.deployment.flower.backend import Flower
from fedsim.deployment.flower.crowd import Crowd
from fedsim.deployment.flower.goodbye import farewell
from fedsim.deployment.flower.records import Greeting
from fedsim.deployment.flower.roster import LOG, Roster
from fedsim.deployment.keys import fingerprint, read_keys
from fedsim.deployment.noise import check_trust, keep_noise, sampling_secret, with_new_noise, with_own_noise
from fedsim.deployment.pooling import (
    all_at_once,
    check_there,
    doubts,
    joined,
    keep,
    learns,
    proposed,
    refuses_own,
    settled,
    told,
)
from fedsim.deployment.population import check_population
from fedsim.deployment.run_config import RunConfig
from fedsim.engine.assembly import Assembly, assemble
from fedsim.engine.checkpoint import has_checkpoint
from fedsim.engine.idle import idle_message
from fedsim.engine.loop import Simulation
from fedsim.engine.replies import write_fitted
from fedsim.engine.run_directory import Run, read_jsonl
from fedsim.engine.watch import Row, Watched, Watcher
from fedsim.objective.supervised import SupervisedTask
from fedsim.participation.wall_clock import RealTime
from fedsim.privacy.base import WrappedTask
from fedsim.scenario.load import load
from fedsim.scenario.sections import Scenario

REPLIES = "replies.jsonl"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)
DRAWN = ("random",)
"""Python's global generators from which Flower's own threads draw, for the times of their heartbeats."""
_REPLACES = 1.5  # timeouts into a round: who failed to answer in one is replaced, but not who took its place then


def make_server_app(scenario_file: str | Path) -> Any:
    """The ServerApp that runs a scenario on Flower clients, for ``[tool.flwr.app.components]``."""
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator,unused-ignore]
    def main(grid: Any, context: Any) -> None:
        config = RunConfig.read(context.run_config)
        serve(grid, load(scenario_file, config.settings, notes=False), config, str(context.run_id))

    return app


def serve(grid: Any, scenario: Scenario, config: RunConfig, run: str) -> Run:
    """Run `scenario` on the clients that `grid` reaches; the run directory is that of a simulation.

    Raises
    ------
    InputError
        The scenario or the run config is wrong, or another process writes into the run directory.
    RunError
        Clients are missing, or what they answer cannot be used, beyond what the run config puts up with.
    """
    check_trust(scenario)
    folder = config.folder(scenario, run)
    if config.resume and not has_checkpoint(folder):
        raise InputError(
            f"run config: found true, but in {folder} is no checkpoint to go on from; "
            "allowed: false, or with it out = the folder of the run that is to go on",
            key="resume",
        )
    if (app := _app_around(folder)) is not None:
        LOG.warning(
            "fedsim: the run directory %s is inside the Flower app %s, and what lies there goes to every client with "
            "the next run; give out a folder beside the app", folder, app,
        )  # fmt: skip
    with owned(folder), others_draw(*DRAWN):
        return _serve(grid, scenario, config, run, folder)


def _serve(grid: Any, scenario: Scenario, config: RunConfig, run: str, folder: Path) -> Run:
    secret = folder / "noise.key"
    noisy = with_own_noise(scenario, secret) if config.resume else with_new_noise(scenario)
    agreement = Agreement.of(folder) if config.resume else None
    assembly = assemble(noisy, told=told(agreement))
    clients = assembly.task.num_clients
    wanted = config.min_clients or clients
    check_population(config, scenario, assembly)
    keys = read_keys(Path(config.client_keys), clients) if config.client_keys else {}
    check_who(config.evaluates, assembly.settled(scenario), assembly)
    if not config.resume:  # after the checks: it takes the place of an earlier run's
        keep_noise(noisy, secret)
    roster = Roster(
        grid, clients, run,
        lambda g: _refuses(g, scenario, assembly, config, agreement, config.resume or roster.weighed),
        keys, agreement or proposed(assembly),
        lambda g, said: doubts(g, said, assembly) if g.own and agreement is None and learns(assembly) else None,
    )  # fmt: skip
    with farewell(grid, roster):
        backend, simulation = _prepared(grid, roster, scenario, assembly, config, folder)
        LOG.info("fedsim: '%s' goes to %s; waiting for %d of %d clients", scenario.name, folder, wanted, clients)
        backend.gather(wanted, config.wait_seconds)
        late = all_at_once(scenario, config, backend.stateful)
        if agreement is None:
            agreement = settled(roster.agreement, scenario, assembly, roster.greetings, roster.said, late)
            if agreement is not None:  # from here on, with the clients' own sizes and scaling
                assembly = assemble(noisy, told=told(agreement))
                backend, simulation = _prepared(grid, roster, scenario, assembly, config, folder)
                if not roster.agreement.final:
                    roster.agreement = agreement
                    backend.gather(len(roster.greetings), config.wait_seconds)
        if agreement is not None:
            keep(agreement, assembly, folder)

        def seated(greeting: Greeting) -> None:
            nonlocal agreement
            if agreement is not None and agreement.sizes is not None and agreement.sizes[greeting.client] == 0:
                agreement = joined(agreement, greeting, assembly, folder)

        roster.weighed, roster.seated = True, seated
        for greeting in list(roster.greetings.values()):  # who came while the others were waited for
            seated(greeting)
        check_there(None if agreement is None else agreement.sizes, late)
        if asks_clients(config.evaluates, simulation.scenario, assembly.task, roster):
            simulation.evaluation.clients = asked = examination(simulation.scenario, assembly, roster)
            backend.examiner = examiner(grid, roster, asked, _positions(assembly), config.policy, scenario.run.rounds)
        backend.begin()
        _write_facts(folder, roster, config)
        try:
            return simulation.run(LogLines())
        except OSError as error:
            if not folder.exists():
                raise cannot_write(folder / "a file", error) from error
            if error.errno not in _OF_THE_DISK:
                raise
            message = f"{error.filename or folder} cannot be written ({error.strerror})"
            raise RunError(f"{message}; where it can, resume = true goes on after the last checkpoint") from error
        finally:
            with suppress(OSError):  # what ended the run is told, not that this cannot be written either
                write_fitted(folder, read_jsonl(folder / REPLIES) if (folder / REPLIES).exists() else [], clients)


def _prepared(
    grid: Any, roster: Roster, scenario: Scenario, assembly: Assembly, config: RunConfig, folder: Path
) -> tuple[Flower, Simulation]:
    """The run and where its clients are; the run directory is written from here on."""
    worker = assembly.worker(scenario)
    backend = Flower(
        grid, roster, worker, idle_message(assembly, worker), config.policy,
        patient=scenario.participation.clocked, graph=assembly.network is not None,
        wants_checkpoint=config.checkpoint == "round",
        last=0 if scenario.participation.clocked else scenario.run.rounds,
    )  # fmt: skip
    among = config.among_connected(scenario.participation)
    clock = RealTime(
        assembly.settled(scenario).participation, backend, complete=_needs_everybody(assembly, backend),
        population=Crowd(
            roster, backend.look, config.min_available, config.wait_seconds, config.policy.poll, drawn=among
        ), among_connected=among,
        replaces=_REPLACES * config.policy.timeout if config.policy.on_failure == "drop" else 0.0,
    )  # fmt: skip
    clock.secret = sampling_secret(assembly.privacy)
    simulation = Simulation(scenario, assembly, folder, config.resume, backend, clock.events)
    if simulation.fresh:
        for name in (REPLIES, "deployment.json", "fitted.yaml", AGREED):
            (folder / name).unlink(missing_ok=True)
    backend.journal.follow(folder / REPLIES)
    backend.journal.before = simulation.totals.time
    clock.offset, clock.rounds_done = simulation.totals.time, dict(backend.taken)
    return backend, simulation


def _app_around(folder: Path) -> Path | None:
    """The Flower app in whose folder `folder` is, or None."""
    for place in folder.absolute().parents:
        with suppress(OSError):
            if "[tool.flwr.app" in (place / "pyproject.toml").read_text(encoding="utf-8", errors="replace"):
                return place
    return None


def _needs_everybody(assembly: Assembly, backend: Flower) -> str | None:
    """Why a round may not go on without one of its clients, or None."""
    if assembly.privacy.claims:
        return "epsilon is stated for rounds in which all clients that are asked answer: on-failure = retry waits"
    if assembly.network is not None and backend.stateful:
        return "the nodes of this algorithm keep state that moves together: on-failure = retry waits for them"
    return None


def _refuses(
    greeting: Greeting,
    scenario: Scenario,
    assembly: Assembly,
    config: RunConfig,
    agreement: Agreement | None,
    begun: bool,
) -> str | None:
    """What is wrong with a client, or None.

    `agreement` is what was agreed on before, where something was; a run that has `begun` agrees on nothing any more.
    """
    if greeting.scenario != scenario.hash():
        return f"it has another scenario (hash {greeting.scenario}, here {scenario.hash()})"
    own = agreement is not None and greeting.client in agreement.own
    if greeting.own != own and (agreement is not None or begun):
        kinds = ("a share of the scenario's data", "data of its own")
        if own and agreement is not None and agreement.sizes is not None and agreement.sizes[greeting.client] == 0:
            late = f"who comes later brings {kinds[1]} (own-data)"
            return f"it was not there at the start and trains on {kinds[0]}; {late}"
        return f"it trains on {kinds[greeting.own]}; the run began with {kinds[own]}"
    if greeting.own:
        if agreement is not None and agreement.sizes is not None:
            known = agreement.sizes[greeting.client]
            if known not in (0, greeting.samples):  # 0: it was not there when the others said how much they have
                return f"it says that it has {greeting.samples} samples; the run's weights are made for {known}"
        return refuses_own(greeting, scenario, assembly, config, _form(assembly))
    share, tested = int(assembly.task.sizes[greeting.client]), assembly.task.own
    if greeting.samples != share:
        return f"it says {greeting.samples} samples; its share has {share}"
    tests = 0 if tested is None else int(tested.sizes[greeting.client])
    return None if greeting.tests == tests else f"it says {greeting.tests} test samples; its share has {tests}"


def _form(assembly: Assembly) -> tuple[str, int] | None:
    """The shape of a sample and the number of classes, as greetings have them."""
    task = _supervised(assembly)
    return None if task is None else ("x".join(map(str, task.inputs.shape[1:])), task.num_classes or 0)


def _supervised(assembly: Assembly) -> SupervisedTask | None:
    """The task with data, under whatever oracle a privacy mechanism has put before it."""
    task = assembly.task.inner if isinstance(assembly.task, WrappedTask) else assembly.task
    return task if isinstance(task, SupervisedTask) else None


def _positions(assembly: Assembly) -> int:
    """How many targets a row has at most."""
    task = _supervised(assembly)
    return 1 if task is None or task.tokens.single else task.tokens.positions or 1


def _write_facts(folder: Path, roster: Roster, config: RunConfig) -> None:
    """``deployment.json``: who took part, with which versions, under which policy."""
    from importlib.metadata import version

    clients = [
        {
            "client": c,
            "node": str(roster.node_of(c)),
            "key": fingerprint(roster.key_of(c)),
            "samples": g.samples,
            "own_data": g.own,
            "fedsim": g.version,
        }
        for c, g in sorted(roster.greetings.items())
    ]
    facts = {
        "flwr": version("flwr"),
        "run": roster.run,
        "policy": vars(config.policy),
        "of": roster.clients,
        "clients": clients,
    }
    (folder / "deployment.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


class LogLines(Watcher):
    """A log line per round; of the many columns that sum up clients, it has those that a terminal shows."""

    def __init__(self) -> None:
        self._dir: Path | None = None

    def began(self, run: Watched) -> None:
        self._dir, self._last = run.dir, run.resumed_at
        summed = (name for name, m in run.columns.items() if m.figure == "clients" and m.brief != "line")
        self._left_out = {"round", "wall", *summed}

    def round(self, number: int, row: Row | None) -> None:
        shown = {k: v for k, v in (row or {}).items() if k not in self._left_out and isinstance(v, (int, float))}
        self._last = number
        LOG.info("round %d%s", number, "".join(f"  {k} {v:.4g}" for k, v in shown.items()))

    def ended(self, run: Watched) -> None:
        LOG.info("fedsim: done after round %d; results are in %s (fedsim report %s)", self._last, run.dir, run.dir)

    def closed(self, error: BaseException | None) -> None:
        if isinstance(error, Exception) and self._dir is not None and has_checkpoint(self._dir):
            go_on = f"-c 'resume=true out=\"{self._dir}\"'"
            LOG.info("fedsim: ended after round %d; the run goes on with flwr run ... %s", self._last, go_on)
