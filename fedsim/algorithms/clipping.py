"""What `clip` bounds where an algorithm corrects the gradient: the gradient, or what comes of the correction.

FL-Simulator (github.com/woodenchild95/FL-Simulator) clips the corrected direction, before weight decay; everywhere else
here `clip` bounds the minibatch gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Oracle, State
from fedsim.core.types import clip_norm


@dataclass(frozen=True, kw_only=True)
class ClippedDirection(Algorithm):
    """Mixed into an algorithm that corrects the minibatch gradient, it gives it the key `clipping`.

    Parameters
    ----------
    clipping : what `clip` bounds: ``gradient``, the minibatch gradient; ``corrected``, the whole direction before
        weight decay; ``official``, what FL-Simulator's code clips, here the same.
    """

    stepping: ClassVar[tuple[str, ...]] = (*Algorithm.stepping, "clips_whole")
    clipping: Literal["gradient", "corrected", "official"] = "gradient"

    @property
    def clips_gradient(self) -> bool:
        return self.clipping == "gradient"

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return super().gradient(oracle, x) if self.clips_gradient else oracle.grad(x)

    def step(self, oracle: Oracle, local: State, v: Tensor) -> State:
        return super().step(oracle, local, self.clipped(v) if self.clips_whole else v)

    @property
    def clips_whole(self) -> bool:
        """Whether the direction is clipped when it is complete."""
        return self.clipping != "gradient"


@dataclass(frozen=True, kw_only=True)
class PulledDirection(ClippedDirection):
    """The same with a pull ``a (y - x)``, whose ``a y`` is weight decay in FL-Simulator's code.

    ``official`` clips ``g - a x`` and adds ``a y`` afterwards: while that binds, the pull is no longer towards x.
    """

    stepping: ClassVar[tuple[str, ...]] = (*ClippedDirection.stepping, "pulled")

    @property
    def clips_whole(self) -> bool:
        return self.clipping == "corrected"

    def pulled(self, g: Tensor, y: Tensor, x: Tensor, a: float) -> Tensor:
        """``g + a (y - x)``, for ``official`` clipped."""
        if self.clip is not None and self.clipping == "official":
            return clip_norm(g - a * x, self.clip) + a * y
        return g if a == 0 else torch.add(g, y - x, alpha=a)
