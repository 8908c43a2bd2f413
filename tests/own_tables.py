"""Tables of clients' own: text labels in three orders, of different sets, and the same rows pooled in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from fedsim.data.splits import Split, divide

Change = Callable[[pandas.DataFrame], pandas.DataFrame]
N = 3
KINDS = ("lynx", "bear", "crow", "newt")
LABELS = (("newt", "bear"), ("crow", "lynx", "bear"), ("lynx", "newt", "crow"))
"""Every client's own, in the order in which its file has them first."""
SIZES = (10, 21, 15)


def table_of(labels: tuple[str, ...], size: int, seed: int) -> pandas.DataFrame:
    random = np.random.default_rng(seed)
    kind = [labels[i % len(labels)] for i in range(size)]
    centre = np.array([KINDS.index(k) for k in kind])
    return pandas.DataFrame({
        "weight": 1000.0 + 7 * random.normal(size=size) + 5 * centre,
        "colour": [("red", "green", "blue")[(c + (i % 5 == 0)) % 3] for i, c in enumerate(centre)],
        "height": random.normal(size=size) * 0.01 + 0.02 * centre,
        "kind": kind,
    })  # fmt: skip


def sections(folder: Path, **data: Any) -> dict[str, Any]:
    return {
        "name": "zoo",
        "data": {
            "dataset": "csv", "path": str(folder / "server.csv"), "target": "kind", "categorical": ["colour"],
            "clients": N, "partition": {"scheme": "iid"}, **data,
        },
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_epochs": 1, "batch_size": 8},
        "run": {"rounds": 2, "eval_every": 1, "dtype": "float64", "device": "cpu"},
    }  # fmt: skip


def write_server(folder: Path) -> None:
    """The server's small table, in which every kind is."""
    table_of(KINDS, 20, seed=9).to_csv(folder / "server.csv", index=False)


def write_own(folder: Path, client: int, change: Change | None = None) -> Path:
    """A client's own table, with its columns in another order than the others'."""
    mine, file = table_of(LABELS[client], SIZES[client], seed=client), folder / f"client-{client}.csv"
    mine = mine[[*mine.columns[client:], *mine.columns[:client]]]
    (mine if change is None else change(mine)).to_csv(file, index=False)
    return file


def pooled(folder: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """The scenario in which one file has all clients' rows, and says whose they are; tested on the server's."""
    mine = [pandas.read_csv(folder / f"client-{c}.csv").assign(whose=c) for c in range(N)]
    order = ["weight", "colour", "height", "kind", "whose"]
    pandas.concat([m[order] for m in mine]).to_csv(folder / "pooled.csv", index=False)
    known = pandas.read_csv(folder / "server.csv")
    test = known.iloc[held_out(folder)].assign(whose=0)
    test[order].to_csv(folder / "tests.csv", index=False)
    whole = sections(folder, **keys)
    whole["data"] |= {
        "path": str(folder / "pooled.csv"), "test_path": str(folder / "tests.csv"),
        "partition": {"scheme": "natural_id", "partition_by": "whose"},
    }  # fmt: skip
    return whole


def held_out(folder: Path) -> list[int]:
    """Which rows of the server's table it tests on."""
    kinds = sorted(KINDS)
    frame = pandas.read_csv(folder / "server.csv")
    y = np.array([kinds.index(k) for k in frame.kind])
    return divide(Split(np.arange(len(y))[:, None].astype(np.float32), y, 4), 0.2)[1].x[:, 0].astype(int).tolist()
