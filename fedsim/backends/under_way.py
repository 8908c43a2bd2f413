"""Jobs that are under way, as a checkpoint has them.

``pending.numbers``, ``clients``, ``rounds``, ``steps`` and ``ends`` have an element for each client at work, ``[m]``.
What it has received is row ``pending.version[i]`` of ``pending.received.*`` ``[v, d]``: all that began with the same
model share one. Checkpoints of older versions have no ``pending.version``, and a row for each client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Floats, Ints
from fedsim.core.job import Job
from fedsim.core.types import Message

PREFIX = "pending."
_RECEIVED = f"{PREFIX}received."
_VERSION = f"{PREFIX}version"
_EACH = ("numbers", "clients", "rounds", "steps")


def packed(jobs: Sequence[Job]) -> dict[str, Tensor]:
    """What a checkpoint has of these jobs; nothing where there are none."""
    if not jobs:
        return {}
    saved = {f"{PREFIX}{name}": torch.as_tensor(np.concatenate([getattr(j, name) for j in jobs])) for name in _EACH}
    saved[f"{PREFIX}ends"] = torch.as_tensor(np.concatenate([ends_of(job) for job in jobs]))
    rows, versions, count = [], [], 0
    for job in jobs:
        common = all(v.dim() == 1 for v in job.received.values())
        m = len(job.clients)
        rows.append({k: v.unsqueeze(0) if common else v.expand(m, -1) for k, v in job.received.items()})
        versions.append(np.full(m, count) if common else count + np.arange(m))
        count += 1 if common else m
    saved[_VERSION] = torch.as_tensor(np.concatenate(versions))
    return saved | {_RECEIVED + k: torch.cat([row[k] for row in rows]) for k in rows[0]}


def unpacked(saved: Mapping[str, Tensor], device: torch.device) -> list[Job]:
    """The jobs again, in their order: one for clients that follow each other and received the same."""
    if f"{PREFIX}numbers" not in saved:
        return []
    version = _versions(saved)
    starts = np.flatnonzero(np.diff(version, prepend=-1))
    if len(starts) == len(version):  # each has its own
        return [_job(saved, np.arange(len(version)), _received(saved, version, device))]
    edges = [*starts.tolist(), len(version)]
    return [
        _job(saved, np.arange(a, b), {k: v[0] for k, v in _received(saved, version[a : a + 1], device).items()})
        for a, b in pairwise(edges)
    ]


def of_clients(saved: Mapping[str, Tensor], clients: Sequence[int], device: torch.device) -> Job | None:
    """What is under way of these clients alone; None where nothing is."""
    if f"{PREFIX}numbers" not in saved:
        return None
    rows = np.flatnonzero(np.isin(saved[f"{PREFIX}clients"].numpy(), clients))
    return _job(saved, rows, _received(saved, _versions(saved)[rows], device)) if len(rows) else None


def jobs_of(saved: Mapping[str, Tensor]) -> dict[tuple[int, int], int]:
    """The steps of what is under way and not computed, by client and the client's round."""
    if f"{PREFIX}numbers" not in saved:
        return {}
    clients, rounds, steps = (saved[f"{PREFIX}{name}"].tolist() for name in ("clients", "rounds", "steps"))
    return dict(zip(zip(clients, rounds, strict=True), steps, strict=True))


def some(saved: Mapping[str, Tensor], rows: Ints) -> dict[str, Tensor]:
    """Of what `packed` gave these clients' part, with what they have received."""
    own, inverse = np.unique(_versions(saved)[rows], return_inverse=True)
    part = {n: saved[n][torch.as_tensor(own)] for n in saved if n.startswith(_RECEIVED)}
    part |= {n: v[torch.as_tensor(rows)] for n, v in saved.items() if n.startswith(PREFIX) and n not in part}
    return {**part, _VERSION: torch.as_tensor(inverse.reshape(-1))}


def together(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several of what `packed` gave as one, in the order of the jobs' numbers."""
    parts = [part for part in parts if f"{PREFIX}numbers" in part]
    if not parts:
        return {}
    order = torch.cat([part[f"{PREFIX}numbers"] for part in parts]).argsort()
    received = [n for n in parts[0] if n.startswith(_RECEIVED)]
    counts = np.cumsum([0, *(len(part[received[0]]) for part in parts)])
    versions = np.concatenate([_versions(part) + first for part, first in zip(parts, counts, strict=False)])
    each = [n for n in parts[0] if n.startswith(PREFIX) and n not in received]
    merged = {n: torch.cat([part[n] for part in parts])[order] for n in each}
    merged |= {n: torch.cat([part[n] for part in parts]) for n in received}
    return {**merged, _VERSION: torch.as_tensor(versions)[order]}


def ends_of(job: Job) -> Floats:
    """When the clients of a job are done; at first where nobody knows."""
    return np.zeros(len(job.clients)) if job.ends is None else job.ends


def _versions(saved: Mapping[str, Tensor]) -> Ints:
    found: Ints = saved[_VERSION].numpy() if _VERSION in saved else np.arange(len(saved[f"{PREFIX}numbers"]))
    return found


def _received(saved: Mapping[str, Tensor], versions: Ints, device: torch.device) -> Message:
    rows = torch.as_tensor(versions)
    return {n.removeprefix(_RECEIVED): saved[n][rows].to(device) for n in saved if n.startswith(_RECEIVED)}


def _job(saved: Mapping[str, Tensor], rows: Ints, received: Message) -> Job:
    numbers, clients, rounds, steps = (saved[f"{PREFIX}{name}"].numpy()[rows] for name in _EACH)
    ends = saved[f"{PREFIX}ends"].numpy()[rows] if f"{PREFIX}ends" in saved else None
    return Job(clients, rounds, steps, received, numbers, ends=ends)
