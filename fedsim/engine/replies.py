"""``replies.jsonl`` of a deployment: how long clients really took, as a system model and as facts per client."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Reply = Mapping[str, Any]


_WORK = "train"
"""What rows are about that say nothing of it; evaluations say so."""

_MOST_CLIENTS = 1_000_000


def is_deployment(folder: Path) -> bool:
    """Whether the run in a directory is one of real clients."""
    return (folder / "deployment.json").exists()


@dataclass(frozen=True)
class Account:
    """One client's answers.

    `work` and `rest` are medians over its good answers of the seconds of local work and of everything else (sending,
    starting a process, waiting for polls); None where it gave none.
    """

    client: int
    good: int
    work: float | None
    rest: float | None
    troubles: tuple[Reply, ...]


def is_work(reply: Reply) -> bool:
    """Whether a row is about local work, and not about an evaluation."""
    return bool(reply.get("what", _WORK) == _WORK)


def accounts(replies: Sequence[Reply], clients: int) -> list[Account]:
    """What happened, client by client.

    Raises
    ------
    ValueError
        More clients than a deployment can have.
    """
    if not 0 <= clients <= _MOST_CLIENTS:
        raise ValueError(f"more than {_MOST_CLIENTS:,} clients")
    found = []
    for client in range(clients):
        mine = [r for r in replies if r["client"] == client]
        good = [r for r in mine if r["status"] == "ok" and is_work(r)]
        work = statistics.median(r["work"] for r in good) if good else None
        rest = statistics.median(max(r["seconds"] - r["work"], 0.0) for r in good) if good else None
        troubles = tuple(r for r in mine if r["status"] != "ok")
        found.append(Account(client, len(good), work, rest, troubles))
    return found


def fitted_system(replies: Sequence[Reply], clients: int, gossip: bool) -> dict[str, Any] | None:
    """The ``system:`` section with the measured medians; None where nobody ever answered.

    Compute is the local work and latency half of the rest, each way; messages of one size do not tell bandwidth from
    latency. On a graph, where the section has no network, compute is both. Clients that never answered get the median
    of the others.
    """
    known = accounts(replies, clients)
    works = [a.work for a in known if a.work is not None]
    rests = [a.rest for a in known if a.rest is not None]
    if not works:
        return None
    work = [statistics.median(works) if a.work is None else a.work for a in known]
    rest = [statistics.median(rests) if a.rest is None else a.rest for a in known]
    if gossip:
        return {"compute": _table([w + r for w, r in zip(work, rest, strict=True)])}
    return {"compute": _table(work), "network": {"latency": _table([r / 2 for r in rest])}}


def write_fitted(folder: Path, replies: Sequence[Reply], clients: int) -> Path | None:
    """``fitted.yaml``: the run's scenario with the measured system, for ``fedsim run``."""
    scenario = yaml.safe_load((folder / "scenario.yaml").read_text(encoding="utf-8"))
    system = fitted_system(replies, clients, gossip="topology" in scenario)
    if system is None:
        return None
    file = folder / "fitted.yaml"
    name = f"{scenario.get('name', 'scenario')}-fitted"
    text = yaml.safe_dump({**scenario, "name": name, "system": system}, sort_keys=False, width=120)
    file.write_text(text, encoding="utf-8")
    return file


def _table(values: Sequence[float]) -> dict[str, Any]:
    return {"model": "table", "values": [round(v, 4) for v in values]}
