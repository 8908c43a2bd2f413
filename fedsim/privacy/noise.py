"""Gaussian noise from keys: independent of sharding, chunks, order and resumes.

A seeded stream makes runs repeatable. A real deployment must draw its noise from a secret source: whoever knows the
seed can subtract the noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.core import crew, rng

_BYTES = 64  # that take as long to move as a number to draw


def gaussian(
    seeds: tuple[int, int], purpose: str, *parts: Any, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Standard normal rows ``[m, width]``, one per element of the broadcast `parts` (client, round, step, ...).

    `seeds` are (noise_seed, the scenario's seed). Row i depends on its own parts alone. Drawn on the device; a GPU's
    numbers are others than a CPU's.
    """
    noise_seed, seed = seeds
    keys = np.atleast_1d(rng.key(noise_seed, "privacy_" + purpose, seed, *parts)).reshape(-1)
    rows = torch.empty((len(keys), width), dtype=dtype, device=device)
    if device.type == "cuda":
        generator = torch.Generator(device)
        for row, key in zip(rows, keys.tolist(), strict=True):
            row.normal_(generator=generator.manual_seed(key))
        return rows

    def draw(part: slice) -> None:
        for row, key in zip(rows[part], keys[part].tolist(), strict=True):
            # torch's own CPU generator takes 32 bits of a seed, so that some of many keys would share their noise
            row.copy_(torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).standard_normal(width)))

    crew.apart(draw, crew.portions(len(rows), _BYTES * rows.numel()))
    return rows
