"""Federated evaluation: clients say what a model is worth on test rows of their own, which the server never sees.

Nothing of it is needed to go on. A client that is not connected is not asked; one that does not answer in time, or
whose answer cannot be used, is left out of this evaluation, and no more comes of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.core.metrics import Metric
from fedsim.core.own_tests import OwnAnswers, Told
from fedsim.core.types import Message
from fedsim.deployment.flower.arrays import to_arrays
from fedsim.deployment.flower.failures import failure
from fedsim.deployment.flower.pulling import NODE_UNAVAILABLE, pulled
from fedsim.deployment.flower.records import (
    EXAM,
    BadRecord,
    Order,
    Verdict,
    pack,
    shown,
    unpack,
    unpack_metrics,
)
from fedsim.deployment.flower.roster import LOG, Roster
from fedsim.deployment.flower.telling import began_anew

_LONGEST_REASON = 1000

Note = Callable[[Order, str, float, float | None, str], None]
"""Writes a row of the journal: what was asked, how it ended, seconds in all and of work, and why."""


@dataclass(frozen=True)
class Examiner:
    """Asks clients, and judges what they say.

    Parameters
    ----------
    grid : Flower's Grid.
    roster : which node is which client.
    metrics : what is measured of every client, and must be in every answer; those in `certain` always have a value.
    certain : names of metrics that every client with test rows has.
    positions : targets that a test row has at most.
    timeout, poll : seconds after which nobody is waited for any more, and between two looks.
    last : the run's last round, after whose evaluation clients are asked nothing more (0: that is not known).
    """

    grid: Any
    roster: Roster
    metrics: Mapping[str, Metric]
    certain: Sequence[str]
    positions: int
    timeout: float
    poll: float
    last: int = 0

    def ask(
        self, clients: Ints, received: Message, round: int, built_on: Callable[[int], tuple[int, int]], note: Note
    ) -> OwnAnswers:
        """What `clients` measure of what they `received`, rows ``[m, ...]`` or one for all.

        `built_on` gives a client's last round whose message was taken, and the one that the last checkpoint knows.
        """
        begun = time.monotonic()
        letters = self._sent(clients, received, round, built_on, note)
        found: dict[int, tuple[Verdict, dict[str, float]]] = {}
        asked = len(letters)
        while letters:
            self.roster.refresh()
            for reply in pulled(self.grid, [*letters, *self.roster.waiting()]):
                if not self.roster.hear(reply):
                    order = letters.pop(reply.metadata.reply_to_message_id, None)
                    if order is not None:
                        self._judged(order, reply, found, time.monotonic() - begun, note)
            late = time.monotonic() - begun > self.timeout
            alone = all(self.roster.absence.lasts(order.client) for order in letters.values()) and len(letters) < asked
            for message_id, order in list(letters.items()):
                gone = self.roster.node_of(order.client) is None
                if alone and not (gone or late):
                    self.roster.absence.passed(order.client)
                    why = "it was silent before, and has not answered before the others"
                    self._left_out(order, "away", why, time.monotonic() - begun, note)
                    del letters[message_id]
                if gone or late:
                    why = "its SuperNode left" if gone else f"no answer within {self.timeout:g} s"
                    status = "gone" if gone else "timeout"
                    if not gone:
                        self.roster.absence.missed(order.client, self.timeout)
                    self._left_out(order, status, why, time.monotonic() - begun, note)
                    del letters[message_id]
            if letters:
                time.sleep(self.poll)
        return OwnAnswers(np.empty(0), None, None, self._told(clients, found))

    def _sent(
        self, clients: Ints, received: Message, round: int, built_on: Callable[[int], tuple[int, int]], note: Note
    ) -> dict[str, Order]:
        """The orders by the ids of their messages; who is not connected is not asked."""
        from flwr.app import Message as FlowerMessage

        ready, letters = [], []
        for i, client in enumerate(clients.tolist()):
            order = Order(self.roster.run, client, round, round, 0, *built_on(client), round == self.last)
            node = self.roster.node_of(client)
            if node is None:
                self._left_out(order, "away", "it is not connected", 0.0, note)
                continue
            if self.roster.absence.rests(client):
                self._left_out(order, "away", "it was silent when it was asked last", 0.0, note)
                continue
            own = {k: v if v.dim() == 1 else v[i : i + 1] for k, v in received.items()}
            content = pack(order, to_arrays(own))
            letters.append(FlowerMessage(content, node, EXAM, ttl=max(1.0, self.timeout), group_id=str(round)))
            ready.append(order)
        ids = list(self.grid.push_messages(letters)) if letters else []
        ids += [None] * (len(ready) - len(ids))
        for order, message_id in zip(ready, ids, strict=True):
            if not message_id:
                self._left_out(order, "gone", "the SuperLink did not take the message", 0.0, note)
        return {message_id: order for order, message_id in zip(ready, ids, strict=True) if message_id}

    def _judged(
        self, order: Order, reply: Any, found: dict[int, tuple[Verdict, dict[str, float]]], seconds: float, note: Note
    ) -> None:
        """Take an answer, or say why it is not used."""
        if (
            reply.has_error() and reply.error.code == NODE_UNAVAILABLE
        ):  # Flower says so, nothing was heard of the client
            self.roster.vacate(order.client, reply.metadata.src_node_id)
            self._left_out(order, "gone", "its SuperNode left", seconds, note)
            return
        self.roster.absence.heard(order.client)
        if reply.has_error():
            reason = f"it answered with an error: {failure(reply.error, _LONGEST_REASON)}"
            self._left_out(order, "error", reason, seconds, note)
            return
        try:
            verdict, values = self._opened(order, reply.content)
        except Exception as error:  # whatever one client sends, it ends nothing but this answer
            said = str(error) if isinstance(error, BadRecord) else f"{type(error).__name__}: {error}"
            why = f"its answer is not used: {shown(said, _LONGEST_REASON)}"
            self._left_out(order, "garbage", why, seconds, note)
            return
        if order.ends:
            self.roster.workers.discard(order.client)
        if verdict.fresh:
            began_anew(order.client, order.round)
        found[order.client] = verdict, values
        note(order, "ok", seconds, verdict.seconds, "")

    def _opened(self, order: Order, content: Any) -> tuple[Verdict, dict[str, float]]:
        """What an answer holds; raise BadRecord where it is not what this client can measure."""
        verdict = unpack(Verdict, content)
        if (verdict.client, verdict.round) != (order.client, order.round):
            raise BadRecord(f"it answers round {verdict.round} of client {verdict.client}")
        samples, values = unpack_metrics(content, list(self.metrics))
        wanted = self.roster.greetings[order.client].tests
        if samples != wanted:
            raise BadRecord(f"it says {samples} test samples; in its greeting it had {wanted}")
        if not 1 <= verdict.targets <= samples * self.positions:
            raise BadRecord(f"it says {verdict.targets} targets; allowed: 1 to {samples * self.positions}")
        for name, value in values.items():
            missing = math.isnan(value) and name not in self.certain
            if not (math.isfinite(value) or missing):
                raise BadRecord(f"'{name}' is {value}, expected a finite number")
            if self.metrics[name].unit == "share" and not missing and not 0 <= value <= 1:
                raise BadRecord(f"'{name}' is {value}, expected a share, 0 to 1")
        return verdict, values

    def _told(self, clients: Ints, found: Mapping[int, tuple[Verdict, dict[str, float]]]) -> Told:
        answered = np.array([c in found for c in clients.tolist()], dtype=bool)
        targets = np.array([found[c][0].targets if c in found else 0 for c in clients.tolist()], dtype=np.int64)
        values = {
            name: np.array([found[c][1][name] if c in found else math.nan for c in clients.tolist()])
            for name in self.metrics
        }
        return Told(answered, targets, values)

    def _left_out(self, order: Order, status: str, why: str, seconds: float, note: Note) -> None:
        LOG.warning("client %d, evaluation after round %d: %s; left out", order.client, order.round, why)
        note(order, status, seconds, None, why)
