"""Damaged records of a run: it is not continued from them, and a sentence says what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedsim
from fedsim.core.errors import FedsimError, InputError, RunError

SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 6, "limit": 300},
    "model": {"name": "linear"},
    "algorithm": {"name": "scaffold", "lr": 0.05, "local_steps": 2},
    "run": {"rounds": 12, "eval_every": 5, "device": "cpu", "threads": 1, "trace": True},
}
MORE: dict[str, Any] = {**SCENARIO, "run": {**SCENARIO["run"], "rounds": 16}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run(SCENARIO, out=tmp_path_factory.mktemp("finished") / "run").dir


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(out: Path, says: str, kind: type[FedsimError] = RunError) -> None:
    before = content(out)
    with pytest.raises(kind, match=says):
        fedsim.run(MORE, out=out, resume=True)
    assert content(out) == before


def lines(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("name", ["metrics.jsonl", "trace.jsonl"])
@pytest.mark.parametrize(
    "change, says",
    [
        (lambda ls: ls[:1], r"missing; put back the file .* without --resume"),
        (lambda ls: ls[1:], r"missing; put back"),
        (lambda ls: [*ls[:1], *ls[2:]], r"but the checkpoint of round 12 implies rows of rounds .* missing; put"),
        (lambda ls: [*ls[:2], *ls[1:]], r"some twice, in another order, or without a number"),
        (lambda ls: [ls[1], ls[0], *ls[2:]], r"some twice, in another order"),
        (lambda ls: [*ls[:1], "[1, 2]\n", *ls[1:]], r":2: found '\[1, 2\]', expected a JSON object on every line; put"),
        (lambda ls: [*ls[:1], ls[1][:9] + "\n", *ls[2:]], r":2: found .*, expected a JSON object on every line"),
        (lambda ls: [*ls[:1], '{"round": "5"}\n', *ls[1:]], r"without a number"),
        (lambda ls: ls[:0], r"has no rows, but the checkpoint of round 12 implies"),
    ],
    ids=["head", "tail", "hole", "twice", "swapped", "no object", "cut", "no number", "empty"],
)
def test_rows_that_the_checkpoint_implies_are_there(
    name: str, change: Callable[[list[str]], list[str]], says: str, out: Path
) -> None:
    lines(out / name, change)
    refused(out, rf"run/{name}.*{says}")


@pytest.mark.parametrize("name", ["metrics.jsonl", "trace.jsonl"])
def test_a_file_of_rows_that_is_gone_is_named(name: str, out: Path) -> None:
    (out / name).unlink()
    refused(out, rf"{name} is missing, but the checkpoint of round 12 implies rows of rounds")


def test_what_came_after_the_checkpoint_is_recorded_again(out: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "trace.jsonl"):
        with (out / name).open("a") as file:
            file.write('{"round": 13}\n{"round": 14, "ti')
    resumed = fedsim.run(MORE, out=out, resume=True)
    assert resumed.metrics["round"].tolist() == [0, 5, 10, 15, 16]
    assert resumed.trace == fedsim.run(MORE, out=tmp_path / "whole").trace


@pytest.mark.parametrize("name", ["state.safetensors", "clients.safetensors", "progress.json", "scenario.yaml"])
def test_every_flipped_byte_of_a_checkpoint_is_found(name: str, out: Path) -> None:
    file = out / "checkpoint" / name
    whole = file.read_bytes()
    for place in {0, 7, 8, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1}:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        refused(out, r"checkpoint is damaged \(.*\); delete it to start from the beginning")
    file.write_bytes(whole)
    assert fedsim.run(MORE, out=out, resume=True).resumed_at == 12


@pytest.mark.parametrize("name", ["checksums.json", "state.safetensors", "clients.safetensors"])
def test_a_file_of_a_checkpoint_that_is_gone_is_missed(name: str, out: Path) -> None:
    (out / "checkpoint" / name).unlink()
    refused(out, rf"checkpoint is damaged \(.*{name}")


def test_a_checkpoint_of_another_scenario_is_told_by_its_keys(out: Path, tmp_path: Path) -> None:
    other = fedsim.run({**SCENARIO, "seed": 5}, out=tmp_path / "other").dir
    shutil.rmtree(out / "checkpoint")
    shutil.copytree(other / "checkpoint", out / "checkpoint")
    refused(out, r"seed: found 0, but the run in .*checkpoint has 5", InputError)


def old(out: Path, **changes: Any) -> None:
    """The checkpoint as earlier versions wrote it, but for `changes` of its progress.json."""
    for name in ("checksums.json", "scenario.yaml"):
        (out / "checkpoint" / name).unlink()
    file = out / "checkpoint" / "progress.json"
    progress = {k: v for k, v in json.loads(file.read_text()).items() if k != "format"}
    file.write_text(json.dumps({**progress, **changes}))


def test_a_checkpoint_of_an_earlier_version_is_continued(out: Path, tmp_path: Path) -> None:
    old(out)
    resumed = fedsim.run(MORE, out=out, resume=True)
    assert resumed.resumed_at == 12
    assert resumed.params.equal(fedsim.run(MORE, out=tmp_path / "whole").params)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": "12"}, {"round": -1}, {"round": 1.5}, {"round": None}, {"totals": []}, {"totals": {"time": "x"}},
        {"totals": {"unheard_of": 1}}, {"privacy": 3},
    ],
    ids=str,
)  # fmt: skip
def test_progress_of_other_types_is_damage(changes: dict[str, Any], out: Path) -> None:
    old(out, **changes)
    refused(out, r"checkpoint is damaged \(.*\); delete it")


@pytest.mark.parametrize("text", ["", "[]", "3", '{"round": 1', "\0\0\0"])
def test_progress_that_is_no_object_is_damage(text: str, out: Path) -> None:
    old(out)
    (out / "checkpoint" / "progress.json").write_text(text)
    refused(out, r"checkpoint is damaged \(.*\); delete it")


# --- disks that refuse ----------------------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from fedsim.cli.app import main
main()
"""


def test_a_checkpoint_for_which_there_is_no_room_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({**SCENARIO, "run": {**SCENARIO["run"], "checkpoint_seconds": 600}})
    )
    argv = [sys.executable, "-c", LIMITED, "12000", "run", str(tmp_path / "s.yaml"), "--json"]
    ended = subprocess.run([*argv, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        "safetensors cannot be written: File too large; make room there, then --resume continues the run"
        in ended.stderr
    )
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out" / "checkpoint.new").exists()
    assert not (tmp_path / "out" / ".fedsim.lock").exists()


def test_a_row_for_which_there_is_no_room_is_not_there_by_half(tmp_path: Path) -> None:
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (25, 25))
from pathlib import Path
from fedsim.core.errors import RunError
from fedsim.engine.recorder import RowFile
file = RowFile(Path({str(tmp_path / "rows")!r}))
file.add("0123456789"); file.write()
file.add("0123456789"); file.write()
file.add("0123456789")
try:
    file.write()
except RunError as error:
    print(error)
file.close(quiet=False)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True).stdout
    assert "rows cannot be written: File too large; make room there" in said
    assert (tmp_path / "rows").read_text() == "0123456789\n" * 2


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_a_run_whose_folder_is_removed_ends_at_its_next_row(again: bool, tmp_path: Path) -> None:
    seen = []

    def remove(number: int, _row: object) -> None:
        seen.append(number)
        if number == 3:
            shutil.rmtree(tmp_path / "run")
            if again:
                (tmp_path / "run").mkdir()

    scenario = {**SCENARIO, "run": {**SCENARIO["run"], "rounds": 10**6, "eval_every": 4}}
    with pytest.raises(RunError, match=r"no longer there|cannot be written: No such file"):
        fedsim.run(scenario, out=tmp_path / "run", progress=remove)
    assert seen[-1] == 3
    assert not (tmp_path / "run").exists()


GOSSIP: dict[str, Any] = {"algorithm": {"name": "dspodfl", "lr": 0.05}, "topology": {"graph": "ring"}}
SERVER: dict[str, Any] = {
    "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 2},
    "system": {"compute": {"model": "uniform", "low": 0.5, "high": 2.0}},
}
MODES: dict[str, dict[str, Any]] = {
    "asynchronous": {**SERVER, "participation": {"mode": "asynchronous"}},
    "fedbuff": {**SERVER, "participation": {"mode": "fedbuff", "buffer": 2, "concurrency": 4}},
    "fixed_interval": {**SERVER, "participation": {"mode": "fixed_interval", "window": 0.4}},
    "gossip": {**GOSSIP, "participation": {"mode": "gossip", "links": 0.5, "compute": 0.5}},
    "gossip, merged": {**GOSSIP, "participation": {"mode": "gossip", "links": 0.5, "merge": "final"}},
    "poisson": {**GOSSIP, "participation": {"mode": "poisson", "links": 0.5, "window": 0.7}},
    "poisson, merged": {**GOSSIP, "participation": {"mode": "poisson", "links": 0.5, "merge": "final"}},
    "poisson, windows without a tick": {
        **GOSSIP, "participation": {"mode": "poisson", "links": 0.01, "compute": 0.02, "window": 1.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_whole_in_every_mode(mode: str, tmp_path: Path) -> None:
    few = {**SCENARIO, **MODES[mode]}
    many = {**few, "run": {**few["run"], "rounds": 16}}
    whole = fedsim.run(many, out=tmp_path / "whole")
    recorded = fedsim.run(few, out=tmp_path / "run").dir
    for name in ("metrics.jsonl", "trace.jsonl"):
        kept = (recorded / name).read_bytes()
        for change in (lambda ls: ls[:1], lambda ls: [*ls[:2], *ls[3:]], lambda ls: [*ls[:3], *ls[2:]]):
            lines(recorded / name, change)
            before = content(recorded)
            with pytest.raises(RunError, match=f"run/{name}.*the checkpoint of round 12 implies"):
                fedsim.run(many, out=recorded, resume=True)
            assert content(recorded) == before
            (recorded / name).write_bytes(kept)
    resumed = fedsim.run(many, out=recorded, resume=True)
    assert resumed.params.equal(whole.params)
    assert resumed.trace == whole.trace
    assert resumed.metrics.drop(columns="wall").equals(whole.metrics.drop(columns="wall"))
