"""What is measured of every client on test rows of its own: a table of clients, and the columns that sum it up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.metrics import Metric

BASE: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", unit="share", larger_is_better=True),
        Metric("loss", larger_is_better=False),
        Metric("perplexity", larger_is_better=False),
    )
}
"""What is measured of clients without being asked for."""

DECILES = range(1, 10)


@dataclass(frozen=True)
class ClientTable:
    """Rows of ``clients.parquet``: the clients ``[m]`` that were evaluated after a round.

    Parameters
    ----------
    train_samples, test_samples : ``[m]`` rows that each trains on, and is tested on.
    targets : ``[m]`` targets of the test rows, by which clients are weighted: as many, but of tokens.
    values : of each metric by client; nan where a client has none.
    answered : ``[m]`` of clients on machines of their own, which of them answered; None: all.
    choices : ``[m]`` of what clients chose, whole numbers; nan where a client did not say.
    """

    round: int
    clients: Ints
    train_samples: Ints
    test_samples: Ints
    targets: Ints
    values: Mapping[str, Floats]
    answered: Bools | None = None
    choices: Mapping[str, Floats] = field(default_factory=dict)


def client_columns(of: Iterable[Metric]) -> dict[str, Metric]:
    """The columns of ``metrics.jsonl`` that sum up these metrics over clients.

    They look at clients' own rows, so that none is public.
    """
    found = [column for metric in of for column in _columns(metric)]
    return {column.name: column for column in found}


def _columns(m: Metric) -> Iterable[Metric]:
    words, telling = f"client {m.words}", m.name == "accuracy"

    def column(ending: str, said: str, shown: bool = False, directed: bool = True) -> Metric:
        better = m.larger_is_better if directed else None
        name, brief = f"client_{m.name}_{ending}", "line" if shown else ""
        return Metric(name, said, m.unit, better, figure="clients", brief=brief)  # type: ignore[arg-type]

    yield column("mean", f"mean {words}", shown=m.name in ("accuracy", "loss"))
    yield column("weighted_mean", f"{words}, weighted by test samples")
    yield column("std", f"standard deviation of {words}", directed=False)
    if m.larger_is_better is not None:
        yield column("worst", f"worst {words}")
    for k in DECILES:
        worst = k == worst_decile(m)
        said = f"worst decile of {words}" if worst else f"{words}, decile {k}"
        yield column(f"decile_{k}", said, shown=telling and worst)


def worst_decile(m: Metric) -> int | None:
    """The decile that a tenth of the clients is not better than; None where a metric has no direction."""
    return None if m.larger_is_better is None else DECILES[0] if m.larger_is_better else DECILES[-1]


def summary(table: ClientTable, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Values of those columns. Deciles count from the smallest value; standard deviations are of these clients alone.

    A metric that is not among `BASE` may have no value for a client (nan), which is then left out.
    """
    row: dict[str, float] = {}
    for name, every in table.values.items():
        kept = np.ones(len(every), dtype=bool) if name in BASE else ~np.isnan(every)
        kept &= True if table.answered is None else table.answered
        values, weights = every[kept], table.targets[kept]
        found = {f"decile_{k}": float("nan") for k in DECILES}
        mean = weighted = std = worst = float("nan")
        if len(values):
            with np.errstate(invalid="ignore", over="ignore"):
                mean, std = float(values.mean()), float(values.std())
                weighted = float(np.average(values, weights=weights))
                worst = float(values.min() if metrics[name].larger_is_better else values.max())
                deciles = np.quantile(values, np.array(DECILES) / 10)
            found = {f"decile_{k}": float(v) for k, v in zip(DECILES, deciles, strict=True)}
        row |= {f"client_{name}_mean": mean, f"client_{name}_weighted_mean": weighted, f"client_{name}_std": std}
        if metrics[name].larger_is_better is not None:
            row[f"client_{name}_worst"] = worst
        row |= {f"client_{name}_{ending}": value for ending, value in found.items()}
    return row
