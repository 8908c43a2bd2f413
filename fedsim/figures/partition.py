"""The picture of a partition: which client holds how many rows of which label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 60
_MOST_COLUMNS = 600
_LEGEND_ROWS = 20
_LETTERS = 24


def partition_figure(
    counts: np.ndarray[Any, np.dtype[Any]], title: str = "", labels: Sequence[str] | None = None
) -> Figure:
    """Draw ``counts [clients, labels]``: stacked bars up to 60 clients, else a heat map over the curve of sizes.

    `labels` are the labels' names (default: their numbers). With one label column (regression) the bars or the curve
    show the sizes alone. The figure has no pyplot state: save it with ``figure.savefig``.
    """
    counts = np.asarray(counts)
    draw = _bars if len(counts) <= _MOST_BARS else _heat
    figure = draw(counts, [_short(n) for n in labels] if labels else [str(k) for k in range(counts.shape[1])])
    if title:
        figure.suptitle(title)
    return figure


def _bars(counts: np.ndarray[Any, np.dtype[Any]], names: Sequence[str]) -> Figure:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    from fedsim.figures.drawing import Drawing

    clients, labels = counts.shape
    figure = Drawing(figsize=(max(6.0, 0.18 * clients + 2.5), 4.0), layout="constrained")
    axes = figure.add_subplot()
    many = labels > _LEGEND_ROWS
    colours = colormaps["viridis"](np.linspace(0, 1, labels)) if many else colormaps["tab20"](_order(labels))
    below = np.zeros(clients)
    for label in range(labels):
        axes.bar(np.arange(clients), counts[:, label], 0.85, bottom=below, color=colours[label], label=names[label])
        below = below + counts[:, label]
    axes.set(xlabel="client", ylabel="training rows", xlim=(-0.7, clients - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if many:
        figure.colorbar(ScalarMappable(Normalize(0, labels - 1), "viridis"), ax=axes, label="label")
    elif labels > 1:
        axes.legend(title="label", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, reverse=True, fontsize=8)
    return figure


def _short(name: str) -> str:
    """A name that fits a legend; matplotlib hides those that begin with an underscore."""
    text = name.replace("$", r"\$")
    return (" " if text.startswith("_") else "") + (text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…")


def _order(labels: int) -> list[int]:
    """Places in tab20, whose neighbours are dark and light of one hue: the dark ones first."""
    return [*range(0, 20, 2), *range(1, 20, 2)][:labels]


def _heat(counts: np.ndarray[Any, np.dtype[Any]], names: Sequence[str]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    from fedsim.figures.drawing import Drawing

    clients, labels = counts.shape
    sizes = counts.sum(axis=1)
    if labels == 1:
        figure = Drawing(figsize=(8.0, 3.5), layout="constrained")
        lower = figure.add_subplot()
    else:
        figure = Drawing(figsize=(8.0, 5.5), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
        # Clients with the same main label side by side: the eye sees the skew, not the numbering.
        shares = counts / np.maximum(sizes, 1)[:, None]
        order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
        groups = np.array_split(order, min(clients, _MOST_COLUMNS))
        picture = np.stack([shares[g].mean(axis=0) for g in groups], axis=1)
        extent = (0.0, float(clients), -0.5, labels - 0.5)
        image = upper.imshow(
            picture, aspect="auto", origin="lower", vmin=0.0, cmap="magma_r", extent=extent, interpolation="nearest"
        )
        upper.set(ylabel="label", xlabel="clients, sorted by their main label")
        if labels <= _LEGEND_ROWS:
            upper.set_yticks(range(labels), names, fontsize=8)
        else:
            upper.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=upper, label="share of the client's rows")
    lower.plot(np.arange(1, clients + 1), np.sort(sizes)[::-1])
    lower.set(xlabel="clients, largest first", ylabel="training rows", xlim=(1, clients), ylim=(0, None))
    if sizes.min() > 0 and sizes.max() > 30 * sizes.min():
        lower.set(yscale="log", ylim=(sizes.min() * 0.8, sizes.max() * 1.25))
    lower.spines[["top", "right"]].set_visible(False)
    return figure
