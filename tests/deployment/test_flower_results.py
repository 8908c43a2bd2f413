"""Where a deployment's results go: a folder of each run, resumed from the last round, and never begun over."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flower_loopback import Deployment

from fedsim.core.append_file import AppendFile
from fedsim.core.errors import InputError, RunError
from fedsim.engine.run_directory import read_jsonl

pytest.importorskip("flwr")
Make = Callable[..., Any]
N = 3


@pytest.fixture
def app(tmp_path: Path, quadratic: Make) -> Deployment:
    sections = {
        "name": "kept",
        "data": quadratic(n=N, d=3).section(),
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"rounds": 4, "eval_every": 1, "trace": True, "dtype": "float64"},
    }
    return Deployment(tmp_path / "app", sections, N, **{"on-failure": "stop"})


def dies(app: Deployment, number: int) -> None:
    """Client 1 answers no round from `number` on."""

    def garble(message: Any, reply: Any) -> Any:
        if message.metadata.group_id.isdigit() and int(message.metadata.group_id) >= number:
            reply.content["fedsim"]["number"] = 50
        return reply

    app.grid.nodes[101].spoil = garble


@pytest.mark.parametrize("out", ["{run}", "beside/run-{run}"])
def test_every_run_has_a_folder_of_its_own(out: str, app: Deployment, tmp_path: Path) -> None:
    runs = [app.run(run=run, out=str(tmp_path / out), settings="run.rounds=1") for run in ("17", "18")]
    assert [run.dir for run in runs] == [tmp_path / out.replace("{run}", run) for run in ("17", "18")]
    assert all((run.dir / "metrics.jsonl").exists() for run in runs)


def test_without_a_name_it_is_named_by_the_run(
    app: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = app.run(run="23", out="", settings="run.rounds=1")
    assert run.dir.parts[0] == "runs"
    assert run.dir.name == "23"


@pytest.mark.parametrize("left", [None, "metrics.jsonl"])
def test_nothing_is_begun_where_there_is_nothing_to_resume(left: str | None, app: Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "before"
    if left is not None:
        folder.mkdir()
        (folder / left).write_text("{}")
    with pytest.raises(InputError, match=r"resume: run config: found true, but in .*before is no checkpoint"):
        app.run(resume=True, out=str(folder))
    assert folder.exists() is (left is not None)
    if left is not None:
        assert [(f.name, f.read_text()) for f in folder.iterdir()] == [(left, "{}")]
    assert not app.grid.pushed


@pytest.mark.parametrize("checkpoint,round", [("round", 2), ("seconds", None)])
def test_a_run_goes_on_after_its_last_round(checkpoint: str, round: int | None, app: Deployment) -> None:
    dies(app, 3)
    with pytest.raises(RunError, match="client 1, round 3"):
        app.run(checkpoint=checkpoint)
    progress = app.folder / "results" / "checkpoint" / "progress.json"
    assert (json.loads(progress.read_text())["round"] if progress.exists() else None) == round
    if round is not None:
        app.grid.nodes[101].spoil = None
        run = app.run(run="2", resume=True)
        assert run.resumed_at == round
        assert [r["round"] for r in read_jsonl(run.dir / "replies.jsonl") if r["status"] == "ok"].count(3) >= N
        assert list(run.metrics["round"]) == [0, 1, 2, 3, 4]


def test_a_reply_that_was_cut_short_does_not_end_the_run_that_goes_on(app: Deployment) -> None:
    """The process ended while it wrote the row: what follows it is read all the same."""
    replies = app.run(settings="run.rounds=2").dir / "replies.jsonl"
    whole = replies.read_bytes()
    replies.write_bytes(whole[:-15])
    run = app.run(run="2", resume=True)
    rows = read_jsonl(run.dir / "replies.jsonl")
    assert len(rows) == 4 * N - 1
    assert replies.read_bytes().startswith(whole[: whole[:-1].rindex(b"\n") + 1])


def test_a_full_disk_is_told_and_the_run_goes_on_when_it_is_not(
    app: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = AppendFile.append

    def full(file: AppendFile, row: Any, durable: bool = True) -> None:
        if row.get("round") == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, row, durable)

    told = r"results cannot be written \(No space left on device\); where it can, resume"
    with monkeypatch.context() as patched:
        patched.setattr(AppendFile, "append", full)
        with pytest.raises(RunError, match=told):
            app.run()
    assert list(app.run(run="2", resume=True).metrics["round"]) == [0, 1, 2, 3, 4]


def test_a_run_directory_that_vanishes_ends_the_run_with_a_sentence(app: Deployment, tmp_path: Path) -> None:
    def take_away(grid: Any, message: Any) -> None:  # noqa: ARG001
        if message.metadata.group_id == "3":
            shutil.rmtree(tmp_path / "away", ignore_errors=True)

    app.grid.on_push = take_away
    with pytest.raises(RunError, match="away is no longer there: it was removed or renamed while the run wrote to it"):
        app.run(out=str(tmp_path / "away"))


def test_a_folder_in_an_app_is_told(app: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    (app.folder / "pyproject.toml").write_text("[tool.flwr.app]\npublisher = 'x'\n")
    app.run(settings="run.rounds=1")
    assert any("is inside the Flower app" in r.message for r in caplog.records)
    caplog.clear()
    app.run(settings="run.rounds=1", out=str(app.folder.with_name("outside")))
    assert not any("is inside the Flower app" in r.message for r in caplog.records)


def test_two_runs_do_not_share_a_folder(app: Deployment) -> None:
    met: list[BaseException] = []

    def second(grid: Any, message: Any) -> None:  # noqa: ARG001
        if message.metadata.group_id == "2" and not met:
            from threading import Thread

            def run() -> None:
                try:
                    app.run(run="2")
                except BaseException as error:
                    met.append(error)

            thread = Thread(target=run)
            thread.start()
            thread.join()

    app.grid.on_push = second
    app.run()
    (error,) = met
    assert isinstance(error, InputError)
    assert "allowed: another --out, or wait until it has ended" in str(error)


def test_what_an_earlier_run_left_is_not_taken_for_this_ones(app: Deployment) -> None:
    app.run(settings="run.rounds=1")
    results = app.folder / "results"
    assert (results / "fitted.yaml").exists()
    for node in app.grid.nodes.values():
        node.online = False
    with pytest.raises(RunError, match="0 of 3 clients"):
        app.run(**{"wait-seconds": 0.5})
    assert not [f for f in ("fitted.yaml", "deployment.json", "replies.jsonl") if (results / f).exists()]
