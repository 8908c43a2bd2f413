"""Writes quadratic problems, client i minimising 1/2 (x - b_i)^T A_i (x - b_i).

quadratic.npz: five random ones. flat-together.npz and flat-apart.npz: eleven with curvatures from 1 down
to 1/2,500, small in the same directions for all, and in directions of each one's own.
"""

from pathlib import Path

import numpy as np

here = Path(__file__).parent
random = np.random.default_rng(0)
roots = random.normal(size=(5, 4, 4))
np.savez(here / "quadratic.npz", A=roots @ roots.transpose(0, 2, 1) + np.eye(4), b=3.0 * random.normal(size=(5, 4)))

random = np.random.default_rng(0)
curvatures = 2500.0 ** -np.linspace(0.0, 1.0, 10)
apart = np.stack([random.permutation(curvatures) for _ in range(11)])
b = random.normal(size=(11, 10))
np.savez(here / "flat-together.npz", A=np.tile(curvatures, (11, 1)), b=b)
np.savez(here / "flat-apart.npz", A=apart, b=b)
