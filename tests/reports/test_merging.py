"""A report of runs that merge shows own models against their mean; one of others has no such section."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.reports.merging import _runs
from fedsim.reports.report import write_report

DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4}, "model": {"name": "linear"},
    "algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": {"graph": "random_peers"},
    "run": {"rounds": 6, "eval_every": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("participation", "shown"),
    [
        ({}, False),
        ({"merge": "never"}, False),
        ({"merge": "final"}, True),
        ({"merge": {"every": 2}}, True),
        ({"schedule": [{"from": 0.5, "until": 1.0, "links": 0.5}, {"from": 1, "until": 3, "merge": True}]}, True),
    ],
)
def test_a_page_of_runs_that_merge(tmp_path: Path, participation: Any, shown: bool) -> None:
    run = fedsim.run({**DIGITS, "participation": {"mode": "gossip", **participation}}, out=tmp_path / "run")
    page = write_report(run.dir).read_text(encoding="utf-8")
    assert (">Merging</h2>" in page) == shown
    assert (run.dir / "figures" / "merging.png").exists() == shown
    assert "is not as fedsim writes it" not in page
    assert "its own" in page  # the weights


def test_quadratics_have_no_accuracy_to_show(quadratic: Callable[..., Any], tmp_path: Path) -> None:
    sections = {
        "data": quadratic(n=4).section(), "algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": {"graph": "ring"},
        "participation": {"mode": "gossip", "merge": "final"}, "run": {"rounds": 3},
    }  # fmt: skip
    run = fedsim.run(sections, out=tmp_path / "run")
    assert ">Merging</h2>" not in write_report(run.dir).read_text(encoding="utf-8")


def test_stretches() -> None:
    assert _runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 7), (9, 10)]
