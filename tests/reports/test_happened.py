"""The schedule of a deployment as it happened, made of files that say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from fedsim.core.errors import InputError
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


def described(folder: Path, quadratic: Callable[..., Any], **algorithm: Any) -> Any:
    """The folder's run is of a quadratic problem whose two clients count otherwise."""
    problem = quadratic(n=2, d=3, importance=True)
    sections = {
        "data": problem.section(), "algorithm": {"name": "fedavg", "lr": 0.1, **algorithm}, "run": {"rounds": 1},
    }  # fmt: skip
    (folder / "scenario.yaml").write_text(yaml.safe_dump(sections))
    return problem


def said(folder: Path) -> str:
    return str(schedules(group_runs([read_run(folder)])[0], lambda *_: b""))


def test_clients_count_as_the_problem_says(folder: Path, quadratic: Callable[..., Any]) -> None:
    problem = described(folder, quadratic)
    assert abs(problem.p[0] - 0.5) > 0.01
    assert happened(read_run(folder)).importance.tolist() == pytest.approx(problem.p.tolist(), abs=1e-15)
    assert f">{problem.p[0]:.3g}<" in said(folder)


def test_clients_that_count_alike_do(folder: Path, quadratic: Callable[..., Any]) -> None:
    described(folder, quadratic, weighting="uniform")
    assert happened(read_run(folder)).importance.tolist() == [0.5, 0.5]


def test_where_the_problem_cannot_be_read_the_report_says_so(folder: Path, quadratic: Callable[..., Any]) -> None:
    described(folder, quadratic).file.unlink()
    assert np.isnan(happened(read_run(folder)).importance).all()
    assert "p_i is not known" in said(folder)


def test_data_that_were_not_divided_may_say_what_clients_count(folder: Path) -> None:
    about = {"input": {}, "target": {}, "clients": {"importance": [0.9, 0.1]}}
    (folder / "data.json").write_text(json.dumps(about))
    assert happened(read_run(folder)).importance.tolist() == [0.9, 0.1]
    (folder / "deployment.json").write_text('{"of": 3}')
    with pytest.raises(InputError, match=r"the weights of 2 clients, but deployment\.json says that there were 3"):
        happened(read_run(folder))
