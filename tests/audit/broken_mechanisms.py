"""Privacy mechanisms that promise more than they do, for audits to find out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fedsim.algorithms.diff2 import Diff2
from fedsim.core.oracle import Oracle
from fedsim.core.types import Count, Message, Positive, State, clip_norm
from fedsim.participation.base import Setting
from fedsim.privacy.base import Bound
from fedsim.privacy.gaussian import BoundGaussian, Gaussian


class TooQuiet(BoundGaussian):
    """Writes the right noise into the ledger and adds less."""

    divided_by: float

    def _z(self, number: int) -> float:
        return super()._z(number) / self.divided_by


@dataclass(frozen=True, kw_only=True)
class Broken(Gaussian):
    """``gaussian`` with a tenth of the noise it claims, or even less."""

    divided_by: Positive = 10.0

    def bind(self, setting: Setting) -> Bound:
        bound = super().bind(setting)
        bound.__class__ = TooQuiet
        assert isinstance(bound, TooQuiet)
        bound.divided_by = self.divided_by
        return bound


@dataclass(frozen=True, kw_only=True)
class Trusting(Gaussian):
    """``gaussian`` that takes any kind of ``diff2`` for the real one."""

    def bind(self, setting: Setting) -> Bound:
        plain = Diff2(**{f.name: getattr(setting.algorithm, f.name) for f in fields(Diff2)})
        return super().bind(replace(setting, algorithm=plain))


@dataclass(frozen=True, kw_only=True)
class MeanOfMeans(Diff2):
    """``diff2`` that averages the means of chunks of examples, so that those of a short last chunk weigh more."""

    chunk: Count = 32

    def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
        """The mean over chunks of each chunk's mean of clipped gradients."""
        g = clip_norm(oracle.per_sample_grad(x), self.clip_norm or float("inf"))
        return torch.stack([part.mean(-2) for part in torch.split(g, self.chunk, dim=-2)]).mean(0)
