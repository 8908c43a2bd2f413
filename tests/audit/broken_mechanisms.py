"""Privacy mechanisms that promise more than they do, for audits to find out."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.privacy.base import Bound, Setting
from fedsim.privacy.gaussian import BoundGaussian, Gaussian
from fedsim.types import Positive


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
