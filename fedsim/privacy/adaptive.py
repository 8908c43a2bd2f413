"""Adaptive clipping (Andrew et al., arXiv 1905.03871): the clip norm follows a quantile of the updates' norms.

With noise on the share of updates within it: ``C = C exp(-rate (share - quantile))``. Where more than the quantile are
within the norm it is too large and shrinks; the sign matters (one popular framework has it the other way round, and
its norm runs away).
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from fedsim.core.errors import InputError
from fedsim.core.types import Positive


class Adaptive(BaseModel):
    """``{quantile: 0.5, rate: 0.2, initial: 0.1, bit_noise: ...}``

    `bit_noise` is the std of the noise on the number of updates within the norm (default: a twentieth of the expected
    cohort, as in the paper).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    quantile: float = Field(0.5, ge=0, le=1)
    rate: Positive = 0.2
    initial: Positive = 0.1
    bit_noise: Positive | None = None

    def std(self, cohort: float) -> float:
        """Std of the noise on the centred count."""
        return cohort / 20 if self.bit_noise is None else self.bit_noise

    def step(self, clip: float, noisy_count: float, cohort: float) -> float:
        """``C exp(-rate (b - quantile))``, b the noisy share within C.

        `noisy_count` is the sum of the centred bits (+-1/2), `cohort` the expected number of clients, which is public.
        """
        share = min(1.0, max(0.0, noisy_count / cohort + 0.5))
        return clip * math.exp(-self.rate * (share - self.quantile))


def update_noise(z: float, bit_std: float) -> float:
    """The multiplier on the updates that makes them and the centred bits (sensitivity 1/2) one Gaussian(z) together.

    ``z_update = (z^-2 - (2 bit_std)^-2)^(-1/2)``

    Raises
    ------
    InputError
        The bits alone spend more than z allows.
    """
    if z == 0:
        return 0.0
    left = z**-2 - (2.0 * bit_std) ** -2
    if left <= 0:
        raise InputError(
            f"found {bit_std:g}: the count of updates within the norm would spend more than the whole noise multiplier "
            f"{z:.4g}; allowed: more than {z / 2:.4g}, or a larger cohort",
            key="privacy.adaptive.bit_noise",
        )
    return float(left**-0.5)
