"""The picture of docs/gossip.md, from a run's folder: python docs/images/contacts.py runs/contacts-digits"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

folder = Path(sys.argv[1])
trace, metrics = (
    [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("trace", "metrics")
)
names = trace[0]["names"]
figure, (who, links, models) = plt.subplots(3, sharex=True, figsize=(9, 7.2), height_ratios=(2.2, 1, 1.4))
for row in trace:
    there = [row["round"]] * len(row["compute"])
    (node,) = who.plot(there, row["compute"], "s", color="tab:blue", markersize=4.6)
    for i, j in row["edges"]:
        (link,) = who.plot([row["round"]] * 2, [i, j], "o-", color="tab:orange", linewidth=0.8, markersize=2.6)
who.set_yticks(range(len(names)), names, fontsize=8)
who.set_ylim(len(names) - 0.4, -0.6)
who.legend(
    [node, link], ["computes", "mixes with"], loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False
)
rounds = [row["round"] for row in trace]
links.step(rounds, [row["links_there"] for row in trace], where="mid", color="tab:orange")
links.set_ylabel("links there")
links.set_ylim(bottom=0)
links.yaxis.get_major_locator().set_params(integer=True)
points = [row["round"] for row in metrics]
models.plot(points, [row["test_accuracy"] for row in metrics], label="mean model", color="black")
models.plot(points, [row["node_accuracy"] for row in metrics], label="nodes' own models", color="tab:blue")
models.set_ylabel("test accuracy")
models.set_xlabel("round")
models.legend(loc="lower right", frameon=False)
for place in (links, models):
    place.grid(alpha=0.3)
figure.align_ylabels((links, models))
figure.tight_layout()
figure.savefig(Path(__file__).with_name("contacts.png"), dpi=110)
