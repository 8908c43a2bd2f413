"""Makes teacher.npz for diff2.yaml: python reproductions/make_teacher.py

A regression table of California housing's width: 8 standard normal features, and the target a network of ten softplus
units with noise, scaled to at most 1 like the house values. Features have two decimals, so that the file stays small.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROWS, FEATURES, UNITS = 12_000, 8, 10

draws = np.random.default_rng(0)
x = draws.standard_normal((ROWS, FEATURES)).round(2)
hidden = np.logaddexp(0, x @ draws.standard_normal((FEATURES, UNITS)) / np.sqrt(FEATURES))
y = hidden @ draws.standard_normal(UNITS) / np.sqrt(UNITS) + 0.1 * draws.standard_normal(ROWS)
y = (y / np.abs(y).max()).round(3)
cut = ROWS * 4 // 5
place = Path(__file__).with_name("teacher.npz")
np.savez_compressed(
    place,
    x_train=x[:cut].astype(np.float32), y_train=y[:cut].astype(np.float32),
    x_test=x[cut:].astype(np.float32), y_test=y[cut:].astype(np.float32),
)  # fmt: skip
