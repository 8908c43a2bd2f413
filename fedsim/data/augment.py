"""Random flips and crops of training images, as a function of (seed, client, round, step, place in the minibatch).

What is drawn is drawn on the host for a whole stretch of local work and moved to the device once; images are moved
there with one gather per step. So nothing depends on chunks or shards, and CPU and GPU see the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.types import Probability


@dataclass(frozen=True, kw_only=True)
class Augment:
    """``data.augment``: what happens to the images of training minibatches, never to those of an evaluation.

    Parameters
    ----------
    flip : mirror left and right with probability 1/2.
    crop : pad with that many pixels of 0 (after scaling) on every side, and cut the image's size out at a random place.
    crop_probability : share of images that are cropped. FL-Simulator crops half of them.
    """

    flip: bool = False
    crop: Annotated[int, Field(ge=0, le=1024)] = 0
    crop_probability: Probability = 1.0

    def check(self, shape: tuple[int, ...]) -> None:
        """InputError where samples of `shape` are no images ``[C, H, W]``, or are smaller than the padding."""
        if len(shape) != 3:
            raise InputError(f"found samples of shape {list(shape)}; allowed only for images [channels, height, width]")
        if self.crop >= min(shape[1:]):
            raise InputError(
                f"found {self.crop} for images of {shape[1]}x{shape[2]}; allowed: 0 to {min(shape[1:]) - 1}", key="crop"
            )

    def draw(self, seed: int, clients: Ints, rounds: Ints, steps: int, width: int) -> npt.NDArray[np.int16]:
        """What happens to each sample, ``[m, steps, width, 3]``: mirrored (0 or 1), and the rows and columns it moves.

        Parameters
        ----------
        clients, rounds : ``[m]``.
        width : samples of a minibatch.
        """
        step, slot = np.arange(steps)[None, :, None], np.arange(width)[None, None, :]
        keys = rng.key(seed, "augment", clients[:, None, None], rounds[:, None, None], step, slot)
        moves = np.zeros((*keys.shape, 3), dtype=np.int16)
        if self.flip:
            moves[..., 0] = rng.integers(rng.fold(keys, 0), 2)
        if self.crop:
            cropped = rng.uniform(rng.fold(keys, 1)) < self.crop_probability
            for axis in (1, 2):
                offset = rng.integers(rng.fold(keys, 1 + axis), 2 * self.crop + 1) - self.crop
                moves[..., axis] = np.where(cropped, offset, 0)
        return moves


def moved(images: Tensor, moves: Tensor) -> Tensor:
    """Images ``[..., C, H, W]`` mirrored, then shifted, as `moves` ``[..., 3]`` says; what comes from outside is 0.

    ``out[c, i, j] = image[c, i + rows, j + columns]``, the image mirrored first where the first number is 1.
    """
    channels, height, width = images.shape[-3:]
    flat, moves = images.reshape(-1, channels, height * width), moves.reshape(-1, 3).to(torch.int64)
    row = torch.arange(height, device=images.device) + moves[:, 1:2]
    column = torch.arange(width, device=images.device) + moves[:, 2:3]
    inside = ((row >= 0) & (row < height)).unsqueeze(2) & ((column >= 0) & (column < width)).unsqueeze(1)
    column = torch.where(moves[:, :1] == 1, width - 1 - column, column).clamp_(0, width - 1)
    source = row.clamp_(0, height - 1).unsqueeze(2) * width + column.unsqueeze(1)
    picked = flat.gather(2, source.flatten(1).unsqueeze(1).expand_as(flat))
    return picked.mul_(inside.flatten(1).unsqueeze(1)).view_as(images)
