"""What stays with clients of their models, as the local work sees it: whole models go in, shared parts come out.

Algorithms never know: what a client receives is made whole with its own numbers before its work, and what it sends is
cut down to the shared ones before anything is done to messages. Its own numbers are what they are at the end of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.core.oracle import CARRIED, PERSONAL, PERSONAL_CARRIED, Task
from fedsim.core.sharing import Sharing
from fedsim.core.types import Message, State

_NAMES = (PERSONAL, PERSONAL_CARRIED)


def fresh_personal(task: Task) -> State:
    """What clients keep of their own models before their first round, rows of one."""
    found: State = {}
    if task.sharing.params.own:
        found[PERSONAL] = task.sharing.params.personal(task.initial()).unsqueeze(0)
    if task.sharing.buffers.own:
        found[PERSONAL_CARRIED] = task.sharing.buffers.personal(task.carried[CARRIED]).unsqueeze(0)
    return found


def parted(kept: Mapping[str, Tensor]) -> tuple[State, State]:
    """Of what clients keep what is of their own models, and the rest."""
    return {k: v for k, v in kept.items() if k in _NAMES}, {k: v for k, v in kept.items() if k not in _NAMES}


def composed(received: Message, personal: State, sharing: Sharing) -> Message:
    """What clients received as they work from it: with whole models, rows ``[m, d]``, and whole buffers."""
    if not personal:
        return received
    found = dict(received)
    if PERSONAL in personal:
        found["x"] = sharing.params.whole(received["x"], personal[PERSONAL])
    if PERSONAL_CARRIED in personal:
        own = personal[PERSONAL_CARRIED]
        common = received[CARRIED] if CARRIED in received else own[..., :0]
        found[CARRIED] = sharing.buffers.whole(common, own)
    return found


def kept_of(x: Tensor, carried: Tensor | None, sharing: Sharing) -> State:
    """What clients keep of their models ``[m, d]`` and of what these carry, ``[m, b]``."""
    found: State = {}
    if sharing.params.own:
        found[PERSONAL] = sharing.params.personal(x)
    if sharing.buffers.own and carried is not None:
        found[PERSONAL_CARRIED] = sharing.buffers.personal(carried)
    return found


def own_models(task: Task, state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Tensor:
    """Models ``[m, d + b]`` of clients, from the shared `state` that each has and from what they have kept."""
    common = state["x"]
    if task.common_carried:
        common = torch.cat([common, state[CARRIED]], -1)
    return task.model(common, parted(kept)[0])
