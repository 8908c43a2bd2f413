"""What is measured of a run at an evaluation: what every run has, and what its scenario asks for besides.

A row of ``metrics.jsonl`` is made by standing measures, in the order of the columns, and then by the scenario's own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.clients.round import initial
from fedsim.core.arrays import Ints
from fedsim.core.client_metrics import ClientTable
from fedsim.core.errors import InputError, RunError
from fedsim.core.metrics import TABLE, Measure, Metric, metric
from fedsim.core.oracle import Answers, Task
from fedsim.engine.assembly import Assembly
from fedsim.engine.client_evaluation import client_evaluation
from fedsim.engine.run_state import RunState
from fedsim.engine.samples import Samples
from fedsim.engine.totals import Totals
from fedsim.messages.poison import Backdoor
from fedsim.scenario.sections import Scenario

LOG = logging.getLogger("fedsim")
Columns = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """A run between two rounds; what a `Measure` sees of it (see `View`)."""

    scenario: Scenario
    assembly: Assembly
    home: RunState
    totals: Totals
    round: int
    samples: Samples | None = None

    @property
    def time(self) -> float:
        return self.totals.time

    @property
    def task(self) -> Task:
        return self.assembly.task

    @property
    def honest(self) -> Ints:
        found = self.assembly.pipeline.run.honest
        return np.arange(self.task.num_clients, dtype=np.int64) if found is None else found

    @cached_property
    def centre(self) -> Tensor:
        return self.home.centre()

    @cached_property
    def answers(self) -> Answers:
        return self.task.answers(self.centre)

    def state(self, name: str, nodes: Ints | None = None) -> Tensor:
        return self.home.state(name, nodes)

    def predictive(self) -> tuple[Tensor, int]:
        if self.samples is None:
            raise RunError(f"'{self.scenario.names['algorithm']}' keeps no samples; allowed: one that does, as fsgld")
        return self.samples.predictive()

    def kept(self, name: str, clients: Ints) -> Tensor:
        form = self.scenario.algorithm.fresh_client(self.centre.unsqueeze(0))
        if name not in form:
            known = ", ".join(form) or "nothing"
            raise RunError(
                f"clients keep no '{name}' between rounds; '{self.scenario.names['algorithm']}' has: {known}"
            )
        return self.home.backend.kept(name, clients)


class Evaluation:
    """The measures of a run.

    Raises
    ------
    InputError
        One of the scenario's cannot be had here; keys are whole (``run.metrics.0``).
    """

    def __init__(self, scenario: Scenario, assembly: Assembly) -> None:
        self.own = scenario.measures
        self.columns: Mapping[str, Metric] = {**TABLE, **scenario.columns}
        for i, measure in enumerate(self.own):
            try:
                measure.check(assembly.task)
                _check_state(measure, scenario, assembly.task)
            except InputError as error:
                raise error.under(f"run.metrics.{i}") from None
        self.clients = client_evaluation(scenario, assembly)
        self._warned = False
        self._privacy = assembly.privacy
        self._privacy.publishes(scenario.columns.values())

    def table(self, moment: Moment) -> ClientTable | None:
        """What is measured of clients one by one; None where nothing is."""
        return None if self.clients is None else self.clients.table(moment.home, moment.round)

    def warn(self, table: ClientTable) -> None:
        """Say, once, that clients' own models have diverged: the common one may be well, and the run goes on."""
        lost = ~np.isfinite(table.values["loss"])
        lost &= True if table.answered is None else table.answered
        if self._warned or not lost.any():
            return
        self._warned, who = True, table.clients[lost]
        LOG.warning(
            "after round %d the loss of %d of %d clients on their own test rows is not finite (client %d is the first):"
            " their models have diverged. Columns of all clients have no number then; lower algorithm.personal_lr, "
            "algorithm.lr or run.finetune.lr, whichever they are trained with",
            table.round, len(who), len(lost), who[0],
        )  # fmt: skip

    def row(self, moment: Moment, table: ClientTable | None = None) -> Columns:
        """A row of ``metrics.jsonl``; with the columns that sum up the `table` of clients.

        Raises
        ------
        RunError
            A measure names a column that is there already, or its value is no number.
        """
        row: Columns = {}
        for standing in _STANDING:
            row |= standing(moment)
        if table is not None and self.clients is not None:
            row |= self.clients.row(table)
        fresh: Columns = {}
        for measure in self.own:
            found, declared = measure.evaluate(moment), {m.name for m in measure.metrics}
            if not declared <= set(found):
                missing = ", ".join(sorted(declared - set(found)))
                raise RunError(
                    f"{type(measure).__name__} declares {missing}, but measured {', '.join(found) or 'nothing'}"
                )
            for name, value in found.items():
                if name in row or name in fresh or name in TABLE:
                    raise RunError(f"{type(measure).__name__} measures '{name}', which is a column already")
                try:
                    fresh[name] = float(value)
                except (TypeError, ValueError):
                    raise RunError(
                        f"{type(measure).__name__} measures '{name}' as {value!r}; allowed: a number"
                    ) from None
        self._privacy.publishes(metric(name, self.columns) for name in fresh)
        return row | fresh


def _check_state(measure: Measure, scenario: Scenario, task: Task) -> None:
    """Raise InputError where it is about something that the algorithm's state does not have."""
    if measure.of_state:
        missing = set(measure.of_state) - set(initial(scenario.algorithm, task))
        if missing:
            found = f"the state of '{scenario.names['algorithm']}' has no {', '.join(sorted(missing))}"
            raise InputError(f"{found}; allowed: an algorithm that it is about", key="name")


def check_finite(moment: Moment, row: Columns, folder: object) -> None:
    """Raise RunError where the model is not finite any more, or its outputs never were."""
    if moment.round == 0 and isinstance(row.get("train_loss"), float) and math.isnan(row["train_loss"]):
        raise RunError(
            f"the model's loss is not a number before the first round (train_loss is nan): its outputs are not finite "
            f"on the training data; look at the model and at the data. What was recorded is in {folder}"
        )
    remedy = f"lower algorithm.lr or set algorithm.clip. What was recorded up to here is in {folder}"
    if not bool(torch.isfinite(moment.centre).all()):
        raise RunError(f"the run diverged: parameters are not finite at round {moment.round}; {remedy}")
    if moment.assembly.network is not None:  # nodes that attack have what they like
        return
    for name, v in moment.home.values.items():
        if not bool(torch.isfinite(v).all()):
            found = f"'{name}' of the server's state is not finite at round {moment.round}"
            raise RunError(f"the run diverged: {found}; {remedy}")


def _clock(moment: Moment) -> Columns:
    return {"round": moment.round, "time": moment.totals.time, "wall": round(moment.totals.wall, 6)}


def _objective(moment: Moment) -> Columns:
    return dict(moment.task.evaluate(moment.centre))


def _graph(moment: Moment) -> Columns:
    nodes, totals = moment.home.nodes(moment.centre), moment.totals
    if nodes is None:
        return {}
    return {
        **({} if nodes.accuracy is None else {"node_accuracy": nodes.accuracy}),
        **({} if nodes.lowest is None or moment.home.honest is None else {"node_accuracy_min": nodes.lowest}),
        "consensus_distance": nodes.distance,
        **({} if nodes.there is None else nodes.there.counts),
        "delay_processing": totals.delay_processing,
        "delay_transmission": totals.delay_transmission,
        "delay_total": totals.delay_processing + totals.delay_transmission,
    }


def _staleness(moment: Moment) -> Columns:
    if not moment.scenario.participation.clocked:
        return {}
    return {"staleness_mean": moment.totals.staleness / max(moment.totals.contributions, 1)}


def _work(moment: Moment) -> Columns:
    totals = moment.totals
    pairs = {"communications": totals.communications} if moment.scenario.participation.continuous else {}
    asks = moment.scenario.algorithm.evaluates_on is not None or moment.scenario.participation.asks_losses
    losses = {"loss_evaluations": totals.loss_evaluations} if asks else {}
    return {"bytes_sent": totals.bytes_sent, "gradients": totals.gradients, **losses, **pairs}


def _backdoor(moment: Moment) -> Columns:
    """Of test rows of other classes, with the trigger, the share that is taken for the target."""
    attack, task = moment.scenario.attack, moment.task
    if not isinstance(attack, Backdoor) or moment.home.honest is None:
        return {}
    answers = task.answers(moment.centre, change=attack.triggered)
    assert answers.guesses is not None  # `check_data`
    others = answers.targets != attack.target
    return {"attack_success": float((answers.guesses[others] == attack.target).sum()) / max(int(others.sum()), 1)}


def _privacy(moment: Moment) -> Columns:
    return dict(moment.assembly.privacy.columns())


_STANDING: tuple[Callable[[Moment], Columns], ...] = (
    _clock, _objective, _backdoor, _graph, _staleness, _work, _privacy
)  # fmt: skip
