"""A measure for tests that holds on to clients' own models, as they were at the last evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim import Measure, Metric

KEEP = {"name": "kept_models:Keep"}
_LAST: dict[str, Any] = {}


@dataclass(frozen=True)
class Keep(Measure):
    """The norm of all clients' own models together."""

    metrics = (Metric("own_norm", "norm of all clients' own models"),)

    def evaluate(self, view: Any) -> dict[str, float]:
        clients = np.arange(view.task.num_clients)
        algorithm = view.scenario.algorithm
        x = view.state("x")
        names = algorithm.fresh_client(view.task.initial().unsqueeze(0))
        kept = {name: view.kept(name, clients) for name in names}
        own = algorithm.personal_model({"x": x if x.dim() > 1 else x.expand(len(clients), -1)}, kept)
        _LAST.update(models=own.clone(), kept=kept)
        return {"own_norm": float(torch.linalg.vector_norm(own))}


def own_models() -> Any:
    """``[n, d]`` of the run that was evaluated last."""
    return _LAST["models"].numpy()


def kept(name: str) -> Any:
    """What its clients kept under that name."""
    return _LAST["kept"][name].numpy()
