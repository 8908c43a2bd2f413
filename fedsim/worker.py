"""The only local-training loop: some clients' persistent state and their local work, in chunks of rows.

Every backend uses it: all clients (vectorized), a shard, one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Effort
from fedsim.task import Ints, Plan, Task
from fedsim.types import Message, State

_CPU_BYTES = 16 * 2**20  # parameters, gradients and the update of a chunk: about what stays in a CPU's shared cache
_GPU_SHARE = 0.25  # of the memory that is free when the run starts


@dataclass(frozen=True)
class Job:
    """Local work to be done: ``steps[i]`` steps of client ``clients[i]`` in its round ``rounds[i]``.

    `received` holds ``[d]`` tensors where all clients got the same, ``[m, d]`` where each got its own.
    """

    clients: Ints
    rounds: Ints
    steps: Ints
    received: Message
    jobs: Ints | None = None

    @property
    def numbers(self) -> Ints:
        """Serial numbers of the jobs; the clients' own where each has only one."""
        return self.clients if self.jobs is None else self.jobs


class ClientStore:
    """What clients keep between rounds. Only clients that ever worked take memory; a million others cost an index."""

    def __init__(self, algorithm: Algorithm, initial: Tensor, num_clients: int) -> None:
        self._fresh = {k: v[0] for k, v in algorithm.init_client(initial.unsqueeze(0)).items()}
        self._slots = np.full(num_clients if self._fresh else 0, -1, dtype=np.int64)
        self._tables: State = {k: v.new_empty((0, v.shape[-1])) for k, v in self._fresh.items()}
        self._used = 0

    def gather(self, clients: Ints) -> State:
        """Rows ``[m, d]`` of `clients`, copies."""
        if not self._fresh:
            return {}
        slots = self._slots[clients]
        new = slots < 0
        index = torch.as_tensor(np.where(new, 0, slots), device=next(iter(self._fresh.values())).device)
        if new.all():
            return {k: v.expand(len(clients), -1).clone() for k, v in self._fresh.items()}
        rows = {k: table.index_select(0, index) for k, table in self._tables.items()}
        if new.any():
            mask = torch.as_tensor(new, device=index.device)
            for k, v in rows.items():
                v[mask] = self._fresh[k]
        return rows

    def scatter(self, clients: Ints, rows: State) -> None:
        """Keep `rows` as the state of `clients`."""
        if not self._fresh or len(clients) == 0:
            return
        new = clients[self._slots[clients] < 0]
        self._slots[new] = self._used + np.arange(len(new))
        self._used += len(new)
        self._grow(self._used)
        index = torch.as_tensor(self._slots[clients], device=next(iter(self._fresh.values())).device)
        for k, v in rows.items():
            self._tables[k][index] = v

    def save(self) -> dict[str, Tensor]:
        """Everything, as named tensors."""
        known = np.flatnonzero(self._slots >= 0)
        order = torch.as_tensor(self._slots[known])
        saved = {f"table.{k}": table[order.to(table.device)] for k, table in self._tables.items()}
        return {**saved, "clients": torch.as_tensor(known)}

    def load(self, saved: dict[str, Tensor]) -> None:
        known = saved["clients"].numpy()
        if len(known):
            self.scatter(known, {k: saved[f"table.{k}"].to(v.device) for k, v in self._fresh.items()})

    def _grow(self, needed: int) -> None:
        for k, table in self._tables.items():
            if needed > len(table):
                room = min(max(needed, 2 * len(table)), len(self._slots))
                bigger = table.new_empty((room, table.shape[-1]))
                bigger[: len(table)] = table
                self._tables[k] = bigger


class Worker:
    """Runs the local work of any set of clients and keeps their state."""

    def __init__(self, task: Task, algorithm: Algorithm, chunk_rows: int | None = None) -> None:
        self.task, self.algorithm = task, algorithm
        self.initial = task.initial()
        self.store = ClientStore(algorithm, self.initial, task.num_clients)
        self.chunk_rows = chunk_rows or default_chunk_rows(task)

    def run(self, job: Job) -> Message:
        """The messages of all clients of `job`, row i belonging to ``job.clients[i]``."""
        order = np.lexsort((-self.task.sizes[job.clients], -job.steps))
        in_order = np.array_equal(order, np.arange(len(order)))
        if in_order and len(order) <= self.chunk_rows:
            return self._chunk(job)
        result: Message = {}
        for start in range(0, len(order), self.chunk_rows):
            rows = order[start : start + self.chunk_rows]
            index = torch.as_tensor(rows, device=self.initial.device)
            part = self._chunk(_select(job, rows, index))
            for k, v in part.items():
                if k not in result:
                    result[k] = v.new_empty((len(order), v.shape[-1]))
                if in_order:
                    result[k][start : start + len(rows)] = v
                else:
                    result[k].index_copy_(0, index, v)
        return result

    def _chunk(self, job: Job) -> Message:
        """Local work of one chunk (rows sorted by falling steps): all its steps before the next chunk starts."""
        _, epochs = self.algorithm.work()
        client = self.store.gather(job.clients)
        lr = self._column(self.algorithm.lr_at(job.rounds))
        m, most = len(job.clients), int(job.steps.max(initial=0))
        local = {k: v.expand(m, -1) for k, v in self.algorithm.start(job.received, client).items()}
        plan: Plan | None = None
        if most > 0:
            busy = int((job.steps > 0).sum())
            plan = self.task.plan(
                job.clients[:busy], job.rounds[:busy], job.steps[:busy], self.algorithm.batch_size, epochs
            )
        plain = self.algorithm.is_plain_sgd
        finished: list[Message] = []
        working = (job.steps[None, :] > np.arange(most + 1)[:, None]).sum(1).tolist()  # rows that take step 0, 1, ...
        received, kept, rates, end = job.received, client, lr, m
        for step, count in enumerate(working):
            if count < end:  # rows count..end have done all their steps
                finished.insert(0, self._finish(job, slice(count, end), local, client, lr))
                local, kept, rates, end = _head(local, count), _head(client, count), lr[:count], count
                received = {k: v[:count] if v.dim() > 1 else v for k, v in job.received.items()}
            if count and plan is not None:
                oracle = plan.oracle(step, count, rates)
                if plain:
                    local = {"x": local["x"].clone(memory_format=torch.contiguous_format)} if step == 0 else local
                    oracle.descend(local["x"])
                else:
                    local = self.algorithm.local_step(oracle, local, received, kept)
        return finished[0] if len(finished) == 1 else {k: torch.cat([f[k] for f in finished]) for k in finished[0]}

    def _finish(self, job: Job, rows: slice, local: State, client: State, lr: Tensor) -> Message:
        """Messages of rows whose work is done; rows that did no work keep their state as it was."""
        steps = job.steps[rows]
        effort = Effort(self._column(steps), lr[rows])
        received = {k: v[rows] if v.dim() > 1 else v for k, v in job.received.items()}
        kept = {k: v[rows] for k, v in client.items()}
        message, after = self.algorithm.message({k: v[rows] for k, v in local.items()}, received, kept, effort)
        if steps.size and steps[0] > 0:
            self.store.scatter(job.clients[rows], after)
        return {k: v.expand(len(steps), -1) for k, v in message.items()}

    def _column(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(values, dtype=self.initial.dtype, device=self.initial.device).unsqueeze(1)


def default_chunk_rows(task: Task) -> int:
    """Rows whose parameters, gradient and update stay in a CPU's cache, or in a share of a GPU's free memory."""
    item = torch.empty((), dtype=task.dtype).element_size()
    row = 3 * task.dim * item
    if task.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(task.device)
        return max(1, int(_GPU_SHARE * free) // (2 * row))
    rows, threads = max(1, _CPU_BYTES // row), torch.get_num_threads()
    return rows if rows < threads else rows // threads * threads  # batched products give every thread whole rows


def _select(job: Job, rows: Ints, index: Tensor) -> Job:
    received = {k: v.index_select(0, index) if v.dim() > 1 else v for k, v in job.received.items()}
    return Job(job.clients[rows], job.rounds[rows], job.steps[rows], received)


def _head(rows: State, count: int) -> State:
    return {k: v[:count] for k, v in rows.items()}
