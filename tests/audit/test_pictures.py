"""PSNR and SSIM: known values, and SSIM against a loop over windows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsim.audit.pictures import mse, psnr, ssim


def test_psnr_of_known_errors() -> None:
    a = np.zeros((1, 8, 8))
    assert psnr(a, a + 0.1) == pytest.approx(20.0)
    assert psnr(a, a + 1.0) == pytest.approx(0.0)
    assert psnr(a, a) == math.inf
    assert mse(a, a + 0.5) == 0.25


def test_ssim_of_equal_and_of_flat_images() -> None:
    a = np.random.default_rng(0).random((3, 16, 16))
    assert ssim(a, a) == pytest.approx(1.0)
    flat, other = np.full((1, 16, 16), 0.4), np.full((1, 16, 16), 0.6)
    assert ssim(flat, other) == pytest.approx((2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4))


def test_ssim_is_the_mean_over_windows() -> None:
    random = np.random.default_rng(1)
    a, b = random.random((1, 9, 9)), random.random((1, 9, 9))
    reach = np.arange(-5, 6)
    w = np.exp(-(reach**2) / (2 * 1.5**2))
    w = np.outer(w, w) / np.outer(w, w).sum()
    pa, pb = (np.pad(v[0], 5, mode="symmetric") for v in (a, b))
    values = []
    for i in range(9):
        for j in range(9):
            x, y = pa[i : i + 11, j : j + 11], pb[i : i + 11, j : j + 11]
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy, c = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
            values.append((2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert ssim(a, b) == pytest.approx(np.mean(values), rel=1e-10)
