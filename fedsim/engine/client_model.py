"""One client's own model of a finished run: the one that the run's last evaluation tested, or would have tested.

It is made again from the run's checkpoint and data by what evaluations ask, so that every kind of own model comes out
alike: parameters that stay with a client, a second model that it trains, the one that it chooses of several, the model
of a graph's node, and any of them after ``run.finetune``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fedsim.backends.in_process import Vectorized
from fedsim.backends.under_way import of_clients
from fedsim.clients.evaluating import asked_about, models_of
from fedsim.clients.round import begin
from fedsim.clients.store import ClientStore
from fedsim.clients.worker import Worker, fresh_rows
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.own_tests import Asked
from fedsim.core.types import Message
from fedsim.engine.assembly import Assembly, assemble
from fedsim.engine.checkpoint import Checkpoint, load_checkpoint
from fedsim.engine.client_evaluation import owns_models, tuning_of
from fedsim.engine.client_rows import names_of
from fedsim.engine.inputs import read_about
from fedsim.engine.replies import is_deployment
from fedsim.engine.run_state import RunState
from fedsim.engine.states import GraphState, run_state
from fedsim.scenario.load import load
from fedsim.scenario.sections import Scenario

_ELSEWHERE = (
    "backend={name: vectorized}", "run.device=cpu", "run.metrics=null", "run.stop=null", "run.loggers=null",
)  # fmt: skip
"""What the model does not depend on, and what may not be on this machine."""


@dataclass(frozen=True)
class ClientModel:
    """A client's own model: parameters ``[d]`` and what they carry, ``[b]``; `which` says whose it is."""

    params: Tensor
    carried: Tensor
    which: str


def client_model(folder: Path, client: str | int) -> ClientModel:
    """The own model of a client of the finished run in `folder`; nothing is written.

    `client` is a number, or a text: a name, else a number.

    Raises
    ------
    InputError
        There is no such client.
    RunError
        The run has no checkpoint, or its clients kept their models to themselves.
    """
    scenario = load(folder / "scenario.yaml", list(_ELSEWHERE))
    assembly = assemble(scenario)
    scenario = assembly.settled(scenario)
    number, which = _who(client, assembly.task.num_clients, names_of(read_about(folder)))
    saved = load_checkpoint(folder)
    if saved is None:
        raise RunError(f"{folder} has no checkpoint, in which clients' models are")
    clients, round = np.array([number], dtype=np.int64), int(saved.progress["round"])
    algorithm = assembly.algorithm_of(scenario)
    asked = Asked(round, owns_models(algorithm, assembly.task), tuning_of(scenario, algorithm, round), whole=False)
    kept_there = is_deployment(folder)
    if kept_there and (asked.personal or asked.tuning is not None):
        raise RunError(f"{folder} is of a deployment, whose clients keep their own models on their machines")
    worker = assembly.worker(scenario, _alone(scenario, assembly, folder, saved, clients, empty=kept_there))
    if asked.personal:
        _catch_up(worker, saved, number, assembly.privacy.claims)
    home = _home(scenario, assembly, worker, saved, round)
    models = models_of(worker, clients, _received(home, assembly, clients, asked), asked)[0][0]
    d = assembly.task.dim
    return ClientModel(models[:d].clone(), models[d:].clone(), which)


def _who(client: str | int, clients: int, names: Sequence[str]) -> tuple[int, str]:
    """The client's number, and what it is called."""
    text = str(client)
    by_name = isinstance(client, str)  # a name may look like the number of another client
    shown = [name if name.isprintable() else repr(name) for name in names]
    if by_name and text in names:
        number = list(names).index(text)
        return number, f"client {shown[number]}'s"
    if text.isdecimal() and int(text) < clients:
        number = int(text)
        return number, f"client {number} ({shown[number]})'s" if shown else f"client {number}'s"
    some = ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
    allowed = f"0 to {clients - 1}" + (f", or a name: {some}" if shown else "")
    raise InputError(f"found {text}; allowed: {allowed}", key="client")


def _alone(
    scenario: Scenario, assembly: Assembly, folder: Path, saved: Checkpoint, clients: Ints, empty: bool
) -> ClientStore:
    """What these clients keep, in memory: a file of the run is read, and never written."""
    task = assembly.task
    fresh = fresh_rows(assembly.algorithm_of(scenario), task, assembly.pipeline)
    alone, whole = (ClientStore(fresh, task.device, task.num_clients, "memory", f) for f in (None, folder))
    if not empty and not alone.empty:
        whole.load(dict(saved.clients))
        alone.scatter(clients, whole.gather(clients))
    return alone


def _catch_up(worker: Worker, saved: Checkpoint, client: int, private: bool) -> None:
    """Do the client's work that was under way at the checkpoint, as an evaluation has it done first."""
    job = None if worker.store.empty else of_clients(saved.clients, [client], worker.initial.device)
    if job is None:
        return
    if private:
        raise RunError("the client was at work when the run ended, with noise that is drawn once; allowed: another one")
    worker.run(job)


def _home(scenario: Scenario, assembly: Assembly, worker: Worker, saved: Checkpoint, round: int) -> RunState:
    """The run's state as it was at its end."""
    home = run_state(scenario, assembly, Vectorized(worker))
    home.load(saved)
    setting, mode = assembly.setting(scenario), scenario.participation
    home.rest(mode.idle(setting, round))
    if assembly.network is not None and mode.merges_at_end:
        home.merge()
    return home


def _received(home: RunState, assembly: Assembly, clients: Ints, asked: Asked) -> Message:
    """What the client receives now; where it has no model of its own, the common one or its node's."""
    if isinstance(home, GraphState):
        return asked_about(home.algorithm, home.now, clients, asked)
    if asked.personal:
        return begin(home.algorithm, home.values)
    centre, d = home.centre(), assembly.task.dim
    return {"x": centre[:d], **dict.fromkeys(assembly.task.carried, centre[d:])}
