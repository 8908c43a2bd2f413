"""A small private regression problem with clients of unequal size, and its scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.engine.assembly import Assembly, assemble
from fedsim.scenario.load import parse
from fedsim.scenario.sections import Scenario

CLIENTS, ROWS, FEATURES, HIDDEN = 4, 60, 3, 4


def write_data(folder: Path) -> Path:
    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    y = (np.sin(2 * x[:, 0]) + 0.3 * x[:, 1]).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=y)
    return folder / "rows.npz"


def scenario(folder: Path, **changes: Any) -> Scenario:
    """DIFF2 on the problem; `changes` are sections merged into it (``privacy=None`` leaves the section out)."""
    sections: dict[str, Any] = {
        "data": {"dataset": "npz", "path": str(write_data(folder)), "task": "regression", "clients": CLIENTS,
                 "partition": {"scheme": "linear"}},
        "model": {"name": "mlp", "hidden": [HIDDEN], "activation": "softplus"},
        "algorithm": {"name": "diff2", "lr": 0.1, "restart_every": 3, "clip_norm": 0.5, "difference_clip": 1.0},
        "privacy": {"mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-5},
        "run": {"rounds": 8, "eval_every": 4, "dtype": "float64", "trace": True},
    }  # fmt: skip
    for name, section in changes.items():
        if section is None:
            sections.pop(name)
        elif isinstance(section, dict):
            merged = {**sections.get(name, {}), **section}
            sections[name] = {k: v for k, v in merged.items() if v is not None}
        else:
            sections[name] = section
    return parse(sections)


def built(folder: Path, **changes: Any) -> tuple[Scenario, Assembly]:
    made = scenario(folder, **changes)
    return made, assemble(made)


def everybody(assembly: Assembly) -> tuple[Any, Any, Any, torch.Tensor]:
    """(clients, rounds, steps, rates) of a first round."""
    n = assembly.task.num_clients
    ones = np.ones(n, dtype=np.int64)
    return np.arange(n), ones, ones, torch.ones(n, 1, dtype=assembly.dtype)
