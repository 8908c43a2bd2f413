"""What accumulates over a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Totals:
    """What accumulates over a run, part of every checkpoint."""

    time: float = 0.0
    wall: float = 0.0
    bytes_sent: int = 0
    gradients: int = 0
    delay_processing: float = 0.0
    delay_transmission: float = 0.0
    contributions: int = 0
    staleness: int = 0
