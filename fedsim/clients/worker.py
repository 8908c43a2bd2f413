"""The only local-training loop: some clients' persistent state and their local work, in chunks of rows.

Every backend uses it: all clients (vectorized), a shard, one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Effort, one_message
from fedsim.algorithms.client import changed, directions_of, for_solver, of_solver
from fedsim.clients.parallel import InTurn, Kept, Rows, divided, share
from fedsim.clients.personal import composed, fresh_personal, kept_of, parted
from fedsim.clients.phases import Masked, Now, Schedule
from fedsim.clients.round import model
from fedsim.clients.store import ClientStore
from fedsim.core.arrays import Ints
from fedsim.core.job import Job
from fedsim.core.oracle import CARRIED, Plan, Task
from fedsim.core.returned import by_row, same_form
from fedsim.core.rules import Affine
from fedsim.core.types import BatchSize, Message, State, tensor_of
from fedsim.messages.base import SEPARATOR, Pipeline, check_names, own_rows

_CPU_ACTIVATIONS = 64 * 2**20  # of a chunk, where they are more than its parameters
_CPU_BYTES = 16 * 2**20  # parameters, gradients and the update of a chunk: about what stays in a CPU's shared cache
_ONE = np.ones(1, dtype=np.int64)
_GPU_SHARE = 0.25  # of the memory that is free when the run starts


class Worker:
    """Runs the local work of any set of clients and keeps their state, in memory unless `store` says otherwise.

    `pipeline` is what is done to messages at the client, before they leave it (local noise, compression, ...).
    """

    def __init__(
        self,
        task: Task,
        algorithm: Algorithm,
        chunk_rows: int | None = None,
        store: ClientStore | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.task, self.algorithm, self.pipeline = task, algorithm, pipeline or Pipeline()
        self.initial = task.initial()
        self.form = one_message(algorithm, task, gossip=algorithm.setting == "gossip")[1]
        """What one client sends, as rows of one, before the pipeline."""
        self.store = store or ClientStore(
            fresh_rows(algorithm, task, self.pipeline), self.initial.device, task.num_clients
        )
        self.schedule = Schedule.of(algorithm, task)
        self.chunk_rows = chunk_rows or default_chunk_rows(task, algorithm.batch_size)
        self.step_bytes = task.step_bytes(algorithm.batch_size)

    def draw_from(self, word: int) -> None:
        """Have the privacy mechanism, of which this worker has a copy in another process, draw from `word`."""
        for link in self.pipeline.links:
            link.draw_from(word)

    def run(self, job: Job) -> Message:
        """The messages of all clients of `job` as they leave them, row i belonging to ``job.clients[i]``."""
        chunks = list(self._chunks(job))
        if len(chunks) == 1 and np.array_equal(chunks[0][1], np.arange(len(job.clients))):
            return self._chunk(chunks[0][0], job, self.store)
        result, store = Rows(len(job.clients)), InTurn(self.store)

        def compute(number: int) -> None:
            algorithm, rows = chunks[number]
            index = torch.as_tensor(rows, device=self.initial.device)
            with store.turn(number) as own:
                result.put(rows, index, self._chunk(algorithm, job.of(rows), own))

        share(compute, len(chunks), len(job.clients) * self.step_bytes, self.initial.device)
        return result.tensors

    def _chunks(self, job: Job) -> Iterator[tuple[Algorithm, Ints]]:
        """The job's rows in chunks of one role each, by falling steps and sizes, and the algorithm that each runs."""
        for algorithm, rows in self.algorithm.by_role(job.clients, job.rounds, self.task.seed):
            order = rows[np.lexsort((-self.task.sizes[job.clients[rows]], -job.steps[rows]))]
            for part in divided(len(order), self.chunk_rows, self.step_bytes, self.initial.device):
                yield algorithm, order[part]

    def _chunk(self, algorithm: Algorithm, job: Job, store: Kept) -> Message:
        """Local work of one chunk (rows sorted by falling steps): all its steps before the next chunk starts."""
        _, epochs = algorithm.work()
        kept_rows = store.gather(job.clients)
        personal, client = parted(own_rows(kept_rows))
        beside = {k: v for k, v in kept_rows.items() if SEPARATOR in k} | personal
        received = composed(job.received, personal, self.task.sharing)
        received, loss = self.opened(algorithm, received, client, job.clients, job.rounds)
        job = replace(job, received=received)
        lr = self._column(algorithm.lr_at(job.rounds))
        m, most = len(job.clients), int(job.steps.max(initial=0))
        local = by_row(algorithm.begin(job.received, client), None, m, self.initial, algorithm, "start")
        local = {k: _each(v, m) for k, v in local.items()}
        plan: Plan | None = None
        busy = int((job.steps > 0).sum())
        if most > 0:
            plan = self.task.plan(job.clients[:busy], job.rounds[:busy], job.steps[:busy], algorithm.batch_size, epochs)
            plan.begin({k: v[:busy] if v.dim() > 1 else v for k, v in job.received.items()})
        plain, schedule, rule = algorithm.is_plain_sgd, self.schedule, algorithm.rule
        moves = algorithm.sends_change and most <= 1 and schedule is None and self.task.sharing.everything
        now: Now | None = None
        per_unit = self.task.steps_per_epoch(job.clients, algorithm.batch_size) if epochs and schedule else _ONE
        finished: list[Message] = []
        working = (job.steps[None, :] > np.arange(most + 1)[:, None]).sum(1).tolist()  # rows that take step 0, 1, ...
        received, kept, rates, end, taken = job.received, client, lr, m, 0
        for step, count in enumerate(working):
            if count < end:  # rows count..end have done all their steps
                carried = None if plan is None or count >= busy else plan.carried
                finished.insert(
                    0, self._finish(algorithm, job, slice(count, end), local, client, beside, lr, loss, store, carried)
                )
                if not count:
                    break
                local, kept, rates, end = _head(local, count), _head(client, count), lr[:count], count
                received = {k: v[:count] if v.dim() > 1 else v for k, v in job.received.items()}
            if count and plan is not None and step >= taken:
                if moves:  # as far as one step does: nobody asks where x gets to
                    local = changed(plan.oracle(step, count, rates).change(local["x"].contiguous()))
                    continue
                if rule is not None and not plain and schedule is None and plan.walks(local["x"]):
                    moved = directions_of(algorithm, local, received, kept)
                    if moved is not None:
                        taken = step + working[step:].count(count)
                        local = _walked(algorithm, moved, plan, local, rates, range(step, taken))
                        continue
                start = local["x"] if plain and step == 0 else None
                if start is not None:
                    local = {"x": torch.empty_like(start, memory_format=torch.contiguous_format)}
                if plain and schedule is None:
                    taken = step + working[step:].count(count)  # the same rows until then
                    plan.descend(local["x"], rates, range(step, taken), start)
                    continue
                if start is not None:
                    local["x"].copy_(start)
                oracle = plan.oracle(step, count, rates)
                if schedule is not None:
                    before, now = now, schedule.at(np.broadcast_to(step // per_unit, m)[:count])
                    local, oracle = now.begun(algorithm, local, before), Masked(oracle, now.trains)
                if plain:
                    oracle.descend(local["x"])
                else:
                    stepped = algorithm.local_step(oracle, local, received, kept)
                    same_form(stepped, local, algorithm, "local_step", "step", "direction")
                    local = stepped if now is None else now.after(stepped, local)
        return finished[0] if len(finished) == 1 else {k: torch.cat([f[k] for f in finished]) for k in finished[0]}

    def _finish(
        self,
        algorithm: Algorithm,
        job: Job,
        rows: slice,
        local: State,
        client: State,
        beside: State,
        lr: Tensor,
        loss: Tensor | None,
        store: Kept,
        carried: Tensor | None,
    ) -> Message:
        """Messages of rows whose work is done, as they leave; rows that did no work keep their state as it was.

        `beside` is what is kept beside what the algorithm keeps: by the pipeline's links, and of their own models.
        `carried` is what the models of all rows carry besides their parameters now (None: what they received).
        """
        clients, steps, received, kept = job.clients, job.steps, job.received, client
        if len(clients) > rows.stop - rows.start:
            clients, steps, lr = clients[rows], steps[rows], lr[rows]
            loss = None if loss is None else loss[rows]
            received = {k: v[rows] if v.dim() > 1 else v for k, v in received.items()}
            kept, local, beside = ({k: v[rows] for k, v in own.items()} for own in (client, local, beside))
        travels, stays, after = algorithm.report(local, received, kept, Effort(self._column(steps), lr, loss))
        m, now, sharing = len(steps), None, self.task.sharing
        if CARRIED in received:
            before = received[CARRIED].expand(m, -1)
            now = before if carried is None else carried[rows]
            travels = {**travels, CARRIED: now - before if algorithm.setting == "server" else now}
        by_row(stays, None, m, self.initial, algorithm, "message")
        travels, stays = sharing.common(travels, CARRIED), sharing.common(stays, CARRIED)
        by_row(travels, self.form, m, self.initial, algorithm, "message")
        by_row(after, client, m, self.initial, algorithm, "message")
        if not sharing.everything:
            after = {**after, **kept_of(local["x"], now, sharing)}
        if self.pipeline.links:
            sent = Job(clients, job.rounds[rows], steps, sharing.common(received, CARRIED))
            travels = {k: _each(v, m) for k, v in travels.items()}
            travels, links = self.pipeline.send(travels, beside, sent)
            after = {**after, **links}
            if algorithm.setting == "gossip" and steps.size and steps[0] == 0 and (idle := self.pipeline.idle(links)):
                store.scatter(clients, {**kept, **beside, **idle})
        if steps.size and steps[0] > 0:
            store.scatter(clients, after)
        return {k: _each(v, m) for k, v in (travels | stays).items()}

    def opened(
        self, algorithm: Algorithm, received: Message, client: State, clients: Ints, rounds: Ints
    ) -> tuple[Message, Tensor | None]:
        """What clients work from, and the mean loss of that model on their data ``[m, 1]`` where it is asked for."""
        received, samples = algorithm.receive(received, client), algorithm.evaluates_on
        if samples is None:
            return received, None
        rows = {k: v.expand(len(clients), -1) for k, v in received.items()}
        models = [model(rows, rows[name]) for name in algorithm.candidates]
        losses = torch.cat([self.task.losses(x, clients, rounds, samples).mean for x in models], -1)
        return algorithm.choose(received, losses), losses.amin(-1, keepdim=True)

    def _column(self, values: npt.NDArray[np.generic]) -> Tensor:
        return tensor_of(values, self.initial.dtype, self.initial.device).unsqueeze(1)


def _walked(
    algorithm: Algorithm, moved: dict[str, tuple[Affine, float]], plan: Plan, local: State, lr: Tensor, steps: range
) -> State:
    """What `Algorithm.local_step` makes of `local` in all of these `steps`, where it goes along affine directions."""
    rule, after = algorithm.rule, dict(local)
    assert rule is not None
    for name, (directions, times) in moved.items():
        start = None if steps.start else local[name]
        x = local[name] if start is None else torch.empty_like(start, memory_format=torch.contiguous_format)
        before = of_solver(local, name) or algorithm.local_solver.start(x)
        remembered = {k: v.contiguous() for k, v in before.items()}
        plan.walk(x, lr if times == 1 else lr * times, steps, start, rule.along(directions), remembered)
        after |= {name: x, **for_solver(remembered, name)}
    return after


def fresh_rows(algorithm: Algorithm, task: Task, pipeline: Pipeline) -> State:
    """All that a client keeps between rounds before its first one, its algorithm's and the pipeline's: rows ``[1, d]``.

    Raises
    ------
    InputError
        The algorithm uses a name that belongs to the pipeline.
    """
    own = algorithm.fresh_client(task.initial().unsqueeze(0))
    check_names(own, type(algorithm).__name__)
    own = {**own, **fresh_personal(task)}
    if not pipeline.links:
        return own
    return {**own, **pipeline.fresh(one_message(algorithm, task, gossip=algorithm.setting == "gossip")[1])}


def default_chunk_rows(task: Task, batch_size: BatchSize) -> int:
    """Rows whose parameters, gradient and update stay in a CPU's cache, or with all that a gradient at `batch_size`
    needs in a share of a GPU's free memory."""
    item = torch.empty((), dtype=task.dtype).element_size()
    row = 3 * task.dim * item
    if task.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(task.device)
        return max(1, int(_GPU_SHARE * free) // (2 * row + task.activation_bytes(batch_size)))
    rows, each = _CPU_BYTES // row, task.activation_bytes(batch_size)  # whatever the number of threads: numbers depend
    return max(1, min(rows, _CPU_ACTIVATIONS // each) if each else rows)  # on no machine


def _each(rows: Tensor, m: int) -> Tensor:
    """Rows ``[m, ...]`` of what may be one for all."""
    return rows if rows.dim() > 1 and rows.shape[0] == m else rows.expand(m, -1)


def _head(rows: State, count: int) -> State:
    return {k: v[:count] for k, v in rows.items()}
