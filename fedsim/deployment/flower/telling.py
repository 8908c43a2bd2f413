"""What the server's log says of a round while it goes on: whom it asked, who has answered, and for whom it waits."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fedsim.deployment.flower.roster import LOG, Roster, some

_EVERY = 30.0  # seconds between two lines about who is waited for


def began_anew(client: int, round: int) -> None:
    """A client whose state was lost did a job of its round `round` without it, as its node config allows."""
    LOG.warning("round %d: client %d lost what it kept and began anew (its lost-state is fresh)", round, client)


class Telling:
    """Lines of the log about jobs, which are told as client, its round, and when it was dispatched."""

    def __init__(self, roster: Roster) -> None:
        self.roster, self._said = roster, time.monotonic()

    def gathering(self, here: int, wanted: int, now: float) -> None:
        """Too few clients are there `now` for the run to begin; a line now and then."""
        if now - self._said >= _EVERY:
            self._said = now
            LOG.info("waiting: %d of %d clients are there; %s", here, wanted, self.roster.standing())

    def asked(self, clients: Sequence[int], round: int) -> None:
        """These `clients` got jobs of their round `round`."""
        self._said = time.monotonic()
        if clients:
            LOG.info("round %d: asked %s", round, some([str(c) for c in clients]))

    def answered(self, client: int, round: int, seconds: float, work: float) -> None:
        """A job's answer is used, `seconds` after it was sent; the client worked for `work` seconds of them."""
        LOG.info("round %d: client %d answered after %.1f s (%.2f s of work)", round, client, seconds, work)

    def waiting(self, jobs: Sequence[tuple[int, int, float]]) -> None:
        """These jobs are not answered; a line now and then."""
        now = time.monotonic()
        if not jobs or now - self._said < _EVERY:
            return
        self._said = now
        words = [f"{client}{self._state(client)} for {now - since:.0f} s" for client, _, since in jobs]
        LOG.info("round %d: waiting for client %s", min(round for _, round, _ in jobs), some(words))

    def _state(self, client: int) -> str:
        return "" if self.roster.node_of(client) is not None else " (not connected)"
