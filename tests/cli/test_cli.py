"""The command line: what each command prints, where results go, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer
import yaml

import fedsim
from fedsim.cli.app import app, main
from fedsim.core.fields import keys_of
from fedsim.core.registry import kinds, lookup, names
from fedsim.engine.run_directory import Run, read_jsonl
from fedsim.scenario.load import load
from fedsim.scenario.schema import scenario_schema
from fedsim.scenario.sections import SECTIONS
from fedsim.scenario.table import PartSection

SERVER: dict[str, Any] = {
    "name": "small",
    "data": {"dataset": "digits", "clients": 4, "limit": 200},
    "model": {"name": "linear"},
    "algorithm": {"name": "scaffold", "lr": 0.1, "batch_size": 10, "local_steps": 5},
    "participation": {"fraction": 0.5},
    "run": {"rounds": 4, "eval_every": 2, "device": "cpu", "threads": 1},
}
GOSSIP: dict[str, Any] = {
    **{k: SERVER[k] for k in ("data", "model", "run")},
    "name": "graph",
    "algorithm": {"name": "dspodfl"},
    "topology": {"graph": "ring"},
    "participation": {"compute": 0.5, "links": {"uniform": [0.2, 0.4]}},
}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``call("run", "s.yaml")``: exit code, standard output and error of a command, in a folder with two scenarios."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SERVER))
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(GOSSIP))

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def test_run_writes_the_run_directory_and_its_last_metrics(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("run", "s.yaml")
    folder = tmp_path / "runs" / f"small-{load('s.yaml').hash()}"
    assert code == 0
    assert f"runs/{folder.name}: round 4  test_accuracy" in out
    assert {p.name for p in folder.iterdir()} == {
        "scenario.yaml", "environment.json", "metrics.jsonl", "data.json", "partition.csv", "params.safetensors",
        "checkpoint",
    }  # fmt: skip
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["round"] for row in rows] == [0, 2, 4]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    packages = json.loads((folder / "environment.json").read_text())["packages"]
    assert (packages["fedsim"], packages["torch"]) == (fedsim.__version__, torch.__version__)


def test_the_recorded_scenario_runs_to_the_same_numbers(call: Call, tmp_path: Path) -> None:
    assert call("run", "g.yaml", "--out", "first")[0] == 0
    assert call("run", "first/scenario.yaml", "--out", "second")[0] == 0
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    assert torch.equal(first.params, second.params)
    assert (first.dir / "scenario.yaml").read_bytes() == (second.dir / "scenario.yaml").read_bytes()


def test_run_json_prints_one_object_and_nothing_else(call: Call) -> None:
    code, out, err = call("run", "g.yaml", "--out", "here", "--set", "run.rounds=3", "--set", "seed=5", "--json")
    result = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert (result["dir"], result["resumed_at"]) == ("here", 0)
    assert result["metrics"] == read_jsonl(Path("here/metrics.jsonl"))[-1]
    assert type(result["metrics"]["round"]) is int
    assert result["metrics"]["round"] == 3
    assert {"node_accuracy", "consensus_distance", "delay_total"} < result["metrics"].keys()


def test_resume_says_from_where(call: Call) -> None:
    assert "nothing to resume, started anew" in call("run", "s.yaml", "--out", "x", "--resume")[1]
    assert "resumed at round 4" in call("run", "s.yaml", "--set", "run.rounds=6", "--out", "x", "--resume")[1]
    assert "already finished, nothing to do" in call(
        "run", "s.yaml", "--set", "run.rounds=6", "--out", "x", "--resume"
    )[1]  # fmt: skip


@pytest.mark.parametrize("scenario", ["s.yaml", "g.yaml"])
def test_plan_runs_nothing(scenario: str, call: Call, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = call("plan", scenario)
    assert code == 0
    assert "sample gradients in all" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_tells_sizes_work_and_bytes(call: Call) -> None:
    plan = json.loads(call("plan", "s.yaml", "--json")[1])
    d = 64 * 10 + 10
    assert plan["data"]["parameters"] == d
    assert plan["data"]["samples"] == 200
    assert plan["data"]["samples per client"] == "50 to 50, median 50"
    assert plan["work"]["cohort"] == "2 of 4, uniform"
    assert plan["work"]["sample gradients in all"] == f"about {4 * 2 * 5 * 10:,}"
    assert plan["messages"]["one message"] == f"{2 * 4 * d / 1024:.4g} KiB"  # scaffold sends two vectors
    assert plan["memory"]["one model"] == f"{4 * d / 1024:.4g} KiB"


def test_plan_tells_the_graph(call: Call) -> None:
    plan = json.loads(call("plan", "g.yaml", "--json")[1])
    network = plan["network"]
    assert network["graph"] == "ring"
    assert network["spectral_gap"] == pytest.approx(2 / 3)  # 1/3 on a node and each neighbour of a ring of 4
    assert network["compute probability"] == "0.5 (sporadic)"
    assert 0 < network["expected spectral gap"] < network["spectral_gap"]


def test_what_plan_says_about_bytes_is_what_a_run_counts(call: Call) -> None:
    plan = json.loads(call("plan", "s.yaml", "--json")[1])
    sent = json.loads(call("run", "s.yaml", "--json")[1])["metrics"]["bytes_sent"]
    assert plan["messages"]["sent in all"] == f"about {sent / 1024:.4g} KiB"


def test_topology_of_a_name_a_file_and_a_scenario(call: Call, tmp_path: Path) -> None:
    named = json.loads(call("topology", "ring", "-n", "4", "--json")[1])
    (tmp_path / "ring4.csv").write_text("0,1\n1,2\n2,3\n3,0\n")
    filed = json.loads(call("topology", "ring4.csv", "--json")[1])
    assert named.pop("name") == "ring"
    assert filed.pop("name") == "ring4"
    assert named == filed
    assert named["spectral_gap"] == pytest.approx(2 / 3)
    planned = json.loads(call("topology", "g.yaml", "--json")[1])
    assert planned["name"] == "graph: ring"
    assert planned["diameter"] == named["diameter"] == 2
    lazy = json.loads(call("topology", "ring", "-n", "4", "--weights", "lazy", "--json")[1])
    assert lazy["spectral_gap"] == pytest.approx(1 / 3)
    assert not list(tmp_path.glob("*.png"))


def test_topology_draws(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("topology", "k_regular", "-n", "6", "--set", "degree=3", "--out", "p.svg")
    assert code == 0
    assert "spectral_gap" in out
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_list_names_everything_with_a_line_each(call: Call) -> None:
    code, out, _ = call("list")
    assert code == 0
    for kind in kinds():
        for name in names(kind):
            assert f" {name} " in out
            assert lookup(kind, name).__doc__, f"{kind} {name} says nothing about itself"
    assert call("list", "topologies")[1].split("\n")[1:] == call("list", "graphs")[1].split("\n")[1:]
    assert " fedavg " not in call("list", "datasets")[1]


def test_schema_names_every_part_and_key(call: Call) -> None:
    code, out, _ = call("schema")
    assert code == 0
    schema = json.loads(out)
    assert schema == json.loads(json.dumps(scenario_schema()))
    assert set(schema["properties"]) == {row.path for row in SECTIONS.values() if row.top}
    places = {r.kind: (r.path, r.key) for r in SECTIONS.values() if isinstance(r, PartSection) and r.top}
    assert places.keys() >= {"algorithm", "model", "participation", "graph", "aggregator", "dataset", "privacy"}
    for kind, (section, discriminator) in places.items():
        choices = {c["title"]: c for c in schema["properties"][section]["anyOf"]}
        for name in names(kind):
            properties = choices[name]["properties"]
            assert properties[discriminator] == {"const": name}
            assert set(keys_of(lookup(kind, name))) <= set(properties)
            assert choices[name]["additionalProperties"] is False
    partitions = schema["properties"]["data"]["anyOf"][0]["properties"]["partition"]["anyOf"]
    assert {c["title"] for c in partitions} >= set(names("partition"))
    referred = {part.split('"')[0] for part in out.split("#/$defs/")[1:]}
    assert referred <= set(schema["$defs"])


def test_check_passes_our_own_and_fails_what_breaks_a_law(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("check", "fedavg", "--set", "momentum=0.5")
    assert (code, "FAILED" in out) == (0, False)
    (tmp_path / "breaks_a_law.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.algorithms.fedavg import FedAvg\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mixes(FedAvg):\n"
        "    def direction(self, oracle, x, received, client):\n"
        "        return oracle.grad(x).mean(0, keepdim=True).expand_as(x)  # mixes the clients\n"
    )
    code, out, _ = call("check", "breaks_a_law:Mixes")
    assert code == 1
    assert "FAILED" in out


def test_help_exits_with_0(call: Call) -> None:
    for argv in ([], ["run"], ["plan"], ["sweep"], ["report"], ["topology"], ["check"], ["list"], ["schema"]):
        code, out, _ = call(*argv, "--help")
        assert code == 0
        assert "Usage" in out


def test_every_argument_has_its_text(call: Call) -> None:
    """Whatever click makes of what Typer gives it."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"
    assert "scenario file (YAML)" in call("run", "--help")[1]


def test_help_is_quick_and_modes_are_found_whatever_was_imported() -> None:
    """Neither torch nor pandas is imported for ``--help``; a fresh interpreter knows every participation mode."""
    code = (
        "import sys, fedsim.cli.app, fedsim\n"
        "slow = {'torch', 'pandas', 'networkx', 'scipy', 'datasets'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "from fedsim.core.registry import names\n"
        "assert {'synchronous', 'gossip'} <= set(names('participation'))\n"
        "assert not {'datasets', 'flwr_datasets', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- Python -------------------------------------------------------------------------------------------------------


def test_run_takes_a_mapping_a_path_and_a_scenario(call: Call, tmp_path: Path) -> None:  # noqa: ARG001
    runs = [fedsim.run(s, out=tmp_path / str(i)) for i, s in enumerate((SERVER, "s.yaml", fedsim.load("s.yaml")))]
    assert all(torch.equal(r.params, runs[0].params) for r in runs)
    assert runs[0].params.shape == (650,)
    frame = runs[0].metrics
    assert list(frame["round"]) == [0, 2, 4]
    assert {"train_loss", "test_loss", "test_accuracy", "bytes_sent", "gradients", "time", "wall"} <= set(frame.columns)
    assert frame["gradients"].iloc[-1] == 4 * 2 * 5 * 10


def test_gossip_runs_have_a_row_of_parameters_per_node(tmp_path: Path) -> None:
    run = fedsim.run({**GOSSIP, "run": {**GOSSIP["run"], "trace": True}}, out=tmp_path / "out")
    assert run.params.shape == (4, 650)
    assert [row["round"] for row in run.trace] == [1, 2, 3, 4]
    assert (run.dir / "topology.graphml").exists()


def test_progress_is_called_after_every_round(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []
    fedsim.run(SERVER, out=tmp_path / "out", progress=lambda number, row: seen.append((number, row is not None)))
    assert seen == [(0, True), (1, False), (2, True), (3, False), (4, True)]


def test_the_default_directory_is_named_by_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = fedsim.run(SERVER), fedsim.run({**SERVER, "seed": 1})
    assert first.dir.parent == Path("runs")
    assert first.dir != second.dir
    assert not torch.equal(first.params, second.params)
