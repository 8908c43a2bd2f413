"""Shards of a run in Ray actors: calls to them, and what happens when some of them are lost.

Every shard is one `Shard`, normally in an actor of its own. Calls that need no answer wait for one that does and travel
with it: the work of a round and the sum of its messages are one call to every actor.

What a shard did since the last checkpoint is kept as a log of calls; when an actor, a node or an object is lost, its
shards are made anew (by a new actor, or by the others where resources are gone), loaded from the checkpoint, and the
log is played again. Draws are keyed, so the numbers come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.backends.balance import Balance, Spent
from fedsim.backends.guard import ClientError
from fedsim.backends.placement import split_saved
from fedsim.backends.ray.cluster import Cluster, DiedAtStartError, Shipment, log
from fedsim.backends.ray.transport import as_array, pack, unpack
from fedsim.backends.shard import TABLE
from fedsim.clients.mixing import Mixing
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Ints
from fedsim.core.errors import RunError
from fedsim.core.oracle import Task
from fedsim.core.returned import WrongFormError
from fedsim.core.row_files import Stored, TensorFile

_LOG_BYTES = 2**27
_LOG_CALLS = 4000
_IN_A_ROW = 5
_PATIENCE = 10.0  # seconds without an answer after which actors are asked whether they are alive
_ADOPTION_SECONDS = 20.0  # for a new actor in the place of a lost one, before others take its shards

Call = tuple[str, tuple[Any, ...]]
"""A method of a shard and its arguments."""


class LostError(Exception):
    """An actor, its node or an object is gone."""


@dataclass(frozen=True)
class Pool:
    """What a backend asks of the cluster."""

    address: str = "local"
    actors: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    threads: tuple[int, bool] = (1, False)
    """How many an actor computes with, and whether within operators."""
    drop: bool = False
    timeout: float = 60.0
    """Seconds without a sign of life after which an actor counts as lost."""
    mixing: Mixing = Mixing()  # noqa: RUF009 - frozen
    """On a graph, how nodes mix."""
    rebalance: bool = True
    """Whether clients are divided anew where an actor lags."""


class Shards:
    """The shards of a run, and the actors that hold them."""

    asks_clients = False

    def __init__(self, pool: Pool, cluster: Cluster, task: Task, build: Callable[[Task], Worker], owner: Ints) -> None:
        """Ship every shard's data, and start the actors; ``owner[i]`` is the shard of client i."""
        self.pool, self.cluster, self.task = pool, cluster, task
        self._made: tuple[Task, Callable[[Task], Worker], Mixing] = task, build, pool.mixing
        if pool.rebalance:  # as before the run begins: later these have a past in them, and open files
            self._made = unpack(pack(self._made))
        self._ray = cluster.ray
        self._packed: dict[int, list[Any]] = {}
        self.balance: Balance | None = None
        self._own(owner)
        self.shards = [k for k, mine in enumerate(self.members) if len(mine)]
        self._ship(self.shards)
        self._near: dict[int, bool] = {}  # shards on this machine, which read and write its files themselves
        self._snapshot: Mapping[str, Any] | None = None
        self._log: list[Any] = []
        self._log_bytes = 0
        self._waiting: dict[int, list[Call]] = {}
        self._failures = 0
        self._word: int | None = None
        hosts = cluster.start(len(self.shards), pool.cpus, pool.gpus, pool.threads)
        self.host: dict[int, Any] = dict(zip(self.shards, hosts, strict=True))
        self._adopt(self.shards)

    def _own(self, owner: Ints) -> None:
        self.owner = owner
        self.members = [np.flatnonzero(owner == k) for k in range(self.pool.actors)]

    def _ship(self, shards: Sequence[int]) -> None:
        """Put what these shards are made of into shared memory."""
        shipment, (task, build, mixing) = Shipment(self._ray.put), self._made
        for k in shards:
            mine = self.members[k]
            made = pack((task.shard(mine), build, mine, self.pool.drop, mixing))
            self._packed[k] = shipment.send(made)

    def _divide(self, owner: Ints) -> None:
        """Divide the clients anew: what they keep and have under way is in the last checkpoint, or is nothing."""
        before = self.members
        self._own(owner)
        self._waiting.clear()  # of a round of which nobody wanted to know anything
        changed = [k for k in self.shards if not np.array_equal(before[k], self.members[k])]
        self._ship(changed)
        try:
            self._adopt(changed)
            self._reset(self.shards)
        except LostError:
            self._recover(self.shards)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether so much would have to be played again after a loss that a checkpoint is due."""
        return self._log_bytes > _LOG_BYTES or len(self._log) > _LOG_CALLS

    @property
    def _at_checkpoint(self) -> bool:
        """Whether nothing was done since the last checkpoint that would have to be played again after a loss."""
        return not self._log and not self._log_bytes

    def close(self) -> None:
        """End the actors, and the cluster where it was started here."""
        self.cluster.end(list(set(self.host.values())))
        self.host.clear()
        self.cluster.close()

    def draw_from(self, word: int) -> None:
        """From now on the shards' clients draw their noise from `word`; those that are made anew do so, too."""
        self._word = word
        self._answers("draw_from", dict.fromkeys(self.shards, (word,)))
        self._log_bytes += _LOG_BYTES + 1  # what was done before it could not be played again: a checkpoint is due

    def _later(self, method: str, calls: dict[int, tuple[Any, ...]], size: int = 0) -> None:
        """Have some shards do something before they next answer; `size` is what keeping the call costs."""
        if calls:
            self._log.append((method, calls))
            self._log_bytes += size
        for k, arguments in calls.items():
            self._waiting.setdefault(k, []).append((method, arguments))

    def _answers(self, method: str, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """What a method returns that changes nothing, of some shards; all that waits is sent first."""
        waiting, self._waiting = self._waiting, {}
        sent = {k: self._send(k, *waiting.pop(k, ()), (method, arguments), tell=True) for k, arguments in calls.items()}
        for k, others in waiting.items():
            self._send(k, *others)
        while True:
            try:
                found = dict(zip(sent, self._get(list(sent.values())), strict=True))
                self._failures = 0
                self._learn({k: spent for k, (_, spent) in found.items()})
                return {k: value for k, (value, _) in found.items()}
            except LostError:
                self._recover()
                sent = {k: self._send(k, (method, arguments), tell=True) for k, arguments in calls.items()}

    def _learn(self, spent: Mapping[int, Spent]) -> None:
        """Hear what clients' jobs took."""
        if self.balance is not None and any(spent.values()):
            for k, jobs in spent.items():
                self.balance.hear(k, jobs)
            self.balance.judge(self._actors())

    def _actors(self) -> dict[int, int]:
        """The actor of each shard, by number."""
        numbers = {host: a for a, host in enumerate(dict.fromkeys(self.host[k] for k in self.shards))}
        return {k: numbers[self.host[k]] for k in self.shards}

    def _send(self, k: int, *calls: Call, tell: bool = False) -> Any:
        """Call methods of a shard; a reference to what the last of them returns, with `tell` and what jobs took."""
        references = [a for _, arguments in calls for a in arguments if isinstance(a, self._ray.ObjectRef)]
        plain = [
            (method, tuple(None if isinstance(a, self._ray.ObjectRef) else a for a in arguments))
            for method, arguments in calls
        ]
        return self.host[k].calls.remote(k, tell, plain, *references)

    def _get(self, references: list[Any]) -> list[Any]:
        """Values of references.

        Raises
        ------
        LostError
            An actor, its node or an object is gone.
        RunError
            Something raised in a shard; a client whose data raise is named.
        """
        exceptions = self._ray.exceptions
        while True:
            try:
                return list(self._ray.get(references, timeout=_PATIENCE))
            except exceptions.GetTimeoutError:
                self.cluster.check_alive()
                self._bury_the_silent()
            except exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, ClientError):
                    raise RunError(_named(cause)) from None
                if isinstance(cause, WrongFormError):
                    raise cause from None
                if isinstance(cause, exceptions.RayError):
                    self.cluster.check_alive()
                    raise LostError(str(cause)) from None
                raise RunError(f"in an actor: {type(cause).__name__}: {cause}") from error
            except exceptions.RayError as error:
                self.cluster.check_alive()
                raise LostError(str(error)) from None

    def _bury_the_silent(self) -> None:
        """Kill actors that show no sign of life: calls to them then fail instead of lasting for ever."""
        for host in self._silent(self.pool.timeout):
            log.warning("an actor gave no sign of life for %g seconds and is replaced", self.pool.timeout)
            self._ray.kill(host)

    def _silent(self, seconds: float) -> list[Any]:
        """Actors that are gone, or do not answer in time."""
        hosts = list(dict.fromkeys(self.host.values()))
        calls = [host.alive.options(concurrency_group="health").remote() for host in hosts]
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=seconds)
        answered = set()
        for call in ready:
            try:
                self._ray.get(call)
                answered.add(call)
            except self._ray.exceptions.RayError:
                pass
        return [host for host, call in zip(hosts, calls, strict=True) if call not in answered]

    def _recover(self, others: Sequence[int] = ()) -> None:
        """Bring lost shards to where they were, and `others`; those of an attempt that failed are still to be brought
        there."""
        lost = list(others)
        if self.balance is not None:
            self.balance.disregard()
        while True:
            self._failures += 1
            if self._failures > _IN_A_ROW:
                raise RunError(
                    f"actors were lost {_IN_A_ROW} times in a row without progress; the cluster has "
                    f"{self.cluster.described()}"
                )
            gone = self._silent(self.pool.timeout)
            homeless = [k for k in self.shards if self.host[k] in gone]
            lost = sorted({*lost, *homeless})
            log.warning("%d of %d actors were lost and are replaced", len(gone), len(set(self.host.values())))
            try:
                self._rehouse(homeless, gone)
                self._adopt(lost)
                self._replay(self._affected(lost))
                return
            except LostError:
                continue

    def _rehouse(self, homeless: list[int], gone: list[Any]) -> None:
        """Find every shard without an actor one: a new one, else the one with the fewest shards."""
        self.cluster.end(gone)
        survivors = [host for host in dict.fromkeys(self.host.values()) if host not in gone]
        for k in homeless:
            try:
                seconds = _ADOPTION_SECONDS if survivors else 6 * _ADOPTION_SECONDS
                self.host[k] = self.cluster.start(1, self.pool.cpus, self.pool.gpus, self.pool.threads, seconds)[0]
            except RunError as error:
                if not survivors:
                    if isinstance(error, DiedAtStartError):  # what ended the others may end it, too, and be over soon
                        log.warning("%s", error)
                        raise LostError(str(error)) from None
                    raise
                log.warning("%s; another actor takes its clients", error)
                taken = list(self.host.values())
                self.host[k] = min(survivors, key=taken.count)

    def _adopt(self, shards: list[int]) -> None:
        where = self._get([self.host[k].adopt.remote(k, self._packed[k]) for k in shards])
        if self._word is not None:
            self._get([self._send(k, ("draw_from", (self._word,))) for k in shards])
        self._near |= {k: node == self.cluster.here() for k, node in zip(shards, where, strict=True)}

    def _affected(self, lost: list[int]) -> list[int]:
        """Shards that have to go back when some are lost."""
        return lost

    def _replay(self, shards: list[int]) -> None:
        self._reset(shards)
        for method, calls in self._log:
            for k in shards:
                if k in calls:
                    self._send(k, (method, calls[k]))

    def _reset(self, shards: list[int]) -> None:
        parts = self._parts()
        self._get([self._send(k, ("reset", (self._sendable(k, parts.get(k, {})),))) for k in shards])

    def _parts(self) -> dict[int, dict[str, Any]]:
        """The last checkpoint by shard; tables stay in the file."""
        if self._snapshot is None:
            return {}
        if not isinstance(self._snapshot, TensorFile):
            raise RunError(f"what clients keep is in a {type(self._snapshot).__name__}, allowed: a checkpoint's file")
        tables = [name for name in self._snapshot if name.startswith(TABLE)]
        parts: dict[int, dict[str, Any]] = {}
        parts |= split_saved({n: self._snapshot[n] for n in self._snapshot if n not in tables}, self.owner)
        of = self.owner[self._snapshot["clients"].numpy()]
        for k in np.unique(of).tolist():
            rows = np.flatnonzero(of == k)
            parts[k] |= {name: Stored(self._snapshot.place(name), rows) for name in tables}
        return parts

    def _sendable(self, k: int, part: Mapping[str, Tensor | Stored]) -> dict[str, Any]:
        """Rows in files as they are for a shard that can read them, read for the others."""
        return {
            name: as_array(v) if isinstance(v, Tensor) else v if self._near[k] else v.read() for name, v in part.items()
        }

    def _forget(self, snapshot: Mapping[str, Any] | None) -> None:
        self._snapshot, self._log, self._log_bytes = snapshot, [], 0


def _named(error: ClientError) -> str:
    """Which clients failed, and how."""
    shown = "; ".join(f"client {c}: {why}" for c, why in list(error.clients.items())[:3])
    more = f"; and {len(error.clients) - 3} more" if len(error.clients) > 3 else ""
    count = f"{len(error.clients)} client{'s' if len(error.clients) > 1 else ''}"
    return f"the local work of {count} failed: {shown}{more}. backend.client_errors: drop leaves them out"
