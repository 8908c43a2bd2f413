"""Small runs of which reports are made, and how a page is read."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedsim
from fedsim.reports.report import write_report

SERVER = {
    "name": "server",
    "data": {"dataset": "digits", "clients": 8, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.5, "local_steps": 2, "batch_size": 8},
    "participation": {"mode": "synchronous", "fraction": 0.5},
    "run": {"rounds": 6, "eval_every": 2},
}
GOSSIP = {
    "name": "gossip",
    "data": SERVER["data"],
    "model": {"name": "svm"},
    "algorithm": {"name": "dspodfl", "lr": 0.05, "batch_size": 8},
    "topology": {"graph": "ring"},
    "participation": {"mode": "gossip", "compute": 0.5, "links": 0.5},
    "run": {"rounds": 8, "eval_every": 2},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Run directories made once: three seeds of a server run, one of another algorithm, one of gossip, a quadratic."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1, 2):
        fedsim.run({**SERVER, "seed": seed}, root / f"server{seed}")
    prox = {**SERVER, "algorithm": {**SERVER["algorithm"], "name": "fedprox", "mu": 0.1}}
    fedsim.run(prox, root / "prox")
    fedsim.run(GOSSIP, root / "gossip")
    rng = np.random.default_rng(0)
    np.savez(root / "q.npz", A=rng.uniform(1, 3, (4, 3)), b=rng.normal(size=(4, 3)))
    quadratic = {
        "name": "quad",
        "data": {"dataset": "quadratic", "file": str(root / "q.npz")},
        "algorithm": {"name": "scaffold", "lr": 0.1, "local_steps": 2, "batch_size": "full"},
        "run": {"rounds": 5, "dtype": "float64"},
    }
    fedsim.run(quadratic, root / "quad")
    return root


@pytest.fixture
def runs(recorded, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(recorded, tmp_path / "runs")
    return tmp_path / "runs"


def page_of(*folders: Path) -> str:
    return write_report(list(folders), folders[0] / "page" / "report.html").read_text(encoding="utf-8")


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def charts(page: str) -> dict[str, dict]:
    """What a page's charts draw, by the name of the quantity."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    return {chart["y"]: chart for chart in map(json.loads, found)}


def axes(page: str) -> dict[str, list[str]]:
    """What each quantity can be drawn against."""
    return {name: [view["x"] for view in chart["views"]] for name, chart in charts(page).items()}


def words(page: str) -> str:
    """The page as read, without pictures, programs and markup."""
    page = re.sub(r"<(svg|script|style)\b.*?</\1>", " ", page, flags=re.S)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))


def cut_short(folder: Path, lines: int) -> None:
    """What an interrupted run leaves behind."""
    kept = (folder / "metrics.jsonl").read_text().splitlines()[:lines]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    (folder / "params.safetensors").unlink()
