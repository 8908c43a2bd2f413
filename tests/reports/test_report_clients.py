"""The page's part about single clients, over a ``clients.parquet`` whose numbers are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_runs import SERVER, axes, page_of, words

import fedsim
from fedsim.core.metrics import Metric, write_columns
from fedsim.data.partition_csv import write_partition
from fedsim.figures.curves import Line, Panel, panel_figure
from fedsim.figures.html import inline_svg
from fedsim.reports.clients import FILE, clients, label_skew, read_clients
from fedsim.reports.groups import group_runs, metrics_of, read_run

COLUMNS = {
    m.name: m
    for end in ("mean", "weighted_mean", "std", "worst", "decile_1", "decile_9")
    for m in (
        Metric(
            f"client_accuracy_{end}", "", "share", end != "std" or None, figure="clients",
            brief="line" if end == "mean" else "",
        ),
        Metric(f"client_loss_{end}", "", "", None if end == "std" else False, figure="clients", brief=""),
    )
}  # fmt: skip
Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run({**SERVER, "run": {"rounds": 2, "eval_every": 1}}, tmp_path_factory.mktemp("plain") / "run").dir


def evaluated(plain: Path, folder: Path, count: int = 8, change: Change = lambda f: f, seed: int = 0) -> Path:
    """The run with `count` clients that were evaluated after every round; accuracy grows with the training rows."""
    shutil.copytree(plain, folder)
    scenario = (folder / "scenario.yaml").read_text().replace("seed: 0", f"seed: {seed}")
    (folder / "scenario.yaml").write_text(scenario)
    random = np.random.default_rng(seed)
    counts = random.integers(1, 40, (count, 3))
    write_partition(folder, counts, counts.sum(axis=1))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    frames = []
    for row in rows:
        share = counts.sum(axis=1) / counts.sum(axis=1).max() * (0.5 + 0.1 * row["round"])
        frame = pd.DataFrame({"round": row["round"], "client": np.arange(count), "accuracy": share, "loss": 1 - share})
        frame = frame.assign(train_samples=counts.sum(axis=1), test_samples=5)
        frames.append(change(frame))
        for name in ("accuracy", "loss"):
            values = frames[-1][name].dropna().to_numpy()
            row |= {f"client_{name}_mean": values.mean(), f"client_{name}_weighted_mean": values.mean()}
            row |= {f"client_{name}_std": values.std(), f"client_{name}_worst": values.min()}
            row |= {f"client_{name}_decile_{k}": np.quantile(values, k / 10) for k in (1, 9)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_columns(folder, COLUMNS)
    pd.concat(frames).to_parquet(folder / FILE)
    return folder


def section(*folders: Path) -> str:
    """The section about these runs alone, without the rest of the page."""
    runs = [read_run(folder) for folder in folders]
    groups, _ = group_runs(runs)
    shown = [m for m in metrics_of(runs)[0].values() if any(group.has(m.name) for group in groups)]
    return "\n".join(str(block) for block in clients(groups, shown, lambda _name, _figure: b""))


def test_the_section_has_numbers_and_pictures(plain: Path, tmp_path: Path) -> None:
    folder = evaluated(plain, tmp_path / "run")
    page = page_of(folder)
    (last,) = (r for r in read_run(folder).rows if r["round"] == 2)
    text = words(page[page.index("<h2>Clients</h2>") :].partition("<h2>Partition")[0])
    for end in ("mean", "weighted_mean", "std", "worst", "decile_1"):
        assert f"{last[f'client_accuracy_{end}']:.4f}" in text
    assert "rank correlation with training rows" in text
    assert " 1.00 " in text  # accuracy is a multiple of the size
    assert "Table: each client in round 2" in text
    assert "total variation distance" in text
    drawn = axes(page)["accuracy"]
    assert drawn == ["share of clients", "training rows of the client", "label skew of the client"]
    assert (folder / "page" / "figures" / "clients-accuracy.png").exists()
    results = words(page[: page.index("<h2>Progress")])
    assert "client accuracy mean" in results
    assert "client accuracy decile 9" not in results
    assert "client accuracy std" not in results


@pytest.mark.parametrize(
    ("count", "change"),
    [
        (1, lambda f: f),
        (2, lambda f: f),
        (4, lambda f: f.assign(accuracy=np.nan, loss=np.nan)),
        (40, lambda f: f.assign(accuracy=f.accuracy.where(f.client % 3 > 0))),
        (40, lambda f: f[f.client % 8 == f["round"].iloc[0]]),
        (4, lambda f: f.assign(train_samples=10)),
        (4, lambda f: f.assign(name=["<b>one", "$two_", "", "four"])),
        (4, lambda f: f[f["round"] == 0]),
        (4, lambda f: f[f["round"] < 0]),
        (4, lambda f: f.assign(client=f.client + 100)),
        (4, lambda f: f.drop(columns="accuracy")),
        (4, lambda f: f.assign(accuracy=1)),
        (4, lambda f: f.assign(accuracy=np.inf)),
    ],
    ids=[
        "one", "two", "all nan", "some nan", "sampled", "one size", "names", "one round", "none", "unknown clients",
        "loss alone", "all alike", "infinite",
    ],
)  # fmt: skip
def test_any_clients_make_a_page(plain: Path, tmp_path: Path, count: int, change: Change) -> None:
    folder = evaluated(plain, tmp_path / "run", count)
    frame = pd.read_parquet(folder / FILE)
    changed = pd.concat([change(part) for _, part in frame.groupby("round")])
    changed.to_parquet(folder / FILE)
    found = section(folder)
    assert "is left out" not in found
    assert "<b>one" not in found
    assert ("<h2>Clients</h2>" in found) == bool(len(changed))


def test_groups_are_drawn_together_and_seeds_are_one_group(plain: Path, tmp_path: Path) -> None:
    folders = [evaluated(plain, tmp_path / f"seed-{seed}", seed=seed) for seed in (0, 1)]
    other = evaluated(plain, tmp_path / "other", 5)
    scenario = (other / "scenario.yaml").read_text()
    (other / "scenario.yaml").write_text(scenario.replace("lr: 0.5", "lr: 0.25"))
    text = words(section(*folders, other))
    means = [read_run(f).final("client_accuracy_mean") for f in folders]
    assert f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}" in text
    assert "lr=0.5" in text
    assert "lr=0.25" in text
    assert "line: mean over seeds" in text


def test_a_damaged_file_is_a_note(plain: Path, tmp_path: Path) -> None:
    folder = evaluated(plain, tmp_path / "run")
    (folder / FILE).write_bytes(b"PAR1 and nothing else")
    assert f"{folder / FILE} is left out" in words(section(folder))


def test_no_section_where_nobody_was_evaluated(plain: Path) -> None:
    assert section(plain) == ""


def test_label_skew_is_the_total_variation_distance() -> None:
    counts = np.array([[4, 0, 0], [0, 4, 0], [2, 2, 4], [0, 0, 0]])
    whole = np.array([6, 6, 4]) / 16
    found = label_skew(counts)
    by_hand = [0.5 * sum(abs(row[k] / row.sum() - whole[k]) for k in range(3)) for row in counts[:3]]
    assert found[:3] == pytest.approx(by_hand)
    assert np.isnan(found[3])


def test_the_last_evaluation_is_read(plain: Path, tmp_path: Path) -> None:
    folder = evaluated(plain, tmp_path / "run", change=lambda f: f.sample(frac=1, random_state=1))
    held = read_clients(read_run(folder))
    assert held.round == 2
    assert held.clients.tolist() == list(range(8))
    assert held.metrics["accuracy"] == pytest.approx(held.train / held.train.max() * 0.7)


def svg_of(points: int) -> Any:
    x = np.arange(points, dtype=float)
    panel = Panel("cloud", "x", "y", [Line(0, x + 1, np.sin(x), cloud=True)])
    return inline_svg(panel_figure(panel, 1), "cloud", "a cloud")


def test_clouds_of_thousands_are_pictures_of_every_point() -> None:
    assert svg_of(900).count("<use ") > 900
    many = svg_of(5000)
    assert "<image " in many
    assert len(many) < 2 * 10**5  # 5,000 circles would be more than twice as much
