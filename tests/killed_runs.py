"""Private runs that were killed some rounds after their last checkpoint, and what makes them go another way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fedsim
from fedsim.engine.checkpoint import SUMS, checksum

SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 8, "limit": 300},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 8},
    "participation": {"sampling": "poisson", "fraction": 0.5},
}
GOSSIP = {**SERVER, "algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": {"graph": "ring"}, "participation": {}}
DIFF2 = {"name": "diff2", "lr": 0.2, "batch_size": "full", "restart_every": 2, "clip_norm": 1.0, "difference_clip": 1.0}
SYSTEM = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
# Much noise: a privacy loss distribution takes time in proportion to its epsilon.
CASES: dict[str, Any] = {
    "gaussian": ({**SERVER, "algorithm": DIFF2, "participation": {}}, {"epsilon": 3.0}),
    "gaussian-local": ({**SERVER, "algorithm": DIFF2, "participation": {}}, {"epsilon": 3.0, "trust": "local"}),
    "dp_sgd": (SERVER, {"noise_multiplier": 4.0, "clip_norm": 0.5, "sampling_rate": 0.2}),
    "dp_fedavg": (SERVER, {"epsilon": 1.0, "adaptive": {"initial": 0.3, "bit_noise": 8.0}}),
    "dp_ftrl": (SERVER, {"noise_multiplier": 4.0, "clip_norm": 0.5, "restart_every": 4}),
    "local_dp": (SERVER, {"noise_multiplier": 4.0, "clip_norm": 0.5}),
    "local_dp-async": (
        {**SERVER, "participation": {"mode": "asynchronous"}, "system": SYSTEM},
        {"noise_multiplier": 4.0, "clip_norm": 0.5},
    ),
    "dp_sgd-fedbuff": (
        {
            **SERVER,
            "participation": {"mode": "fedbuff", "buffer": 3},
            "system": SYSTEM,
            "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": "full"},
        },
        {"noise_multiplier": 4.0, "clip_norm": 0.5},
    ),
    "decor": (GOSSIP, {"epsilon": 1.0, "clip_norm": 0.5}),
    "muffliato": (GOSSIP, {"epsilon": 1.0, "clip_norm": 0.5, "gossip_steps": 3}),
}
CHECKPOINT, KILLED, ROUNDS = 3, 6, 8


def scenario(name: str, noise: float | None = None) -> dict[str, Any]:
    base, keys = CASES[name]
    if noise is not None:
        keys = {k: v for k, v in keys.items() if k != "epsilon"} | {"noise_multiplier": noise}
    run = {"rounds": ROUNDS, "eval_every": 4, "device": "cpu"}
    return {**base, "privacy": {"mechanism": name.partition("-")[0], **keys}, "run": run}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "releases.jsonl").read_text().splitlines()]


def killed(sections: dict[str, Any], folder: Path) -> None:
    """A run that ends without a word after some rounds, its last checkpoint being an older one."""

    class Killed(Exception):
        pass

    def interrupt(number: int, _row: object) -> None:
        if number == CHECKPOINT:
            os.kill(os.getpid(), signal.SIGINT)

    def kill(number: int, _row: object) -> None:
        if number == KILLED:
            raise Killed

    with pytest.raises(KeyboardInterrupt):
        fedsim.run(sections, out=folder, progress=interrupt)
    with pytest.raises(Killed):
        fedsim.run(sections, out=folder, resume=True, progress=kill)


def move(folder: Path) -> None:
    """Another model in the checkpoint, as after the loss of an answer, or on another machine."""
    file = folder / "checkpoint" / "state.safetensors"
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    tensors["x"] += 1e-3
    save_file(tensors, file, about)
    seal(folder)


def seal(folder: Path) -> None:
    """Checksums of a checkpoint that was changed on purpose."""
    sums = folder / "checkpoint" / SUMS
    found = {name: checksum(folder / "checkpoint" / name) for name in json.loads(sums.read_text())}
    sums.write_text(json.dumps(found))
