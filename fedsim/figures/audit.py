"""Pictures of audits: ROC curves on logarithmic axes, lower bounds beside claims, reconstructions beside originals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedsim.figures.curves import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

_LOWEST = 1e-3
_MOST_IMAGES = 8


def roc_figure(curves: Mapping[str, Sequence[tuple[Floats, Floats]]]) -> Figure:
    """``{attack: [(fpr, tpr), ...]}``: a thin line per target, a thick one for their mean, logarithmic axes."""
    from fedsim.figures.drawing import Drawing

    figure = Drawing(figsize=(5.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    grid = np.geomspace(_LOWEST, 1.0, 200)
    for i, (name, found) in enumerate(curves.items()):
        colour, _ = style(i, len(curves))
        # a curve is a staircase: at a rate between two of its points the attack reaches the lower one
        steps = [tpr[np.searchsorted(fpr, grid, side="right") - 1] for fpr, tpr in found]
        for tpr in steps if len(steps) > 1 else ():
            axes.step(grid, np.maximum(tpr, _LOWEST / 10), color=colour, alpha=0.25, linewidth=0.7, where="post")
        mean = np.maximum(np.mean(steps, axis=0), _LOWEST / 10)
        axes.step(grid, mean, color=colour, linewidth=1.9, where="post", label=name.replace("_", " "))
    axes.plot(grid, grid, color="#8a8f96", linewidth=0.9, linestyle=":", label="guessing")
    axes.set(xscale="log", yscale="log", xlim=(_LOWEST, 1), ylim=(_LOWEST, 1.05))
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def bounds_figure(found: Mapping[str, tuple[float, float]], claimed: float) -> Figure:
    """``{attack: (lower bound, ceiling)}`` as bars, the claimed epsilon as a line.

    The ceiling, a thin line, is the largest bound the attack could have given.
    """
    from fedsim.figures.drawing import Drawing

    figure = Drawing(figsize=(6.0, 0.9 + 0.55 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for i, (low, ceiling) in enumerate(found.values()):
        axes.barh(i, low, height=0.5, color="#cf4b7d" if low > claimed else "#2f7ebc")
        axes.plot([0, ceiling], [i + 0.33, i + 0.33], color="#8a8f96", linewidth=1.2, marker="|")
        axes.annotate(f"{low:.2f}", (low, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(claimed, color="#e07b00", linewidth=1.6)
    axes.annotate(
        f"claimed {claimed:.3g}", (claimed, 1), xycoords=("data", "axes fraction"), xytext=(4, 2),
        textcoords="offset points", color="#a35700", fontsize=9,
    )  # fmt: skip
    axes.set_yticks(range(len(found)), [name.replace("_", " ") for name in found], fontsize=9)
    axes.set(xlabel="epsilon (thin line: the most this audit could have shown)", xlim=(0, None))
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def scores_figure(scores: Floats, members: npt.NDArray[np.bool_]) -> Figure:
    """Histograms of canary scores, with and without the canary."""
    from fedsim.figures.drawing import Drawing

    figure = Drawing(figsize=(6.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(scores, bins=min(40, max(5, len(scores) // 10)))
    for label, chosen, colour in (("coin 1", members, "#e07b00"), ("coin 0", ~members, "#2f7ebc")):
        axes.hist(scores[chosen], edges.tolist(), alpha=0.6, label=label, color=colour)
    axes.set(xlabel="score", ylabel="canaries")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def reconstruction_figure(rows: Mapping[str, Sequence[tuple[Floats, str]]]) -> Figure:
    """Rows of images ``[C, H, W]`` in 0..1, each with a caption; the row's name stands at its left."""
    from fedsim.figures.drawing import Drawing

    shown = {name: row[:_MOST_IMAGES] for name, row in rows.items()}
    columns = max(map(len, shown.values()))
    figure = Drawing(figsize=(1.35 * max(columns, 3) + 0.4, 1.6 * len(shown)), layout="constrained")
    grid: Any = figure.subplots(len(shown), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for line, (name, row) in zip(grid, shown.items(), strict=True):
        line[0].set_ylabel(name.replace("_", " "), fontsize=9)
        for axes, (image, title) in zip(line, row, strict=False):
            picture = np.clip(np.moveaxis(image, 0, -1), 0, 1)
            single = picture.shape[-1] != 3
            axes.imshow(picture[..., 0] if single else picture, cmap="gray" if single else None, vmin=0, vmax=1)
            axes.set_xlabel(title, fontsize=8)
    return figure
