"""Privacy mechanisms that promise more than they do, for audits to find out."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.privacy.base import Bound, Setting
from fedsim.privacy.gaussian import BoundGaussian, Gaussian


class TooQuiet(BoundGaussian):
    """Writes the right noise into the ledger and adds a tenth of it."""

    def _z(self, number: int) -> float:
        return super()._z(number) / 10


@dataclass(frozen=True, kw_only=True)
class Broken(Gaussian):
    """``gaussian`` with a tenth of the noise it claims."""

    def bind(self, setting: Setting) -> Bound:
        bound = super().bind(setting)
        bound.__class__ = TooQuiet
        return bound
