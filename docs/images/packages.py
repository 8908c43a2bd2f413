"""Draws docs/images/packages.png: the packages on their floors, each with its size; imports go downwards only.

python docs/images/packages.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from test_layers import FLOORS  # noqa: E402

WORDS = {
    "cli": "the command line", "reports": "plans, pages, tables", "sweeps": "many runs", "deployment": "Flower apps",
    "audit": "attacks on runs", "engine": "the one loop", "scenario": "what a file says",
    "privacy": "mechanisms, ledger", "backends": "where: here, Ray", "contract": "laws of parts",
    "clients": "local work, one round", "participation": "who works, when", "objective": "gradients of models",
    "algorithms": "one file a paper", "messages": "rules, compression", "graphs": "topologies, mixing",
    "devices": "speeds, clocks", "data": "sets, partitions", "models": "modules, losses",
    "core": "types, keys, errors", "figures": "matplotlib",
}  # fmt: skip


def main() -> None:
    figure, axes = plt.subplots(figsize=(10, 6.2))
    axes.set_xlim(0, 6)
    axes.set_ylim(-0.2, len(FLOORS))
    axes.axis("off")
    for floor, row in enumerate(FLOORS):
        names = row.split()
        width = 6 / len(names)
        for i, name in enumerate(names):
            lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "fedsim" / name).rglob("*.py"))
            box = plt.Rectangle(
                (i * width + 0.03, floor + 0.06), width - 0.06, 0.84, facecolor="#e8eef7", edgecolor="#35507a"
            )
            axes.add_patch(box)
            x = i * width + width / 2
            axes.text(x, floor + 0.62, name, ha="center", va="center", fontsize=11, weight="bold", color="#1d2f4d")
            axes.text(x, floor + 0.36, WORDS[name], ha="center", va="center", fontsize=8)
            axes.text(x, floor + 0.17, f"{lines:,} lines", ha="center", va="center", fontsize=7, color="#666666")
    axes.annotate(
        "", xy=(-0.06, 0.1), xytext=(-0.06, len(FLOORS) - 0.1), arrowprops={"arrowstyle": "->", "color": "#35507a"}
    )
    axes.text(-0.13, len(FLOORS) / 2, "imports", rotation=90, ha="center", va="center", fontsize=9, color="#35507a")
    axes.set_xlim(-0.2, 6.02)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
