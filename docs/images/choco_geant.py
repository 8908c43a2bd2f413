"""The picture of docs/compression.md, from a sweep's folder: python docs/images/choco_geant.py sweeps/choco-geant"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

runs = defaultdict(list)
for file in sorted(Path(sys.argv[1]).rglob("metrics.jsonl")):
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    runs[file.parent.name.rsplit("_seed=", 1)[0]].append(rows)
figure, places = plt.subplots(2, 2, figsize=(9, 5.6), sharey="row")
order = ["none", *sorted(set(runs) - {"none"})]
for i, (row, measured) in enumerate(zip(places, ("test_accuracy", "node_accuracy"), strict=True)):
    for place, column, unit in zip(row, ("bytes_sent", "time"), (1e6, 1.0), strict=True):
        for name in order:
            x, y = (np.mean([[r[k] for r in rows[1:]] for rows in runs[name]], axis=0) for k in (column, measured))
            place.plot(x / unit, y, label=name, linewidth=1.4, color="black" if name == "none" else None)
        place.grid(alpha=0.3)
        if column == "bytes_sent":
            place.set_xscale("log")
        if i == 1:
            place.set_xlabel("MB sent" if column == "bytes_sent" else "virtual seconds")
    row[0].set_ylabel("accuracy of the mean model" if i == 0 else "accuracy of nodes' own models")
figure.legend(*places[0, 0].get_legend_handles_labels(), loc="upper center", ncols=4, fontsize=9, frameon=False)
figure.tight_layout(rect=(0, 0, 1, 0.92))
figure.savefig(Path(__file__).with_name("choco-geant.png"), dpi=110)
