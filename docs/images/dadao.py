"""The picture of docs/gossip.md, from a sweep's folder: python docs/images/dadao.py sweeps/dadao-quadratic-sweep"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml

WORDS = {"dadao": "DADAO", "gradient_tracking": "gradient tracking", "dgd": "DGD"}
COLOURS = {"dadao": "black", "gradient_tracking": "tab:blue", "dgd": "tab:orange"}
ROWS = {"flat-together.npz": "flat in the same directions", "flat-apart.npz": "flat in different directions"}
COLUMNS = {"ring": "ring of 11", "star": "star of 11", "file": "Abilene (11 nodes)"}

figure, places = plt.subplots(2, 3, figsize=(10, 5.8), sharex="col", sharey=True)
lines = {}
for file in sorted(Path(sys.argv[1]).rglob("metrics.jsonl")):
    settings = yaml.safe_load((file.parent / "scenario.yaml").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    row, column = Path(settings["data"]["file"]).name, settings["topology"]["graph"]
    name, lr = settings["algorithm"]["name"], settings["algorithm"].get("lr")
    place = places[list(ROWS).index(row), list(COLUMNS).index(column)]
    vectors = np.array([r["bytes_sent"] for r in rows]) / (8 * np.load(settings["data"]["file"])["b"].shape[1])
    # of the nodes' own models: their mean squared distance to the optimum is that of their mean, and that to the mean
    error = np.sqrt([r["optimum_distance"] ** 2 + r["consensus_distance"] for r in rows])
    style = "--" if lr in (0.5, 0.01) else "-"
    (line,) = place.semilogy(vectors / 1e3, error, style, color=COLOURS[name], linewidth=1.5)
    lines[name, lr] = line
    print(
        f"{COLUMNS[column]:20} {ROWS[row]:30} {WORDS[name]:18} {lr or '':5} {vectors[-1]:8.0f} vectors {error[-1]:.1e}"
    )
for place in places.flat:
    place.set_ylim(1e-8, 5)
    place.grid(alpha=0.3)
for place, words in zip(places[:, 0], ROWS.values(), strict=True):
    place.set_ylabel(f"{words}\n\ndistance to the optimum", fontsize=9)
for (above, below), words in zip(places.T, COLUMNS.values(), strict=True):
    above.set_title(words, fontsize=10)
    below.set_xlabel("vectors sent over links, thousands")
found = sorted(lines, key=lambda key: (list(WORDS).index(key[0]), -(key[1] or 0)))
labels = [f"{WORDS[name]}, lr {lr}" if lr else WORDS[name] for name, lr in found]
figure.legend([lines[k] for k in found], labels, loc="upper center", ncols=5, fontsize=9, frameon=False)
figure.tight_layout(rect=(0, 0, 1, 0.94))
figure.savefig(Path(__file__).with_name("dadao.png"), dpi=110)
