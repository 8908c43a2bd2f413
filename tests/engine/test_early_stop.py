"""Early stopping: a run ends where a plain loop over its rows says so, says why, and remembers it when resumed."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fedsim
from fedsim.cli.app import main
from fedsim.core.errors import InputError
from fedsim.engine.run_directory import Run, read_jsonl
from fedsim.engine.stopping import EarlyStop
from fedsim.scenario.stopping import Stop

ROUNDS = 60
SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 5, "limit": 250, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.4, "batch_size": 10},
    "participation": {"fraction": 0.6},
    "run": {"rounds": ROUNDS, "eval_every": 2, "device": "cpu", "threads": 1},
}
ASYNCHRONOUS = {**SERVER, "participation": {"mode": "asynchronous"}}
GRAPH: dict[str, Any] = {
    **SERVER,
    "algorithm": {"name": "dspodfl", "lr": 0.4, "batch_size": 10},
    "topology": {"graph": "ring"},
    "participation": {"compute": 0.7, "links": 0.7},
}
SETTINGS = {"server": SERVER, "asynchronous": ASYNCHRONOUS, "graph": GRAPH}
RULES: dict[str, dict[str, Any]] = {
    "accuracy": {"patience": 3},
    "loss": {"metric": "test_loss", "patience": 2, "min_delta": 0.05},
    "target": {"metric": "test_accuracy", "target": 0.6},
    "both": {"metric": "test_loss", "patience": 20, "target": 1.2},
}


def stopping(base: dict[str, Any], rule: dict[str, Any] | None, **run: Any) -> dict[str, Any]:
    return {**base, "run": {**base["run"], "stop": rule, **run}}


def rows(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(run.dir / "metrics.jsonl")]


def obvious(values: list[float], larger: bool, rule: dict[str, Any]) -> int:
    """After which of the evaluations the rule ends a run, the plain way: compared with all that came before."""
    signed = np.array(values) if larger else -np.array(values)
    target = rule.get("target", math.inf if larger else -math.inf)
    for last in range(len(values)):
        if signed[last] >= (target if larger else -target):
            return last
        waiting, top = 0, -math.inf
        for value in signed[: last + 1]:
            waiting, top = (0, value) if value > top + rule.get("min_delta", 0) else (waiting + 1, top)
        if waiting >= rule.get("patience", math.inf):
            return last
    return len(values)


@pytest.fixture(scope="module", params=SETTINGS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """A run without the rule, of each setting."""
    return request.param, fedsim.run(SETTINGS[request.param], out=tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("name", RULES)
def test_it_ends_where_the_rows_say_so(name: str, whole: tuple[str, Run], tmp_path: Path) -> None:
    setting, unbroken = whole
    rule, every = RULES[name], rows(unbroken)
    metric = rule.get("metric", "test_accuracy")
    last = obvious([row[metric] for row in every], metric == "test_accuracy", rule)
    assert 0 < last < len(every) - 1
    run = fedsim.run(stopping(SETTINGS[setting], rule), out=tmp_path / "run")
    assert rows(run) == every[: last + 1]
    shorter = SETTINGS[setting] | {"run": {**SERVER["run"], "rounds": every[last]["round"]}}
    assert torch.equal(run.params, fedsim.run(shorter, out=tmp_path / "shorter").params)
    assert run.stopped is not None
    assert f"stopped early after round {every[last]['round']} of {ROUNDS}: {metric}" in run.stopped
    facts = json.loads((run.dir / "stop.json").read_text())
    assert (facts["round"], facts["rounds"], facts["metric"]) == (every[last]["round"], ROUNDS, metric)
    best = max if metric == "test_accuracy" else min
    if rule.get("min_delta", 0) == 0:
        assert facts["best"] == best(row[metric] for row in every[: last + 1])
        assert facts["best"] == next(row[metric] for row in every if row["round"] == facts["best_round"])
    assert unbroken.stopped is None


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_resumed_run_remembers(setting: str, tmp_path: Path) -> None:
    """Interrupted while it waits, once between two evaluations: it ends where the unbroken one does."""
    settings = stopping(SETTINGS[setting], RULES["loss"])
    unbroken = fedsim.run(settings, out=tmp_path / "whole")
    end = rows(unbroken)[-1]["round"]
    for after in (end - 3, end - 2):

        def interrupt(number: int, _: object, after: int = after) -> None:
            if number == after:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            fedsim.run(settings, out=tmp_path / "parts", resume=after == end - 2, progress=interrupt)
        assert not (tmp_path / "parts" / "stop.json").exists()
    resumed = fedsim.run(settings, out=tmp_path / "parts", resume=True)
    assert resumed.resumed_at == end - 2
    assert rows(resumed) == rows(unbroken)
    assert torch.equal(resumed.params, unbroken.params)
    assert resumed.stopped == unbroken.stopped


def test_a_run_that_stopped_goes_on_where_it_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "s.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(stopping(SERVER, RULES["loss"])))

    def run(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main_with(["run", str(file), "--out", str(out), *more])
        assert ended.value.code == 0
        return capsys.readouterr().out

    said = run()
    stopped = Run(out).stopped
    assert stopped is not None
    assert stopped in said
    before, params = rows(Run(out)), Run(out).params
    again = run("--resume")
    assert "already finished, nothing to do" in again
    assert stopped in again
    assert rows(Run(out)) == before
    assert torch.equal(Run(out).params, params)
    assert stopped.replace(f"of {ROUNDS}", "of 80") in run("--resume", "--set", "run.rounds=80")  # it waits no longer
    said = run("--resume", "--set", "run.stop=null")
    assert "stopped early" not in said
    assert Run(out).stopped is None
    unbroken = fedsim.run(stopping(SERVER, None), out=tmp_path / "whole")
    assert rows(Run(out)) == rows(unbroken)
    assert torch.equal(Run(out).params, unbroken.params)


def main_with(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fedsim", *arguments])
        main()


def test_the_best_model_is_kept_beside_it(tmp_path: Path) -> None:
    settings = stopping(SERVER, RULES["accuracy"], loggers=[{"name": "best"}, {"name": "csv"}])
    run = fedsim.run(settings, out=tmp_path / "run")
    facts = json.loads((run.dir / "stop.json").read_text())
    shorter = stopping(SERVER, None, rounds=facts["best_round"])
    assert torch.equal(run.best_params, fedsim.run(shorter, out=tmp_path / "best").params)
    assert not torch.equal(run.best_params, run.params)
    assert len((run.dir / "metrics.csv").read_text().splitlines()) == 1 + len(rows(run))


def test_values_that_are_no_numbers_are_no_improvement() -> None:
    stop = EarlyStop(Stop(metric="test_loss", patience=2), larger=False)
    for number, value in enumerate([None, 3.0, math.nan, 2.0, math.inf]):
        stop.see({"round": number, "test_loss": value})
        assert stop.why is None
    stop.see({"round": 5, "test_loss": 2.0})
    assert stop.why == "test_loss never fell in 2 evaluations after round 3 (2)"


def test_a_page_says_why(tmp_path: Path) -> None:
    from fedsim.reports.groups import read_run
    from fedsim.reports.report import write_report

    run = fedsim.run(stopping(SERVER, RULES["loss"]), out=tmp_path / "run")
    record = read_run(run.dir)
    assert (record.finished, record.status) == (True, run.stopped)
    page = write_report(run.dir, tmp_path / "page.html").read_text()
    assert str(run.stopped) in page
    assert "unfinished" not in page


def test_a_sweep_says_why(tmp_path: Path) -> None:
    sweep = {
        "name": "s", "scenario": "s.yaml", "grid": {"algorithm.lr": [0.2, 0.001]},
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(stopping(SERVER, RULES["target"], rounds=20)))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    outcomes = fedsim.sweep(tmp_path / "sweep.yaml", out=tmp_path / "out")
    assert [o.status for o in outcomes] == ["finished", "finished"]
    told = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert outcomes[0].run is not None
    assert told[0]["stopped"] == outcomes[0].run.stopped
    assert "test_accuracy is 0." in told[0]["stopped"]
    assert "stopped" not in told[1]


PRIVATE = {"mechanism": "dp_fedavg", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
QUADRATIC: dict[str, Any] = {"data": {"dataset": "quadratic"}, "algorithm": {"name": "fedavg"}, "run": {}}


@pytest.mark.parametrize(
    "base,rule,more,key,says",
    [
        (SERVER, {}, {}, "run.stop", "neither 'patience' nor 'target'"),
        (SERVER, {"target": 0.9, "min_delta": 0.1}, {}, "run.stop", "'min_delta' without 'patience'"),
        (SERVER, {"patience": 0}, {}, "run.stop.patience", "greater than 0"),
        (SERVER, {"patience": 3, "metric": "test_acuracy"}, {}, "run.stop.metric", "did you mean 'test_accuracy'"),
        (SERVER, {"patience": 3, "metric": "bytes_sent"}, {}, "run.stop.metric", "of which no value is the best"),
        (SERVER, {"patience": 3, "metric": "node_accuracy"}, {}, "run.stop.metric", "unknown column of this run"),
        (SERVER, {"patience": 3, "metric": "macro_f1"}, {}, "run.stop.metric", "unknown metric 'macro_f1'"),
        (QUADRATIC, {"patience": 3}, {}, "run.stop.metric", "allowed: train_loss, optimum_distance"),
        (SERVER, {"patience": 3}, {"privacy": PRIVATE}, "run.stop", "found beside privacy"),
    ],
)  # fmt: skip
def test_what_cannot_end_a_run_is_refused_first(
    base: dict[str, Any], rule: dict[str, Any], more: dict[str, Any], key: str, says: str, tmp_path: Path,
    quadratic: Any,
) -> None:  # fmt: skip
    settings = {**stopping(base, rule), **more}
    if base is QUADRATIC:
        settings["data"] = quadratic(n=2, d=2).section()
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(settings, out=tmp_path / "run")
    assert key in [problem.key for problem in caught.value.problems]
    assert not (tmp_path / "run").exists()


def test_a_measure_of_ones_own_may_decide(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    settings = stopping(SERVER, {"metric": "macro_f1", "target": 0.5}, metrics=[{"name": "macro_f1"}])
    run = fedsim.run(settings, out=tmp_path / "run")
    reached = [row["macro_f1"] >= 0.5 for row in rows(run)]
    assert reached == [False] * (len(reached) - 1) + [True]


def test_what_clients_have_may_decide(tmp_path: Path) -> None:
    base = {**SERVER, "data": {**SERVER["data"], "local_test": 0.2}}
    run = fedsim.run(stopping(base, {"metric": "client_accuracy_mean", "target": 0.5}), out=tmp_path / "run")
    reached = [row["client_accuracy_mean"] >= 0.5 for row in rows(run)]
    assert reached == [False] * (len(reached) - 1) + [True]


def test_clients_of_a_deployment_stop_with_it(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from flower_loopback import Deployment

    settings = stopping({**SERVER, "participation": {}}, RULES["loss"], dtype="float64")
    simulated = fedsim.run(settings, out=tmp_path / "simulated")
    deployed = Deployment(tmp_path / "app", settings, SERVER["data"]["clients"]).run()
    assert simulated.stopped is not None
    assert deployed.stopped == simulated.stopped
    assert float((deployed.params - simulated.params).abs().max()) < 1e-12
