"""A model of one parameter: attacks, compressors and rules act on it as on any other.

The same problem with a second coordinate in which every client has 0 is the reference: what is told apart there by
its width has to be told apart where all widths are one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.fields import make_part
from fedsim.core.job import Contribution, Job, RunFacts
from fedsim.core.registry import lookup
from fedsim.messages.attackers import Attackers
from fedsim.messages.base import Pipeline

N = 6
ATTACKS: list[dict[str, Any]] = [
    {"name": "sign_flip", "scale": 5.0}, {"name": "alie"}, {"name": "gaussian"}, {"name": "zero"}, {"name": "min_max"},
    {"name": "ipm"}, {"name": "mimic"}, {"name": "random"},
]  # fmt: skip
ON_EDGES: list[dict[str, Any]] = [*ATTACKS, {"name": "dissensus"}, {"name": "spectral"}]
FEDAVG = {"name": "fedavg", "lr": 0.3, "weighting": "uniform"}
NOVA = {"name": "fednova", "lr": 0.3, "local_steps": [1, 2, 3, 4, 1, 2]}
COMPRESSORS: list[tuple[dict[str, Any], int]] = [
    ({"name": "none"}, 64), ({"name": "top_k", "k": 1}, 64), ({"name": "rand_k", "fraction": 1.0}, 64),
    ({"name": "qsgd", "levels": 3}, 64 + 1 + 2), ({"name": "qsgd", "levels": 3, "feedback": "ef14"}, 64 + 1 + 2),
    ({"name": "natural"}, 12), ({"name": "natural", "feedback": "ef21"}, 12),
]  # fmt: skip
RULES: list[dict[str, Any]] = [
    {"name": "median"}, {"name": "geometric_median"}, {"name": "krum", "f": 1}, {"name": "trimmed_mean", "f": 1},
    {"name": "centered_clipping", "tau": 0.1}, {"name": "fltrust", "root": 0}, {"name": "meamed", "f": 1},
    {"name": "median", "pre": [{"name": "clip", "c": 0.1}]}, {"name": "median", "pre": [{"name": "nnm", "f": 1}]},
    {"name": "median", "pre": [{"name": "arc", "f": 2}]},
]  # fmt: skip
GRAPH_RULES: list[dict[str, Any]] = [{"name": "nna", "f": 1}, {"name": "bridge", "f": 1}, {"name": "clipped_gossip"}]


def _params(folder: Path, d: int, **sections: Any) -> tuple[np.ndarray[Any, Any], float]:
    """The first coordinate of the models at the end, and the bytes of a message; those of the broadcast are 8."""
    folder.mkdir(exist_ok=True)
    draws, wide = np.random.default_rng(0), np.zeros((N, d))
    curvature, target = wide + 1.0, wide.copy()
    curvature[:, 0], target[:, 0] = draws.uniform(0.5, 2, N), 2 * draws.standard_normal(N)
    start = np.zeros(d)
    start[0] = draws.standard_normal()
    file = folder / f"q{d}.npz"
    np.savez(file, A=curvature, b=target, x0=start)
    run = {"rounds": 3, "eval_every": 3, "dtype": "float64", "device": "cpu", "trace": True}
    scenario = {"data": {"dataset": "quadratic", "file": str(file)}, "run": run, **sections}
    done = fedsim.run(scenario, out=folder / f"run{d}-{len(list(folder.iterdir()))}")
    return done.params.numpy()[..., 0], float(done.metrics["bytes_sent"].iloc[-1]) / (3 * N) - 8


def _like_a_padded_one(folder: Path, **sections: Any) -> np.ndarray[Any, Any]:
    one, two = (_params(folder, d, **sections)[0] for d in (1, 2))
    assert one == pytest.approx(two, rel=1e-9)
    return one


@pytest.mark.parametrize("algorithm", [FEDAVG, NOVA], ids=lambda a: a["name"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a["name"])
def test_attacks_under_a_server(attack: dict[str, Any], algorithm: dict[str, Any], tmp_path: Path) -> None:
    found = _like_a_padded_one(tmp_path, algorithm=algorithm, attack={"attackers": [4, 5], **attack})
    assert found != pytest.approx(_params(tmp_path, 1, algorithm=algorithm)[0], rel=1e-3)


@pytest.mark.parametrize("attack", ON_EDGES, ids=lambda a: a["name"])
def test_attacks_on_a_graph(attack: dict[str, Any], tmp_path: Path) -> None:
    graph = {"algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": {"graph": "complete"}}
    found = _like_a_padded_one(tmp_path, **graph, attack={"attackers": [5], **attack})
    assert found[:5] != pytest.approx(_params(tmp_path, 1, **graph)[0][:5], rel=1e-3)


@pytest.mark.parametrize("compression,bits", COMPRESSORS, ids=lambda c: str(c))
def test_compressors(compression: dict[str, Any], bits: int, tmp_path: Path) -> None:
    _like_a_padded_one(tmp_path, algorithm=FEDAVG, compression=compression)
    _, size = _params(tmp_path, 1, algorithm=FEDAVG, compression=compression)
    assert size == -(-bits // 8)


def test_only_what_is_a_number_counts_in_full(tmp_path: Path) -> None:
    """FedNova sends a vector and a number: 12 bits and 8 bytes."""
    _like_a_padded_one(tmp_path, algorithm=NOVA, compression={"name": "natural"})
    _, size = _params(tmp_path, 1, algorithm=NOVA, compression={"name": "natural"})
    assert size == 2 + 8


def test_the_sign_of_one_number_is_all_of_it(tmp_path: Path) -> None:
    """``|v| sign(v) = v``, in 1 + 64 bits."""
    found, size = _params(tmp_path, 1, algorithm=FEDAVG, compression={"name": "sign"})
    assert found == pytest.approx(_params(tmp_path, 1, algorithm=FEDAVG)[0], rel=1e-12)
    assert size == 9


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "ef21", "lr": 0.1}},
        {"algorithm": {"name": "choco", "lr": 0.1}, "topology": {"graph": "ring"}},
    ],
    ids=["ef21", "choco"],
)
def test_algorithms_that_compress(sections: dict[str, Any], tmp_path: Path) -> None:
    found = _like_a_padded_one(tmp_path, **sections, compression={"name": "natural"})
    whole = _params(tmp_path, 1, **sections, compression={"name": "none"})[0]
    assert found != pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("algorithm", [FEDAVG, NOVA], ids=lambda a: a["name"])
@pytest.mark.parametrize("rule", RULES, ids=lambda r: str(r))
def test_rules_of_a_server(rule: dict[str, Any], algorithm: dict[str, Any], tmp_path: Path) -> None:
    _like_a_padded_one(tmp_path, algorithm=algorithm, aggregator=rule)


@pytest.mark.parametrize("rule", GRAPH_RULES, ids=lambda r: r["name"])
def test_rules_of_a_graph(rule: dict[str, Any], tmp_path: Path) -> None:
    graph = {"algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": {"graph": "complete"}, "aggregator": rule}
    found = _like_a_padded_one(tmp_path, **graph, attack={"name": "sign_flip", "attackers": [5]})
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "name,keys,expected",
    [
        ("zero", {}, 0.0),
        ("ipm", {"eps": 2.0}, -2.0 * 2.5),
        ("alie", {"z": 1.0}, 2.5 - np.std([1.0, 2.0, 3.0, 4.0], ddof=1)),
        ("sign_flip", {"scale": 3.0}, -3.0 * 5.0),
        ("mimic", {"who": 1}, 2.0),
        ("backdoor", {"boost": 4.0, "target": 0}, 4.0 * 5.0),
    ],
)
def test_scalar_formulas(name: str, keys: dict[str, Any], expected: float) -> None:
    """What the attacker of five sends of the honest 1, 2, 3, 4 and its own 5; its number stays."""
    part = make_part(lookup("attack", name), {"attackers": [4], **keys})
    assert isinstance(part, Attackers)
    pipeline = Pipeline((part,), RunFacts(0, 5, (4,), numbers=("norm",)))
    who, one = np.arange(5), np.ones(5, dtype=np.int64)
    rows = torch.arange(1.0, 6.0, dtype=torch.float64).unsqueeze(1)
    sent, _ = pipeline.send({"d": rows, "norm": 10 * rows}, {}, Job(who, one, one, {}))
    arrives = pipeline.receive(sent, Contribution(1, who, one, one))
    assert arrives["d"][:, 0].tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0, expected], abs=1e-12)
    assert torch.equal(arrives["norm"], 10 * rows)
