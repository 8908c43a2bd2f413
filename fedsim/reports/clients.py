"""The report's part about single clients: how a metric is spread over them, and what it goes with.

It reads ``clients.parquet``, one row per client and evaluation, and ``partition.csv`` for what clients hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.metrics import Metric, metric
from fedsim.data.partition_csv import FILE as PARTITION
from fedsim.data.partition_csv import read_partition
from fedsim.engine.client_rows import FILE
from fedsim.figures.curves import Line, Panel, grid_figure
from fedsim.figures.html import details, heading, notes, paragraph, table
from fedsim.reports.groups import Group, Record, mean_std
from fedsim.reports.numbers import number, spread
from fedsim.reports.panels import curves, named_group, shown_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIXED = ("round", "client", "name", "train_samples", "test_samples")
_GRID = 101  # shares of clients at which runs of several seeds are averaged
_MOST_ROWS = 60
_FEWEST = 3  # clients of which a rank correlation says something
_LEAD = (
    "The upper row is over the rounds: the mean over clients, the worst decile (a tenth of the clients is not better "
    "than that) and the worst client. The lower row is of the last evaluation: every client of the group in ascending "
    "order, and against what it has to train on. Label skew is the total variation distance between the client's "
    "shares of the labels and those of all training rows: 0 for the same shares, near 1 for labels that hardly anybody "
    "else has."
)


@dataclass(frozen=True)
class Held:
    """The last evaluation of a run's clients, a row each, in the order of their numbers.

    `skew` is the total variation distance between a client's label shares and the whole data's; None without labels.
    """

    round: int
    clients: Ints
    names: Sequence[str] | None
    train: Floats
    test: Floats
    metrics: Mapping[str, Floats]
    skew: Floats | None


def clients(groups: Sequence[Group], shown: Sequence[Metric], save: Callable[[str, Figure], bytes]) -> Iterator[object]:
    """Parts of the page; nothing where no run evaluated its clients."""
    found: dict[int, list[Held]] = {}
    damage = []
    for i, group in enumerate(groups):
        for run in group.counted:
            if (run.dir / FILE).exists():
                try:
                    found.setdefault(i, []).append(read_clients(run))
                except (InputError, OSError, ValueError, LookupError) as error:  # pyarrow's own are of these kinds
                    damage.append(f"{run.dir / FILE} is left out: {' '.join(str(error).split())[:200]}")
    found = {i: kept for i, held in found.items() if (kept := [h for h in held if len(h.clients)])}
    if found or damage:
        yield heading(2, "Clients")
        yield notes(damage)
    if not found:
        return
    columns = {m.name: m for m in shown}
    for name in _drawn(
        {name for held in found.values() for h in held for name in h.metrics} - _chosen(found, columns), columns
    ):
        rows = [row for row in (_over_rounds(groups, name, columns), _last(found, name)) if row]
        yield heading(3, name.replace("_", " ").capitalize())
        yield from _table(groups, found, name, columns)
        if not rows:
            continue
        save(f"clients-{name}", grid_figure(rows, [g.label for g in groups], f"{name.replace('_', ' ')} of clients"))
        yield paragraph(_LEAD, soft=True)
        yield from shown_panels(f"clients-{name}", rows, groups)
    yield from _each(groups, found, columns)


# --- files ------------------------------------------------------------------------------------------------------------


def read_clients(run: Record) -> Held:
    """The rows of the last round in ``clients.parquet``, with what ``partition.csv`` says of the clients in them."""
    from pyarrow import parquet

    path = run.dir / FILE
    rounds = parquet.read_table(path, columns=["round"])["round"].to_numpy()
    last = int(rounds.max()) if len(rounds) else 0
    rows = parquet.read_table(path, filters=[("round", "=", last)]).to_pandas().sort_values("client", kind="stable")
    who = rows["client"].to_numpy().astype(np.int64)
    kept = [c for c in rows.columns if c not in _FIXED and rows[c].dtype.kind in "iufb"]
    names = [str(name) for name in rows["name"]] if "name" in rows and rows["name"].notna().any() else None
    train, test = (rows[c].to_numpy().astype(np.float64) for c in ("train_samples", "test_samples"))
    values = {c: rows[c].to_numpy().astype(np.float64) for c in kept}
    return Held(last, who, names, train, test, values, _skew(run.dir / PARTITION, who))


def _skew(path: Path, who: Ints) -> Floats | None:
    """The clients' total variation distances ``[m]``; nan where a client has no rows."""
    try:
        samples, counts = read_partition(path)
    except InputError:
        return None
    if counts is None or not samples.sum() or (len(who) and who.max() >= len(samples)):
        return None
    return label_skew(counts)[who]


def label_skew(counts: Ints) -> Floats:
    """Total variation distance ``[clients]`` between each row of ``counts [clients, labels]`` and their sum, as shares.

    Half the sum over labels of the differences of shares; nan where a client holds nothing.
    """
    held = counts.sum(axis=1, keepdims=True)
    whole = counts.sum(axis=0) / counts.sum()
    shares = counts / np.where(held > 0, held, 1)
    found: Floats = np.where(held[:, 0] > 0, np.abs(shares - whole).sum(axis=1) / 2, np.nan)
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def _chosen(found: Mapping[int, Sequence[Held]], columns: Mapping[str, Metric]) -> set[str]:
    """What clients chose, which is no metric: nothing sums it up."""
    names = {name for held in found.values() for h in held for name in h.metrics}
    return {name for name in names if f"client_{name}_mean" not in columns}


def _drawn(names: set[str], columns: Mapping[str, Metric]) -> list[str]:
    """The metrics that get pictures: those of which more is better, or else all."""
    directed = [n for n in sorted(names) if metric(f"client_{n}_mean", columns).larger_is_better]
    return directed or sorted(names)


def _over_rounds(groups: Sequence[Group], name: str, columns: Mapping[str, Metric]) -> list[Panel]:
    kept = [columns[c] for c in _summary(name, columns) if c in columns and not c.endswith(("_std", "weighted_mean"))]
    drawn = [curves(groups, metric("round", columns), m) for m in kept]
    return [panel for panel in drawn if panel.lines]


def _summary(name: str, columns: Mapping[str, Metric]) -> list[str]:
    """The columns of ``metrics.jsonl`` that say most about a metric of clients."""
    lowest = metric(f"client_{name}_mean", columns).larger_is_better is False
    ends = ("mean", "weighted_mean", "std", "decile_9" if lowest else "decile_1", "worst")
    return [f"client_{name}_{end}" for end in ends]


def _last(found: Mapping[int, Sequence[Held]], name: str) -> list[Panel]:
    called = name.replace("_", " ")
    order = [_ascending(i, held, name) for i, held in found.items()]
    sizes = [_cloud(i, held, name, lambda h: h.train) for i, held in found.items()]
    skews = [_cloud(i, held, name, lambda h: h.skew) for i, held in found.items()]
    return [
        *_panel(f"{name}-spread", "share of clients", called, order, fewest=1),
        *_panel(f"{name}-size", "training rows of the client", called, sizes),
        *_panel(f"{name}-skew", "label skew of the client", called, skews),
    ]


def _panel(name: str, xlabel: str, ylabel: str, lines: Sequence[Line], fewest: int = 2) -> Iterator[Panel]:
    """A panel, where there are as many different places on its axis."""
    lines = [line for line in lines if len(line.x)]
    if lines and len(np.unique(np.concatenate([line.x for line in lines]))) >= fewest:
        yield Panel(name, xlabel, ylabel, lines)


def _ascending(group: int, held: Sequence[Held], name: str) -> Line:
    """The clients' values in ascending order against the share of clients up to there; of several seeds with a band."""
    series = [np.sort(v[np.isfinite(v)]) for h in held if (v := h.metrics.get(name)) is not None]
    series = [values for values in series if len(values)]
    if not series:
        return Line(group, np.empty(0), np.empty(0))
    if len(series) == 1:
        (values,) = series
        return Line(group, np.linspace(0, 1, len(values)) if len(values) > 1 else np.array([0.5]), values)
    grid = np.linspace(0, 1, _GRID)
    curve = np.stack([np.quantile(values, grid) for values in series])
    return Line(group, grid, curve.mean(0), curve.min(0), curve.max(0))


def _cloud(group: int, held: Sequence[Held], name: str, against: Callable[[Held], Floats | None]) -> Line:
    """A point for every client of every run in the group."""
    x, y = [np.empty(0)], [np.empty(0)]
    for one in held:
        a, b = against(one), one.metrics.get(name)
        if a is not None and b is not None:
            keep = np.isfinite(a) & np.isfinite(b)
            x.append(a[keep])
            y.append(b[keep])
    return Line(group, np.concatenate(x), np.concatenate(y), cloud=True)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _table(
    groups: Sequence[Group], found: Mapping[int, Sequence[Held]], name: str, columns: Mapping[str, Metric]
) -> Iterator[object]:
    """The last evaluation in numbers: what ``metrics.jsonl`` says, and rank correlations."""
    kept = [columns[c] for c in _summary(name, columns) if c in columns]
    words = [_words(m.name.removeprefix(f"client_{name}_")) for m in kept]
    header = ["", "round", "clients", *words, "rank correlation with training rows", "with label skew"]
    rows = []
    for i, held in found.items():
        counts = {int(np.isfinite(h.metrics[name]).sum()) for h in held if name in h.metrics}
        values = [spread(*groups[i].final(m.name), m) for m in kept]
        against = [_correlation(held, name, lambda h: h.train), _correlation(held, name, lambda h: h.skew)]
        rows.append([named_group(groups, i), _range({h.round for h in held}), _range(counts), *values, *against])
    yield table(header, rows)


def _words(end: str) -> str:
    return {"decile_1": "worst decile", "decile_9": "worst decile"}.get(end, end.replace("_", " "))


def _range(values: set[int]) -> str:
    return "" if not values else f"{min(values):,}" + (f" to {max(values):,}" if len(values) > 1 else "")


def _correlation(held: Sequence[Held], name: str, against: Callable[[Held], Floats | None]) -> str:
    """Spearman's over the clients of each run, mean over the runs; a dash where none is defined."""
    from scipy.stats import rankdata

    found = []
    for one in held:
        line = _cloud(0, [one], name, against)
        if len(line.x) >= _FEWEST and len(set(line.x)) > 1 and len(set(line.y)) > 1:
            found.append(float(np.corrcoef(rankdata(line.x), rankdata(line.y))[0, 1]))
    if not found:
        return "\N{EN DASH}"
    mean, std = mean_std(found)
    return f"{mean:.2f}" + (f" \N{PLUS-MINUS SIGN} {std:.2f}" if len(found) > 1 else "")


def _each(
    groups: Sequence[Group], found: Mapping[int, Sequence[Held]], columns: Mapping[str, Metric]
) -> Iterator[object]:
    """Every client of a group's first run, where they are few."""
    for i, held in found.items():
        one = held[0]
        if len(one.clients) > _MOST_ROWS:
            continue
        names = sorted(one.metrics)
        header = ["client", *(["name"] if one.names else []), "training rows", "test rows", *names]
        header += ["label skew"] if one.skew is not None else []
        rows = [
            [
                str(client), *([one.names[k]] if one.names else []), number(one.train[k]), number(one.test[k]),
                *(number(one.metrics[n][k], metric(f"client_{n}_mean", columns)) for n in names),
                *([number(one.skew[k])] if one.skew is not None else []),
            ]
            for k, client in enumerate(one.clients.tolist())
        ]  # fmt: skip
        whose = f"{groups[i].label}: " if len(groups) > 1 else ""
        yield details(f"Table: {whose}each client in round {one.round}", table(header, rows))
