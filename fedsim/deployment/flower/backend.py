"""Clients on other machines: jobs are pushed through Flower's Grid and their messages pulled when they are there.

Runs in the ServerApp. A job that fails is sent again, given up or ends the run, as the `Policy` says; every way a job
can end has a log line and a row in ``replies.jsonl``. Nothing waits longer than the policy's timeout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.base import BackendDefaults
from fedsim.clients.evaluating import evaluate
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Bools, Ints
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.types import Message
from fedsim.deployment.flower.arrays import check_message, to_arrays, to_tensors
from fedsim.deployment.flower.examiner import Examiner
from fedsim.deployment.flower.failures import failure
from fedsim.deployment.flower.journal import Journal
from fedsim.deployment.flower.policy import Policy
from fedsim.deployment.flower.pulling import NODE_UNAVAILABLE, pulled
from fedsim.deployment.flower.records import EXAM, WORK, BadRecord, Order, Receipt, pack, shown, unpack, unpack_arrays
from fedsim.deployment.flower.roster import LOG, Roster
from fedsim.deployment.flower.telling import Telling, began_anew
from fedsim.messages.wire import opened, packs, travelling

_LONGEST_REASON = 1000


@dataclass
class _Flight:
    """A job without an answer: `since` when it was dispatched; `message_id`, `node` and `sent` of the message out.

    `away` says since when its client is not connected (None: it is).
    """

    order: Order
    received: Message
    since: float
    away: float | None = None
    sent: float = 0.0
    node: int | None = None
    message_id: str | None = None
    tries: int = 0


@dataclass
class Flower(BackendDefaults):
    """The backend of a deployment.

    Parameters
    ----------
    grid : Flower's Grid.
    roster : which node is which client.
    worker : does the "work" of clients that have no steps to do and keep no state: they are not asked.
    expected : one client's message, for names, shapes and types.
    policy : what happens to jobs that fail.
    journal : where every answer is written down.
    patient : wait for clients that are not connected also where the policy drops them (in a clocked run nobody else
        waits for them).
    examiner : asks clients what models are worth on their own test rows; None: that is measured here.
    wants_checkpoint : whether a checkpoint is due after every round.
    last : the run's last round, after which clients that nobody evaluates are asked nothing more (0: their rounds are
        not the run's).
    graph : a gossip run, in which a job that is given up counts as one without steps: its node keeps what it has.
    """

    grid: Any
    roster: Roster
    worker: Worker
    expected: Message
    policy: Policy = field(default_factory=Policy)
    journal: Journal = field(default_factory=Journal)
    patient: bool = False
    graph: bool = False
    wants_checkpoint: bool = False
    last: int = 0
    examiner: Examiner | None = None
    taken: dict[int, int] = field(default_factory=dict)
    """The last round of every client whose message was taken."""
    _kept: dict[int, int] = field(default_factory=dict)
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _late: dict[str, Order] = field(default_factory=dict)
    _done: dict[int, Message] = field(default_factory=dict)
    _lost: dict[int, str] = field(default_factory=dict)
    _wakes: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.begin()
        self.telling = Telling(self.roster)
        self.stateful = bool(self.worker.store.gather(np.zeros(1, dtype=np.int64)))

    # --- the backend of the simulation loop ---------------------------------------------------------------------------

    def dispatch(self, job: Job) -> None:
        """Send every client its job."""
        idle = (job.steps == 0) & (not self.stateful) & (self.worker.algorithm.evaluates_on is None)
        if idle.any():
            self._stand_in(job.of(np.flatnonzero(idle)))
        for i in np.flatnonzero(~idle).tolist():
            client, number = int(job.clients[i]), int(job.numbers[i])
            order = Order(
                self.roster.run, client, number, int(job.rounds[i]), int(job.steps[i]),
                self.taken.get(client, 0), self._kept.get(client, 0),
                self.examiner is None and int(job.rounds[i]) == self.last,
            )  # fmt: skip
            received = {k: v if v.dim() == 1 else v[i : i + 1] for k, v in job.received.items()}
            self._flights[number] = _Flight(order, received, time.monotonic())
        for round in np.unique(job.rounds[~idle]).tolist():
            self.telling.asked(job.clients[~idle & (job.rounds == round)].tolist(), round)
        self._send()

    def collect(self, jobs: Ints) -> Message:
        """The messages of jobs that were answered, row i belonging to job number ``jobs[i]``."""
        missing = [j for j in jobs.tolist() if j not in self._done]
        if missing:
            raise RunError(f"jobs {missing[:5]} were collected before they were answered")
        rows = [self._done.pop(j) for j in jobs.tolist()]
        return {k: torch.cat([row[k] for row in rows]) for k in rows[0]}

    @property
    def asks_clients(self) -> bool:  # type: ignore[override]
        return self.examiner is not None

    def own_answers(self, clients: Ints, received: Message, asked: Asked) -> OwnAnswers:
        if self.examiner is None:
            if asked.personal:
                raise RunError("clients keep models of their own to themselves: they have to be asked (eval = clients)")
            return evaluate(self.worker, clients, received, asked)

        def built_on(client: int) -> tuple[int, int]:
            return self.taken.get(client, 0), self._kept.get(client, 0)

        def note(order: Order, status: str, seconds: float, work: float | None, reason: str) -> None:
            self.journal.note(order, status, seconds, work, reason=reason, what=EXAM)

        return self.examiner.ask(clients, received, asked.round, built_on, note)

    def save(self) -> dict[str, Tensor]:
        """Which run this is and whose messages were taken; the clients' state is on the clients' disks."""
        self._kept = dict(self.taken)
        rounds = [self.taken.get(c, 0) for c in range(self.roster.clients)]
        return {"taken": torch.tensor(rounds), "run": torch.tensor(list(self.roster.run.encode()), dtype=torch.uint8)}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        if not {"taken", "run"} <= set(saved):
            raise RunError("the checkpoint is one of a simulation: a deployment cannot continue it")
        self.taken = {c: r for c, r in enumerate(saved["taken"].tolist()) if r}
        self._kept = dict(self.taken)
        self.roster.run = bytes(saved["run"].tolist()).decode()

    # --- waiting ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Count the seconds of `now` from here on."""
        self.journal.begin()

    def now(self) -> float:
        """Seconds since this backend was made or told to begin."""
        return self.journal.now()

    def gather(self, wanted: int, seconds: float) -> None:
        """Wait until `wanted` clients have answered the greeting.

        Raises
        ------
        RunError
            They were not there after `seconds`.
        """
        end = time.monotonic() + seconds
        while (here := sum(self.roster.node_of(c) is not None for c in range(self.roster.clients))) < wanted:
            if (now := time.monotonic()) > end:
                came = f"{here} of {wanted} clients were connected after {seconds:g} s (wait-seconds)"
                raise RunError(f"{came}; {self.roster.standing()}")
            self.telling.gathering(here, wanted, now)
            self.look()
            time.sleep(self.policy.poll)

    def wake(self, when: Callable[[], bool]) -> None:
        """From now on `arrivals` ends, too, as soon as `when` says so."""
        self._wakes = when

    def failing(self, jobs: Ints) -> Ints:
        """Wait until all of `jobs` have delivered or one was given up: those that were."""
        numbers = jobs.tolist()
        while True:
            lost = [j for j in numbers if j in self._lost]
            if lost or all(j in self._done for j in numbers):
                return np.array(lost, dtype=np.int64)
            self.look()
            self._pass_over(numbers)
            if not any(j in self._lost for j in numbers):
                time.sleep(self.policy.poll)

    def _pass_over(self, numbers: list[int]) -> None:
        """Give up those of a round's jobs whose clients are not waited for, when the others are through.

        Who rests is not asked at all; where nobody else is in the round, all are asked and waited for.
        """
        absence = self.roster.absence
        flights = [self._flights[j] for j in numbers if j in self._flights]
        lasting = [f for f in flights if absence.lasts(f.order.client)]
        if len(lasting) == len(numbers):
            for flight in lasting:
                absence.ask(flight.order.client)
            return
        for flight in lasting:
            client = flight.order.client
            if absence.rests(client) and flight.message_id is None:
                away = self.roster.node_of(client) is None
                self._give_up(flight, "away", "it is not connected" if away else "it was silent when it was asked last")
            elif len(flights) == len(lasting):
                absence.passed(client)
                self._give_up(flight, "away", "it was silent before, and has not answered before the others")

    def settle(self, jobs: Ints) -> Bools:
        """Wait for all of `jobs`: which of them delivered ``[m]``; the others were given up."""
        numbers = jobs.tolist()
        while any(j not in self._done and j not in self._lost for j in numbers):
            self.look()
            self._pass_over(numbers)
            time.sleep(self.policy.poll)
        return np.array([self._lost.pop(j, None) is None for j in numbers], dtype=bool)

    def arrivals(self, until: float | None) -> tuple[list[int], list[int]]:
        """Wait until something arrives or `now` is `until`: jobs that delivered, in their order, and jobs given up."""
        known = set(self._done)
        while True:
            self.look()
            fresh, lost = [j for j in self._done if j not in known], list(self._lost)
            if fresh or lost or self._wakes() or (until is not None and self.now() >= until):
                self._lost.clear()
                return fresh, lost
            time.sleep(self.policy.poll)

    # --- one look -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look who is there, send what can be sent, take what has come, give up what took too long."""
        self.roster.refresh()
        self._send()
        ids = [f.message_id for f in self._flights.values() if f.message_id] + self.roster.waiting() + list(self._late)
        for reply in pulled(self.grid, ids):
            if not self.roster.hear(reply):
                self._hear(reply)
        now = time.monotonic()
        for flight in list(self._flights.values()):
            node = self.roster.node_of(flight.order.client)
            flight.away = None if node is not None else now if flight.away is None else flight.away
            if flight.message_id is not None and node != flight.node:
                self._failed(flight, "gone", "its SuperNode left while it was at work")
            elif flight.message_id is None and node is None and self.policy.on_failure == "drop" and not self.patient:
                self._give_up(flight, "away", "it is not connected")
            elif now - flight.since > self.policy.timeout:
                follows = self.roster.absence.missed(flight.order.client, self.policy.timeout)
                self._give_up(flight, "timeout", f"no answer within {self.policy.timeout:g} s; {follows}")
            elif flight.away is not None and now - flight.away > self.policy.patience and not self.patient:
                follows = self.roster.absence.missed(flight.order.client, self.policy.patience)
                self._give_up(flight, "away", f"it was not connected for {self.policy.patience:g} s; {follows}")
        self.telling.waiting([(f.order.client, f.order.round, f.since) for f in self._flights.values()])

    def _send(self) -> None:
        """Push the jobs whose clients are there and that are not out already."""
        from flwr.app import Message as FlowerMessage

        ready = [
            (flight, node) for flight in self._flights.values()
            if flight.message_id is None and (node := self.roster.node_of(flight.order.client)) is not None
            and not self.roster.absence.rests(flight.order.client)
        ]  # fmt: skip
        if not ready:
            return
        now = time.monotonic()
        letters = [
            FlowerMessage(
                pack(f.order, to_arrays(f.received)), node, WORK,
                ttl=max(1.0, f.since + self.policy.timeout - now), group_id=str(f.order.round),
            )
            for f, node in ready
        ]  # fmt: skip
        ids = list(self.grid.push_messages(letters))
        if len(ids) != len(ready):  # Flower's answer to requests above its limit; it logs the limit
            size = sum(v.numel() * v.element_size() for v in ready[0][0].received.values())
            raise RunError(f"the SuperLink did not take messages of {size / 1e6:.1f} MB each; its log says why")
        for (flight, node), message_id in zip(ready, ids, strict=True):
            if message_id:  # None: the SuperLink did not take it, so try again
                flight.node, flight.message_id, flight.sent = node, message_id, now

    def _hear(self, reply: Any) -> None:
        """Judge one answer to a job."""
        answered = reply.metadata.reply_to_message_id
        late = self._late.pop(answered, None)
        if late is not None:
            if not reply.has_error():
                self.roster.absence.heard(late.client)
                self.journal.note(late, "late", 0.0)
                LOG.warning("client %d answered round %d too late; not used", late.client, late.round)
            return
        flight = next((f for f in self._flights.values() if f.message_id == answered), None)
        if flight is None:
            return
        if not reply.has_error() or reply.error.code != NODE_UNAVAILABLE:
            self.roster.absence.heard(flight.order.client)
        if reply.has_error() and reply.error.code == NODE_UNAVAILABLE:
            self.roster.vacate(flight.order.client, flight.node)  # the one that took its place may be waiting
            self._failed(flight, "gone", "its SuperNode left while it was at work")
            return
        if reply.has_error():
            flight.tries += 1
            reason = f"it answered with an error: {failure(reply.error, _LONGEST_REASON)}"
            self._failed(flight, "error", reason, answered=True)
            return
        try:
            receipt, message = self._opened(flight, reply.content)
        except Exception as error:  # whatever one client sends, it ends nothing but this answer
            flight.tries += 1
            said = str(error) if isinstance(error, BadRecord) else f"{type(error).__name__}: {error}"
            reason = f"its answer is not used: {shown(said, _LONGEST_REASON)}"
            self._failed(flight, "garbage", reason, answered=True)
            return
        del self._flights[flight.order.number]
        self._done[flight.order.number] = message
        self.taken[flight.order.client] = flight.order.round
        if flight.order.ends:
            self.roster.workers.discard(flight.order.client)
        took = time.monotonic() - flight.sent
        self.journal.note(flight.order, "ok", took, receipt.seconds, flight.tries)
        self.telling.answered(flight.order.client, flight.order.round, took, receipt.seconds)
        if receipt.fresh:
            began_anew(flight.order.client, flight.order.round)

    def _opened(self, flight: _Flight, content: Any) -> tuple[Receipt, Message]:
        """What an answer holds; raise BadRecord where it is not what this job's client sends."""
        receipt = unpack(Receipt, content)
        if (receipt.client, receipt.number) != (flight.order.client, flight.order.number):
            raise BadRecord(f"it answers job {receipt.number} of client {receipt.client}")
        message = to_tensors(unpack_arrays(content.get("arrays") or {}), self.worker.initial.device)
        if not self.graph and packs(self.worker.pipeline):  # nodes of a graph send whole models
            message = self._unpacked(flight.order, message)
        if self.graph:  # nodes leave out what they were sent and did not change
            message = {k: v for k, v in flight.received.items() if k in self.expected} | message
        check_message(message, self.expected)
        return receipt, message

    def _unpacked(self, order: Order, message: Message) -> Message:
        """What arrives, from a message whose vectors travelled as the bytes of their compressor."""
        pipeline, form = self.worker.pipeline, self.expected
        check_message(message, travelling(pipeline, form, order.round))
        job = Job(np.array([order.client]), np.array([order.round]), np.array([order.steps]), {})
        return opened(pipeline, message, form, job)

    def _failed(self, flight: _Flight, status: str, reason: str, answered: bool = False) -> None:
        """Send again, give up, or end the run."""
        order = flight.order
        if not answered and flight.message_id is not None:
            self._late[flight.message_id] = order
        flight.message_id = flight.node = None
        if self.policy.on_failure == "retry" and flight.tries < self.policy.attempts:
            self.journal.note(order, status, time.monotonic() - flight.sent, tries=flight.tries, reason=reason)
            LOG.warning("client %d, round %d: %s; asked again", order.client, order.round, reason)
        else:
            self._give_up(flight, status, reason)

    def _give_up(self, flight: _Flight, status: str, reason: str) -> None:
        order = flight.order
        if flight.message_id is not None:
            self._late[flight.message_id] = order
        del self._flights[order.number]
        self._lost[order.number] = reason
        self.journal.note(order, status, time.monotonic() - flight.since, tries=flight.tries, reason=reason)
        if self.policy.on_failure == "stop":
            raise RunError(f"client {order.client}, round {order.round}: {reason} (on-failure = stop)")
        LOG.warning("client %d, round %d: %s; given up", order.client, order.round, reason)
        if self.graph:
            who = np.array([order.client])
            idle = Job(who, np.array([order.round]), np.zeros_like(who), flight.received, np.array([order.number]))
            self._stand_in(idle)

    def _stand_in(self, job: Job) -> None:
        """Messages of clients without steps and without state: what was received, unchanged."""
        messages = self.worker.run(job)
        for position, number in enumerate(job.numbers.tolist()):
            self._done[number] = {k: v[position : position + 1] for k, v in messages.items()}
