"""Which SuperNode is which client: nodes come and go under new numbers, clients stay what they are.

A node is greeted once when it appears. Its answer says which client it is (its node config's ``partition-id``), so a
SuperNode that was restarted takes its old place in the run, whatever number Flower gives it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from fedsim.deployment.flower.records import HELLO, BadRecord, Greeting, Order, pack, unpack

LOG = logging.getLogger("flwr.fedsim")
_REFRESH = 2.0  # seconds between two looks at the list of nodes
_GREET_AGAIN = 20.0  # seconds before a node whose greeting failed is asked again


class Roster:
    """The connected clients.

    Parameters
    ----------
    grid : Flower's Grid.
    clients : how many clients the scenario has.
    run : the run's name on the clients' disks.
    refuses : says what is wrong with a greeting, or None.
    """

    def __init__(self, grid: Any, clients: int, run: str, refuses: Callable[[Greeting], str | None]) -> None:
        self.grid, self.clients, self.run, self.refuses = grid, clients, run, refuses
        self.greetings: dict[int, Greeting] = {}
        """What every client that was ever here said last."""
        self._node_of: dict[int, int] = {}
        self._client_at: dict[int, int] = {}
        self._asked: dict[str, int] = {}
        self._online: set[int] = set()
        self._not_before: dict[int, float] = {}
        self._looked = -_REFRESH

    def node_of(self, client: int) -> int | None:
        """The node that is `client` now, if it is connected."""
        return self._node_of.get(client)

    def refresh(self) -> None:
        """Look who is there, at most every two seconds; greet who is new, forget who left."""
        now = time.monotonic()
        if now - self._looked < _REFRESH:
            return
        self._looked = now
        online = set(self.grid.get_node_ids())
        for node in self._online - online:
            client = self._client_at.pop(node, None)
            if client is not None and self._node_of.get(client) == node:
                del self._node_of[client]
                LOG.warning("client %d left (SuperNode %d is no longer connected)", client, node)
        self._online = online
        asked = set(self._asked.values())
        new = [n for n in online - asked - set(self._client_at) if self._not_before.get(n, now) <= now]
        if new:
            from flwr.app import Message

            order = Order(self.run, -1, 0, 0, 0, 0, 0)
            ids = self.grid.push_messages([Message(pack(order), n, HELLO) for n in new])
            self._asked |= {i: n for i, n in zip(ids, new, strict=True) if i}

    def waiting(self) -> list[str]:
        """Ids of the greetings that are not answered yet."""
        return list(self._asked)

    def hear(self, reply: Any) -> bool:
        """Take the answer to a greeting; False where `reply` answers something else."""
        node = self._asked.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            return False
        problem = self._seat(node, reply)
        if problem is not None:
            self._not_before[node] = time.monotonic() + _GREET_AGAIN
            LOG.warning("SuperNode %d is not used: %s", node, problem)
        return True

    def _seat(self, node: int, reply: Any) -> str | None:
        """Note which client answered; or say why it cannot take part."""
        if reply.has_error():
            return f"it answered with an error: {reply.error.reason or reply.error.code}"
        try:
            greeting = unpack(Greeting, reply.content)
        except BadRecord as error:
            return str(error)
        if greeting.clients != self.clients or not 0 <= greeting.client < self.clients:
            place = f"partition-id={greeting.client} num-partitions={greeting.clients}"
            return f"its node config says {place}, but the scenario has {self.clients} clients"
        problem = self.refuses(greeting)
        if problem is not None:
            return problem
        before = self._node_of.get(greeting.client)
        if before is not None and before != node:
            LOG.warning("client %d: SuperNode %d takes the place of %d", greeting.client, node, before)
            self._client_at.pop(before, None)
            self._not_before[before] = float("inf")
        else:
            LOG.info("client %d is SuperNode %d (%d samples)", greeting.client, node, greeting.samples)
        self._node_of[greeting.client], self._client_at[node] = node, greeting.client
        self.greetings[greeting.client] = greeting
        return None
