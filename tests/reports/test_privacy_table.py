"""The table of a report about privacy: every row has a name."""

from __future__ import annotations

from pathlib import Path

import fedsim
from fedsim.reports.groups import group_runs, read_run
from fedsim.reports.privacy import _ROWS, privacy

PRIVATE = {
    "name": "private",
    "data": {"dataset": "digits", "clients": 4, "limit": 80},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 1},
    "privacy": {"mechanism": "dp_fedavg", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3},
    "participation": {"sampling": "poisson", "fraction": 0.5},
    "run": {"rounds": 3},
}


def test_every_row_of_the_table_has_a_name(tmp_path: Path) -> None:
    assert all(_ROWS.values())
    fedsim.run(PRIVATE, out=tmp_path / "run")
    page = "".join(map(str, privacy(group_runs([read_run(tmp_path / "run")])[0])))
    assert "epsilon holds" in page
    assert "against everybody who sees the models" in page


def test_noise_of_the_server_has_two_rows_for_a_release(tmp_path: Path) -> None:
    run = fedsim.run(PRIVATE, out=tmp_path / "run")
    rows = (tmp_path / "run" / "releases.jsonl").read_text(encoding="utf-8").splitlines()
    assert ['"job"' in row for row in rows] == [True, False] * 3
    assert run.privacy is not None
    assert (run.privacy["rows"], sum(r["count"] for r in run.privacy["releases"])) == (6, 3)
