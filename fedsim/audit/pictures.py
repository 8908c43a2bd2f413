"""How close a reconstruction is: MSE, PSNR and SSIM of values in 0..1."""

from __future__ import annotations

import math

import numpy as np

from fedsim.core.arrays import Floats

_SIGMA, _TRUNCATE = 1.5, 3.5  # an 11 x 11 Gaussian window
_C1, _C2 = 0.01**2, 0.03**2
_MOST_DB = 200.0


def mse(a: Floats, b: Floats) -> float:
    """Mean squared error."""
    return float(np.mean((a - b) ** 2))


def psnr(a: Floats, b: Floats) -> float:
    """``-10 log10(MSE)`` in dB, for values whose largest difference is 1; infinite for equal ones."""
    error = mse(a, b)
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Floats, b: Floats) -> float:
    """Structural similarity (Wang et al. 2004) of images ``[C, H, W]`` in 0..1: the mean over pixels and channels of

    ``(2 ma mb + C1)(2 cov + C2) / ((ma^2 + mb^2 + C1)(va + vb + C2))``, C1 = 0.01^2, C2 = 0.03^2, in Gaussian windows
    of standard deviation 1.5. Images are mirrored at their borders, since a small one is all border.
    """
    from scipy.ndimage import gaussian_filter

    def local(image: Floats) -> Floats:
        return np.asarray(gaussian_filter(image, (0, _SIGMA, _SIGMA), truncate=_TRUNCATE, mode="reflect"))

    ma, mb = local(a), local(b)
    va, vb, cov = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
    top = (2 * ma * mb + _C1) * (2 * cov + _C2)
    return float(np.mean(top / ((ma**2 + mb**2 + _C1) * (va + vb + _C2))))


def measured(original: Floats, guess: Floats) -> dict[str, float]:
    """``psnr_db``, cut at 200 dB, ``mse``, and, of images ``[C, H, W]``, ``ssim``."""
    found = {"psnr_db": min(psnr(original, guess), _MOST_DB), "mse": mse(original, guess)}
    return {**found, "ssim": ssim(original, guess)} if is_picture(original) else found


def is_picture(example: Floats) -> bool:
    """Whether an example is an image ``[C, H, W]`` of more than one row and column."""
    return example.ndim == 3 and min(example.shape[1:]) > 1
