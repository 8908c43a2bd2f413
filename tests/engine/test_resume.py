"""A run that was interrupted, killed or damaged continues to the very numbers of an unbroken one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from live_runs import PATIENCE, checkpointed, command, has_checkpoint, until

import fedsim
from fedsim.cli.app import main
from fedsim.core.errors import InputError, RunError
from fedsim.engine.run_directory import Run, read_jsonl

ROUNDS = 12
SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 6, "limit": 300, "partition": {"scheme": "dirichlet", "alpha": 1.0}},
    "model": {"name": "linear"},
    "participation": {"fraction": 0.5},
    "run": {"rounds": ROUNDS, "eval_every": 5, "device": "cpu", "threads": 1, "trace": True},
}
GOSSIP: dict[str, Any] = {
    **{k: SERVER[k] for k in ("data", "model", "run")},
    "topology": {"graph": "ring"},
    "participation": {"compute": {"beta": [2.0, 2.0], "redraw_every": 3}, "links": 0.6},
}
ATTACKED: dict[str, Any] = {
    **GOSSIP,
    "topology": {"graph": "complete"},
    "aggregator": {"name": "nna", "f": 1},
    "attack": {"name": "alie", "attackers": [2]},
}
ALGORITHMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fedavg": (SERVER, {"momentum": 0.9, "server_momentum": 0.5, "local_steps": 3, "lr_decay": 0.9}),
    "scaffold": (SERVER, {"local_epochs": 1}),
    "fal": ({**SERVER, "adversary": {"eps": 0.1, "steps": 2, "random_start": True}}, {"local_steps": 2}),
    "ifca": (SERVER, {"models": 3, "loss_samples": 8, "local_steps": 2}),
    "dspodfl": (GOSSIP, {}),
    "afl": (SERVER, {"loss_samples": 5}),
    "monna": (ATTACKED, {"beta": 0.9, "exchanges": 2, "wait": "quorum"}),
    "gradient_tracking": ({**GOSSIP, "participation": {"compute": 0.5}}, {}),
    "ef21": ({**SERVER, "compression": {"name": "qsgd", "levels": 3}}, {}),
    "choco": ({**GOSSIP, "participation": {"compute": 0.5}, "compression": {"name": "rand_k", "k": 60}}, {}),
    "deepsqueeze": ({**GOSSIP, "compression": {"name": "top_k", "k": 60}}, {}),
    "beer": ({**GOSSIP, "participation": {}, "compression": {"name": "natural"}}, {}),
}


def scenario(name: str = "fedavg", **run: Any) -> dict[str, Any]:
    base, keys = ALGORITHMS[name]
    return {**base, "algorithm": {"name": name, "lr": 0.05, "batch_size": 8, **keys}, "run": {**base["run"], **run}}


def interrupted(settings: Mapping[str, Any], out: Path, after: int) -> None:
    """Run until a real Ctrl-C arrives after round `after`."""

    def interrupt(number: int, _row: object) -> None:
        if number == after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"a checkpoint of round {after} is in"):
        fedsim.run(settings, out=out, progress=interrupt)
    assert not (out / "params.safetensors").exists()
    assert json.loads((out / "checkpoint" / "progress.json").read_text())["round"] == after


def rows(run: Run) -> list[dict[str, Any]]:
    """Metrics without the wall clock."""
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(run.dir / "metrics.jsonl")]


def assert_same(resumed: Run, unbroken: Run) -> None:
    assert torch.equal(resumed.params, unbroken.params)
    assert rows(resumed) == rows(unbroken)
    assert resumed.trace == unbroken.trace


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("after", [5, 7], ids=["at an evaluation", "between evaluations"])
def test_resumed_equals_unbroken(name: str, after: int, tmp_path: Path) -> None:
    unbroken = fedsim.run(scenario(name), out=tmp_path / "whole")
    interrupted(scenario(name), tmp_path / "parts", after)
    resumed = fedsim.run(scenario(name), out=tmp_path / "parts", resume=True)
    assert (unbroken.resumed_at, resumed.resumed_at) == (0, after)
    assert [row["round"] for row in rows(resumed)] == [0, 5, 10, 12]
    assert len(resumed.trace) == ROUNDS
    assert_same(resumed, unbroken)


def test_interrupted_twice(tmp_path: Path) -> None:
    unbroken = fedsim.run(scenario("scaffold"), out=tmp_path / "whole")
    interrupted(scenario("scaffold"), tmp_path / "parts", 3)
    stop = lambda number, _: os.kill(os.getpid(), signal.SIGTERM) if number == 8 else None  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(scenario("scaffold"), out=tmp_path / "parts", resume=True, progress=stop)
    assert_same(fedsim.run(scenario("scaffold"), out=tmp_path / "parts", resume=True), unbroken)


def _only_old(out: Path) -> None:
    (out / "checkpoint").rename(out / "checkpoint.old")


def _half_new(out: Path) -> None:
    shutil.copytree(out / "checkpoint", out / "checkpoint.new")
    (out / "checkpoint.new" / "progress.json").unlink()
    (out / "checkpoint.new" / "state.safetensors").write_bytes(b"half")


def _new_not_yet_renamed(out: Path) -> None:
    _half_new(out)
    _only_old(out)


def _half_a_line(out: Path) -> None:
    for name in ("metrics.jsonl", "trace.jsonl"):
        with (out / name).open("a") as file:
            file.write('{"round": 8, "time": 8.0, "tr')


def _rows_after_the_checkpoint(out: Path) -> None:
    for name in ("metrics.jsonl", "trace.jsonl"):
        with (out / name).open("a") as file:
            file.write('{"round": 10, "time": 10.0}\n{"round": 12, "time": 12.0}\n')


@pytest.mark.parametrize(
    "crash",
    [_only_old, _half_new, _new_not_yet_renamed, _half_a_line, _rows_after_the_checkpoint],
    ids=lambda crash: crash.__name__,
)
def test_resumes_after_a_crash_at_any_time(crash: Callable[[Path], None], tmp_path: Path) -> None:
    unbroken = fedsim.run(scenario(), out=tmp_path / "whole")
    interrupted(scenario(), tmp_path / "parts", 7)
    crash(tmp_path / "parts")
    resumed = fedsim.run(scenario(), out=tmp_path / "parts", resume=True)
    assert resumed.resumed_at == 7
    assert_same(resumed, unbroken)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    interrupted(scenario(), tmp_path, 7)
    (tmp_path / "checkpoint" / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"checkpoint is damaged .*; delete it to start from the beginning"):
        fedsim.run(scenario(), out=tmp_path, resume=True)


def test_without_resume_a_run_starts_afresh(tmp_path: Path) -> None:
    unbroken = fedsim.run(scenario(), out=tmp_path / "whole")
    interrupted(scenario(), tmp_path / "parts", 7)
    _new_not_yet_renamed(tmp_path / "parts")
    again = fedsim.run(scenario(), out=tmp_path / "parts")
    assert again.resumed_at == 0
    assert sorted(p.name for p in again.dir.iterdir()) == sorted(p.name for p in unbroken.dir.iterdir())
    assert_same(again, unbroken)


def test_resuming_nothing_starts_at_the_beginning(tmp_path: Path) -> None:
    run = fedsim.run(scenario(), out=tmp_path / "new", resume=True)
    assert run.resumed_at == 0
    assert_same(run, fedsim.run(scenario(), out=tmp_path / "whole"))


def test_more_rounds_continue_a_finished_run(tmp_path: Path) -> None:
    unbroken = fedsim.run(scenario(rounds=23), out=tmp_path / "whole")
    assert fedsim.run(scenario(rounds=12), out=tmp_path / "parts").metrics["round"].tolist() == [0, 5, 10, 12]
    resumed = fedsim.run(scenario(rounds=23), out=tmp_path / "parts", resume=True)
    assert resumed.resumed_at == 12
    assert resumed.metrics["round"].tolist() == [0, 5, 10, 15, 20, 23]
    assert_same(resumed, unbroken)
    assert yaml.safe_load((resumed.dir / "scenario.yaml").read_text())["run"]["rounds"] == 23


def test_fewer_rounds_than_done_are_refused(tmp_path: Path) -> None:
    fedsim.run(scenario(rounds=12), out=tmp_path)
    with pytest.raises(
        InputError, match=r"run.rounds: found 5, but the run in .* is at round 12; allowed .* at least 12"
    ):
        fedsim.run(scenario(rounds=5), out=tmp_path, resume=True)
    assert Run(tmp_path).metrics["round"].tolist() == [0, 5, 10, 12]


def test_another_scenario_is_refused_with_every_key_that_differs(tmp_path: Path) -> None:
    interrupted(scenario(), tmp_path, 7)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = {**scenario(eval_every=6), "seed": 1}
    with pytest.raises(InputError) as caught:
        fedsim.run(other, out=tmp_path, resume=True)
    assert [p.key for p in caught.value.problems] == ["seed", "run.eval_every"]
    assert "found 1, but the run in" in caught.value.problems[0].message
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- the command line ---------------------------------------------------------------------------------------------


def write(folder: Path, **run: Any) -> Path:
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({"name": "resumed", **scenario("scaffold", eval_every=1, **run)}))
    return file


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> object:
    monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    "number, code, place",
    [
        (signal.SIGINT, 130, "memory"),
        (signal.SIGTERM, 130, "disk"),
        (signal.SIGKILL, -signal.SIGKILL, "memory"),
        (signal.SIGKILL, -signal.SIGKILL, "disk"),
    ],
    ids=lambda v: str(v),
)
def test_a_process_that_is_stopped_can_be_resumed(
    number: int,
    code: int,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = write(tmp_path, rounds=10**6, checkpoint_seconds=0.02, client_state=place), tmp_path / "parts"
    process = command("run", str(file), "--out", str(out))
    until(lambda: has_checkpoint(out), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    done = checkpointed(out)
    assert done > 0
    if code == 130:
        assert f"interrupted: a checkpoint of round {done} is in {out}, --resume continues" in err
        assert "Traceback" not in err
    rest = ["run.checkpoint_seconds=60", "run.threads=2", f"run.rounds={done + 20}"]
    settings = [word for setting in rest for word in ("--set", setting)]
    assert call(monkeypatch, "run", str(file), *settings, "--out", str(out), "--resume") == 0
    assert f"resumed at round {done}" in capsys.readouterr().out
    assert_same(Run(out), fedsim.run(fedsim.load(file, rest), out=tmp_path / "whole"))


def test_resuming_a_finished_run_does_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    assert call(monkeypatch, "run", str(file), "--out", str(out)) == 0
    assert "resume" not in capsys.readouterr().out
    before = {name: (out / name).read_bytes() for name in ("metrics.jsonl", "trace.jsonl")}
    params = Run(out).params
    assert call(monkeypatch, "run", str(file), "--out", str(out), "--resume") == 0
    assert "already finished, nothing to do" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in before} == before
    assert torch.equal(Run(out).params, params)


def test_a_server_s_state_that_is_not_finite_ends_the_run_too(tmp_path: Path) -> None:
    """The squares of FedAdagrad's deltas are infinite, so that its model would stay where it is for ever."""
    np.savez(tmp_path / "q.npz", A=np.ones((2, 3)), b=np.ones((2, 3)))
    scenario = {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
        "algorithm": {"name": "fedadagrad", "lr": 1e30},
        "run": {"rounds": 3, "eval_every": 1, "device": "cpu"},
    }
    with pytest.raises(RunError, match="the run diverged: 'v' of the server's state is not finite at round 1"):
        fedsim.run(scenario, out=tmp_path / "out")


def test_a_diverging_run_exits_with_1_and_leaves_what_it_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {"data": {"dataset": "quadratic", "file": "q.npz"}, "algorithm": {"name": "fedavg", "lr": 1e30}}
    np.savez(tmp_path / "q.npz", A=np.ones((2, 3)), b=np.ones((2, 3)))
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({**problem, "run": {"rounds": 50, "eval_every": 1, "device": "cpu"}})
    )
    assert call(monkeypatch, "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert "the run diverged: parameters are not finite at round" in err
    assert "Traceback" not in err
    recorded = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    assert [row["round"] for row in recorded] == list(range(len(recorded)))
    assert recorded[0]["train_loss"] == pytest.approx(1.5)
    assert recorded[-1]["train_loss"] is None  # infinity is not JSON
    with pytest.raises(RunError, match="holds no final parameters"):
        _ = Run(tmp_path / "out").params


def test_a_run_from_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    """Keys that have come since a scenario was recorded have their defaults there."""
    scenario = {
        "data": {"dataset": "digits", "clients": 6},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedprox", "lr": 0.1},
        "run": {"rounds": 2, "eval_every": 1},
    }
    fedsim.run(scenario, out=tmp_path / "run")
    recorded = tmp_path / "run" / "scenario.yaml"
    text = recorded.read_text(encoding="utf-8")
    assert "  clipping: gradient\n" in text
    recorded.write_text(text.replace("  clipping: gradient\n", ""), encoding="utf-8")
    longer = {**scenario, "run": {"rounds": 4, "eval_every": 1}}
    run = fedsim.run(longer, out=tmp_path / "run", resume=True)
    assert list(run.metrics["round"]) == [0, 1, 2, 3, 4]
    recorded.write_text(text.replace("  clipping: gradient\n", "  clipping: official\n"), encoding="utf-8")
    with pytest.raises(InputError, match="has 'official'"):
        fedsim.run(longer, out=tmp_path / "run", resume=True)


def test_a_run_that_is_lost_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new run takes the place of what its directory had: of the same numbers silently, of others with a word."""
    fedsim.run(scenario(), out=tmp_path)
    fedsim.run(scenario(), out=tmp_path)
    assert "had a run" not in caplog.text
    fedsim.run({**scenario(), "seed": 1}, out=tmp_path)
    assert f"{tmp_path} had a run with rows to round 12, of another scenario" in caplog.text
    interrupted({**scenario(), "seed": 1}, tmp_path, 7)
    caplog.clear()
    fedsim.run({**scenario(), "seed": 1}, out=tmp_path, resume=True)
    assert "had a run" not in caplog.text
    interrupted({**scenario(), "seed": 1}, tmp_path, 7)
    caplog.clear()
    fedsim.run({**scenario(), "seed": 1}, out=tmp_path)
    assert f"{tmp_path} had a run with rows to round 5, not finished" in caplog.text


@pytest.mark.parametrize("recorded", ["!!bool maybe", "a: [", "[" * 5000, "no mapping", "\x00", "a: &a [*a]"])
def test_whatever_is_recorded_a_new_run_takes_its_place(
    recorded: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scenario.yaml").write_text(recorded)
    (tmp_path / "metrics.jsonl").write_text('{"round": 3}\n')
    with pytest.raises(InputError, match="is not the YAML that fedsim wrote; --resume cannot continue this run"):
        fedsim.run(scenario(), out=tmp_path, resume=True)
    fedsim.run(scenario(), out=tmp_path)
    assert "had a run with rows to round 3, of another scenario" in caplog.text
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["round"] == ROUNDS
