"""Which SuperNode is which client: nodes come and go under new numbers, clients stay what they are.

A node is greeted once when it appears. Its answer says which client it is (its node config's ``partition-id``), so a
SuperNode that was restarted takes its old place in the run, whatever number Flower gives it. Anybody can say so:
a place belongs to the node that has it for as long as that is connected, and, where clients' keys are known, to no
other key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedsim import __version__
from fedsim.deployment.agreement import Agreement
from fedsim.deployment.flower.absence import Absence
from fedsim.deployment.flower.failures import failure
from fedsim.deployment.flower.records import (
    HELLO,
    LISTS,
    MOMENTS,
    Arrays,
    BadRecord,
    Greeting,
    Order,
    pack,
    shown,
    unpack,
    unpack_arrays,
)

LOG = logging.getLogger("flwr.fedsim")
_REFRESH = 2.0  # seconds between two looks at the list of nodes
_GREET_AGAIN = 20.0  # seconds before a node whose greeting failed is asked again
SHOWN = 20
"""Clients and SuperNodes that a line of the log names at most."""


def some(words: Sequence[str]) -> str:
    """The first of `words`, with commas, and how many more there are."""
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more} more" if more > 0 else "")


class Roster:
    """The connected clients.

    Parameters
    ----------
    grid : Flower's Grid.
    clients : how many clients the scenario has.
    run : the run's name on the clients' disks.
    refuses : says what is wrong with a greeting, or None.
    keys : the public key of every client's SuperNode, PEM; empty where any node may be any client.
    agreement : what nodes are told.
    doubts : says what is wrong with the statistics that came with a greeting, or None.
    """

    def __init__(
        self,
        grid: Any,
        clients: int,
        run: str,
        refuses: Callable[[Greeting], str | None],
        keys: Mapping[int, bytes] | None = None,
        agreement: Agreement | None = None,
        doubts: Callable[[Greeting, Arrays], str | None] | None = None,
    ) -> None:
        self.agreement = agreement or Agreement()
        """What nodes are told with the greeting; where it changes, those with data of their own are greeted again."""
        self.doubts = doubts
        self.said: dict[int, Arrays] = {}
        """What clients with data of their own said of their rows."""
        self.grid, self.clients, self.run, self.refuses, self.keys = grid, clients, run, refuses, dict(keys or {})
        self.weighed = False
        """Whether what clients said of their samples is in use, so that none may say otherwise."""
        self.greetings: dict[int, Greeting] = {}
        """What every client that was ever here said last."""
        self.workers: set[int] = set()
        """Clients beside whose SuperNodes a process of this run stays."""
        self.seated: Callable[[Greeting], None] = lambda _: None
        """Called with the greeting of every client that takes its place."""
        self.absence = Absence(self.node_of)
        """Who has cost a timeout and is not waited for."""
        self._node_of: dict[int, int] = {}
        self._client_at: dict[int, int] = {}
        self._asked: dict[str, int] = {}
        self._asked_by: dict[int, str] = {}
        """Which agreement every node's last greeting told it."""
        self._told: dict[int, str] = {}
        """The one that every node has taken."""
        self._online: set[int] = set()
        self._key_at: dict[int, bytes] = {}
        self._not_before: dict[int, float] = {}
        self._problems: dict[int, str] = {}
        """Why nodes that have answered are not used."""
        self._looked = -_REFRESH

    def node_of(self, client: int) -> int | None:
        """The node that is `client` now, if it is connected and knows all that was agreed on."""
        return None if self._is_behind(client) else self._node_of.get(client)

    def here(self, client: int) -> bool:
        """Whether `client` is connected, and does not rest after a silence."""
        return self.node_of(client) is not None and not self.absence.rests(client)

    def standing(self) -> str:
        """Which clients cannot be asked, and what is known of the SuperNodes that are connected and are no client."""
        away = {c: "" if self.node_of(c) is None else " (silent)" for c in range(self.clients) if not self.here(c)}
        said = [f"missing: client {some([f'{c}{state}' for c, state in away.items()])}"] if away else []
        unanswered = [str(node) for node in sorted(set(self._asked.values()) & self._online)]
        if unanswered:
            said.append(f"has not answered the greeting yet: SuperNode {some(unanswered)}")
        unused = [node for node in sorted(self._online) if node in self._problems and str(node) not in unanswered]
        said += [f"SuperNode {node} is not used: {shown(self._problems[node])}" for node in unused[:SHOWN]]
        if not self._online:
            said.append("no SuperNode is connected")
        return "; ".join(said)

    def key_of(self, client: int) -> bytes | None:
        """The public key, PEM, of the node that is `client` now."""
        node = self._node_of.get(client)
        return None if node is None else self._key_at.get(node)

    def refresh(self) -> None:
        """Look who is there, at most every two seconds; greet who is new, forget who left."""
        now = time.monotonic()
        if now - self._looked < _REFRESH:
            return
        self._looked = now
        self._key_at = {node.node_id: bytes(node.public_key) for node in self.grid.get_nodes()}
        online = set(self._key_at)
        for node in self._online - online:
            client = self._client_at.pop(node, None)
            if client is not None and self._node_of.get(client) == node:
                del self._node_of[client]
                self._not_before.clear()  # somebody may be waiting for this place
                LOG.warning("client %d left (SuperNode %d is no longer connected)", client, node)
        self._online = online
        asked = set(self._asked.values())
        behind = {node for client, node in self._node_of.items() if self._is_behind(client)}
        new = [n for n in online - asked - (set(self._client_at) - behind) if self._not_before.get(n, now) <= now]
        if new:
            from flwr.app import Message

            order = Order(self.run, -1, 0, 0, 0, 0, 0)
            ids = self.grid.push_messages([Message(pack(order, self.agreement.arrays(), LISTS), n, HELLO) for n in new])
            self._asked |= {i: n for i, n in zip(ids, new, strict=True) if i}
            self._asked_by |= dict.fromkeys(new, self.agreement.digest)

    def vacate(self, client: int, node: int | None) -> None:
        """`node`, which was `client`, is away: its place is free, and who waits for one is greeted at once."""
        if node is None or self._node_of.get(client) != node:
            return
        del self._node_of[client]
        self._client_at.pop(node, None)
        self._online.discard(node)
        self._not_before = {node: time.monotonic() + _GREET_AGAIN}
        self._looked = -_REFRESH
        LOG.warning("client %d left (SuperNode %d does not answer)", client, node)

    def waiting(self) -> list[str]:
        """Ids of the greetings that are not answered yet."""
        return list(self._asked)

    def hear(self, reply: Any) -> bool:
        """Take the answer to a greeting; False where `reply` answers something else."""
        node = self._asked.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            return False
        problem = self._seat(node, reply)
        self._problems.pop(node, None)
        if problem is not None:
            self._problems[node] = problem
            self._not_before[node] = time.monotonic() + _GREET_AGAIN
            LOG.warning("SuperNode %d is not used: %s", node, problem)
        return True

    def _seat(self, node: int, reply: Any) -> str | None:
        """Note which client answered; or say why it cannot take part."""
        if reply.has_error():
            return f"it answered with an error: {failure(reply.error, 1000)}"
        try:
            greeting, said = unpack(Greeting, reply.content), unpack_arrays(reply.content.get(MOMENTS) or {})
        except Exception as error:  # whatever one node sends, it ends nothing but its own part
            return str(error) if isinstance(error, BadRecord) else f"{type(error).__name__}: {shown(error)}"
        if greeting.clients != self.clients or not 0 <= greeting.client < self.clients:
            place = f"partition-id={greeting.client} num-partitions={greeting.clients}"
            return f"its node config says {place}, but the scenario has {self.clients} clients"
        problem = self._is_taken(node, greeting) or self.refuses(greeting)
        if problem is None and self.doubts is not None:
            problem = self.doubts(greeting, said)
        if problem is not None:
            return problem
        if greeting.version != __version__:
            LOG.warning("client %d has fedsim %s, this server %s", greeting.client, greeting.version, __version__)
        if self._node_of.get(greeting.client) != node:  # else it was told what all have agreed on since
            LOG.info("client %d is SuperNode %d (%d samples)", greeting.client, node, greeting.samples)
        self._node_of[greeting.client], self._client_at[node] = node, greeting.client
        self.greetings[greeting.client], self.said[greeting.client] = greeting, said
        self._told[node] = self._asked_by[node]
        (self.workers.add if greeting.worker else self.workers.discard)(greeting.client)
        self.seated(greeting)
        return None

    def _is_behind(self, client: int) -> bool:
        """Whether a client with data of its own has not taken yet what is agreed on now."""
        known, node = self.greetings.get(client), self._node_of.get(client)
        return known is not None and known.own and node is not None and self._told.get(node) != self.agreement.digest

    def _is_taken(self, node: int, greeting: Greeting) -> str | None:
        """Why `node` cannot be the client that it says it is, or None."""
        client = greeting.client
        if self.keys and self._key_at.get(node) != self.keys.get(client):
            return f"its key is not that of client {client} (client-keys)"
        before = self._node_of.get(client)
        if before is not None and before != node and before in self._online:
            return f"it says that it is client {client}, which SuperNode {before} is, as long as that is connected"
        known = self.greetings.get(client)
        if self.weighed and known is not None and known.own and known.samples != greeting.samples:
            return f"it says that it has {greeting.samples} samples; the run's weights are made for {known.samples}"
        return None
