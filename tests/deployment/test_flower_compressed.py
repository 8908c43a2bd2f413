"""Deployed, the compressed message is what travels: its bytes are those counted, the numbers a simulation's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.deployment.app import deploy
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
Make = Callable[..., Any]
N, D, ROUNDS = 4, 6, 5
COMPRESSORS: list[dict[str, Any]] = [
    {"name": "none"}, {"name": "top_k", "k": 2}, {"name": "rand_k", "k": 2}, {"name": "sign"},
    {"name": "qsgd", "levels": 4}, {"name": "natural"},
]  # fmt: skip


@pytest.fixture
def scenario(quadratic: Make) -> Make:
    def make(algorithm: dict[str, Any], compression: dict[str, Any], **sections: Any) -> dict[str, Any]:
        return {
            "name": "compressed", "data": quadratic(n=N, d=D).section(noise=0.2), "algorithm": algorithm,
            "compression": compression, "participation": {"mode": "synchronous", "clients_per_round": 3},
            "run": {"rounds": ROUNDS, "dtype": "float64", "eval_every": 1, "trace": True, "device": "cpu"}, **sections,
        }  # fmt: skip

    return make


def measured(app: Deployment) -> list[dict[str, int]]:
    """Bytes of the arrays in every answer, as they lie in the ArrayRecord, from now on."""
    answers: list[dict[str, int]] = []

    def measure(message: Any, reply: Any) -> Any:
        if message.metadata.group_id and not reply.has_error():
            answers.append({k: v.numpy().nbytes for k, v in reply.content["arrays"].items()})
        return reply

    for node in app.grid.nodes.values():
        node.spoil = measure
    return answers


@pytest.mark.parametrize("compression", COMPRESSORS, ids=lambda c: c["name"])
@pytest.mark.parametrize(
    "algorithm,more,vector",
    [
        ({"name": "fedavg", "lr": 0.05, "local_steps": 2}, {}, "delta"),
        ({"name": "fedavg", "lr": 0.05, "local_steps": 2}, {"feedback": "ef14"}, "delta"),
        ({"name": "ef21", "lr": 0.05}, {}, "g"),
        ({"name": "ef21_w", "lr": 0.05, "smoothness": [1.0, 2.0, 3.0, 0.5]}, {}, "g"),
    ],
    ids=["fedavg", "ef14", "ef21", "ef21_w"],
)
def test_the_wire_carries_the_bits_that_are_counted(
    algorithm: dict[str, Any], more: dict[str, Any], vector: str, compression: dict[str, Any], scenario: Make,
    tmp_path: Path,
) -> None:  # fmt: skip
    if more and compression["name"] == "qsgd":
        more = {**more, "contractive": True}
    made = scenario(algorithm, {**compression, **more})
    simulated = fedsim.run(made, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", made, N)
    answers = measured(app)
    deployed = app.run()
    assert float((deployed.params - simulated.params).abs().max()) <= 1e-12
    assert list(deployed.metrics["bytes_sent"]) == list(simulated.metrics["bytes_sent"])
    bits = part_from("compressor", "name", compression).bits(D, 64)
    assert answers == [{vector: math.ceil(bits / 8)}] * (3 * ROUNDS)
    counted = deployed.metrics["bytes_sent"].iloc[-1] - 3 * ROUNDS * 8 * D  # what is left of the broadcasts
    assert counted == sum(size for answer in answers for size in answer.values())


def test_the_first_message_of_a_full_start_is_whole(scenario: Make, tmp_path: Path) -> None:
    made = scenario({"name": "ef21", "lr": 0.05, "init": "full"}, COMPRESSORS[1], participation={"mode": "synchronous"})
    simulated = fedsim.run(made, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", made, N)
    answers = measured(app)
    assert torch.equal(app.run().params, simulated.params)
    sizes = [size for answer in answers for size in answer.values()]
    assert sizes == [8 * D] * N + [math.ceil((2 * 64 + 6) / 8)] * (N * (ROUNDS - 1))


def test_a_model_on_data_through_top_k(tmp_path: Path) -> None:
    made = {
        "data": {"dataset": "digits", "clients": 3, "limit": 120},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 3, "batch_size": 8},
        "compression": {"name": "top_k", "fraction": 0.05, "feedback": "ef14"},
        "run": {"rounds": 4, "device": "cpu"},
    }
    simulated = fedsim.run(made, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", made, 3)
    answers = measured(app)
    assert float((app.run().params - simulated.params).abs().max()) <= 1e-6
    d, k = 650, round(0.05 * 650)
    assert {size for answer in answers for size in answer.values()} == {math.ceil((32 * k + 10 * k) / 8)}
    assert d < 2**10


def test_answers_that_no_compressor_makes_are_not_used(scenario: Make, tmp_path: Path) -> None:
    made = scenario({"name": "fedavg", "lr": 0.05}, COMPRESSORS[1], participation={"mode": "synchronous"})
    app = Deployment(tmp_path / "app", made, N)

    def spoil(message: Any, reply: Any) -> Any:
        from flwr.app import Array, ArrayRecord

        if message.metadata.group_id == "2" and message.metadata.dst_node_id == 100:
            whole = np.ones((1, D))
            garbage = [whole, whole.astype(np.uint8), np.full((1, 17), 255, dtype=np.uint8)]
            reply.content["arrays"] = ArrayRecord({"delta": Array(garbage[app.spoiled % 3])})
            app.spoiled += 1  # type: ignore[attr-defined]
        return reply

    app.spoiled = 0  # type: ignore[attr-defined]
    app.grid.nodes[100].spoil = spoil
    run = app.run(**{"on-failure": "retry", "attempts": 3})
    replies = [r for r in read_jsonl(run.dir / "replies.jsonl") if r["status"] == "garbage"]
    assert len(replies) == 3
    assert all(r["client"] == 0 and r["round"] == 2 for r in replies)
    assert any("marked" in r["reason"] for r in replies)


@pytest.mark.parametrize(
    "algorithm,compression,sections,key,words",
    [
        ("fedavg", {"name": "sign", "feedback": "ef21"}, {}, "compression.feedback", "or the algorithm ef21"),
        ("choco", {"name": "sign"}, {"topology": {"graph": "ring"}}, "compression", "mixes for the nodes"),
        ("ef21_w", {"name": "sign"}, {}, "algorithm.smoothness", "allowed: a list"),
    ],
)
def test_what_cannot_travel_is_refused(
    algorithm: str, compression: Any, sections: Any, key: str, words: str, scenario: Make, tmp_path: Path
) -> None:
    mode = {"participation": {"mode": "gossip" if sections else "synchronous"}}
    made = parse(scenario({"name": algorithm}, compression, **mode, **sections))
    with pytest.raises(InputError) as caught:
        deploy(made, tmp_path / "app")
    assert [p.key for p in caught.value.problems] == [key]
    assert words in str(caught.value)
    assert not (tmp_path / "app").exists()
