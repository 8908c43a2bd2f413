"""What travels is what `fedsim plan` says, but for Flower's own envelope: 5 per cent at most, both ways."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from flower_loopback import Deployment

import fedsim
from fedsim.engine.assembly import assemble
from fedsim.engine.idle import idle_message, received_by_one
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
N, MOST = 3, 1.05
FEDAVG = {"name": "fedavg", "lr": 0.1, "local_steps": 1}
ADAPTIVE = {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "adaptive": {"bit_noise": 2.0}}
DIFF2 = {"name": "diff2", "lr": 0.5, "batch_size": "full", "clip_norm": 1.0, "difference_clip": 1.0}
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20}
FAMILIES: dict[str, dict[str, Any]] = {
    "fedavg": {"algorithm": FEDAVG},
    "scaffold": {"algorithm": {**FEDAVG, "name": "scaffold"}},
    "fedspeed": {"algorithm": {**FEDAVG, "name": "fedspeed"}},
    "diff2": {
        "algorithm": DIFF2, "participation": {"mode": "synchronous"},
        "privacy": {"mechanism": "gaussian", "noise_multiplier": 1.0},
    },
    "dspodfl": {
        "algorithm": {"name": "dspodfl", "lr": 0.1}, "participation": {"mode": "gossip"}, "topology": {"graph": "ring"},
    },
    "clip norms that adapt": {"algorithm": FEDAVG, "privacy": ADAPTIVE},
    "top_k": {"algorithm": FEDAVG, "compression": {"name": "top_k", "fraction": 0.1}},
    "qsgd": {"algorithm": FEDAVG, "compression": {"name": "qsgd", "levels": 3}},
    "evaluation on clients": {
        "algorithm": FEDAVG, "run": {"eval_clients": "all", "eval_every": 1}, "local_test": 0.25,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The server's table, and one for each client."""
    folder, random = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    files = [folder / f"{name}.csv" for name in ("server", *range(N))]
    for file in files:
        kinds = ["bear", "crow"] * 6
        pandas.DataFrame({**{f"x{i}": random.normal(size=12) for i in range(8)}, "kind": kinds}).to_csv(
            file, index=False
        )
    return files


def sections(tables: list[Path], algorithm: dict[str, Any], **more: Any) -> dict[str, Any]:
    held = {"local_test": more.pop("local_test")} if "local_test" in more else {}
    run = {"rounds": 1, "eval_every": 1, "device": "cpu", **more.pop("run", {})}
    data = {"dataset": "csv", "path": str(tables[0]), "target": "kind", "normalize": "none", "clients": N, **held}
    model = {"name": "mlp", "hidden": [6000]}
    return {"name": "bytes", "data": data, "model": model, "algorithm": algorithm, "run": run, **more}


def said(facts: dict[str, Any], key: str) -> float:
    """Bytes in a row of the plan's."""
    number, unit = str(facts[key]).split()[:2]
    return float(number) * UNITS[unit]


def travelled(app: Deployment) -> dict[str, list[int]]:
    """Fills with the bytes of every message, by its type, and of every answer to it."""
    from flwr.common.serde import message_to_proto

    sizes = defaultdict[str, list[int]](list)

    def spoil(message: Any, reply: Any) -> Any:
        kind = message.metadata.message_type
        sizes[kind].append(message_to_proto(message).ByteSize())
        sizes[f"answer to {kind}"].append(message_to_proto(reply).ByteSize())
        return reply

    for node in app.grid.nodes.values():
        node.spoil = spoil
    return sizes


@pytest.mark.parametrize("own", [False, True], ids=["shares", "own-data"])
@pytest.mark.parametrize("family", FAMILIES)
def test_messages_are_as_large_as_planned(family: str, own: bool, tables: list[Path], tmp_path: Path) -> None:
    made = sections(tables, **FAMILIES[family])
    facts = fedsim.plan(made)["messages"]
    app = Deployment(tmp_path / "app", made, N)
    if own:
        for node, file in zip(app.grid.nodes.values(), tables[1:], strict=True):
            node.config["own-data"] = str(file)
    sizes = travelled(app)
    app.run()
    sent, back = sizes["train"], sizes["answer to train"]
    assert len(sent) == len(back) == N
    one = said(facts, "one message")
    assert max(back) <= MOST * one
    graph = "topology" in made
    down = one if graph else (said(facts, "sent in the first round") - N * one) / N
    assert max(sent) <= MOST * down
    for asked in sizes["evaluate"]:
        assert asked <= MOST * down
    assert bool(sizes["evaluate"]) == ("eval_clients" in made["run"] and own)
    assert max(sizes["answer to evaluate"], default=0) < 1000


def test_what_mechanisms_add_is_what_they_say(tables: list[Path]) -> None:
    """Of clip norms that adapt one number each way; the plan counts them."""
    made = sections(tables, FEDAVG, privacy=ADAPTIVE)
    assembly, scenario = assemble(parse(made)), parse(made)
    received, sent = assembly.one_message(scenario)
    plain = assemble(parse(sections(tables, FEDAVG))).one_message(scenario)
    assert [len(m) - len(p) for m, p in zip((received, sent), plain, strict=True)] == [1, 1]
    worker = assembly.worker(scenario)
    real = received_by_one(assembly, worker), idle_message(assembly, worker)
    for stated, found in zip((received, sent), real, strict=True):
        assert {k: v.shape[-1] for k, v in stated.items()} == {k: v.shape[-1] for k, v in found.items()}
