"""The schedule of a deployment as it happened, made of files that say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedsim.reports.groups import group_runs, read_run
from fedsim.reports.happened import happened
from fedsim.reports.schedule import schedules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCENARIO = "name: real\ndata: {dataset: digits, clients: 2}\nrun: {rounds: 1}\n"
REPLIES: list[dict[str, Any]] = [  # client 1 is asked three times; the last row counts from the first asking
    {"at": 2.0, "client": 1, "round": 1, "status": "error", "seconds": 2.0, "tries": 1},
    {"at": 4.0, "client": 0, "round": 1, "status": "ok", "seconds": 4.0, "work": 3.0},
    {"at": 5.0, "client": 1, "round": 1, "status": "error", "seconds": 3.0, "tries": 2},
    {"at": 8.0, "client": 1, "round": 1, "status": "error", "seconds": 8.0, "tries": 3},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    (tmp_path / "deployment.json").write_text('{"of": 2}')
    row = {"round": 1, "time": 10.0, "clients": [0], "staleness": [0], "weights": [1.0]}
    (tmp_path / "trace.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n')
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(r) + "\n" for r in REPLIES))
    return tmp_path


def test_tries_of_one_job_do_not_count_twice(folder: Path) -> None:
    timeline = happened(read_run(folder))
    vain = [(bar.start, bar.end) for bar in timeline.bars if bar.kind == "in vain"]
    assert vain == [(0.0, 2.0), (2.0, 5.0), (5.0, 8.0)]
    assert timeline.in_vain.tolist() == pytest.approx([0.0, 0.8])
    assert timeline.idle.tolist() == pytest.approx([0.0, 0.2])


def test_the_picture_is_of_no_virtual_time(folder: Path) -> None:
    figures: list[Figure] = []
    schedules(group_runs([read_run(folder)])[0], lambda _, figure: figures.append(figure) or b"")
    assert figures[0].axes[0].get_xlabel() == "time (s)"
