"""The schedule of a deployment as it happened: from what clients answered, and from what the rounds combined."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedsim.core.arrays import Floats
from fedsim.core.errors import FedsimError, InputError
from fedsim.data.partition_csv import FILE as PARTITION
from fedsim.data.partition_csv import read_partition
from fedsim.engine.assembly import assemble
from fedsim.engine.inputs import FILE as DATA
from fedsim.engine.inputs import importance_of
from fedsim.engine.replies import is_work
from fedsim.engine.run_directory import read_jsonl
from fedsim.figures.schedule import Bar
from fedsim.reports.groups import Record
from fedsim.reports.timeline import Combine, Timeline
from fedsim.scenario.load import load

_SHOWN_COMBINES, _KEPT_BARS = 20, 20_000
_IN_VAIN = ("error", "garbage", "gone", "timeout")


def has_happened(folder: Path) -> bool:
    """Whether `folder` is a deployment's that says what happened when."""
    return all((folder / name).exists() for name in ("deployment.json", "replies.jsonl", "trace.jsonl"))


def happened(run: Record) -> Timeline:
    """Who worked, waited and delivered when, in seconds of the wall clock.

    Raises
    ------
    InputError
        The files of the run are damaged.
    """
    try:
        return _timeline(run)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"what happened cannot be read: {type(error).__name__}: {error}", file=str(run.dir)) from None


def _timeline(run: Record) -> Timeline:
    n = int(json.loads((run.dir / "deployment.json").read_text(encoding="utf-8"))["of"])
    replies = [r for r in read_jsonl(run.dir / "replies.jsonl") if is_work(r)]
    trace = read_jsonl(run.dir / "trace.jsonl")
    gossip = "topology" in run.scenario
    jobs: dict[tuple[int, int], Bar] = {}
    failed: list[Bar] = []
    tried: dict[tuple[int, int], float] = {}  # when the try before ended: the last one's row counts from the first
    for r in replies:
        at, client = float(r["at"]), int(r["client"])
        if r["status"] == "ok":
            jobs[client, int(r["round"])] = Bar(client, at - r["seconds"], at)
        elif r["status"] in _IN_VAIN:
            key = client, int(r["round"])
            failed.append(Bar(client, max(at - r["seconds"], tried.get(key, -math.inf)), at, kind="in vain"))
            tried[key] = at
    starts: dict[int, list[float]] = {}
    for bar in sorted([*jobs.values(), *failed], key=lambda bar: bar.start):
        starts.setdefault(bar.client, []).append(bar.start)
    delivered, stale, weight = np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n)
    messages, waiting, times = np.zeros(n, dtype=np.int64), np.zeros(n), list[float]()
    first: list[Combine] = []
    for row in trace:
        clients = [int(c) for c in row["compute" if gossip else "clients"]]
        times.append(float(row["time"]))
        for place, client in enumerate(clients):
            key = client, int(row["rounds"][place] if "rounds" in row else row["round"])
            delivered[client] += 1
            stale[client] += 0 if gossip else row["staleness"][place]
            weight[client] += 0 if gossip else row.get("weights", [0.0] * len(clients))[place]
            if key in jobs:
                jobs[key] = jobs[key]._replace(combined=times[-1])
                again = next((s for s in starts[client] if s > jobs[key].start), times[-1])
                waiting[client] += max(min(times[-1], again) - jobs[key].end, 0.0)
        for link in row.get("edges") or []:
            messages[link] += 1
        if len(first) < _SHOWN_COMBINES:
            stales, weights = ([], []) if gossip else (row["staleness"], row.get("weights", []))
            first.append(Combine(int(row["round"]), times[-1], clients, stales, weights, row.get("edges") or []))
    bars = sorted([*jobs.values(), *failed], key=lambda bar: bar.start)
    end = max([*times, *(bar.end for bar in bars), 1e-6])
    busy, vain = _share(jobs.values(), n, end), _share(failed, n, end)
    waited = np.minimum(waiting / end, 1.0)
    return Timeline(
        name=str(run.scenario.get("name", run.dir.name)),
        mode=str(run.value("participation.mode") or "synchronous"),
        gossip=gossip,
        end=end,
        combines=len(times),
        shortened=False,
        ended="",
        times=np.array(times),
        first=first,
        importance=_importance(run, n, gossip),
        delivered=delivered,
        staleness=np.where(delivered > 0, stale / np.maximum(delivered, 1), np.nan),
        weight=weight / max(len(times), 1),
        messages=messages,
        busy=busy,
        in_vain=vain,
        waiting=waited,
        idle=np.maximum(1.0 - busy - vain - waited, 0.0),
        off=np.zeros(n),
        bars=bars[:_KEPT_BARS],
        bars_until=end if len(bars) <= _KEPT_BARS else bars[_KEPT_BARS].start,
        times_off=lambda client, until: [],  # noqa: ARG005 (who was not connected did not answer; nothing else says it)
    )


def _share(bars: Iterable[Bar], n: int, end: float) -> Floats:
    """The share of `end` in which each client was at these jobs, ``[n]``."""
    share = np.zeros(n)
    for bar in bars:
        share[bar.client] += (bar.end - bar.start) / end
    return np.minimum(share, 1.0)


def _importance(run: Record, n: int, gossip: bool) -> Floats:
    """p_i of every client ``[n]``; nan where neither the folder nor the scenario's own file tells it."""
    if gossip or run.value("algorithm.weighting") == "uniform":
        return np.full(n, 1.0 / n)
    divided = (run.dir / PARTITION).exists()
    if divided or (run.dir / DATA).exists():
        samples = read_partition(run.dir / PARTITION)[0] if divided else np.ones(n, dtype=np.int64)
        found = importance_of(run.dir, samples)
    else:  # a problem that is no data, a quadratic one say: its own file has the weights
        try:
            found = np.asarray(assemble(load(run.dir / "scenario.yaml", notes=False)).task.importance, dtype=np.float64)
        except (FedsimError, OSError):  # reports are read on other machines, too
            return np.full(n, np.nan)
    if len(found) != n:
        raise ValueError(f"the weights of {len(found)} clients, but deployment.json says that there were {n}")
    return found
