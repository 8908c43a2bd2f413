"""Makes logistic.npz: 2 000 samples of a logistic model in five dimensions. Run it as `python make_logistic.py`."""

from pathlib import Path

import numpy as np

generator = np.random.default_rng(0)
x = generator.standard_normal((2000, 5)).astype(np.float32)
w = np.array([1.5, -1.0, 0.5, 0.0, 1.0])
y = (generator.random(2000) < 1 / (1 + np.exp(0.5 - x @ w))).astype(np.int64)
np.savez_compressed(Path(__file__).with_name("logistic.npz"), x=x, y=y)
