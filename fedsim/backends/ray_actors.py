"""Clients on a Ray cluster: shards of them in actors, the same numbers as in one process.

Every shard is one `Shard`, normally in an actor of its own. Calls that need no answer wait for one that does and travel
with it: the work of a round and the sum of its messages are one call to every actor.

What a shard did since the last checkpoint is kept as a log of calls; when an actor, a node or an object is lost, its
shards are made anew (by a new actor, or by the others where resources are gone), loaded from the checkpoint, and the
log is played again. Draws are keyed, so the numbers come out the same. Nodes of a graph depend on each other: there all
shards go back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.base import Saved
from fedsim.backends.ray_cluster import Cluster, Shipment, log
from fedsim.backends.ray_transport import as_arrays, as_tensor, pack
from fedsim.backends.rows import Rows
from fedsim.backends.shard import ClientError, Collected
from fedsim.backends.sharding import merge_saved, place, split_saved
from fedsim.errors import RunError
from fedsim.task import Ints, Task
from fedsim.types import Message
from fedsim.worker import Job, Worker

_INLINE_BYTES = 2**16  # of a broadcast that travels in the call itself; Ray does so below 100 KB
_LOG_BYTES = 2**27
_LOG_CALLS = 4000
_IN_A_ROW = 5
_PATIENCE = 10.0  # seconds without an answer after which actors are asked whether they are alive
_ADOPTION_SECONDS = 20.0  # for a new actor in the place of a lost one, before others take its shards

Call = tuple[str, tuple[Any, ...]]
"""A method of a shard and its arguments."""


@dataclass(frozen=True)
class Pool:
    """What a backend asks of the cluster."""

    address: str = "local"
    actors: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1
    drop: bool = False
    timeout: float = 60.0
    """Seconds without a sign of life after which an actor counts as lost."""


class RayBackend:
    """Dispatches to shards and combines what they collect; see `Backend`."""

    keeps_nodes = False

    def __init__(
        self,
        pool: Pool,
        cluster: Cluster,
        task: Task,
        build: Callable[[Task], Worker],
        load: Any,
        cohort: bool = True,
    ) -> None:
        """Place the clients (`load` ``[n]``: what each costs) and ship their data.

        Of a `cohort` clients can be left out; nodes of a graph only skip their work.
        """
        self._cohort = cohort
        self.pool, self.cluster, self.task = pool, cluster, task
        self._ray = cluster.ray
        self.like = task.initial()[:0]
        self.owner = self._place(np.asarray(load, dtype=np.float64))
        self.members = [np.flatnonzero(self.owner == k) for k in range(pool.actors)]
        self.shipment = Shipment(self._ray.put)
        self._packed = [
            self.shipment.send(pack((task.shard(mine), build, mine, pool.drop))) if len(mine) else None
            for mine in self.members
        ]
        self.shards = [k for k, mine in enumerate(self.members) if len(mine)]
        self.host: dict[int, Any] = {}
        self.lost = np.empty(0, dtype=np.int64)
        self._snapshot: Callable[[], Mapping[str, Tensor]] | None = None
        self._log: list[Any] = []
        self._log_bytes = 0
        self._waiting: dict[int, list[Call]] = {}
        self._widths: dict[str, int] = {}  # of messages, once one has been seen
        self._failures = 0
        self._where: dict[int, int] = {}
        self._pending: dict[int, set[int]] = {}
        self._broadcast: tuple[list[Tensor], Any] | None = None
        algorithm = build(task).algorithm
        self._stateful = bool(algorithm.fresh_client(task.initial().unsqueeze(0)))
        hosts = cluster.start(len(self.shards), pool.cpus, pool.gpus, pool.threads)
        self.host = dict(zip(self.shards, hosts, strict=True))
        self._adopt(self.shards)

    # --- the backend's side of the loop -------------------------------------------------------------------------------

    def dispatch(self, job: Job) -> None:
        if not self._stateful and not self._where:
            self._forget(None)  # nothing is under way and nobody keeps anything: the past is of no use
        numbers = job.numbers
        received, size = self._shared(job.received)
        calls = {}
        for k in self.shards:
            rows = np.flatnonzero(self.owner[job.clients] == k)
            if len(rows):
                mine = received if received is not None else as_arrays(_rows(job.received, rows))
                calls[k] = (job.clients[rows], job.rounds[rows], job.steps[rows], numbers[rows], mine)
                wanted = numbers[rows].tolist()
                self._where |= dict.fromkeys(wanted, k)
                self._pending.setdefault(k, set()).update(wanted)
        self._later("dispatch", calls, size)

    def collect(self, jobs: Ints) -> Message:
        missing = [j for j in jobs.tolist() if j not in self._where]
        if missing:
            raise RunError(f"jobs {missing[:5]} were collected before they were dispatched")
        of = np.array([self._where.pop(j) for j in jobs.tolist()], dtype=np.int64)
        places = {k: np.flatnonzero(of == k) for k in self.shards if (of == k).any()}
        if any(j in self._pending.get(k, ()) for j, k in zip(jobs.tolist(), of.tolist(), strict=True)):
            # All pending jobs are computed in one go: by those that deliver now when they are asked, and by the others.
            self._later("compute", {k: () for k in self._pending if k not in places})
            self._pending.clear()
        self._later("collect", {k: (jobs[rows], self._widths) for k, rows in places.items()})
        return self._messages(jobs, places)

    def save(self) -> dict[str, Tensor]:
        parts = self._answers("save", dict.fromkeys(self.shards, ()))
        return merge_saved(
            [{name: as_tensor(v, torch.device("cpu")) for name, v in part.items()} for part in parts.values()]
        )

    def load(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `save` of any backend gave, with any number of shards.

        Raises
        ------
        RunError
            The rows of the clients are in a file, where no actor can read them.
        """
        if "slots" in saved:
            raise RunError("this run keeps clients' state on disk: continue it with the backend vectorized")
        for k, part in split_saved(saved, self.owner).items():
            self._where |= dict.fromkeys([*part.get("pending.numbers", []), *part.get("done.numbers", [])], k)
            if "pending.numbers" in part:
                self._pending[k] = set(part["pending.numbers"].tolist())
        self._forget(lambda: saved)
        self._reset(self.shards)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether so much would have to be played again after a loss that a checkpoint is due."""
        return self._log_bytes > _LOG_BYTES or len(self._log) > _LOG_CALLS

    def checkpointed(self, saved: Saved) -> None:
        """A checkpoint was written: what was done before it is not played again."""
        self._forget(saved.clients)

    def close(self) -> None:
        """End the actors, and the cluster where it was started here."""
        self.cluster.end(list(set(self.host.values())))
        self.host.clear()
        self.cluster.close()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _messages(self, jobs: Ints, places: dict[int, Ints]) -> Message:
        """Rows that stay in the shards.

        Whether anybody was dropped, and messages of one number per client, have to be known at once; otherwise the
        shards are only asked together with the first sum.
        """
        answers: dict[int, Collected] = {}
        if not self._widths or self.pool.drop or 1 in self._widths.values():
            answers = self._answers("collected", dict.fromkeys(places, ()))
            self._widths = dict(next(iter(answers.values())).widths)
        dropped = {n: why for answer in answers.values() for n, why in answer.dropped.items()}
        self.lost = np.flatnonzero(np.isin(jobs, list(dropped) if self._cohort else []))
        for why in dropped.values():
            log.warning("left out of the cohort: %s" if self._cohort else "did not compute in its round: %s", why)
        keep = np.setdiff1d(np.arange(len(jobs)), self.lost)
        messages: dict[str, Any] = {}
        for name, width in self._widths.items():
            columns = {k: answer.scalars[name] for k, answer in answers.items() if name in answer.scalars}
            messages[name] = (
                self._assembled(columns, places, keep, len(jobs), width)
                if columns
                else self._kept(name, places, keep, len(jobs), width)
            )
        return messages

    def _kept(self, name: str, places: dict[int, Ints], keep: Ints, count: int, width: int) -> Rows:
        """Rows that stay in the shards."""

        def reduce(weights: Tensor) -> Tensor:
            every = np.zeros(count)
            every[keep] = weights.detach().cpu().double().numpy()
            calls = {k: (name, every[rows]) for k, rows in places.items()}
            parts = self._answers("reduce", calls)
            total = self._tensor(parts[min(parts)]).clone()
            for k in sorted(parts)[1:]:  # in the shards' order, so that the same run has the same sum again
                total += self._tensor(parts[k])
            return total

        def fetch() -> Tensor:
            parts = self._answers("rows", dict.fromkeys(places, (name,)))
            return self._assembled(parts, places, keep, count, width)

        return Rows((len(keep), width), self.like, reduce, fetch)

    def _assembled(
        self, parts: Mapping[int, Any], places: dict[int, Ints], keep: Ints, count: int, width: int
    ) -> Tensor:
        whole = self.like.new_empty((count, width))
        for k, rows in parts.items():
            whole[torch.as_tensor(places[k], device=whole.device)] = self._tensor(rows)
        return whole if len(keep) == count else whole[torch.as_tensor(keep, device=whole.device)]

    def _tensor(self, array: Any) -> Tensor:
        return as_tensor(array, self.like.device)

    def _shared(self, received: Message) -> tuple[Any, int]:
        """What all clients received, made ready once as long as it is the same; None where rows differ. And its size.

        Small models travel in the calls, large ones through shared memory.
        """
        values = list(received.values())
        if any(v.dim() > 1 for v in values):
            return None, sum(v.numel() * v.element_size() for v in values)
        if self._broadcast is None or not all(a is b for a, b in zip(self._broadcast[0], values, strict=True)):
            arrays = as_arrays(received)
            size = sum(a.nbytes for a in arrays.values())
            if size > _INLINE_BYTES:
                self._broadcast = (values, self._ray.put(arrays))
            else:  # copies: what is changed in place after the call would be changed in the log, too
                self._broadcast = (values, {k: v.copy() for k, v in arrays.items()})
            return self._broadcast[1], size
        return self._broadcast[1], 0

    # --- calls, and what happens when they are lost -------------------------------------------------------------------

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
        sent = {k: self._send(k, *waiting.pop(k, ()), (method, arguments)) for k, arguments in calls.items()}
        for k, others in waiting.items():
            self._send(k, *others)
        while True:
            try:
                found = dict(zip(sent, self._get(list(sent.values())), strict=True))
                self._failures = 0
                return found
            except LostError:
                self._recover()
                sent = {k: self._send(k, (method, arguments)) for k, arguments in calls.items()}

    def _send(self, k: int, *calls: Call) -> Any:
        """Call methods of a shard; a reference to what the last of them returns."""
        references = [a for _, arguments in calls for a in arguments if isinstance(a, self._ray.ObjectRef)]
        plain = [
            (method, tuple(None if isinstance(a, self._ray.ObjectRef) else a for a in arguments))
            for method, arguments in calls
        ]
        return self.host[k].calls.remote(k, plain, *references)

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
                self._bury_the_silent()
            except exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, ClientError):
                    raise RunError(_named(cause)) from None
                if isinstance(cause, exceptions.RayError):
                    raise LostError(str(cause)) from None
                raise RunError(f"in an actor: {type(cause).__name__}: {cause}") from error
            except exceptions.RayError as error:
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

    def _recover(self) -> None:
        """Bring lost shards to where they were."""
        while True:
            self._failures += 1
            if self._failures > _IN_A_ROW:
                raise RunError(
                    f"actors were lost {_IN_A_ROW} times in a row without progress; the cluster has "
                    f"{self.cluster.described()}"
                )
            gone = self._silent(self.pool.timeout)
            lost = [k for k in self.shards if self.host[k] in gone]
            log.warning("%d of %d actors were lost and are replaced", len(gone), len(set(self.host.values())))
            try:
                self._rehouse(lost, gone)
                self._replay(self._affected(lost))
                return
            except LostError:
                continue

    def _rehouse(self, lost: list[int], gone: list[Any]) -> None:
        """Find every lost shard an actor: a new one, else the one with the fewest shards."""
        self.cluster.end(gone)
        survivors = [host for host in dict.fromkeys(self.host.values()) if host not in gone]
        for k in lost:
            try:
                seconds = _ADOPTION_SECONDS if survivors else 6 * _ADOPTION_SECONDS
                self.host[k] = self.cluster.start(1, self.pool.cpus, self.pool.gpus, self.pool.threads, seconds)[0]
            except RunError as error:
                if not survivors:
                    raise
                log.warning("%s; another actor takes its clients", error)
                taken = list(self.host.values())
                self.host[k] = min(survivors, key=taken.count)
        self._adopt(lost)

    def _adopt(self, shards: list[int]) -> None:
        self._get([self.host[k].adopt.remote(k, self._packed[k]) for k in shards])

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
        parts = split_saved(self._snapshot(), self.owner) if self._snapshot is not None else {}
        self._get([self._send(k, ("reset", (as_arrays(parts.get(k, {})),))) for k in shards])

    def _forget(self, snapshot: Callable[[], Mapping[str, Tensor]] | None) -> None:
        self._snapshot, self._log, self._log_bytes = snapshot, [], 0

    # --- placement ----------------------------------------------------------------------------------------------------

    def _place(self, load: Any) -> Ints:
        return place(load, self.pool.actors)


class LostError(Exception):
    """An actor, its node or an object is gone."""


def _rows(received: Message, rows: Ints) -> Message:
    index = torch.as_tensor(rows)
    return {k: v[index.to(v.device)] if v.dim() > 1 else v for k, v in received.items()}


def _named(error: ClientError) -> str:
    """Which clients failed, and how."""
    shown = "; ".join(f"client {c}: {why}" for c, why in list(error.clients.items())[:3])
    more = f"; and {len(error.clients) - 3} more" if len(error.clients) > 3 else ""
    count = f"{len(error.clients)} client{'s' if len(error.clients) > 1 else ''}"
    return f"the local work of {count} failed: {shown}{more}. backend.client_errors: drop leaves them out"
