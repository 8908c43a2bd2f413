"""The report: real small runs, every number and figure in the page, groups over seeds, damage, errors."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from report_runs import axes, charts, cut_short, metrics, page_of, words

from fedsim.core.errors import InputError
from fedsim.data.partition_csv import read_partition, write_partition
from fedsim.figures.curves import BAND
from fedsim.reports.groups import find_runs, group_runs
from fedsim.reports.report import write_report

PNG = b"\x89PNG"


# --- one run ----------------------------------------------------------------------------------------------------------


def test_one_run_shows_final_and_best_apart(runs):
    rows = metrics(runs / "server0")
    rows[1]["test_accuracy"] = 0.98765  # better than the last round
    (runs / "server0" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = words(page_of(runs / "server0"))
    final = rows[-1]
    mean = np.mean([row["test_accuracy"] for row in rows[-10:]])
    assert f"test accuracy {final['test_accuracy']:.4f} 0.9877 2 {mean:.4f}" in text
    lowest = min(rows, key=lambda r: r["test_loss"])
    assert f"test loss {final['test_loss']:.4g} {lowest['test_loss']:.4g} {lowest['round']}" in text
    assert f"rounds 6 virtual time (s) {final['time']:.4g}" in text
    assert f"bytes sent {final['bytes_sent'] / 1e3:.4g} kB" in text
    assert f"sample gradients {final['gradients']:,}" in text
    assert "seed 0, finished" in text
    assert "consensus" not in text


def test_one_run_draws_accuracy_and_losses_against_everything(runs):
    page = page_of(runs / "server0")
    everything = ["round", "virtual time", "bytes sent", "sample gradients"]
    assert axes(page) == dict.fromkeys(("test accuracy", "test loss", "train loss"), everything)
    still = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)  # for readers without JavaScript
    assert still == [f"{y} against round" for y in axes(page)]
    folder = runs / "server0" / "page" / "figures"
    assert sorted(p.name for p in folder.iterdir()) == ["partition.png", "progress.png"]
    assert all(p.read_bytes().startswith(PNG) for p in folder.iterdir())


def test_gossip_shows_nodes_delays_and_the_graph(runs):
    page = page_of(runs / "gossip")
    text, last = words(page), metrics(runs / "gossip")[-1]
    drawn = axes(page)
    assert {"round", "bytes sent"} <= set(drawn["consensus distance"])
    for y in ("test accuracy", "node accuracy"):
        assert drawn[y][-3:] == ["processing delay", "transmission delay", "total delay"]
    assert "total delay" not in drawn["test loss"]
    assert "costs 1 + 1" in text
    assert f"consensus distance {last['consensus_distance']:.4g}" in text
    assert f"processing delay {last['delay_processing']:.4g}" in text
    assert f"total delay {last['delay_total']:.4g}" in text
    gap = 1 - (1 / 3 + 2 / 3 * np.cos(2 * np.pi / 8))  # of a ring of 8 with weights 1/3
    assert "nodes 8 edges 8 directed no connected yes degree min 2 degree mean 2 degree max 2" in text
    assert f"diameter 4 spectral gap {gap:.4g}" in text
    assert {"topology.png", "gossip.png", "delay.png"} <= {p.name for p in (runs / "gossip/page/figures").iterdir()}


def test_quadratic_shows_the_distance_to_the_optimum_and_no_partition(runs):
    page = page_of(runs / "quad")
    assert f"distance to the optimum {metrics(runs / 'quad')[-1]['optimum_distance']:.4g}" in words(page)
    assert "Partition of the data" not in page
    assert not (runs / "quad" / "partition.csv").exists()


def test_the_page_needs_nothing_else_and_is_the_same_again(runs):
    page = page_of(runs / "gossip", runs / "server0")
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    (library,) = set(re.findall(r'https?://[^"\s<>)]+', page)) - namespaces  # the head of the library, in a comment
    assert library == "https://github.com/leeoniya/uPlot"
    assert "script src" not in page
    assert "default-src 'unsafe-inline' data: blob:" in page  # browsers do not let it ask
    assert "<link" not in page
    assert all(src.startswith("data:image/png;base64,") for src in re.findall(r'src="([^"]*)"', page))
    ids = re.findall(r'<clipPath id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) >= len(charts(page)) > 4
    assert page == page_of(runs / "gossip", runs / "server0")


def test_the_default_place_is_the_first_directory(runs):
    assert write_report([runs / "server0", runs / "prox"]) == runs / "server0" / "report.html"
    assert (runs / "server0" / "figures" / "progress.png").exists()


# --- several runs -----------------------------------------------------------------------------------------------------


def test_seeds_are_one_group_with_numpys_mean_and_std(runs):
    page = page_of(*(runs / f"server{seed}" for seed in (0, 1, 2)), runs / "prox")
    text = words(page)
    finals = [metrics(runs / f"server{seed}")[-1]["test_accuracy"] for seed in (0, 1, 2)]
    bests = [max(row["test_accuracy"] for row in metrics(runs / f"server{seed}")) for seed in (0, 1, 2)]
    tails = [np.mean([r["test_accuracy"] for r in metrics(runs / f"server{seed}")[-10:]]) for seed in (0, 1, 2)]
    cells = " ".join(f"{np.mean(v):.4f} ± {np.std(v, ddof=1):.4f}" for v in (finals, bests, tails))
    assert f"fedavg 3 {cells}" in text
    assert "test accuracy, mean of the last 10" in text
    prox = metrics(runs / "prox")
    assert f"fedprox 1 {prox[-1]['test_accuracy']:.4f} {max(r['test_accuracy'] for r in prox):.4f}" in text
    assert "sample standard deviation (k - 1) over k seeds" in text
    assert "4 runs in 2 groups" in text
    assert BAND in text
    assert "algorithm.mu 0.1" in text
    assert "algorithm.lr" not in text.split("What differs")[1].split("Progress")[0]


def test_the_band_is_the_mean_and_the_extremes_at_each_round(runs):
    (group,), differing = group_runs(find_runs([runs / f"server{seed}" for seed in (0, 1, 2)]))
    assert differing == []
    values = np.array([[row["test_loss"] for row in metrics(runs / f"server{seed}")] for seed in (0, 1, 2)])
    x, mean, low, high = group.band("round", "test_loss")
    np.testing.assert_array_equal(x, [0, 2, 4, 6])
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-15)
    np.testing.assert_array_equal(low, values.min(0))
    np.testing.assert_array_equal(high, values.max(0))


def test_the_band_interpolates_where_seeds_were_evaluated_elsewhere(runs):
    for seed, times in ((0, [0, 1, 2, 3]), (1, [0, 2, 4, 6])):
        rows = [{"round": i, "time": t, "train_loss": 10.0 * t} for i, t in enumerate(times)]
        (runs / f"server{seed}" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (group,), _ = group_runs(find_runs([runs / "server0", runs / "server1"]))
    x, mean, low, high = group.band("time", "train_loss")
    np.testing.assert_array_equal(x, [0, 1, 2, 3])  # up to where the first one ends
    for curve in (mean, low, high):
        np.testing.assert_allclose(curve, 10 * x)


def test_groups_are_named_by_the_fewest_keys_that_tell_them_apart(runs):
    for name, alpha, mu in (("a", 0.1, 0.5), ("b", 0.1, 1.0), ("c", 1.0, 0.5)):
        folder = runs / "made" / name
        folder.mkdir(parents=True)
        shutil.copy(runs / "prox" / "metrics.jsonl", folder)
        (folder / "scenario.yaml").write_text(f"data: {{alpha: {alpha}}}\nalgorithm: {{name: fedprox, mu: {mu}}}\n")
    groups, differing = group_runs(find_runs([runs / "made", runs / "server0"]))
    labels = ["fedprox, alpha=0.1, mu=0.5", "fedprox, alpha=0.1, mu=1.0", "fedprox, alpha=1.0, mu=0.5"]
    assert [g.label for g in groups[:3]] == labels
    assert groups[3].label.startswith("fedavg")
    assert {"data.alpha", "algorithm.mu", "algorithm.name"} <= set(differing)


def test_gossip_and_server_runs_stand_side_by_side(runs):
    text = words(page_of(runs))
    assert "6 runs in 4 groups" in text
    assert "node accuracy, final" in text
    assert "distance to the optimum" in text
    assert "Graph" in text


def test_a_sweep_folder_is_all_its_runs_and_its_failures(runs):
    errors = [
        {"run": "prox", "error": None},
        {"run": "gone", "error": "alpha <too> small"},
        {"run": "server1", "error": "diverged"},
    ]
    (runs / "sweep.json").write_text(json.dumps({"name": "my sweep", "runs": errors}))
    cut_short(runs / "server1", 2)
    place = write_report([runs])
    text = words(place.read_text())
    assert place == runs / "report.html"
    assert text.startswith("my sweep")
    assert "gone: not in this report: alpha <too> small" in text
    assert "unfinished: round 2 of 6; diverged" in text


def test_the_same_seed_twice_is_said(runs):
    shutil.copytree(runs / "server0", runs / "again")
    text = words(page_of(runs / "server0", runs / "again", runs / "server0"))
    assert "2 runs in 1 group" in text
    assert "seed 0 is there more than once" in text


# --- parts ------------------------------------------------------------------------------------------------------------


def test_the_partition_of_a_run_is_the_one_it_trained_on(runs):
    samples, counts = read_partition(runs / "server0" / "partition.csv")
    assert counts.shape == (8, 10)
    np.testing.assert_array_equal(counts.sum(1), samples)
    assert samples.sum() == 1438  # four fifths of 1797 digits
    text = words(page_of(runs / "server0"))
    assert "8 clients, 1,438 training samples" in text
    row = " ".join(str(c) for c in counts[3] if c)
    assert f"3 {samples[3]} {row} 4" in text


def test_many_clients_are_quantiles(runs):
    sizes = np.arange(1, 102)
    write_partition(runs / "server0", np.column_stack([sizes, 2 * sizes]), 3 * sizes)
    text = words(page_of(runs / "server0"))
    assert "smallest 3 2 0.6667" in text
    assert "median 153 2 0.6667" in text
    assert "largest 303 2 0.6667" in text
    assert "Table: samples of each client" not in text


def test_partition_without_labels_keeps_sizes(tmp_path):
    write_partition(tmp_path, None, np.array([4, 7]))
    samples, counts = read_partition(tmp_path / "partition.csv")
    assert samples.tolist() == [4, 7]
    assert counts is None
    write_partition(tmp_path, None, np.ones(3, dtype=int))  # nothing was divided
    assert not (tmp_path / "partition.csv").exists()


@pytest.mark.parametrize(
    "content", ["", "client,samples\n", "a,b\n1,2\n", "client,samples\n0\n", "client,samples\n0,9" + "9" * 30]
)
def test_a_partition_that_is_no_table(tmp_path, content):
    (tmp_path / "partition.csv").write_text(content)
    with pytest.raises(InputError, match=r"partition.csv:[12]: found"):
        read_partition(tmp_path / "partition.csv")
