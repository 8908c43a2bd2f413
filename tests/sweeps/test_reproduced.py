"""Reproductions: their files, what is taken from runs, which claims hold, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml
from data_makers import pictures, png, write_images
from typer.testing import CliRunner

from fedsim.cli.app import app
from fedsim.core.errors import InputError, RunError
from fedsim.engine.assembly import assemble
from fedsim.sweeps.reproduced.files import Check, Quantity, find, known, read, row, task
from fedsim.sweeps.reproduced.measured import Cell, cells, judge, take
from fedsim.sweeps.reproduced.page import figure, page, summary, verdicts

ROOT = Path(__file__).parents[2]
NAMES = sorted(known())
CHOICES = [(name, on) for name in NAMES for on in read(known()[name])[0].data]
OWN: dict[str, Any] = {
    "name": "own",
    "paper": {
        "title": "A title", "where": "Here", "arxiv": "2402.03448", "result": "Table 1", "claim": "So.",
        "scaled": "So.",
    },
    "sweep": {
        "scenario": str(ROOT / "scenarios" / "quickstart.yaml"),
        "cases": {"fedavg": {}, "slow": {"algorithm.lr": 1e-6, "run.rounds": 3}},
        "grid": {"seed": [0, 1]},
    },
    "data": {"digits": {"title": "digits", "minutes": 1}},
    "quick": {"run.rounds": 2},
    "quantities": {
        "rounds": {
            "words": "rounds to 30 %", "take": "first", "of": "test_accuracy", "target": 0.3, "at": "round",
            "better": "lower", "paper": {"fedavg": 7, "slow": 70}, "against": "fedavg",
        }
    },
    "figure": {"x": "round", "y": "test_accuracy"},
    "checks": [{"says": "A step that is not tiny is faster", "of": "rounds", "best": "fedavg"}],
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """``own({"a.b": value})``: the file of a small reproduction with some keys changed; None takes a key away."""

    def write(changes: dict[str, Any]) -> Path:
        values = json.loads(json.dumps(OWN))
        for dotted, value in changes.items():
            *path, last = dotted.split(".")
            inner = values
            for key in path:
                inner = inner[int(key)] if isinstance(inner, list) else inner[key]
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return file

    return write


def invoke(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["reproduce", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, (SystemExit, InputError)):
        raise done.exception
    said = str(done.exception) if isinstance(done.exception, InputError) else done.stderr
    return done.exit_code, done.stdout, said


def test_they_come_along_with_the_examples(tmp_path: Path) -> None:
    """And run there, beside the scenarios that they name."""
    assert CliRunner().invoke(app, ["examples", str(tmp_path)]).exit_code == 0
    for file in sorted((tmp_path / "reproductions").glob("*.yaml")):
        assert task(file, quick=True).plan.points


def test_there_are_reproductions() -> None:
    assert {"dspodfl", "fedfix", "fedspeed", "diff2"} <= set(NAMES)
    assert [name for name in NAMES if read(known()[name])[0].name != name] == []


@pytest.mark.parametrize(("name", "on"), CHOICES)
def test_all_runs_of_every_reproduction_are_valid(name: str, on: str) -> None:
    long, short = (task(find(name), on, quick=quick) for quick in (False, True))
    assert long.rows == short.rows
    assert len({p.scenario.seed for p in short.plan.points}) == 1
    assert [p.label for p in short.plan.points if p.scenario.run.rounds > 30] == [] or "run.seconds" in (
        short.reproduction.quick
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the form of the real data sets, with images and numbers that are made: many enough for every file."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("mnist", "california", "decoded")}
    for part, count in (("train", 13_000), ("test", 500)):
        labels = np.random.default_rng(count).integers(0, 10, count).tolist()
        same = [png(image) for image in pictures(10, (28, 28))]
        write_images(found["mnist"] / f"{part}.parquet", [same[label] for label in labels], labels)
    columns = ["MedInc", "HouseAge", "AveRooms", "AveBedrms", "Population", "AveOccup", "Latitude", "Longitude"]
    columns += ["MedHouseVal"]
    numbers = np.random.default_rng(0).random((2_000, len(columns)))
    pandas.DataFrame(numbers, columns=columns).to_parquet(found["california"] / "train.parquet")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "on"), CHOICES)
def test_the_data_of_every_choice_can_be_divided(
    name: str, on: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every case of it divides them; also those that come from a folder."""
    monkeypatch.setenv("FEDSIM_CACHE", str(folders["decoded"]))  # so that 13,000 images are decoded once
    choice = read(known()[name])[0].data[on]
    folder = folders["california" if "California" in choice.title else "mnist"] if choice.path else None
    divided = set()
    for scenario in (point.scenario for point in task(find(name), on, folder).plan.points):
        said = json.dumps(scenario.resolved()["data"])
        if said not in divided:
            assert assemble(scenario).task.num_clients > 1
            divided.add(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_quick_form_of_every_reproduction_runs(name: str, tmp_path: Path) -> None:
    code, out, _ = invoke(name, "--quick", "--out", tmp_path / "out", "--json")
    found = json.loads(out)
    assert code == 0
    assert [run["error"] for run in found["runs"]] == [None] * len(found["runs"])
    of = task(find(name), quick=True)
    assert list(dict.fromkeys(run["row"] for run in found["runs"])) == of.rows
    assert all(run["x"] and all(math.isfinite(y) for y in run["y"]) for run in found["runs"])
    text = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
    assert "--quick`: it shows that everything runs" in text
    assert (tmp_path / "out" / f"{name}-{of.on}.png").stat().st_size > 1000


def test_a_reproduction_of_ones_own(own: Callable[..., Path], tmp_path: Path) -> None:
    code, out, _ = invoke(own({}), "--out", tmp_path / "out", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(run["row"], run["seed"]) for run in found["runs"]] == [(r, s) for r in ("fedavg", "slow") for s in (0, 1)]
    assert found["checks"] == [{"says": OWN["checks"][0]["says"], "holds": True, "seeds": 2, "of": 2}]
    text = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
    assert "The claim holds." in text
    assert text.count("`fedsim reproduce own.yaml") + text.count("\nfedsim reproduce own.yaml\n") == 2
    slow = next(line for line in text.splitlines() if line.startswith("| slow"))
    assert slow == "| slow | 70 | never | 10.00 |  |"  # the paper's number, ours, and each over fedavg's
    kept = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    made = read(own({}))[0]
    assert page(made, {"digits": kept}, lambda on: f"own-{on}.png") == text  # the page is made of the results alone
    assert kept["processor_seconds"] > 0
    axes = figure(made, kept).axes[0]  # one line for each row, the mean of its seeds
    assert len(axes.lines) == len(axes.collections) == 2
    two = [run["y"] for run in kept["runs"] if run["row"] == "fedavg"]
    assert axes.lines[0].get_ydata() == pytest.approx(np.mean(two, axis=0))
    before = (tmp_path / "out" / "runs" / "fedavg_seed=0" / "metrics.jsonl").stat().st_mtime_ns
    assert invoke(own({}), "--out", tmp_path / "out", "--resume")[0] == 0
    again = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert again == kept | {"processor_seconds": None}  # what earlier calls took is not known
    assert (tmp_path / "out" / "runs" / "fedavg_seed=0" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_claim_that_does_not_hold_is_said(own: Callable[..., Path], tmp_path: Path) -> None:
    code, out, _ = invoke(own({"checks.0.best": "slow"}), "--quick", "--out", tmp_path / "out")
    assert code == 0
    assert "DOES NOT HOLD" in out
    assert "The claim does not hold." in (tmp_path / "out" / "page.md").read_text(encoding="utf-8")


def test_a_run_that_fails_is_told_and_counts_as_the_worst(own: Callable[..., Path], tmp_path: Path) -> None:
    file = own({"sweep.cases.slow": {"algorithm.lr": 1e30}, "quantities.rounds.target": 0.05})
    code, _, err = invoke(file, "--quick", "--out", tmp_path / "out")
    assert code == 1
    assert "slow_seed=0: " in err
    text = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
    assert "- slow, seed 0: " in text
    assert "The claim holds." in text


def test_nothing_is_said_of_a_claim_where_the_data_do_not_fit(own: Callable[..., Path], tmp_path: Path) -> None:
    few = {"scheme": "dirichlet", "alpha": 0.001, "min_partition_size": 20}
    file = own({"sweep.cases.slow": {"data.clients": 80, "data.partition": few}})
    _, out, err = invoke(file, "--quick", "--out", tmp_path / "out")
    assert "data.partition.min_partition_size: found 20, but 80 clients share" in err
    assert "HOLD" not in out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["runs"]


def test_changes_of_data_and_quick_win_over_the_sweeps(own: Callable[..., Path]) -> None:
    file = own({"data.digits.set": {"algorithm.batch_size": 7}, "data.digits.cases": {"slow": {"run.rounds": 5}}})
    slow = [p.scenario for p in task(file).plan.points if p.label.startswith("slow")]
    assert [(s.run.rounds, s.algorithm.batch_size) for s in slow] == [(5, 7)] * 2
    assert {p.scenario.run.rounds for p in task(file, quick=True).plan.points} == {2}
    assert {p.scenario.run.eval_every for p in task(file, settings=["run.eval_every=3"]).plan.points} == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paper.arxiv": "none"}, "paper.arxiv"),
        ({"paper.claim": None}, "paper.claim"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"quantities.rounds.target": None}, "quantities.rounds.target: found take: first without a target"),
        ({"quantities.rounds.take": "last"}, "found take: last target 0.3"),
        ({"quantities.rounds.of": "acuracy"}, "unknown metric 'acuracy'"),
        ({"quantities.rounds.at": "rund"}, "unknown metric 'rund'"),
        ({"quantities.rounds.paper": {"fedprox": 1}}, "unknown row 'fedprox'"),
        ({"quantities.rounds.against": "fedprox"}, "unknown row 'fedprox'"),
        ({"figure.y": "loss"}, "unknown metric 'loss'"),
        ({"checks.0.of": "round"}, "unknown quantity 'round'"),
        ({"checks.0.best": "fedprox"}, "unknown row 'fedprox'"),
        ({"checks.0.near": {"fedavg": 3}}, "checks.0: found best and near"),
        ({"checks.0.best": None}, "checks.0: found neither best nor near"),
        ({"checks.0.best": None, "checks.0.near": {"fedavg": 0.0}}, "checks.0.near.fedavg: found 0"),
        ({"checks.0.best": None, "checks.0.near": {"fedavg": 1.0}, "checks.0.by": 2.0}, "checks.0.by: found with near"),
        ({"checks.0.within": 0.2}, "checks.0.within: found with best"),
        ({"checks.0.than": ["slow", "fedavg"]}, "checks.0.than: found fedavg, which is `best` itself"),
        ({"checks.0.by": math.inf}, "checks.0.by"),
        ({"quantities.rounds.target": math.nan}, "quantities.rounds.target"),
        ({"quantities.rounds.paper": {"fedavg": math.nan}}, "quantities.rounds.paper"),
        ({"quantities.rounds.along": "time"}, "quantities.rounds.along: found with take: first"),
        ({"quantities.rounds.of": "consensus_distance"}, "of which no value is the best"),
        (
            {"quantities.rounds.take": "best", "quantities.rounds.target": None, "quantities.rounds.at": None},
            "quantities.rounds.better: found lower with take: best, of 'test_accuracy'; allowed: higher",
        ),
        ({"data.digits.minutes": math.inf}, "data.digits.minutes"),
        ({"data": {"../up": {"title": "it", "minutes": 1}}}, "../up"),
        (
            {
                "sweep.cases": None,
                "quantities.rounds.paper": None,
                "quantities.rounds.against": None,
                "checks.0.best": "run",
            },
            "checks.0: found one row, 'run'",
        ),
        ({"sweep.grid": {"run.rounds": [3, 4]}, "sweep.cases.slow": {"seed": 7}}, "found rows of different seeds"),
        ({"sweep.cases": "none"}, "cases"),
        ({"sweep.cases": {"fedavg": 3}}, "cases.fedavg"),
        ({"sweep.set": 1}, "set"),
        ({"sweep.grid": {"seed": 1}}, "grid.seed"),
        ({"sweep": "none.yaml"}, "sweep: found no file"),
        ({"sweep.scenario": "none.yaml"}, "scenario: found no file"),
        ({"sweep.cases.slow": {"algorithm.lrr": 1}}, "algorithm.lrr"),
        ({"data.digits.cases": {"fast": {}}}, "unknown case 'fast'"),
        ({"data.digits.set": {"run.round": 1}}, "run.round"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    own: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = own(changes)
    code, out, err = invoke(file, "--out", tmp_path / "out")
    assert code != 0
    assert not (tmp_path / "out").exists()
    assert message in err
    assert str(file) in err
    assert len(err.strip().splitlines()) == 1, err
    assert out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dspodf"], "NAME: unknown reproduction 'dspodf' (did you mean 'dspodfl'?); allowed: "),
        (["none.yaml"], "none.yaml: no such file"),
        (["dspodfl", "--on", "cifar"], "--on: unknown choice of data 'cifar'"),
        (["ef21w", "--data", "."], "--data: found ., but ef21w reads no folder"),
        (["dspodfl", "--on", "digits", "--data", "."], "--data: found ., but 'digits' is not read from a folder"),
        (["dspodfl", "--data", "no-such-folder"], "--data: found no file or folder no-such-folder"),
        (["dspodfl", "--on", ""], "--on: unknown choice of data ''"),
        (["dspodfl", "--set", "name=other"], "--set: name: found 'name=other'"),
        (["dspodfl", "--set", "seed=3"], "the sweep's 'grid' changes seed"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_sentence(words: list[str], message: str) -> None:
    code, _, err = invoke(*words)
    assert code != 0
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_without_a_name_it_lists_them() -> None:
    code, out, _ = invoke()
    assert code == 0
    assert all(name in out for name in NAMES)
    told = json.loads(invoke("--json")[1])
    assert {name: list(one["data"]) for name, one in told.items()} == {
        name: list(read(known()[name])[0].data) for name in NAMES
    }


ROWS = [{"round": r, "time": t, "loss": v, "test_accuracy": a} for r, t, v, a in (
    (0, 0.0, 4.0, 0.1), (1, 2.5, 3.0, 0.5), (2, 5.0, math.nan, None), (3, 8.0, 1.0, 0.9), (4, 10.0, 2.0, 0.7),
)]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"take": "first", "of": "test_accuracy", "target": 0.5, "at": "time"}, 2.5),
        ({"take": "first", "of": "test_accuracy", "target": 0.95}, None),
        ({"take": "first", "of": "test_loss", "target": 1.5}, None),  # a column that the run has not
        ({"take": "last", "of": "test_accuracy"}, 0.7),
        ({"take": "best", "of": "test_accuracy"}, 0.9),
        ({"take": "mean", "of": "test_accuracy", "along": "time"}, 0.8),
        ({"take": "spread", "of": "test_accuracy", "along": "time"}, 0.1),
    ],
)
def test_quantities(keys: dict[str, Any], expected: float | None) -> None:
    quantity = Quantity(words="it", better="lower", **keys)
    found = take(ROWS, quantity)
    assert found is None if expected is None else found == pytest.approx(expected)


def test_a_quantity_along_a_column_that_the_run_has_not_is_none() -> None:
    rows = [{"round": 0, "test_loss": 1.0}]
    assert take(rows, Quantity(words="it", take="mean", of="test_loss", along="delay_total", better="lower")) is None


def test_a_quantity_that_no_run_has_is_said(own: Callable[..., Path], tmp_path: Path) -> None:
    code, out, _ = invoke(own({"quantities.rounds.of": "node_accuracy"}), "--quick", "--out", tmp_path / "out")
    text = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
    assert code == 0
    assert "DOES NOT HOLD" in out
    for told in (out, text):
        assert "No run has the column node_accuracy, so that there is nothing of rounds to 30 %." in " ".join(
            told.split()
        )


def test_a_page_keeps_its_tables_whatever_the_words_are(own: Callable[..., Path], tmp_path: Path) -> None:
    words = {"checks.0.says": "a | b\nc", "quantities.rounds.words": "x | y"}
    assert invoke(own(words), "--quick", "--set", "participation={fraction: 0.9}", "--out", tmp_path / "out")[0] == 0
    text = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
    assert "| a \\| b c | " in text
    assert "| x \\| y: paper | x \\| y: here |" in text
    assert "--set 'participation={fraction: 0.9}'" in " ".join(text.split())


@pytest.mark.parametrize("name", ["results.json", "own-digits.png", "page.md", "runs/metrics.parquet"])
def test_what_cannot_be_written_is_one_sentence_and_leaves_no_half(
    own: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / "out" / name / "inner").mkdir(parents=True)  # a folder where the file goes
    result = CliRunner().invoke(app, ["reproduce", str(own({})), "--quick", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, RunError)
    assert name in str(result.exception)
    assert list((tmp_path / "out").rglob("*.new")) == []


def test_a_quantity_of_a_loss_is_reached_from_above() -> None:
    rows = [{"round": r, "test_loss": v} for r, v in ((0, 3.0), (1, 1.5), (2, 1.0))]
    assert take(rows, Quantity(words="it", take="first", of="test_loss", target=1.5, better="lower")) == 1
    assert take(rows, Quantity(words="it", take="best", of="test_loss", better="lower")) == 1.0


def test_a_last_value_that_is_not_finite_is_none() -> None:
    rows = [{"round": 0, "test_loss": 1.0}, {"round": 1, "test_loss": math.inf}]
    assert take(rows, Quantity(words="it", take="last", of="test_loss", better="lower")) is None


def test_medians_count_missing_values_as_the_worst() -> None:
    assert Cell({0: 1.0, 1: None, 2: 3.0}, "lower").median == 3.0
    assert Cell({0: 1.0, 1: None, 2: 3.0}, "higher").median == 1.0
    assert Cell({0: None, 1: None, 2: 3.0}, "lower").median is None
    assert Cell({0: 1.0, 1: None}, "lower").range == (1.0, None)


def test_claims_are_judged_on_medians_and_on_each_seed() -> None:
    of = {"a": Cell({0: 1.0, 1: 2.0, 2: 9.0}, "lower"), "b": Cell({0: 2.0, 1: 4.0, 2: None}, "lower"),
          "c": Cell({0: 8.0, 1: 8.0, 2: 8.0}, "lower")}  # fmt: skip

    def judged(**keys: Any) -> tuple[bool, int]:
        verdict = judge(Check(says="it", of="q", **keys), of)
        return verdict.holds, verdict.seeds

    assert judged(best="a") == (True, 2)  # 9 is worse than c's 8 with seed 2
    assert judged(best="a", than=["b"]) == (True, 3)
    assert judged(best="a", than=["b"], by=2.0) == (True, 3)
    assert judged(best="a", than=["b"], by=2.5) == (False, 1)
    assert judged(best="b", than=["a"], by=0.5) == (True, 2)  # at most twice as much; a seed without a value is lost
    assert judged(near={"c": 8.5}, within=0.1) == (True, 3)
    assert judged(near={"c": 8.5, "a": 3.0}, within=0.1) == (False, 0)
    assert judged(best="c", than=["c"]) == (False, 0)  # a tie is no victory
    assert judged(best="c", than=["c"], by=0.9) == (True, 3)
    higher = {name: Cell(cell.values, "higher") for name, cell in of.items()}
    assert judge(Check(says="it", of="q", best="c"), higher).seeds == 2


def test_rows_are_what_is_varied_but_for_seeds() -> None:
    assert row({"case": "a", "algorithm.lr": 0.1, "seed": 3}) == "a, lr 0.1"
    assert row({"seed": 3}) == "run"
    runs = [{"row": "a", "seed": s, "values": {"q": float(s)}} for s in (0, 1)]
    found = cells(runs, {"q": Quantity(words="it", take="last", of="test_loss", better="lower")})
    assert found["q"]["a"].values == {0: 0.0, 1: 1.0}


def test_a_table_has_a_row_for_each_of_the_rows() -> None:
    for name in NAMES:
        made = read(known()[name])[0]
        runs = [
            {"row": r, "seed": 0, "values": dict.fromkeys(made.quantities), "error": None}
            for r in task(find(name)).rows
        ]
        header, rows = summary(made, {"runs": runs})
        assert {len(cells_) for cells_ in rows} == {len(header)}
        assert not any(v.holds for v in verdicts(made, {"runs": runs}))
