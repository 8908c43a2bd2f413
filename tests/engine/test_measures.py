"""Measures: somebody's own by name, in every mode and on every backend, resumed, in reports and sweeps."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from report_runs import axes, words
from sklearn.metrics import f1_score

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.core.metrics import FILE, TABLE, Metric, best, merged, read_columns, write_columns
from fedsim.engine.assembly import assemble
from fedsim.engine.run_directory import bests, read_jsonl
from fedsim.objective.supervised import SupervisedTask
from fedsim.reports.groups import read_run
from fedsim.reports.report import write_report
from fedsim.scenario.load import parse
from fedsim.sweeps.files import read_sweep

SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 6, "limit": 300},
    "model": {"name": "linear"},
    "algorithm": {"name": "scaffold", "lr": 0.1, "batch_size": 8, "local_steps": 3},
    "participation": {"fraction": 0.5},
    "run": {"rounds": 6, "eval_every": 2, "device": "cpu", "threads": 1},
}
GOSSIP: dict[str, Any] = {
    **{k: SERVER[k] for k in ("data", "model", "run")},
    "algorithm": {"name": "dspodfl", "lr": 0.1, "batch_size": 8},
    "topology": {"graph": "ring"},
    "participation": {"compute": 0.6, "links": 0.7},
}


def with_metrics(base: dict[str, Any], *names: Any, **run: Any) -> dict[str, Any]:
    items = [n if isinstance(n, dict) else {"name": n} for n in names]
    return {**base, "run": {**base["run"], "metrics": items, **run}}


def rows(run: fedsim.Run | Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(run.dir / "metrics.jsonl")]


@pytest.mark.parametrize("base", [SERVER, GOSSIP], ids=["server", "gossip"])
def test_an_own_f1_is_what_scikit_learn_says(own: str, tmp_path: Path, base: dict[str, Any]) -> None:
    settings = with_metrics(base, {"name": f"{own}:F1", "of": 3}, {"name": f"{own}:F1", "of": 4}, "macro_f1")
    run = fedsim.run(settings, out=tmp_path / "run")
    task = assemble(fedsim.load(run.dir / "scenario.yaml")).task
    centre = run.params.mean(0) if run.params.dim() == 2 else run.params
    answers = task.answers(centre)
    guesses, targets = answers.guesses.numpy(), answers.targets.numpy()
    last = rows(run)[-1]
    for digit in (3, 4):
        assert last[f"f1_{digit}"] == pytest.approx(f1_score(targets == digit, guesses == digit), abs=1e-12)
    assert last["macro_f1"] == pytest.approx(f1_score(targets, guesses, average="macro"), abs=1e-12)
    assert list(last)[-3:] == ["f1_3", "f1_4", "macro_f1"]
    plain = fedsim.run(base, out=tmp_path / "plain")
    assert rows(plain) == [{k: v for k, v in row.items() if "f1" not in k} for row in rows(run)]
    assert not (plain.dir / FILE).exists()


def test_a_model_is_asked_about_a_client_s_own_data() -> None:
    task = assemble(parse(SERVER)).task
    assert isinstance(task, SupervisedTask)
    params = task.initial() + 0.1
    whole = 0
    for client in range(task.num_clients):
        rows = task.indices[task.offsets[client] : task.offsets[client + 1]]
        answers = task.answers(params, client)
        assert len(answers.outputs) == task.sizes[client] == len(rows)
        assert torch.equal(answers.targets, task.targets[rows])
        expected = task.kernel.outputs(params.unsqueeze(0), task.inputs[rows])[0]
        assert torch.equal(answers.outputs, expected)
        whole += len(rows)
    assert whole == len(task.inputs)
    task.sees_training_data = False  # a deployment's server
    with pytest.raises(InputError, match="clients keep their data to themselves"):
        task.answers(params, 0)
    assert len(task.answers(params).outputs) == len(task.test_inputs)


def test_what_clients_and_nodes_keep_can_be_measured(own: str, tmp_path: Path) -> None:
    run = fedsim.run(with_metrics(SERVER, f"{own}:Variates"), out=tmp_path / "run")
    kept = [row["kept"] for row in rows(run)]
    assert kept[0] == 0.0
    assert kept[-1] > 0.0
    assert rows(run)[-1]["spread"] == pytest.approx(float(run.params.double().abs().sum()))
    nodes = fedsim.run(with_metrics(GOSSIP, f"{own}:Spread"), out=tmp_path / "nodes")
    x = nodes.params[:3] - nodes.params.mean(0)
    assert rows(nodes)[-1]["furthest"] == pytest.approx(float(x.norm(dim=-1).max()))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_actors_measure_the_same(own: str, tmp_path: Path) -> None:
    for base, name in ((SERVER, "Variates"), (GOSSIP, "Spread")):
        settings = with_metrics(base, f"{own}:F1", f"{own}:{name}")
        here = fedsim.run(settings, out=tmp_path / f"{name}-here")
        there = fedsim.run({**settings, "backend": {"name": "ray", "actors": 2}}, out=tmp_path / f"{name}-there")
        for one, other in zip(rows(here), rows(there), strict=True):
            assert list(one) == list(other)
            assert other == pytest.approx(one, rel=1e-5, abs=1e-6)


def test_a_resumed_run_measures_what_an_unbroken_one_does(own: str, tmp_path: Path) -> None:
    settings = with_metrics(SERVER, f"{own}:F1", f"{own}:Variates")
    unbroken = fedsim.run(settings, out=tmp_path / "whole")

    def interrupt(number: int, _row: object) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "parts", progress=interrupt)
    resumed = fedsim.run(settings, out=tmp_path / "parts", resume=True)
    assert resumed.resumed_at == 3
    assert rows(resumed) == rows(unbroken)
    with pytest.raises(InputError, match=r"run\.metrics"):
        fedsim.run(SERVER, out=tmp_path / "parts", resume=True)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("metrics", "key", "message"),
    [
        ([{"name": "own_measures:Taken"}], "run.metrics.0", "declares the column 'test_loss', but every run has it"),
        ([{"name": "own_measures:F1"}] * 2, "run.metrics.1", "'f1_1', but another measure declares it"),
        ([{"name": "macro_f2"}], "run.metrics.0.name", "did you mean 'macro_f1'"),
        ([{"name": "own_measures:F1", "off": 2}], "run.metrics.0.off", "unknown key"),
        ([{"name": "own_measures:F1", "of": 0}], "run.metrics.0.of", "found 0, allowed: greater than 0"),
        ([{"name": "own_measures:Lines"}], "run.metrics.0.name", "allowed: a dataclass that inherits"),
        (["macro_f1"], "run.metrics.0", "allowed: a mapping with the key 'name'"),
        ({"name": "macro_f1"}, "run.metrics", "allowed: a list"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path, metrics: Any, key: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        fedsim.run({**SERVER, "run": {**SERVER["run"], "metrics": metrics}}, out=tmp_path / "run")
    assert [problem.key for problem in caught.value.problems] == [key]
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_measure_that_the_data_do_not_allow_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "q.npz", A=np.ones((3, 2)), b=np.ones((3, 2)))
    data = {"dataset": "quadratic", "file": str(tmp_path / "q.npz")}
    settings = {"data": data, "algorithm": {"name": "fedavg", "lr": 0.1}, "run": {"metrics": [{"name": "macro_f1"}]}}
    with pytest.raises(InputError, match=r"run\.metrics\.0: a quadratic problem has no test data"):
        fedsim.run(settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_measure_that_gives_no_number_or_reads_what_is_not_there_fails_the_run(own: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Text measures 'words' as 'many'; allowed: a number"):
        fedsim.run(with_metrics(SERVER, f"{own}:Text"), out=tmp_path / "text")
    with pytest.raises(RunError, match="clients keep no 'z' between rounds; 'scaffold' has: c"):
        fedsim.run(with_metrics(SERVER, {"name": f"{own}:Variates", "of": "z"}), out=tmp_path / "z")


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_best_goes_with_the_direction() -> None:
    values = [0.5, 0.9, 0.1]
    assert best(values, Metric("f", larger_is_better=True)) == 0.9
    assert best(values, Metric("f", larger_is_better=False)) == 0.1
    assert best(values, Metric("f")) is None
    table = {"up": Metric("up", larger_is_better=True), "down": Metric("down", larger_is_better=False)}
    told = bests([{"up": v, "down": v, "other": v} for v in values], table)
    assert (told["up_best"], told["down_best"]) == (0.9, 0.1)
    assert not any(key.startswith("other") for key in told)


def test_what_columns_mean_survives_the_disk(tmp_path: Path) -> None:
    mine = {"auc": Metric("auc", "area under the curve", "share", True, log=True)}
    write_columns(tmp_path, mine)
    assert read_columns(tmp_path) == ({**mine, **TABLE}, None)
    for damage in ("no JSON", '{"auc": {"larger_is_better": "yes"}}', '{"auc": {"colour": 1}}', "[1]"):
        (tmp_path / FILE).write_text(damage)
        table, said = read_columns(tmp_path)
        assert table == dict(TABLE)
        assert said is not None
        assert FILE in said
    up, down = ({"m": Metric("m", larger_is_better=larger)} for larger in (True, False))
    assert merged([up, up])[0]["m"].larger_is_better is True
    assert merged([up, down, up]) == ({**TABLE, "m": Metric("m")}, ["m"])


def test_every_run_has_only_columns_of_the_table(tmp_path: Path) -> None:
    clocked = {**SERVER, "participation": {"mode": "fedbuff", "buffer": 2}, "algorithm": {"name": "fedavg", "lr": 0.1}}
    private = {**SERVER, "algorithm": {"name": "fedavg", "lr": 0.1}, "participation": {"mode": "synchronous"}}
    private["privacy"] = {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "clip_norm": 1.0}
    for i, settings in enumerate((SERVER, GOSSIP, clocked, private)):
        run = fedsim.run({**settings, "run": {**settings["run"], "rounds": 1}}, out=tmp_path / str(i))
        assert set(rows(run)[-1]) <= set(TABLE)


def test_no_other_file_lists_names_of_metrics() -> None:
    """Lists of two names or more, which would have to be kept in step with the table by hand."""
    root = Path(fedsim.__file__).parent
    quoted = "|".join(f'"{name}"' for name in TABLE if name not in ("round", "time", "epsilon", "delta", "wall"))
    several = re.compile(rf"(?:{quoted})\s*[,:][^\n\[\]]*\n?\s*(?:{quoted})")
    shows = [root / "core", root / "engine", *(root / p for p in ("reports", "figures", "cli", "sweeps", "privacy"))]
    files = [file for folder in shows for file in folder.rglob("*.py")]
    assert len(files) > 60
    makers = {"metrics.py", "evaluate.py"}  # the table, and where the values are computed
    assert [f.name for f in files if f.name not in makers and several.search(f.read_text(encoding="utf-8"))] == []


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_report_knows_direction_words_and_unit_without_the_module(own: str, tmp_path: Path) -> None:
    run = fedsim.run(with_metrics(SERVER, f"{own}:F1", f"{own}:Undeclared"), out=tmp_path / "run")
    (tmp_path / "own_measures.py").unlink()
    record = read_run(run.dir)
    f1 = record.column("f1_1")
    assert record.best("f1_1")[0] == f1.max() > f1.min()
    assert np.isnan(record.best("wave")[0])
    page = write_report([run.dir]).read_text(encoding="utf-8")
    text = words(page)
    assert f"F1 of 1 {f1[-1]:.4f} {f1.max():.4f} {int(record.rows[int(f1.argmax())]['round'])}" in text
    assert "wave: no measure declares what this is, so it is shown as it is and has no best value" in text
    assert f"wave {record.rows[-1]['wave']:.0f} Final is" in text  # the last value, and nothing beside it
    assert "bytes sent" in axes(page)["F1 of 1"]
    assert "round" in axes(page)["wave"]


def test_runs_that_declare_opposite_directions_have_no_best(tmp_path: Path) -> None:
    places = []
    for larger in (True, False):
        place = tmp_path / str(larger)
        fedsim.run({**SERVER, "seed": int(larger)}, out=place)
        lines = [{**row, "m": 1.0 + row["round"]} for row in read_jsonl(place / "metrics.jsonl")]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_columns(place, {"m": Metric("m", "my measure", larger_is_better=larger)})
        places.append(place)
    page = write_report(places).read_text(encoding="utf-8")
    assert "m: these runs declare opposite directions of it, so none of its values is called the best" in page
    assert "my measure, final" in page
    assert "my measure, best" not in page


def test_a_sweep_ranks_by_an_own_metric(own: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(with_metrics(SERVER, f"{own}:F1", f"{own}:Undeclared")))
    sweep = {"scenario": "s.yaml", "grid": {"algorithm.lr": [0.01, 0.1]}}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(sweep))
    outcomes = fedsim.sweep(tmp_path / "w.yaml", out=tmp_path / "out")
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for outcome, line in zip(outcomes, table, strict=True):
        assert outcome.run is not None
        found = outcome.run.metrics["f1_1"]
        assert float(line["f1_1_best"]) == found.max()
        assert float(line["f1_1_mean_of_last_10"]) == pytest.approx(found.mean())
        assert float(line["train_loss_best"]) == outcome.run.metrics["train_loss"].min()
        assert "wave_best" not in line
    page = write_report([tmp_path / "out"]).read_text(encoding="utf-8")
    assert "F1 of 1, best" in page


def test_bad_runs_are_stopped_in_the_direction_of_the_metric(own: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(with_metrics(SERVER, f"{own}:F1", f"{own}:Undeclared")))

    def mode(**stop: Any) -> str | None:
        sweep = {"scenario": "s.yaml", "grid": {"algorithm.lr": [0.01, 0.1]}, "stop": stop}
        (tmp_path / "w.yaml").write_text(yaml.safe_dump(sweep))
        found = read_sweep(tmp_path / "w.yaml").stop
        assert found is not None
        return found.mode

    assert mode() == "max"
    assert mode(metric="train_loss") == "min"
    assert mode(metric="f1_1") == "max"
    assert mode(metric="wave", mode="min") == "min"
    with pytest.raises(InputError, match="nothing says whether more or less of 'wave' is better") as caught:
        mode(metric="wave")
    assert caught.value.problems[0].key == "stop.mode"


def test_a_private_run_says_which_own_metrics_epsilon_does_not_cover(own: str, tmp_path: Path) -> None:
    settings = {**SERVER, "algorithm": {"name": "fedavg", "lr": 0.1}, "participation": {"mode": "synchronous"}}
    settings["privacy"] = {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "clip_norm": 1.0}
    run = fedsim.run(with_metrics(settings, f"{own}:F1", f"{own}:Undeclared"), out=tmp_path / "run")
    assert run.privacy["oracle_metrics"] == ["train_loss", "wave"]
