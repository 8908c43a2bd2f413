"""What attackers promise: honest messages and honest rows are never touched, and what they do is a function of keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsim.contract.edge_laws import edge_laws
from fedsim.contract.message_laws import (
    GLOBAL_HINT,
    ROUNDS,
    ROWS_HINT,
    RUN,
    TOLERANCE,
    M,
    comparable,
    messages_of,
    transform_laws,
)
from fedsim.contract.tools import LawBrokenError, compare, copied, global_seed, same_from_yaml, unchanged
from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Contribution, Job
from fedsim.core.types import Message
from fedsim.messages.attack import Attack
from fedsim.messages.attackers import Attackers
from fedsim.messages.base import MessageTransform
from fedsim.messages.poison import Poison

_SAMPLES, _SIDE, _CLASSES = 20, 8, 4


def laws_of_transforms(part: MessageTransform) -> Mapping[str, Callable[[], str]]:
    """Laws of one transform, and of attackers where it is one."""
    if isinstance(part, Attack) and part.on_edges:
        return {**edge_laws(part), "YAML round trip": partial(same_from_yaml, part)}
    laws = dict(transform_laws(part))
    if isinstance(part, Attackers):
        laws["there are attackers and honest clients"] = partial(_chosen, part)
        laws["honest messages arrive as they were sent"] = partial(_honest, part)
    if isinstance(part, Attack):
        laws["nobody attacks before start"] = partial(_start, part)
        laws["honest messages count, not their order"] = partial(_order, part)
        laws["where no honest message came, it needs none"] = partial(_nobody_honest, part)
    if isinstance(part, Poison):
        laws["form of poisoned rows"] = partial(_poisoned_form, part)
        laws["rows that are given stay as they were"] = partial(_poisoned_inputs, part)
        laws["same seed, same rows"] = partial(_poisoned_seed, part)
    if isinstance(part, Attackers) and part.on_messages:
        laws |= edge_laws(part)
    return laws


def _chosen(part: Attackers) -> str:
    found = part.attacking(RUN)
    if not np.array_equal(found, np.unique(found)) or len(found) >= M or not np.isin(found, np.arange(M)).all():
        raise LawBrokenError(f"of clients 0 to {M - 1} it chose {found.tolist()}, allowed: some of them, ascending")
    return f"{len(found)} of {M} attack"


def _delivered(part: MessageTransform, messages: Message, clients: Ints, number: int) -> Message:
    """What is combined of what these clients send in a round, row i of ``clients[i]``."""
    one = np.ones(len(clients), dtype=np.int64)
    form = {k: v[:1] for k, v in messages.items()}
    kept = {k: v.expand(len(clients), -1).clone() for k, v in part.fresh(form).items()}
    sent, _ = part.send(messages, kept, Job(clients, number * one, one, {}), RUN)
    return part.receive(sent, Contribution(number, clients, number * one, one), RUN)


def _first(part: Attackers) -> int:
    return part.start if isinstance(part, Attack) else 1


def _honest(part: Attackers) -> str:
    honest = np.setdiff1d(np.arange(M), part.attacking(RUN))
    messages = messages_of(8)
    arrives = _delivered(part, messages, np.arange(M), _first(part))
    for k, v in messages.items():
        if not torch.equal(arrives[k][honest], v[honest]):
            raise LawBrokenError(f"'{k}' of clients that do not attack is changed")
    return f"{M - len(honest)} of {M} attack"


def _start(part: Attack) -> str:
    messages = messages_of(9)
    for number in range(max(1, part.start - ROUNDS), part.start):
        arrives = _delivered(part, messages, np.arange(M), number)
        for k, v in messages.items():
            if not torch.equal(arrives[k], v):
                raise LawBrokenError(f"'{k}' is changed in round {number}, before the first one, {part.start}")
    return f"from round {part.start} on"


def _order(part: Attack) -> str:
    """A permutation of what arrived permutes what is combined, and changes nothing else."""
    messages, order = messages_of(10), np.argsort(rng.uniform(rng.key(3, "contract", np.arange(M))))
    straight = _delivered(part, messages, np.arange(M), part.start)
    other = _delivered(part, {k: v[order] for k, v in messages.items()}, order, part.start)
    straight, other = comparable(part, straight), comparable(part, other)
    mine = {k: v[order] for k, v in straight.items()}
    worst = compare("messages in another order", mine, other, TOLERANCE, ROWS_HINT)
    return f"largest difference {worst:.1e}"


def _nobody_honest(part: Attack) -> str:
    who = part.attacking(RUN)
    if not len(who):
        return "nobody attacks"
    messages = {k: v[who] for k, v in messages_of(11).items()}
    arrives = _delivered(part, messages, who, part.start)
    if not part.local:
        compare("attackers alone: what is combined", messages, arrives, 0.0, "send the attackers' own messages then")
    return f"{len(who)} attackers alone"


# --- poison -----------------------------------------------------------------------------------------------------------


def _samples() -> tuple[Tensor, Tensor]:
    shape = (_SAMPLES, 1, _SIDE, _SIDE)
    pixels = rng.uniform(rng.fold(rng.key(1, "contract"), np.arange(int(np.prod(shape)))))
    return torch.as_tensor(pixels).reshape(shape), torch.arange(_SAMPLES) % _CLASSES


def _poisoned(part: Poison) -> tuple[Tensor, Tensor]:
    inputs, targets = _samples()
    try:
        part.fits(tuple(inputs.shape[1:]), _CLASSES)
    except InputError as error:
        raise LawBrokenError(f"it does not fit samples of {_SIDE} x {_SIDE} and {_CLASSES} classes: {error}") from None
    return part.rows(inputs, targets, _CLASSES, 2, RUN.seed)


def _poisoned_form(part: Poison) -> str:
    for given, found, what in zip(_samples(), _poisoned(part), ("inputs", "targets"), strict=True):
        if found.shape != given.shape or found.dtype != given.dtype:
            raise LawBrokenError(
                f"of {what} {given.dtype} {list(given.shape)} it made {found.dtype} {list(found.shape)}"
            )
    labels = _poisoned(part)[1]
    if int(labels.min()) < 0 or int(labels.max()) >= _CLASSES:
        raise LawBrokenError(f"it made class {int(labels.max())} of {_CLASSES}, allowed: 0 to {_CLASSES - 1}")
    changed = int((labels != _samples()[1]).sum())
    return f"{changed} of {_SAMPLES} labels changed"


def _poisoned_inputs(part: Poison) -> str:
    inputs, targets = _samples()
    before = copied({"inputs": inputs, "targets": targets})
    part.rows(inputs, targets, _CLASSES, 2, RUN.seed)
    unchanged("rows", {"inputs": inputs, "targets": targets}, before)
    return "inputs and targets are as they were"


def _poisoned_seed(part: Poison) -> str:
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            inputs, targets = _poisoned(part)
            found.append({"inputs": inputs, "targets": targets.double()})
    compare("two calls with the same seed: rows", found[0], found[1], 0.0, GLOBAL_HINT)
    return "bit for bit"
