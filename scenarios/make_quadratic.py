"""Writes quadratic.npz: five random strongly convex quadratics, client i minimising 1/2 (x - b_i)^T A_i (x - b_i)."""

from pathlib import Path

import numpy as np

random = np.random.default_rng(0)
roots = random.normal(size=(5, 4, 4))
np.savez(
    Path(__file__).parent / "quadratic.npz",
    A=roots @ roots.transpose(0, 2, 1) + np.eye(4),
    b=3.0 * random.normal(size=(5, 4)),
)
