"""How a report writes the values of metrics."""

from __future__ import annotations

import math

from fedsim.core.metrics import Metric, metric


def number(value: float, of: Metric | str = "") -> str:
    """A metric as text: shares with four places, bytes in units, counts whole, the rest with four digits."""
    unit = (metric(of) if isinstance(of, str) else of).unit
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if unit == "share":
        return f"{value:.4f}"
    if unit == "B":
        return _bytes(value)
    if value.is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def spread(mean: float, std: float, of: Metric | str = "") -> str:
    """``mean ± std``; the mean alone for one run, and for a cost that all seeds share."""
    of = metric(of) if isinstance(of, str) else of
    if not math.isfinite(std) or (std == 0 and of.kind == "cost"):
        return number(mean, of)
    shown = number(std, of) if of.unit == "share" or std == 0 else number(float(f"{std:.2g}"), of)
    return f"{number(mean, of)} \N{PLUS-MINUS SIGN} {shown}"


def size(count: float) -> str:
    """Bytes in memory or on their way, in KiB, MiB, ...: as `fedsim plan` says them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def _bytes(count: float) -> str:
    power = min(4, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 1000**power:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
