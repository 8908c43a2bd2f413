"""What an audit is: an attack on what a scenario's run gives away, and what came of it.

A registered audit is a frozen dataclass whose fields are its keys in the scenario's ``audit:`` section. It gets a
`Subject`, the scenario and the means to run it on changed data, and returns a `Finding`.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.base import Backend, BackendDefaults
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.registry import Part
from fedsim.core.row_files import RowStream
from fedsim.core.types import Message
from fedsim.engine.assembly import Assembly, Change, Material, assemble
from fedsim.engine.loop import Simulation
from fedsim.engine.place import make_backend
from fedsim.engine.watch import Watcher
from fedsim.models.personal import Personal
from fedsim.objective.supervised import SupervisedTask
from fedsim.privacy.accounting import epsilon
from fedsim.privacy.ledger import Claim
from fedsim.scenario.sections import BackendSection, Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[Floats, Floats]
"""An example and its reconstruction, scaled to 0..1."""
Hear = Callable[[Ints, Message], None]
"""Called with every message that reaches the server: clients ``[m]`` and rows ``[m, d]``."""


@dataclass(frozen=True)
class Finding:
    """What an audit found.

    `results` are JSON's types; `alarm` says what claim was shown to be false; `figures` are made when they are needed;
    `reconstructed` are the examples that were guessed, victim by victim.
    """

    threat_model: str
    results: dict[str, Any]
    alarm: str | None = None
    notes: tuple[str, ...] = ()
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    reconstructed: tuple[Pair, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Audit(Part, ABC):
    """Base class of audits; its fields are its YAML keys."""

    def check(self, subject: Subject) -> None:
        """Raise InputError as `run` would, where that can be told before any of the scenario's audits has begun."""

    @abstractmethod
    def run(self, subject: Subject) -> Finding:
        """Attack.

        Raises
        ------
        InputError
            The scenario does not have what this audit needs; keys are whole (``privacy``, ``audit.lira.shadows``).
        """


@dataclass(frozen=True)
class Claimed:
    """A promise of (epsilon, delta), and what it means.

    `gaussian`: all releases together are exactly one Gaussian mechanism.
    """

    epsilon: float
    delta: float
    gaussian: bool
    claim: Claim

    def to_json(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "delta": self.delta, **asdict(self.claim)}


@dataclass(frozen=True)
class Outcome:
    """A finished run: what it was built of, and the parameters ``[d]`` (of the mean model, on a graph)."""

    assembly: Assembly
    params: Tensor


class _Tapped(BackendDefaults):
    """A backend whose messages somebody hears."""

    def __init__(self, backend: Backend, hear: Hear) -> None:
        self._backend, self._hear = backend, hear
        self._clients: dict[int, int] = {}

    def dispatch(self, job: Job) -> None:
        self._clients.update(zip(job.numbers.tolist(), job.clients.tolist(), strict=True))
        self._backend.dispatch(job)

    def collect(self, jobs: Ints) -> Message:
        messages = self._backend.collect(jobs)
        self._hear(np.array([self._clients[j] for j in jobs.tolist()]), messages)
        return messages

    def save(self) -> Mapping[str, Tensor | RowStream]:
        return self._backend.save()

    def load(self, saved: Mapping[str, Tensor]) -> None:
        self._backend.load(saved)


class _Rehearsal(Simulation):
    """A run of which nothing is kept but its end: no checkpoint, and no report of what its privacy mechanism spent."""

    def _checkpoint(self) -> None:
        """Write nothing."""


class Subject:
    """The scenario under audit."""

    def __init__(self, scenario: Scenario, progress: Callable[[str], None] | None = None) -> None:
        if scenario.model is not None and scenario.model.stays != Personal():
            message = "audits take models that travel whole; allowed: no such key, or batch_norm group or frozen"
            raise InputError(message, key="model.personal" if scenario.model.personal else "model.batch_norm")
        quiet = scenario.run.model_copy(
            update={"eval_every": scenario.run.rounds, "trace": False, "checkpoint_seconds": 1e9}
        )
        self.scenario = replace(scenario, run=quiet, metrics=(), loggers=(), backend=BackendSection())
        self.say = progress or _silent

    @cached_property
    def material(self) -> Material:
        """Data, division and model as the scenario has them.

        Raises
        ------
        InputError
            The scenario has no examples (a quadratic problem).
        """
        found: list[Material] = []

        def note(material: Material) -> Material:
            found.append(material)
            return material

        assemble(self.scenario, note)
        if not found:
            raise InputError("a quadratic problem has no examples to attack; allowed: a data set", key="data.dataset")
        return found[0]

    @cached_property
    def claim(self) -> Claimed | None:
        """What the scenario's privacy mechanism promises for the whole run."""
        return claimed(assemble(self.scenario))

    @property
    def classifies(self) -> bool:
        """Whether the data have classes."""
        return self.material.data.num_classes is not None

    def seeded(self, index: int) -> Scenario:
        """The scenario with other draws of everything but the data and their division; 0: its own."""
        return self.scenario if index == 0 else replace(self.scenario, seed=self.scenario.seed + 1_000_003 * index)

    def train(self, change: Change, index: int = 0, watch: Watcher | None = None, hear: Hear | None = None) -> Outcome:
        """Run the scenario on other material; runs of different `index` draw different things."""
        scenario = self.seeded(index)
        assembly = assemble(scenario, change)
        with tempfile.TemporaryDirectory(prefix="fedsim-audit-") as folder:
            place = Path(folder) / "run"
            tapped = None if hear is None else _Tapped(make_backend(scenario, assembly, place), hear)
            simulation = _Rehearsal(scenario, assembly, place, remote=tapped)
            simulation.run(watch)
        x = simulation.state["x"].detach()
        return Outcome(assembly, x.mean(0) if assembly.network is not None else x)


def claimed(assembly: Assembly) -> Claimed | None:
    """What the mechanism of a run promises; None where there is none."""
    if not assembly.privacy.claims:
        return None
    ledger = assembly.privacy.ledger
    gaussian = all(release.q == 1 for release in ledger.planned)
    return Claimed(epsilon(ledger.planned, ledger.delta), ledger.delta, gaussian, ledger.claim)


def _silent(text: str) -> None:
    """Nobody listens."""


def supervised(assembly: Assembly) -> SupervisedTask:
    """The objective itself, without the oracle that a privacy mechanism puts around it.

    Raises
    ------
    InputError
        Its model trains otherwise than it is evaluated, so that what it released cannot be computed again.
    """
    task = getattr(assembly.task, "inner", assembly.task)
    assert isinstance(task, SupervisedTask)
    if not task.kernel.nature.plain:
        nature = task.kernel.nature
        what = "changes buffers" if nature.buffers.total else "computes otherwise than in evaluations"
        what = "drops at random" if nature.draws else what
        raise InputError(f"found a model that {what} while it trains; audits take models that do not", key="model")
    return task


def chunked(rows: Tensor, size: int = 1000) -> tuple[Tensor, ...]:
    """`rows` in pieces that fit the memory."""
    return torch.split(rows, size)
