"""Scenarios by chance, that go together, and whether two runs of one of them agree."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedsim
from fedsim.cli.combinations import completed, setting_of
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names

Values = dict[str, Any]
N = 5
ROUNDS = 4
_DROPPED = ("aggregator", "attack", "compression", "privacy", "system", "participation")
_PARTITIONS = [{"scheme": "iid"}, {"scheme": "dirichlet", "alpha": 0.5}, {"scheme": "linear"}]
_COHORTS = [{}, {"fraction": 0.5}, {"clients_per_round": 2}, {"fraction": 0.6, "sampling": "poisson"}, {"dropout": 0.2}]
_GRAPHS = [{"graph": "ring"}, {"graph": "complete"}, {"graph": "random_geometric", "radius": 0.8}, {"graph": "star"}]
_MODELS = [
    {"name": "linear"}, {"name": "mlp", "hidden": [6]}, {"name": "mlp", "hidden": [5, 4]},
    {"name": "cnn", "channels": [2, 3], "hidden": 5}, {"name": "own_models:NormedDropped"},
    {"name": "char_lstm", "embedding": 3, "hidden": 4},
]  # fmt: skip


def random_scenario(number: int, folder: Path) -> Values:
    """One that runs, the same for every `number`: another one where what was drawn first goes together with nothing."""
    draw = random.Random(number)
    while True:
        values = _drawn(draw, folder)
        for _ in range(6):
            try:
                return completed(values)
            except InputError as error:
                if not _without(values, error.problems[0].key or "", draw):
                    break


def _drawn(draw: random.Random, folder: Path) -> Values:
    def maybe(chance: float) -> bool:
        return draw.random() < chance

    name = draw.choice(names("algorithm"))
    setting, model = setting_of("algorithm", name), dict(draw.choice(_MODELS))
    algorithm: Values = {"name": name, "lr": 0.02, "batch_size": draw.choice([4, 7, 16, "full"])}
    for key, chance, values in (
        ("local_steps", 0.6, [1, 2, [1, 2, 3, 1, 2]]), ("local_epochs", 0.2, [1, 2]), ("momentum", 0.25, [0.5]),
        ("weight_decay", 0.2, [0.01]), ("clip", 0.2, [0.5]), ("lr_decay", 0.15, [0.9]), ("server_lr", 0.15, [0.7]),
    ):  # fmt: skip
        if maybe(chance) and not (key == "local_epochs" and "local_steps" in algorithm):
            algorithm[key] = draw.choice(values)
    found: Values = {"seed": draw.randrange(100), "model": model, "algorithm": algorithm}
    found["data"] = {"dataset": "digits", "clients": N, "limit": 60, "partition": draw.choice(_PARTITIONS)}
    if model["name"] == "char_lstm":
        found["data"] = {**_texts(folder), "clients": N}
    if maybe(0.3):
        found["data"]["local_test"] = 0.25
    modes = [mode for mode in names("participation") if setting_of("participation", mode) == setting]
    mode = draw.choice(["synchronous" if setting == "server" else "gossip", *modes])
    found["participation"] = {"mode": mode, **(draw.choice(_COHORTS) if mode == "synchronous" else {})}
    if mode == "gossip":
        found["participation"] |= draw.choice([{}, {"compute": 0.5}, {"compute": 0.7, "links": 0.6}])
    if setting == "gossip":
        found["topology"] = draw.choice(_GRAPHS)
    elif maybe(0.3):
        found["system"] = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
    kind = draw.choice(["", "", "compression", "attack", "aggregator", "privacy"])
    if kind:
        key = "mechanism" if kind == "privacy" else "name"
        found[kind] = {key: draw.choice(names("compressor" if kind == "compression" else kind))}
    if kind == "attack":
        found["attack"]["attackers"] = [1]
    if lookup("algorithm", name)().needs.adversary:
        found["adversary"] = {"eps": 0.1}
    found["run"] = {"rounds": ROUNDS, "dtype": "float64", "eval_every": 1, "device": "cpu", "threads": 1}
    return found


def _without(values: Values, key: str, draw: random.Random) -> bool:
    """Take out what does not go together with the rest; whether there was something to take out."""
    section, _, inner = key.partition(".")
    if key == "participation.mode" and "aggregator" in values and draw.random() < 0.5:
        section = "aggregator"
    if section in _DROPPED:
        return values.pop(section, None) is not None
    inner = inner.split(".")[0]
    if inner in ("", "name", "dataset", "graph"):
        return False
    return values.get(section, {}).pop(inner, None) is not None


def _texts(folder: Path) -> Values:
    """Random texts whose next tokens are to be told."""
    draw, file = np.random.default_rng(1), folder / "texts.npz"
    x, test = draw.integers(0, 7, (40, 6)), draw.integers(0, 7, (20, 6))
    np.savez(file, x_train=x[:, :-1], y_train=x[:, 1:], x_test=test[:, :-1], y_test=test[:, 1:])
    return {"dataset": "npz", "path": str(file), "task": "tokens", "num_classes": 8, "ignore_index": 7}


def agree(one: fedsim.Run, other: fedsim.Run, exactly: bool, without: Sequence[str] = ()) -> None:
    """Final models and recorded numbers are the same, bit for bit where it is to be `exactly`, else to rounding."""
    tolerance: Mapping[str, float] = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(other.params, one.params, equal_nan=True, **tolerance)
    ours, theirs = (run.metrics.drop(columns=["wall", *without], errors="ignore") for run in (one, other))
    assert list(ours) == list(theirs)
    for name in ours:
        if ours[name].dtype.kind in "fiu":
            np.testing.assert_allclose(theirs[name], ours[name], **tolerance, err_msg=name)
        else:
            assert list(ours[name]) == list(theirs[name]), name
