"""The range of an image's pixels in the numbers that a model sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.data.splits import Scaling


@dataclass(frozen=True)
class PixelRange:
    """What black and white have become, of a sample's shape or so that they spread to it; `high` is above `low`."""

    low: Tensor
    high: Tensor

    @property
    def unit(self) -> Tensor:
        """The whole range: what a distance of 1 in pixel units is in the model's numbers."""
        return self.high - self.low

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> PixelRange:
        return PixelRange(self.low.to(device, dtype), self.high.to(device, dtype))


def pixel_range(scaling: Scaling, top: float) -> PixelRange:
    """Of pixels 0 to `top`, by the same arithmetic as the pixels themselves (see `fedsim.data.splits.scaled`)."""
    ends = []
    for value in (0.0, top):
        x = np.float32(value) if scaling.divide is None else np.float32(value) / np.float32(scaling.divide)
        if scaling.shift is not None and scaling.scale is not None:
            x = (x - scaling.shift[0]) / scaling.scale[0]
        ends.append(torch.from_numpy(np.array(x, dtype=np.float32)))
    return PixelRange(*ends)
