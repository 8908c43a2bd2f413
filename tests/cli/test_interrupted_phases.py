"""Ctrl-C and SIGTERM in every phase of a run and of a sweep: exit code 130, one sentence, and `--resume` goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from struck import recorded, struck

import fedsim
from fedsim.core.interrupts import HOW, interrupts_wait
from fedsim.engine.signals import InterruptedAtEndError, stop_requested, terminable

SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 6, "limit": 200},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.05},
    "run": {"rounds": 4, "eval_every": 1, "dtype": "float64", "device": "cpu"},
}
BEGUN, AT_ROUND, DONE = "--resume continues from the last checkpoint", "a checkpoint of round ", " is finished"
PHASES = [
    ("fedsim.engine.run:assemble", 1, signal.SIGTERM, BEGUN, 0),
    ("fedsim.engine.loop:make_backend", 1, signal.SIGINT, BEGUN, 0),
    ("fedsim.engine.loop:open_directory", 1, signal.SIGTERM, BEGUN, 0),
    ("fedsim.engine.evaluate:Evaluation.row", 1, signal.SIGINT, AT_ROUND, 2),
    ("fedsim.engine.loop:Simulation._combine", 2, signal.SIGTERM, AT_ROUND, 3),
    ("fedsim.engine.loop:Simulation._combine", 4, signal.SIGTERM, DONE, 5),
    ("fedsim.engine.loop:save_params", 1, signal.SIGINT, DONE, 5),
    ("fedsim.engine.run_directory:Run.__post_init__", 1, signal.SIGTERM, BEGUN, 5),
]


def written(folder: Path, sections: dict[str, Any], name: str = "s.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(sections))
    return str(folder / name)


@pytest.mark.parametrize(("place", "count", "number", "sentence", "rows"), PHASES)
def test_a_run(place: str, count: int, number: signal.Signals, sentence: str, rows: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said, err = struck(place, number, "run", written(tmp_path, SCENARIO), "--out", str(out), count=count)
    assert (code, said) == (130, ""), err
    assert err[-1].startswith("interrupted: ")
    assert sentence in err[-1]
    assert len(recorded(out)) == rows
    assert list(tmp_path.rglob(".fedsim.lock")) == []
    resumed = fedsim.run(SCENARIO, out, resume=True)
    assert resumed.resumed_at == max(rows - 1, 0)
    assert torch.equal(resumed.params, fedsim.run(SCENARIO, tmp_path / "whole").params)


ON_RAY = pytest.param(("--parallel", "1", "--address", "local"), marks=[pytest.mark.ray, pytest.mark.slow], id="on Ray")


@pytest.mark.parametrize("parallel", [pytest.param((), id="alone"), ON_RAY])
@pytest.mark.parametrize("number", HOW, ids=lambda n: n.name)
def test_a_sweep_ends_with_the_run_that_was_about_to_end(
    number: signal.Signals, parallel: tuple[str, ...], tmp_path: Path
) -> None:
    """A signal in the last round of a run is a signal to the sweep: the next run does not begin."""
    written(tmp_path, SCENARIO)
    sweep = written(tmp_path, {"name": "two", "scenario": "s.yaml", "grid": {"seed": [0, 1, 2]}}, "sweep.yaml")
    if parallel:
        place, count = "fedsim.sweeps.book:Book.note", 1
    else:
        place, count = "fedsim.engine.loop:Simulation._combine", 4
    out = tmp_path / "sweep"
    code, _, err = struck(place, number, "sweep", sweep, "--out", str(out), *parallel, count=count)
    assert code == 130, err
    assert err[-1].startswith("interrupted: ")
    assert "--resume continues" in err[-1]
    assert len(list(out.rglob("params.safetensors"))) < 3
    if not parallel:
        assert len([f for f in out.rglob("scenario.yaml") if f.parent.parent == out]) == 1
    outcomes = fedsim.sweep(sweep, out, resume=True)
    assert [o.status for o in outcomes] == ["finished"] * 3


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("place", ["fedsim.sweeps.tune:_tune", "ray._private.node:Node.start_ray_processes"])
def test_a_sweep_side_by_side_while_it_starts(place: str, tmp_path: Path) -> None:
    written(tmp_path, SCENARIO)
    sweep = written(tmp_path, {"name": "two", "scenario": "s.yaml", "grid": {"seed": [0, 1]}}, "sweep.yaml")
    out = tmp_path / "sweep"
    code, said, err = struck(place, signal.SIGTERM, "sweep", sweep, "--out", str(out), "--parallel", "1")
    assert (code, said) == (130, ""), err
    assert err[-1].startswith("interrupted: ")


@pytest.mark.parametrize(("place", "number"), [("find_runs", signal.SIGTERM), ("make_page", signal.SIGINT)])
def test_a_report(place: str, number: signal.Signals, tmp_path: Path) -> None:
    fedsim.run(SCENARIO, tmp_path / "run")
    (tmp_path / "page.html").write_text("as it was")
    arguments = "report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")
    code, said, err = struck(f"fedsim.reports.report:{place}", number, *arguments)
    assert (code, said, err) == (130, "", ["interrupted: nothing more is written"])
    assert (tmp_path / "page.html").read_text() == "as it was"


def test_from_python_sigterm_is_as_ctrl_c_in_every_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the program answers it by itself; afterwards it ends a process as ever."""
    import fedsim.engine.run

    def struck_here(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    real = fedsim.engine.run.assemble
    monkeypatch.setattr(fedsim.engine.run, "assemble", struck_here)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(SCENARIO, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        assert fedsim.run(SCENARIO, tmp_path / "run").params.isfinite().all()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_an_error_does_not_hide_an_interrupt() -> None:
    """Of a sweep it would be the end of one run, and the next one would begin."""

    def fails() -> None:
        with stop_requested("all is done") as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop()
            raise ValueError("it diverged")

    def ends() -> None:
        with stop_requested("all is done"):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedAtEndError, match="it diverged") as ended:
        fails()
    assert isinstance(ended.value.__cause__, ValueError)
    with pytest.raises(InterruptedAtEndError, match="all is done"):
        ends()


def test_a_signal_waits_whatever_a_library_does_meanwhile() -> None:
    def library(fails: bool) -> None:
        with terminable(), interrupts_wait():
            signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *_: None)  # as libraries do
            done.append("all of it")
            if fails:
                raise OSError("it does not start")

    for fails in (False, True):
        done: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            library(fails)
        assert done == ["all of it"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
