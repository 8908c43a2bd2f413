"""Reports of runs that are unfinished or damaged, and what no report is made of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from markupsafe import escape
from report_runs import charts, cut_short, metrics, page_of, words

from fedsim.core.errors import InputError
from fedsim.figures.curves import OPEN_END
from fedsim.reports.report import write_report

# --- unfinished and damaged runs --------------------------------------------------------------------------------------


def test_an_unfinished_run_is_marked(runs):
    cut_short(runs / "server0", 2)
    page = page_of(runs / "server0")
    assert "unfinished: round 2 of 6" in words(page)
    assert '<span class="mark">unfinished: round 2 of 6</span>' in page


def test_an_unfinished_seed_is_drawn_but_not_averaged(runs):
    cut_short(runs / "server2", 2)
    page = page_of(*(runs / f"server{seed}" for seed in (0, 1, 2)))
    text = words(page)
    finals = [metrics(runs / f"server{seed}")[-1]["test_accuracy"] for seed in (0, 1)]
    assert f"(1 of 3 unfinished, left out) 2 {np.mean(finals):.4f} ± {np.std(finals, ddof=1):.4f}" in text.replace(
        " )", ")"
    ).replace("( ", "(")
    assert OPEN_END in text
    assert "server2: unfinished: round 2 of 6" in text


def test_a_run_that_has_not_evaluated_yet(runs):
    (runs / "server0" / "metrics.jsonl").write_text("")
    (runs / "server0" / "params.safetensors").unlink()
    text = words(page_of(runs / "server0"))
    assert "metrics.jsonl is empty" in text
    assert "unfinished: round 0 of 6" in text


def test_a_diverged_run_says_so(runs):
    cut_short(runs / "server0", 2)
    with (runs / "server0" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "time": 3.0, "train_loss": null, "test_loss": null, "test_accuracy": 0.1}\n')
    text = words(page_of(runs / "server0"))
    assert "unfinished: round 3 of 6; its loss is no longer finite" in text
    assert "test loss –" in text


@pytest.mark.parametrize(
    ("place", "broken", "note"),
    [
        ("end", '{"round": 7, "ti', "metrics.jsonl:5 was cut short"),
        ("middle", "junk", "metrics.jsonl is damaged: 1 of 5 lines are left out (line 3)"),
        ("middle", "[1, 2]", "metrics.jsonl is damaged: 1 of 5 lines are left out (line 3)"),
        ("middle", '{"time": 1.0}', "metrics.jsonl is damaged: 1 of 5 lines are left out (line 3)"),
    ],
)
def test_broken_lines_are_left_out_and_said(runs, place, broken, note):
    path = runs / "server0" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines.insert(4 if place == "end" else 2, broken)
    path.write_text("\n".join(lines))
    text = words(page_of(runs / "server0"))
    assert note in text
    assert "rounds 6" in text


def test_missing_files_are_notes(runs):
    (runs / "gossip" / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in words(page_of(runs / "gossip"))
    shutil.copyfile(runs / "prox" / "metrics.jsonl", runs / "gossip" / "metrics.jsonl")
    names = ("environment.json", "topology.graphml", "partition.csv")
    for name in names:
        (runs / "gossip" / name).unlink()
    text = words(page_of(runs / "gossip"))
    assert [name for name in names if f"{name} is missing" not in text] == []


DAMAGED = [
    ("environment.json", "{", "environment.json cannot be read"),
    ("topology.graphml", "<graphml", "topology.graphml: cannot be read as graphml"),
    ("partition.csv", "client,samples,0\n0,5,x\n", "partition.csv:2: found '0,5,x', allowed: 3 whole numbers"),
]


def test_damaged_files_are_notes(runs):
    for name, content, _ in DAMAGED:
        (runs / "gossip" / name).write_text(content)
    text = words(page_of(runs / "gossip"))
    assert [note for _, _, note in DAMAGED if note not in text] == []


def test_names_from_files_are_text_never_markup(runs):
    evil = '<script>alert("1")</script>$\\frac{'
    for run in ("server0", "gossip"):
        path = runs / run / "scenario.yaml"
        text = path.read_text().replace(f"name: {run.rstrip('0')}", f"name: {json.dumps(evil)}", 1)
        path.write_text(text.replace("name: fedavg", f"name: {json.dumps(evil)}"))
        (runs / run / "environment.json").write_text(json.dumps({evil: evil}))
    graph = nx.read_graphml(runs / "gossip" / "topology.graphml")
    nx.set_node_attributes(graph, evil, "label")
    nx.write_graphml(graph, runs / "gossip" / "topology.graphml")
    rows = metrics(runs / "server0")
    (runs / "server0" / "metrics.jsonl").write_text(
        "".join(json.dumps({**r, evil: 1.0 + r["round"]}) + "\n" for r in rows)
    )
    page = page_of(runs / "server0", runs / "gossip")
    for one in (page, page_of(runs / "server0")):
        assert evil not in one
        assert one.count("<script") == one.count("</script") == len(charts(one)) + 1  # their data, and the program
        assert str(escape(evil)) in one
        assert evil in charts(one)  # as text in the data of its chart


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: d / "none", "no such folder; allowed: a run directory"),
        (lambda d: d / "q.npz", "is a file; allowed: a run directory"),
        (lambda d: d / "server0" / "checkpoint", "holds no run; allowed"),
        (lambda d: _write(d / "server0" / "scenario.yaml", "a: ["), "not valid YAML"),
        (lambda d: _write(d / "server0" / "metrics.jsonl", b"\xff\xfe"), "cannot be read as UTF-8 text"),
        (lambda d: _remove(d / "server0" / "scenario.yaml"), "scenario.yaml: no such file"),
    ],
)
def test_bad_directories_are_input_errors(runs, prepare, message):
    with pytest.raises(InputError, match=re.escape(message)):
        write_report([prepare(runs)])


def test_a_page_that_cannot_be_written_is_an_input_error(runs):
    with pytest.raises(InputError, match="found the folder"):
        write_report([runs / "server0"], runs)
    with pytest.raises(InputError, match="cannot be written"):
        write_report([runs / "server0"], runs / "q.npz" / "report.html")


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path.parent


def _remove(path: Path) -> Path:
    path.unlink()
    return path.parent
