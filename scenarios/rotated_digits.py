"""scikit-learn's digits, turned: a data set whose clients fall into groups that nobody names (see ifca-digits.yaml)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from fedsim import Dataset, DatasetPart


@dataclass(frozen=True, kw_only=True)
class RotatedDigits(DatasetPart):
    """Client c sees every digit turned by ``90 (c mod rotations)`` degrees; test rows have all turns in equal parts.

    Parameters
    ----------
    rotations : 1 to 4 groups of clients.
    """

    rotations: Annotated[int, Field(ge=1, le=4)] = 4

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        from sklearn.datasets import load_digits

        digits, count = load_digits(), clients or 8
        x = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
        y = torch.tensor(digits.target)
        cut = 1440
        whose = np.arange(cut) % count
        turns = np.concatenate([whose % self.rotations, np.arange(len(y) - cut) % self.rotations])
        x = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(x, turns, strict=True)])
        own = [np.flatnonzero(whose == c) for c in range(count)]
        return Dataset("rotated digits", x[:cut], y[:cut], x[cut:], y[cut:], num_classes=10, clients=own)
