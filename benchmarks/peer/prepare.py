"""What all peers start from, as fedsim has it: data, partition, parameters, the first round's cohort and minibatches.

The minibatches are those that fedsim's own first round drew, recorded while it ran; the parameters after it are what
peers are compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import Engine, made_data

from fedsim.objective.supervised import SupervisedTask

from .works import CHANNELS, CNN_HIDDEN, DEGREE, HIDDEN, KERNEL, LR, WORKS, Work

MODELS: dict[str, dict[str, object]] = {
    "softmax": {"name": "linear"},
    "mlp": {"name": "mlp", "hidden": [HIDDEN]},
    "cnn": {"name": "cnn", "channels": list(CHANNELS), "hidden": CNN_HIDDEN, "kernel": KERNEL},
}


def sections(work: Work, file: Path) -> dict[str, object]:
    """The work as a scenario of fedsim."""
    common = {
        "name": "peers",
        "data": {"dataset": "npz", "path": str(file), "clients": work.clients},
        "model": MODELS[work.model],
    }
    step = {"lr": LR, "batch_size": work.batch}
    if work.gossip:
        graph = {"graph": "k_regular", "degree": DEGREE}
        return {**common, "algorithm": {"name": "dpsgd", **step}, "topology": graph}
    cohort = {} if work.cohort == work.clients else {"participation": {"clients_per_round": work.cohort}}
    return {**common, "algorithm": {"name": "fedavg", **step, "local_epochs": 1}, **cohort}


def prepare(name: str, folder: Path, threads: int) -> None:
    """Write to `folder` what `gate.Given` reads there, and the parameters after fedsim's first round."""
    work = WORKS[name]
    file = made_data(folder, work.clients * work.samples, work.shape)
    scenario = sections(work, file)
    engine = Engine(scenario, folder)
    task = engine.assembly.task
    assert isinstance(task, SupervisedTask)
    drawn: dict[int, Any] = {}
    whole = SupervisedTask.plan

    def plan(self: SupervisedTask, clients: Any, *args: Any) -> Any:
        found = whole(self, clients, *args)
        drawn.update(zip(clients.tolist(), found.batches.index.numpy(), strict=True))
        return found

    rows = np.stack([task.indices[a:b] for a, b in zip(task.offsets, task.offsets[1:], strict=False)])
    arrays = {"x": task.inputs.numpy(), "y": task.targets.numpy(), "rows": rows, "start": task.initial().numpy()}
    SupervisedTask.plan = plan  # type: ignore[method-assign]
    try:
        torch.set_num_threads(threads)
        engine.round()
    finally:
        SupervisedTask.plan = whole  # type: ignore[method-assign]
    arrays["cohort"] = np.array(sorted(drawn))
    arrays["orders"] = np.stack([drawn[client] for client in sorted(drawn)])
    arrays["after"] = engine.parameters().numpy()
    if engine.assembly.network is not None:
        arrays["mixing"] = engine.assembly.network.mixings[0].matrix.toarray().astype(np.float32)
    for key, value in arrays.items():
        np.save(folder / f"{key}.npy", value)
    facts = {"work": name, "threads": threads, "lr": LR, "scenario": scenario}
    (folder / "facts.json").write_text(json.dumps(facts))
