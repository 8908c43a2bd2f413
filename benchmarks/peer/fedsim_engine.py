"""fedsim itself: rounds of its engine, without evaluation (`benchmarks/speed.py`)."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from gate import Over, begin

given, gate = begin("fedsim")
sys.path.append(str(Path(__file__).parents[1]))
import torch  # noqa: E402
from speed import Engine  # noqa: E402

torch.set_num_threads(given.threads)
engine = Engine(given.facts["scenario"], given.folder / "engine")
with suppress(Over):
    while True:
        gate.between(engine.parameters, "torch", "numpy")
        engine.round()
