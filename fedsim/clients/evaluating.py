"""Clients' own models, where what they keep is: made, trained a little where that is asked for, and tested."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.clients.personal import composed, parted
from fedsim.clients.round import begin, model, some
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Floats, Ints
from fedsim.core.oracle import CARRIED, Task
from fedsim.core.own_tests import Asked, OwnAnswers, Tuning, joined
from fedsim.core.returned import by_row
from fedsim.core.types import Message, State
from fedsim.core.wrapped import plain
from fedsim.messages.base import own_rows

_BYTES = 2**25  # of models that are made at a time
_ROWS = 2**22  # that are tested at a time
_APART = 2**40  # added to rounds, so that no minibatch of tuning is one of training


def evaluate(worker: Worker, clients: Ints, received: Message, asked: Asked) -> OwnAnswers:
    """What the models of `clients` say of the clients' own test rows.

    `received` is what clients receive now, rows ``[m, ...]`` or one for all; where their models are no others than the
    common one, or those of a graph's nodes, its ``x``.
    """
    task, tests = worker.task, worker.task.own
    assert tests is not None  # `ClientEvaluation`
    if not asked.personal and asked.tuning is None and all(v.dim() == 1 for v in received.values()):
        return tests.answers(model(received, received["x"]), clients, asked.whole)
    step = min(_BYTES // (task.dim * worker.initial.element_size()), _ROWS // int(tests.sizes[clients].max()))
    step = max(1, step if asked.tuning is None else min(step, worker.chunk_rows))
    order = np.arange(len(clients)) if asked.tuning is None else np.argsort(-task.sizes[clients], kind="stable")
    found = []
    for start in range(0, len(clients), step):
        rows = order[start : start + step]
        index = torch.as_tensor(rows, device=worker.initial.device)
        mine = {k: v[index] if v.dim() > 1 else v for k, v in received.items()}
        models, choices = models_of(worker, clients[rows], mine, asked)
        found.append(replace(tests.answers(models, clients[rows], asked.whole), choices=choices))
    return _in_order(joined(found), order, tests.sizes[clients])


def asked_about(algorithm: Algorithm, state: State, nodes: Ints, asked: Asked) -> Message:
    """What `evaluate` is told of nodes of a graph, rows of `state`: what they receive, or their models."""
    rows = torch.as_tensor(nodes, device=next(iter(state.values())).device)
    if asked.personal:
        return begin(algorithm, state, rows)
    return some({k: v for k, v in state.items() if k in ("x", CARRIED)}, rows)


def models_of(worker: Worker, clients: Ints, received: Message, asked: Asked) -> tuple[Tensor, dict[str, Floats]]:
    """The models ``[m, d + b]`` that `clients` use, with what they carry, and what they chose.

    `received` and `asked` are as in `evaluate`.
    """
    algorithm, x, choices = worker.algorithm, received.get("x"), dict[str, Floats]()
    if asked.personal:
        personal, kept = parted(own_rows(worker.store.gather(clients)))
        received = composed(received, personal, worker.task.sharing)
        rounds = np.full(len(clients), asked.round + _APART, dtype=np.int64)
        received, _ = worker.opened(algorithm, received, kept, clients, rounds)
        x = algorithm.personal_model(received, kept)
        choices = {name: received[name][:, 0].double().cpu().numpy() for name in algorithm.choices}
        by_row({"x": x}, None, len(clients), worker.initial, algorithm, "personal_model")
    assert x is not None
    carried = {k: v.expand(len(clients), -1) for k, v in received.items() if k == CARRIED}
    models = model(carried, x.expand(len(clients), -1))
    if asked.tuning is not None:
        models = tuned(worker.task, models, clients, asked.round, asked.tuning)
    return models, choices


def tuned(task: Task, models: Tensor, clients: Ints, round: int, tuning: Tuning) -> Tensor:
    """The models after plain SGD of each client on its own training rows."""
    steps = np.full(len(clients), tuning.amount, dtype=np.int64)
    if tuning.epochs:
        steps *= task.steps_per_epoch(clients, tuning.batch_size)
    order = np.argsort(-steps, kind="stable")
    clients, steps, index = clients[order], steps[order], torch.as_tensor(order, device=models.device)
    x, carried = models[index, : task.dim].contiguous(), models[index, task.dim :]
    rounds = np.full(len(clients), round + _APART, dtype=np.int64)
    plan = plain(task).plan(clients, rounds, steps, tuning.batch_size, tuning.epochs)
    plan.begin({CARRIED: carried} if carried.shape[1] else {})
    lr = x.new_full((len(x), 1), tuning.lr)
    step = 0
    while step < steps[0]:
        count = int((steps > step).sum())
        last = int(steps[count - 1])  # the first of them to end
        plan.descend(x[:count], lr[:count], range(step, last))
        step = last
    if carried.shape[1] and plan.carried is not None:
        carried = plan.carried
    found = torch.empty_like(models)
    found[index] = torch.cat([x, carried], 1)
    return found


def _in_order(answers: OwnAnswers, order: Ints, sizes: Ints) -> OwnAnswers:
    """The answers of clients that were asked in `order`, as they are numbered."""
    return assembled([(order, answers)], sizes)


def assembled(parts: list[tuple[Ints, OwnAnswers]], sizes: Ints) -> OwnAnswers:
    """The answers of all m clients, from those of the clients at some places each; `sizes` ``[m]`` are their rows."""
    order, every = np.concatenate([places for places, _ in parts]), joined([part for _, part in parts])
    if np.array_equal(order, np.arange(len(order))):
        return every
    back = np.argsort(order)
    outputs = every.outputs
    if outputs is not None:
        ends = np.cumsum(sizes[order])
        outputs = np.concatenate([outputs[ends[i] - sizes[order[i]] : ends[i]] for i in back.tolist()])
    choices = {name: values[back] for name, values in every.choices.items()}
    right = None if every.right is None else every.right[back]
    return OwnAnswers(every.losses[back], right, outputs, choices=choices)
