"""What a privacy mechanism is: a part that is bound to one run and then stands at every place where data could leak.

A scenario's ``privacy: {mechanism: NAME, ...}`` makes a `Mechanism`. ``bind(setting)`` looks at the run (task,
algorithm, participation, ...), refuses combinations for which its epsilon would not hold, calibrates the noise and
returns a `Bound`, whose hooks the engine calls; each does nothing unless overridden:

=================  ====================================================================================================
``task``           when the run is built: wraps the gradient oracle (per-sample clipping and noise, Poisson sampling)
``charge``         before clients start: appends to the ledger everything that their work will release
``broadcast``      at the server: adds public numbers to what clients receive (an adaptive clip norm)
``outgoing``       at the client, in whatever process it runs, before its messages leave: local noise, shares of noise
``aggregate``      at the server: the private version of the weighted mean, with central noise, which is drawn after
                   `under_noise` was told what it is added to
``save, load``     checkpoints: the ledger and whatever the mechanism keeps between rounds
=================  ====================================================================================================

Noise comes from `fedsim.privacy.noise`, keyed by client, round and step; then resumed and sharded runs repeat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Round
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.core.metrics import Metric, metric
from fedsim.core.oracle import Task
from fedsim.core.registry import Part
from fedsim.core.returned import same_form
from fedsim.core.types import Aggregate, Message, NoiseMultiplier, State
from fedsim.core.wrapped import WrappedTask
from fedsim.messages.base import MessageTransform
from fedsim.participation.base import Setting
from fedsim.privacy.accounting import Profile
from fedsim.privacy.accounting import epsilon as epsilon_of
from fedsim.privacy.ledger import KNOWN_SEED, PrivacyLedger, finite
from fedsim.privacy.releases import NO_JOBS, Jobs, Releases, job_digest, sum_digest


@dataclass(frozen=True, kw_only=True)
class Mechanism(Part, ABC):
    """Base class of the parts that ``privacy.mechanism`` names; its fields are their common YAML keys.

    Parameters
    ----------
    epsilon : what the whole run may spend at `delta`; the noise follows from it.
    noise_multiplier : instead of `epsilon`, the noise: its standard deviation over the L2 sensitivity of the release.
    delta : at which epsilon is stated.
    trust : ``central``, the server adds the noise; ``secagg``, clients add shares of it and the server sees only sums;
        ``local``, every message is private by itself.
    noise_seed : with the scenario's seed, decides the noise.
    """

    epsilon: Annotated[float, Field(gt=0, le=1e9)] | None = None
    noise_multiplier: NoiseMultiplier | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    trust: Literal["central", "secagg", "local"] = "central"
    noise_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    counts_on_messages: ClassVar[bool] = True
    """Whether its noise or its sensitivity counts on messages as clients send them, so that nothing may change them."""
    personal: ClassVar[bool] = False
    """Whether it protects a client as a whole in what it sends, whatever the client keeps of its own model."""
    shares_noise: ClassVar[bool] = False
    """Whether clients draw some of it together, so that all of them have to know the same seed."""
    linear_mixing: ClassVar[str | None] = None
    """On a graph, why nodes have to mix by weighted sums, where they have to; see `fedsim.algorithms.needs`."""

    @property
    def exchanges(self) -> int:
        """How often the nodes of a graph mix where the algorithm mixes once; all of it is sent and takes its time."""
        return 1

    @abstractmethod
    def bind(self, setting: Setting) -> Bound:
        """Calibrate for a run.

        Raises
        ------
        InputError
            Its epsilon would not hold in this run, with the reason; keys are whole (``participation.fraction``).
        """

    def check_target(self) -> None:
        """Raise InputError unless exactly one of `epsilon` and `noise_multiplier` is given."""
        if self.epsilon is None and self.noise_multiplier is None:
            raise InputError("missing; allowed: epsilon (a target) or noise_multiplier", key="privacy.epsilon")
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise InputError("found beside epsilon, allowed: one of the two", key="privacy.noise_multiplier")


class Bound:
    """A mechanism in one run: where it stands in data's way, and what it has spent (see the module)."""

    claims: ClassVar[bool] = True
    """Whether it promises anything; `NoPrivacy` does not."""
    renormalises: ClassVar[bool] = False
    """Whether the weights of a cohort that loses clients may be scaled to the sum they had."""
    answers_empty: ClassVar[bool] = False
    """Whether a round in which no client delivers releases its noise all the same."""
    exchanges: int = 1
    """Its mechanism's."""
    releases: Releases | None = None

    def __init__(self, mechanism: Mechanism, setting: Setting, ledger: PrivacyLedger) -> None:
        self.seeds = (mechanism.noise_seed, setting.seed)
        self.exchanges = mechanism.exchanges
        self.samples_from: int | None = None
        self.place = ""
        self._outlast = setting.participation.clocked
        self._own_seeds = self.seeds
        self._word: int | None = None
        self._tell: Callable[[int], None] = _nobody
        self._entered = (_NOBODY, _NOBODY, _NOBODY)
        self.attempts = 0
        """How often a resumed run went another way than the one before it, so that rounds were made again."""
        self.uncovered: list[str] = []
        """What epsilon does not cover in this run, besides what it never does."""
        self.ledger = ledger
        self.rounds = setting.rounds
        self.oracle_metrics = [m for m in setting.task.metrics if not metric(m).public]

    def draw_from(self, word: int) -> None:
        """From now on draw noise, and the samples whose secrecy epsilon counts on, from keys of `word` alone.

        For whoever has a secret. What was drawn for one word is never drawn for another, so a word serves one answer.
        """
        self.seeds = (word, self.seeds[1])
        self.samples_from = word

    @property
    def links(self) -> tuple[MessageTransform, ...]:
        """What it does to messages at clients, the first links of the run's pipeline."""
        return (_Outgoing(self),)

    def record(
        self, folder: Path, place: str, tell: Callable[[int], None], durable: bool = False, left: Jobs = NO_JOBS
    ) -> None:
        """Write every release into ``releases.jsonl`` of the run directory `folder` before it happens.

        Parameters
        ----------
        left : what was under way at the checkpoint that the run goes on from.
        place : tells machines apart whose numbers may differ in the last bits.
        tell : called with the `word` that other processes have to draw noise from (see `draw_from`).
        durable : see `Releases`.
        """
        self.releases, self.place = Releases(folder, durable, self._outlast and not durable, left), place
        self._tell = tell
        self.releases.at(place)

    def moved(self, place: str) -> None:
        """Work is done elsewhere from here on, and what is under way, too: last bits differ from those there.

        Raises
        ------
        BudgetExceeded
            An earlier process may have done some of it before, and once more would pass the budget.
        """
        if self.releases is None or place == self.place:
            return
        self.place = place
        self.releases.at(place)
        if self.releases.again:
            self._diverge()

    def collecting(self, clients: Ints, rounds: Ints) -> None:
        """What is under way is about to be computed; these jobs are over then."""
        if self.releases is not None:
            self.releases.computing(self._word)
            self.releases.delivered(clients, rounds)

    def enter(self, clients: Ints, rounds: Ints, steps: Ints, message: Message) -> Message:
        """What clients receive of `message`; everything that their work will release is written down by then.

        Raises
        ------
        BudgetExceeded
            It would pass the budget.
        """
        message = self.broadcast(message)
        if self.releases is None:
            self.charge(clients, rounds, steps)
            return message
        job = job_digest(clients, rounds, steps, message, self.place)
        self._entered = clients, rounds, steps
        if self.releases.is_repeat(job, clients, rounds, steps):
            return message
        if self.releases.open:
            self._diverge()
        self.charge(clients, rounds, steps)
        self.releases.enter(job, self.ledger.taken(), self._word)
        return message

    def under_noise(self, number: int, clean: Tensor) -> None:
        """To be called with what the server's noise of round `number` is about to be added to."""
        if self.releases is None:
            return
        found = sum_digest(self._own_seeds, clean)
        if self.releases.differs(number, found):
            self._diverge()
            self.charge(*self._entered)
            self.releases.enter_sum(number, found, self.ledger.taken(), self._word)
        elif not self.releases.has_sum(number):
            self.releases.enter_sum(number, found, [], self._word)

    def catch_up(self, known: int) -> None:
        """Count the releases that a resumed run had made after its checkpoint, which knows the first `known`."""
        if self.releases is not None and not self.releases.resume(known, self.ledger, self._word):
            self._diverge()

    def _diverge(self) -> None:
        """A resumed run goes another way than the one before it: its noise comes from elsewhere from here on."""
        assert self.releases is not None
        again = self.releases.forget()
        self.attempts += 1
        self._word = self.releases.fresh_word(self._own_seeds)
        if again:
            clients, rounds, steps = np.array([(*job, n) for job, n in again.items()], dtype=np.int64).T
            self.charge(clients, rounds, steps)
            self.releases.enter(job_digest(clients, rounds, steps, {}, self.place), self.ledger.taken(), self._word)
        self._tell(self._word)
        self.draw_from(self._word)

    def task(self, task: Task) -> Task:
        """The task whose oracle the algorithm gets."""
        return task

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        """Append to the ledger what these jobs will release; raise before they do where the budget forbids it."""

    def broadcast(self, message: Message) -> Message:
        """What clients receive."""
        return message

    def beside(self, x: Tensor) -> tuple[Message, Message]:
        """What `broadcast` adds to what one client receives, and `outgoing` to what it sends, of a model like `x`."""
        return {}, {}

    def outgoing(self, messages: Message, job: Job) -> Message:
        """What leaves clients, row i that of ``job.clients[i]`` in its round ``job.rounds[i]``."""
        return messages

    def aggregate(self, round: Round, state: State, messages: Message, aggregate: Aggregate) -> Aggregate:
        """The aggregation that `combine` gets; `state` is that of before the round."""
        return aggregate

    def publishes(self, metrics: Iterable[Metric]) -> None:
        """Note what a run measures besides; epsilon does not cover what looks at protected data."""
        names = [m.name for m in metrics if not m.public]
        self.oracle_metrics += [name for name in names if name not in self.oracle_metrics]

    def columns(self) -> dict[str, float | None]:
        """Columns of ``metrics.jsonl``: spent so far."""
        self._settle()
        return {"epsilon": finite(self.ledger.epsilon()), "delta": self.ledger.delta}

    def facts(self) -> dict[str, Any]:
        """Rows of ``fedsim plan``."""
        ledger, claim = self.ledger, self.ledger.claim
        planned: Profile = ledger.planned
        rows: dict[str, Any] = {
            "epsilon of the whole run": epsilon_of(planned, ledger.delta),
            "delta": ledger.delta,
            "protects": f"one {claim.unit} ({claim.adjacency}), trust {claim.trust}, {claim.against}",
            "sampling": claim.sampling,
        }
        for release, count in sorted(planned.items()):
            rate = "" if release.q == 1 else f", sampled at rate {release.q:.4g}"
            rows[f"noise of '{release.kind}'"] = f"{release.z:.6g} x sensitivity, {count} releases{rate}"
        return rows

    def report(self) -> dict[str, Any]:
        """What ``privacy.json`` says."""
        rows = 0 if self.releases is None else self.releases.rows
        found = self.ledger.report()
        if self.releases is not None and self.releases.durable:  # a deployment draws from secrets
            found["not_covered"].remove(KNOWN_SEED)
        found["not_covered"] += self.uncovered
        return {**found, "oracle_metrics": list(self.oracle_metrics), "rows": rows}

    def save(self) -> dict[str, Any]:
        """JSON's types: what a checkpoint keeps."""
        self._settle()
        rows = 0 if self.releases is None else self.releases.checkpointed()
        return {
            "ledger": self.ledger.save(),
            "rounds": self.rounds,
            "releases": rows,
            "word": self._word,
            "attempts": self.attempts,
        }

    def accepts(self, saved: Mapping[str, Any]) -> None:
        """Look at what `save` gave before anything is written.

        Raises
        ------
        InputError
            Noise made for a budget over some number of rounds cannot serve another number.
        """
        if self.ledger.budget is not None and saved["rounds"] != self.rounds:
            raise InputError(
                f"found {self.rounds}, but the noise of the rounds before spends privacy.epsilon over "
                f"{saved['rounds']} rounds; allowed: {saved['rounds']}, or noise given by privacy.noise_multiplier",
                key="run.rounds",
            )

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` gave."""
        self.accepts(saved)
        self.ledger.load(saved["ledger"])
        self._word, self.attempts = saved.get("word"), saved.get("attempts", 0)
        if self._word is not None:
            self.draw_from(self._word)
            self._tell(self._word)
        self.catch_up(saved.get("releases", 0))

    def _settle(self) -> None:
        if self.releases is not None:
            self.releases.settle()


_NOBODY: Ints = np.empty(0, dtype=np.int64)


def _nobody(word: int) -> None:
    """Nobody has to be told where noise comes from."""


class NoPrivacy(Bound):
    """Where a scenario has no section ``privacy``: nothing is done, nothing promised, nothing recorded."""

    claims = False
    renormalises = True

    def __init__(self) -> None:
        """There is no ledger."""

    @property
    def links(self) -> tuple[MessageTransform, ...]:
        return ()

    def record(
        self, folder: Path, place: str, tell: Callable[[int], None], durable: bool = False, left: Jobs = NO_JOBS
    ) -> None:
        """There are no releases."""

    def enter(self, clients: Ints, rounds: Ints, steps: Ints, message: Message) -> Message:
        return message

    def publishes(self, metrics: Iterable[Metric]) -> None:
        """Nothing is promised of any of them."""

    def columns(self) -> dict[str, float | None]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {}

    def report(self) -> dict[str, Any]:
        return {}

    def save(self) -> dict[str, Any]:
        return {}

    def accepts(self, saved: Mapping[str, Any]) -> None:
        """There is nothing that could not be continued."""

    def load(self, saved: Mapping[str, Any]) -> None:
        """There is nothing to continue."""


@dataclass(frozen=True)
class _Outgoing(MessageTransform):
    """`Bound.outgoing` as a link of the run's pipeline."""

    bound: Bound

    def send(self, message: Message, kept: State, job: Job, run: RunFacts) -> tuple[Message, State]:
        return dict(same_form(self.bound.outgoing(message, job), message, self.bound, "outgoing")), kept

    def draw_from(self, word: int) -> None:
        self.bound.draw_from(word)


__all__ = [
    "Aggregate", "Bound", "InputError", "Job", "Mechanism", "Message", "Setting", "State", "Tensor", "WrappedTask",
]  # fmt: skip
