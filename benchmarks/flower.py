"""What a deployed round costs beyond Flower's own: against ClientApps that only send back what they got.

One SuperLink and three SuperNodes on loopback, three apps in turn on the same processes, several times over: an empty
ClientApp, one that also imports torch (as every app that trains with it does), and a fedsim scenario. Seconds per round
are medians over all rounds but the first of each turn; the ratio is what counts. Turns that are short and many keep it
right on a machine whose load changes. Run: ``python benchmarks/flower.py [--rounds 5] [--turns 4]``
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from flower_cluster import Cluster

from fedsim.deployment.app import deploy
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.load import parse

N = 3
SCENARIO: dict[str, Any] = {
    "name": "overhead",
    "data": {"dataset": "digits", "clients": N},
    "model": {"name": "mlp", "hidden": [64]},
    "algorithm": {"name": "fedavg", "lr": 0.1},
}
SERVER = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < {nodes}:
        time.sleep(0.2)
    took = []
    for _ in range({rounds}):
        content = RecordDict({{"arrays": ArrayRecord({{"x": Array(np.zeros({size}, np.float32))}})}})
        started = time.monotonic()
        ids = set(grid.push_messages([Message(content, node, "train") for node in nodes]))
        while ids:
            ids -= {{reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)}}
            time.sleep(0.2)
        took.append(time.monotonic() - started)
    open({out!r}, "w").write(json.dumps(took))
"""
CLIENT = """
{imports}
from flwr.app import Message
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    return Message(message.content, reply_to=message)
"""


def empty_app(folder: Path, name: str, imports: str, rounds: int, size: int) -> Path:
    """An app whose clients send back what they got; the file that its rounds' seconds go to."""
    app = folder / name
    deploy(parse({**SCENARIO, "name": name}), app)
    out = folder / f"{name}.json"
    package = app / "fedsim_deployment"
    (package / "server_app.py").write_text(SERVER.format(nodes=N, rounds=rounds, size=size, out=str(out)))
    (package / "client_app.py").write_text(CLIENT.format(imports=imports))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=4)
    given = parser.parse_args()
    rounds = given.rounds
    size = 64 * 64 + 64 + 64 * 10 + 10
    with tempfile.TemporaryDirectory() as place:
        folder, seconds = Path(place), defaultdict[str, list[list[float]]](list)
        cluster = Cluster(folder / "cluster")
        imports = {"empty": "", "torch": "import torch"}
        out = {name: empty_app(folder, name, line, rounds, size) for name, line in imports.items()}
        run = {"rounds": rounds, "eval_every": rounds, "trace": True}
        deploy(parse({**SCENARIO, "run": run}), folder / "fedsim")
        try:
            for client in range(N):
                cluster.supernode(client, N)
            for _ in range(given.turns):
                for name in (*imports, "fedsim"):
                    cluster.finish(cluster.begin(folder / name), 3600.0)
                    seconds[name].append(json.loads(out[name].read_text()) if name in out else traced(folder / name))
        finally:
            cluster.close()
    median = {name: statistics.median(s for turn in turns for s in turn[1:]) for name, turns in seconds.items()}
    for name, value in median.items():
        shown = " | ".join(" ".join(f"{v:.1f}" for v in turn) for turn in seconds[name])
        print(f"{name:8} {value:6.2f} s per round   {value / median['empty']:.2f} x empty   (rounds: {shown})")
    print(f"fedsim against the empty app with torch: {median['fedsim'] / median['torch']:.2f} x")


def traced(app: Path) -> list[float]:
    """Seconds of every round of a fedsim run."""
    times = [0.0, *(row["time"] for row in read_jsonl(app / "results" / "trace.jsonl"))]
    return [b - a for a, b in itertools.pairwise(times)]


if __name__ == "__main__":
    main()
