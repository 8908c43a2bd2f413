"""Every client by itself: what its own model says of its own test rows, in a table and summed up in columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.client import ClientHalf
from fedsim.core.arrays import Array, Floats, Ints
from fedsim.core.client_metrics import ClientTable, summary
from fedsim.core.errors import InputError
from fedsim.core.metrics import View
from fedsim.core.oracle import Answers, OwnTests, Task
from fedsim.core.own_tests import Asked, OwnAnswers, Tuning
from fedsim.core.rng import generator
from fedsim.engine.assembly import Assembly
from fedsim.engine.run_state import RunState
from fedsim.scenario.sections import Scenario


class ClientEvaluation:
    """What a run measures of its clients one by one.

    Raises
    ------
    InputError
        It cannot be had here; keys are whole (``run.eval_clients``).
    """

    def __init__(self, scenario: Scenario, task: Task, honest: Ints, tests: OwnTests | None = None) -> None:
        tests = task.own if tests is None else tests
        if tests is None:
            raise InputError("clients have no test rows here", key="run.eval_clients")
        self.tests: OwnTests = tests
        self.task, self.scenario, self.seed = task, scenario, scenario.seed
        self.candidates = honest[tests.sizes[honest] > 0]
        self.candidates = self.candidates[tests.targets_of(self.candidates) > 0]  # of tokens none may count
        if not len(self.candidates):
            raise InputError("no client that does not attack has test rows of its own", key="data.local_test")
        asked = scenario.run.eval_clients
        self.count = len(self.candidates) if asked in (None, "all") else int(asked)
        if self.count > len(self.candidates):
            message = f"found {self.count}, but {len(self.candidates)} clients can be evaluated; allowed: at most that"
            raise InputError(f"{message}, or all", key="run.eval_clients")
        self.measures = scenario.client_measures
        self.metrics = scenario.client_metrics
        self.perplexity = "perplexity" in task.metrics

    def table(self, home: RunState, round: int) -> ClientTable:
        """The clients that are evaluated after `round`, and what is measured of them; it changes nothing."""
        clients = self._chosen(home, round)
        answers = home.own_answers(clients, self.asked(home.algorithm, round))
        train, tested = self.task.sizes, self.tests
        if (told := answers.told) is not None:
            held = train[clients], tested.sizes[clients], told.targets
            values, choices = ({k: told.values[k] for k in kept} for kept in (self.names, self.choices))
            return ClientTable(round, clients, *held, values, told.answered, choices)
        held = train[clients], tested.sizes[clients], tested.targets_of(clients)
        return ClientTable(round, clients, *held, self.values(clients, answers), choices=answers.choices)

    def asked(self, algorithm: Algorithm, round: int) -> Asked:
        """What clients are asked after `round`."""
        return Asked(
            round, self.own_models(algorithm), tuning_of(self.scenario, algorithm, round), whole=bool(self.measures)
        )

    @property
    def choices(self) -> tuple[str, ...]:
        """What clients choose that is recorded beside what is measured of them."""
        return self.scenario.algorithm.choices

    @property
    def names(self) -> list[str]:
        """What is measured of every client."""
        base = {"accuracy": "test_accuracy" in self.task.metrics, "loss": True, "perplexity": self.perplexity}
        return [name for name in self.metrics if base.get(name, True)]

    def values(self, clients: Ints, answers: OwnAnswers) -> dict[str, Floats]:
        """What is measured of each of `clients`, from their answers."""
        targets = self.tests.targets_of(clients)
        with np.errstate(invalid="ignore", over="ignore"):
            values: dict[str, Floats] = {}
            if answers.right is not None:  # what is no number is no guess, though the largest of such has a place
                values["accuracy"] = np.where(np.isnan(answers.losses), np.nan, answers.right / targets)
            values["loss"] = answers.losses / targets
            if self.perplexity:
                values["perplexity"] = np.exp(values["loss"])
        if answers.outputs is not None:
            values |= self._measured(clients, answers.outputs)
        return values

    def row(self, table: ClientTable) -> dict[str, float]:
        """The columns that sum the table up."""
        return summary(table, self.metrics)

    def _chosen(self, home: RunState, round: int) -> Ints:
        there = home.measured
        found = self.candidates if there is None else self.candidates[there[self.candidates]]
        found = found if len(found) else self.candidates
        if self.count >= len(found):
            return found
        return found[np.sort(generator(self.seed, "eval_clients", round).choice(len(found), self.count, replace=False))]

    def own_models(self, algorithm: Algorithm) -> bool:
        """Whether a client's model is another than the common one, or than that of its node."""
        return owns_models(algorithm, self.task)

    def _measured(self, clients: Ints, outputs: Array) -> dict[str, Floats]:
        """What the scenario's measures say of each client, from the outputs on the rows of all."""
        ends = np.cumsum(self.tests.sizes[clients])
        found: dict[str, list[float]] = {}
        for client, part in zip(clients.tolist(), np.split(outputs, ends[:-1]), strict=True):
            view = OneClient(self.task, *self.tests.said(client, part))
            for measure in self.measures:
                for name, value in measure.evaluate(cast(View, view)).items():
                    found.setdefault(name, []).append(float(value))
        return {name: np.array(values) for name, values in found.items()}


def client_evaluation(scenario: Scenario, assembly: Assembly) -> ClientEvaluation | None:
    """What the scenario wants to know of every client; None where it wants nothing.

    Raises
    ------
    InputError
        It cannot be had here; keys are whole.
    """
    if not scenario.tests_clients:
        return None
    found, everybody = assembly.pipeline.run.honest, np.arange(assembly.task.num_clients, dtype=np.int64)
    return ClientEvaluation(scenario, assembly.task, everybody if found is None else found)


def owns_models(algorithm: Algorithm, task: Task) -> bool:
    """Whether clients have models of their own: their algorithm says so, or parts of models stay with them."""
    return type(algorithm).personal_model is not ClientHalf.personal_model or not task.sharing.everything


def tuning_of(scenario: Scenario, algorithm: Algorithm, round: int) -> Tuning | None:
    """What a client's model goes through before it is evaluated after `round`: at the rate of the round to come."""
    how = scenario.run.finetune
    if how is None:
        return None
    lr = how.lr or float(algorithm.lr_at(np.array([round + 1]))[0])
    size = how.batch_size or algorithm.batch_size
    return Tuning(how.epochs or how.steps or 1, how.epochs is not None, lr, size)


@dataclass(frozen=True)
class OneClient:
    """As much of a run (see `fedsim.core.metrics.View`) as a measure sees that is asked about one client's rows."""

    whole: Task
    answers: Answers
    known: Tensor | None

    @property
    def centre(self) -> Tensor:
        return torch.zeros(1)

    @property
    def task(self) -> Any:
        return self

    def probabilities(self, params: Tensor) -> Tensor:
        """Of the classes, ``[1, N, classes]``, whatever `params` are: they are those of the answers."""
        if self.known is None:
            return self.whole.probabilities(params)
        return self.known.unsqueeze(0)
