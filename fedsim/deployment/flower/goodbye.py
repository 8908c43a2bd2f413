"""The end of a run is told to clients beside which a process of it still waits for work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fedsim.deployment.flower.pulling import pulled
from fedsim.deployment.flower.records import BYE, Order, pack
from fedsim.deployment.flower.roster import LOG, Roster

_PATIENCE = 15.0  # seconds: a message takes some of them, and who does not hear it ends later by itself
_LOOK = 0.2


@contextmanager
def farewell(grid: Any, roster: Roster) -> Iterator[None]:
    """Tell them when what is done inside is over, however it ends."""
    try:
        yield
    finally:
        with suppress(Exception):  # nothing that goes wrong here counts, least of all in the place of the run's error
            _tell(grid, roster)


def _tell(grid: Any, roster: Roster) -> None:
    from flwr.app import Message

    nodes = [node for c in sorted(roster.workers) if (node := roster.node_of(c)) is not None]
    if not nodes:
        return
    content = [pack(Order(roster.run, -1, 0, 0, 0, 0, 0)) for _ in nodes]
    letters = [Message(c, node, BYE, ttl=_PATIENCE) for c, node in zip(content, nodes, strict=True)]
    ids = {i for i in grid.push_messages(letters) if i}
    LOG.info("the run is over: telling %d clients whose workers still wait", len(ids))
    end = time.monotonic() + _PATIENCE
    while ids and time.monotonic() < end:
        ids -= {reply.metadata.reply_to_message_id for reply in pulled(grid, sorted(ids))}
        time.sleep(_LOOK)
