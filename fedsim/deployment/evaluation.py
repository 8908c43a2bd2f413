"""Who evaluates the clients of a deployment one by one: the server, where it has their rows, or they themselves.

The run config's ``eval`` says so: ``server``, ``clients``, or ``auto``, which asks the clients where only they can say
it, since they bring data of their own or keep models of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from fedsim.core.arrays import Array, Ints
from fedsim.core.client_metrics import BASE
from fedsim.core.errors import InputError, RunError
from fedsim.core.metrics import Metric
from fedsim.core.oracle import Answers, Task
from fedsim.core.own_tests import OwnAnswers
from fedsim.deployment.flower.examiner import Examiner
from fedsim.deployment.flower.roster import Roster
from fedsim.engine.assembly import Assembly
from fedsim.engine.client_evaluation import ClientEvaluation, owns_models
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    from fedsim.deployment.flower.policy import Policy

Who = Literal["auto", "server", "clients"]
WHO: tuple[Who, ...] = ("auto", "server", "clients")


@dataclass(frozen=True)
class Elsewhere:
    """Test rows that are with the clients: the server knows how many there are, ``[n]``, and no more."""

    sizes: Ints
    shared: bool = False

    def targets_of(self, clients: Ints) -> Ints:
        return self.sizes[clients]

    def answers(self, models: Tensor, clients: Ints, whole: bool = False) -> OwnAnswers:
        raise RunError("clients keep their test rows to themselves: they are asked")

    def said(self, client: int, outputs: Array) -> tuple[Answers, Tensor | None]:
        raise RunError("clients keep their test rows to themselves: they are asked")


def check_who(who: str, scenario: Scenario, assembly: Assembly) -> None:
    """Raise InputError where what the run config's ``eval`` says cannot be, before anything is written."""
    kept = scenario.tests_clients and owns_models(scenario.algorithm, assembly.task)
    private = bool(assembly.privacy.claims)
    if who == "clients" and not scenario.tests_clients:
        message = "found clients, but the scenario evaluates none; allowed with data.local_test or run.eval_clients"
        raise InputError(f"run config: {message}", key="eval")
    if who == "server" and kept:
        message = "found server, but clients keep models of their own, which only they can evaluate"
        raise InputError(f"run config: {message}; allowed: auto, clients", key="eval")
    if private and (kept or who == "clients"):
        message = f"found {who}, but no epsilon covers what clients would measure of the rows that the run protects"
        allowed = "a scenario without data.local_test and run.eval_clients" if kept else "auto, server"
        raise InputError(f"run config: {message}; allowed: {allowed}", key="eval")


def asks_clients(who: str, scenario: Scenario, task: Task, roster: Roster) -> bool:
    """Whether clients are asked, now that it is known whether they bring data of their own."""
    if not scenario.tests_clients:
        return False
    needed = owns_models(scenario.algorithm, task) or any(g.own for g in roster.greetings.values())
    return who == "clients" or (who == "auto" and needed)


def examination(scenario: Scenario, assembly: Assembly, roster: Roster) -> ClientEvaluation:
    """The evaluation of a run whose clients are asked: whom, and on how many rows.

    Raises
    ------
    InputError
        Nobody has test rows, or fewer clients have some than are to be evaluated.
    """
    task, run = assembly.task, assembly.pipeline.run
    sizes = np.zeros(task.num_clients, dtype=np.int64) if task.own is None else task.own.sizes.copy()
    for client, greeting in roster.greetings.items():
        sizes[client] = greeting.tests
    honest = np.arange(task.num_clients, dtype=np.int64) if run.honest is None else run.honest
    return ClientEvaluation(scenario, task, honest, Elsewhere(sizes))


def examiner(
    grid: Any, roster: Roster, evaluation: ClientEvaluation, positions: int, policy: Policy, last: int
) -> Examiner:
    """What asks them; its answers have what `evaluation` measures, on rows with at most so many targets each.

    After the evaluation that follows round `last` nobody is asked anything more.
    """
    names = evaluation.names
    told = {n: evaluation.metrics[n] for n in names} | {n: Metric(n) for n in evaluation.choices}
    return Examiner(
        grid, roster, told, [n for n in names if n in BASE], positions,
        policy.timeout, policy.poll, last,
    )  # fmt: skip
