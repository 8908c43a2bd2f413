"""Jobs that are under way survive a checkpoint, in as many rows as there are models that they began with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.placement import merge_saved, split_saved
from fedsim.backends.under_way import of_clients, packed, unpacked
from fedsim.core.job import Job

CPU = torch.device("cpu")


def job(first: int, clients: list[int], received: Tensor, ends: list[float] | None = None) -> Job:
    m = len(clients)
    given = None if ends is None else np.array(ends)
    numbers = first + np.arange(m)
    return Job(
        np.array(clients), np.full(m, 2), 1 + np.arange(m), {"x": received, "c": received * 2}, numbers, ends=given
    )


def made() -> list[Job]:
    """Of two models that many began with, and one of which each has its own."""
    model = torch.arange(3.0)
    return [
        job(10, [0, 3, 5], model, [4.0, 2.0, 9.0]),
        job(13, [1], model + 10),
        job(14, [2, 4], torch.stack([model + 20, model + 30]), [1.0, 8.0]),
    ]


def told(jobs: list[Job]) -> list[tuple[object, ...]]:
    """Everything about each client's job, in order."""
    found = []
    for one in jobs:
        m = len(one.clients)
        ends = np.zeros(m) if one.ends is None else one.ends
        rows = {k: v.expand(m, -1).tolist() for k, v in one.received.items()}
        columns = (one.numbers, one.clients, one.rounds, one.steps, ends)
        found += list(zip(*(c.tolist() for c in columns), rows["x"], rows["c"], strict=True))
    return found


def test_they_come_back_in_their_order() -> None:
    saved = packed(made())
    assert len(saved["pending.received.x"]) == 4  # for six clients
    assert told(unpacked(saved, CPU)) == told(made())
    assert [len(j.clients) for j in unpacked(saved, CPU)] == [3, 1, 1, 1]
    again = packed(unpacked(saved, CPU))
    assert all(torch.equal(again[n], v) for n, v in saved.items())
    assert packed([]) == {}
    assert unpacked({}, CPU) == []


def test_of_one_client() -> None:
    saved = packed(made())
    found = of_clients(saved, [4], CPU)
    assert found is not None
    assert told([found]) == [row for row in told(made()) if row[1] == 4]
    assert of_clients(saved, [7], CPU) is None
    assert of_clients({}, [4], CPU) is None


def test_shards_have_their_own_and_together_they_are_the_whole() -> None:
    saved, owner = packed(made()), np.array([0, 1, 0, 1, 0, 1])
    parts = split_saved(saved, owner)
    assert {k: [row[1] for row in told(unpacked(part, CPU))] for k, part in parts.items()} == {
        0: [0, 2, 4],
        1: [3, 5, 1],
    }
    assert len(parts[1]["pending.received.x"]) == 2
    merged = merge_saved([parts[1], parts[0]])
    assert told(unpacked(merged, CPU)) == told(made())


def test_checkpoints_that_have_a_row_for_each() -> None:
    saved = packed(made())
    older = {n: v for n, v in saved.items() if n not in ("pending.version", "pending.ends")}
    for name in ("pending.received.x", "pending.received.c"):
        older[name] = saved[name][saved["pending.version"]]
    wanted = [(*row[:4], 0.0, *row[5:]) for row in told(made())]
    assert told(unpacked(older, CPU)) == wanted
    assert len(unpacked(older, CPU)) == 1
    parts = split_saved(older, np.array([0, 1, 0, 1, 0, 1]))
    assert told(unpacked(merge_saved(list(parts.values())), CPU)) == wanted
