"""What a transform of messages promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from fedsim.contract.tools import UNSEEDED, LawBrokenError, compare, copied, global_seed, same_from_yaml, unchanged
from fedsim.core import rng
from fedsim.core.job import Contribution, Job, RunFacts
from fedsim.core.types import Message, State
from fedsim.messages.attack import Attack
from fedsim.messages.base import MessageTransform
from fedsim.messages.compressor import Compressor

M, D, ROUNDS, DRAWS = 13, 7, 3, 4000
TOLERANCE = 1e-12
RUN = RunFacts(5, M)
ROWS_HINT = "a client's row depends on other rows, on their number or on their order; work row by row (dim=-1)"
GLOBAL_HINT = f"{UNSEEDED}; draw from keys (fedsim.rng)"


def transform_laws(part: MessageTransform) -> Mapping[str, Callable[[], str]]:
    """Laws of one transform, and of what compressors promise beyond."""
    laws: dict[str, Callable[[], str]] = {
        "form of messages": partial(_transform_form, part),
        "stacked = sharded = single": partial(_transform_rows, part),
        "inputs are not mutated": partial(_transform_inputs, part),
        "same seed, same numbers": partial(_transform_seed, part),
        "bytes are counted": partial(_bytes, part),
        "YAML round trip": partial(same_from_yaml, part),
    }
    if isinstance(part, Compressor):
        laws["error as it says"] = partial(_compression_error, part)
    return laws


def messages_of(number: int, rows: int = M) -> Message:
    draws = rng.normal(rng.key(number, "contract", np.arange(rows)[:, None], np.arange(D)[None, :]))
    delta = torch.as_tensor(draws)
    return {"delta": delta, "other": delta.flip(-1) * 2 + 1, "size": delta[:, :1].abs() + 1}


# --- transforms -------------------------------------------------------------------------------------------------------


def _sent(part: MessageTransform, rows: list[int], rounds: int = ROUNDS) -> tuple[Message, State]:
    """What clients `rows` send in the last of some rounds, and what they keep then."""
    form = {k: v[:1] for k, v in messages_of(1).items()}
    part.check(form, RUN)
    clients = np.array(rows)
    kept = {k: v.expand(len(rows), -1).clone() for k, v in part.fresh(form).items()}
    sent: Message = {}
    for number in range(1, rounds + 1):
        message = {k: v[rows] for k, v in messages_of(number).items()}
        one = np.ones(len(rows), dtype=np.int64)
        sent, kept = part.send(message, kept, Job(clients, number * one, one, {}), RUN)
    return comparable(part, sent), kept


def _arrived(part: MessageTransform, messages: Message, number: int = 1) -> Message:
    one = np.ones(M, dtype=np.int64)
    return comparable(part, part.receive(messages, Contribution(number, np.arange(M), number * one, one), RUN))


def comparable(part: MessageTransform, messages: Message) -> Message:
    """Messages with a number in place of what is none, where an attack is made to send such."""
    if not isinstance(part, Attack) or part.finite:
        return messages
    return {k: v.nan_to_num(7.0) for k, v in messages.items()}


def _transform_form(part: MessageTransform) -> str:
    sent, kept = _sent(part, list(range(M)))
    form = messages_of(1)
    fresh = {k: v.shape[-1] for k, v in part.fresh({k: v[:1] for k, v in form.items()}).items()}
    for what, tensors in (("send", sent), ("receive", _arrived(part, form))):
        for k, v in form.items():
            if k not in tensors or tensors[k].shape != v.shape or tensors[k].dtype != v.dtype:
                found = f"{tensors[k].dtype} {list(tensors[k].shape)}" if k in tensors else "nothing"
                raise LawBrokenError(f"{what} made {found} of '{k}', allowed: {v.dtype} {list(v.shape)}")
    if {k: v.shape[-1] for k, v in kept.items()} != fresh:
        raise LawBrokenError(f"clients keep {sorted(kept)} after send, allowed: what fresh gives, {sorted(fresh)}")
    return f"{', '.join(form)}; a client keeps {', '.join(fresh) or 'nothing'}"


def _transform_rows(part: MessageTransform) -> str:
    whole, worst = _sent(part, list(range(M))), 0.0
    for rows in ([4, 1, 9], *[[i] for i in range(M)]):
        for what, all_rows, some in zip(("what is sent", "what is kept"), whole, _sent(part, rows), strict=True):
            mine = {k: v[rows] for k, v in all_rows.items()}
            worst = max(worst, compare(f"clients {rows} alone: {what}", mine, some, TOLERANCE, ROWS_HINT))
    return f"largest difference {worst:.1e}"


def _transform_inputs(part: MessageTransform) -> str:
    message = messages_of(2)
    kept = {k: v.expand(M, -1).clone() for k, v in part.fresh({k: v[:1] for k, v in message.items()}).items()}
    before = copied(message), copied(kept)
    one = np.ones(M, dtype=np.int64)
    part.send(message, kept, Job(np.arange(M), one, one, {}), RUN)
    _arrived(part, message)
    unchanged("send or receive", message, before[0])
    unchanged("send", kept, before[1])
    return "messages and what is kept are as they were"


def _transform_seed(part: MessageTransform) -> str:
    found: list[State] = []
    for seed in (1, 2):
        with global_seed(seed):
            sent, kept = _sent(part, list(range(M)))
            found.append({**_arrived(part, sent), **{f"kept {k}": v for k, v in kept.items()}})
    compare("two runs of the same seed: messages", found[0], found[1], 0.0, GLOBAL_HINT)
    return "bit for bit"


def _bytes(part: MessageTransform) -> str:
    size = part.row_bytes({k: v[:1] for k, v in messages_of(1).items()})
    if size is not None and not (isinstance(size, int) and size > 0):
        raise LawBrokenError(f"row_bytes gave {size!r}, allowed: a whole number above 0, or None (unchanged)")
    return "unchanged" if size is None else f"{size} of a message of {2 * D + 1} numbers"


def _compression_error(part: Compressor) -> str:
    """Its mean squared error is within alpha or omega, and with omega its mean is the vector, to 5 standard errors."""
    v = messages_of(6, DRAWS)["delta"]
    alpha, omega = part.alpha(D), part.omega(D)
    u = torch.as_tensor(rng.uniform(rng.key(7, "contract", np.arange(DRAWS)[:, None], np.arange(D)[None, :])))
    u = u if part.draws else u[:, :0]
    relative = float(((part(v, u) - v) ** 2).sum() / (v**2).sum())
    for name, bound in (("alpha", None if alpha is None else 1 - alpha), ("omega", omega)):
        if bound is not None and relative > bound * 1.05 + TOLERANCE:
            raise LawBrokenError(f"{name} allows a relative error of {bound:.3g}, found {relative:.3g}")
    if omega is not None:
        same = part(v[:1].expand(DRAWS, -1), u)
        off = (same.mean(0) - v[0]).abs() - 5 * same.std(0) / DRAWS**0.5
        if float(off.max()) > 1e-9:
            raise LawBrokenError(f"omega says it is unbiased, but its mean is {float(off.max()):.1e} away from it")
    return f"relative error {relative:.3g}"
