"""``fedsim new``: what it writes runs as it stands, its comments are true, and nothing is ever overwritten."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import yaml

import fedsim
from fedsim.cli.app import main
from fedsim.cli.new import _Asks

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, standard output and error of ``fedsim new ...``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", "new", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def test_it_runs_as_it_stands(call: Call) -> None:
    code, out, _ = call("first", "--clients", "4", "--rounds", "2", "--set", "data.limit=200")
    assert code == 0
    assert out.startswith("first.yaml is written\n")
    assert "fedsim run first.yaml" in out
    metrics = fedsim.run("first.yaml", out="r").metrics
    assert metrics["train_loss"].iloc[-1] < metrics["train_loss"].iloc[0]
    assert yaml.safe_load(Path("first.yaml").read_text())["data"]["limit"] == 200
    assert all(len(line) <= 120 for line in Path("first.yaml").read_text().splitlines())


@pytest.mark.parametrize("flags", [(), ("--algorithm", "dspodfl"), ("--algorithm", "fedprox", "--model", "linear")])
def test_what_is_commented_out_is_the_default(call: Call, flags: tuple[str, ...]) -> None:
    """Each of these lines may be taken in without changing anything."""
    assert call("said", *flags)[0] == 0
    text = Path("said.yaml").read_text()
    lines, taken = text.splitlines(), 0
    for i, line in enumerate(lines):
        found = re.fullmatch(r"( *)# (\w+: (?!null)[^ ]+)(  # .*)?", line)
        if found and found[1]:
            lines[i], taken = found[1] + found[2], taken + 1
    assert taken > 10
    Path("whole.yaml").write_text("\n".join(lines))
    assert fedsim.load("whole.yaml").resolved() == fedsim.load("said.yaml").resolved()
    values = yaml.safe_load(text)
    assert ("topology" in values) == ("dspodfl" in flags)


def test_a_file_of_ones_own(call: Call, tmp_path: Path) -> None:
    rows = "".join(f"{i};{i % 7};{'ill' if i % 3 else 'well'}\n" for i in range(120))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wards.csv").write_text("age;ward;state\n" + rows)
    code, _, err = call("wards", "--data", "data/wards.csv")
    assert (code, err) == (2, "--target: missing; allowed: a column of age, ward, state\n")
    assert "did you mean 'state'" in call("wards", "--data", "data/wards.csv", "--target", "stat")[2]
    assert call("wards", "--data", "data/wards.csv", "--target", "state", "--clients", "3", "--out", "s/w.yaml")[0] == 0
    scenario = fedsim.load("s/w.yaml")
    assert scenario.names["data.partition"] == "dirichlet"
    assert yaml.safe_load(Path("s/w.yaml").read_text())["data"]["path"] == "../data/wards.csv"
    assert call("ages", "--data", "data/wards.csv", "--target", "age", "--set", "data.task=regression")[0] == 0
    assert yaml.safe_load(Path("ages.yaml").read_text())["data"]["categorical"] == ["state"]
    assert fedsim.load("ages.yaml").names["data.partition"] == "iid"  # numbers are no labels to divide by


def test_cells_that_are_no_plain_words(call: Call) -> None:
    """A byte-order mark is no part of a name, a missing value no word, and a decimal comma no separator of words."""
    rows = "".join(f"{'NA' if i == 7 else i};{i % 7},5;{'ill' if i % 3 else 'well'}\n" for i in range(60))
    Path("marked.csv").write_text("age;dose;state\n" + rows, encoding="utf-8-sig")
    code, out, err = call("marked", "--data", "marked.csv", "--target", "state")
    assert (code, out) == (2, "")
    assert err == "marked.csv: column 'dose' has numbers with commas, e.g. '0,5'; allowed: decimal points\n"
    Path("marked.csv").write_text("age;ward;state\n" + rows.replace(",5", "E"), encoding="utf-8-sig")
    flags = ["--target", "state", "--set", "data.missing=mean"]
    assert call("marked", "--data", "marked.csv", *flags) == (0, ANY, "")
    assert yaml.safe_load(Path("marked.yaml").read_text())["data"]["categorical"] == ["ward"]
    Path("long.csv").write_text("age,state\n1," + "x" * 140_000 + "\n")
    code, out, err = call("long", "--data", "long.csv", "--target", "state")
    assert (code, out) == (2, "")
    assert err.startswith("long.csv: cannot be read as CSV: field larger than")


def test_an_algorithm_of_ones_own_with_a_key_that_has_to_be_given(call: Call) -> None:
    Path("mine_new.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim import Positive\n"
        "from fedsim.algorithms.fedavg import FedAvg\n\n\n@dataclass(frozen=True, kw_only=True)\nclass Mine(FedAvg):\n"
        '    """FedAvg with a pull."""\n\n    pull: Positive\n'
    )
    code, out, err = call("own", "--algorithm", "mine_new:Mine")
    assert (code, out) == (2, "")
    assert err.startswith("algorithm.pull: missing")
    assert call("own", "--algorithm", "mine_new:Mine", "--set", "algorithm.pull=0.5")[0] == 0
    assert yaml.safe_load(Path("own.yaml").read_text())["algorithm"]["pull"] == 0.5


def test_nothing_is_overwritten_and_what_is_wrong_is_not_written(call: Call) -> None:
    Path("mine.yaml").write_text("a: 1\n")
    code, out, err = call("mine")
    assert (code, out) == (2, "")
    assert err.startswith("mine.yaml: is there already")
    assert Path("mine.yaml").read_text() == "a: 1\n"
    for flags, said in (
        (["--data", "digit"], "did you mean 'digits'?"), (["--data", "no.csv"], "no.csv: no such file"),
        (["--algorithm", "fedprocs"], "did you mean 'fedprox'?"),
        (["--graph", "ring", "--algorithm", "fedavg"], "--graph"),
        (["--algorithm", "fal"], "adversary: missing"), (["--target", "y"], "--target"),
        (["--algorithm", "dgd", "--graph", "random_geometric"], "topology.radius: missing"),
        (["--set", "run.round=3"], "--set: run.round: unknown key"),
        (["--clients", "0"], "data.clients: found 0"), (["--rounds", "0"], "run.rounds: found 0"),
    ):  # fmt: skip
        code, out, err = call("other", *flags)
        assert (code, out) == (2, ""), flags
        assert said in err
    assert not Path("other.yaml").exists()
    assert call("other", "--algorithm", "dgd", "--graph", "random_geometric", "--set", "topology.radius=0.6")[0] == 0


def test_keys_that_a_check_asks_for_are_chosen_and_named(call: Call) -> None:
    assert call("late", "--algorithm", "fedasync")[0] == 0
    text = Path("late.yaml").read_text()
    assert "have a look: participation.weights" in text
    assert yaml.safe_load(text)["participation"] == {"mode": "asynchronous", "weights": "identical"}


def test_questions_are_asked_again_until_the_answer_will_do(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["digitz", "digits", "dgd", "many", "5", "", "linear", ""]
    monkeypatch.setattr("fedsim.cli.new._at_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{a}\n" for a in answers)))
    code, _, err = call("asked", "--rounds", "3")
    assert code == 0
    assert "did you mean 'digits'?" in err
    values: dict[str, Any] = yaml.safe_load(Path("asked.yaml").read_text())
    assert (values["data"]["clients"], values["algorithm"]["name"], values["topology"]) == (5, "dgd", {"graph": "ring"})
    assert values["model"]["name"] == "linear"
    assert _Asks(False)("anything", 3, int) == 3


def test_missing_values_are_filled_and_said(call: Call) -> None:
    """In numbers and in words, unless somebody has said what becomes of them."""
    rows = [[str(i % 50), f"w{i % 3}", "ill" if i % 3 else "well"] for i in range(120)]
    for column in (0, 1):
        name = f"lack{column}"
        lacking = [[("" if i == 7 and k == column else cell) for k, cell in enumerate(r)] for i, r in enumerate(rows)]
        Path(f"{name}.csv").write_text("age,ward,state\n" + "".join(",".join(row) + "\n" for row in lacking))
        flags = ["--data", f"{name}.csv", "--target", "state"]
        code, out, _ = call(name, *flags)
        assert code == 0
        assert "chosen, so have a look: data.missing: mean\n" in out
        assert yaml.safe_load(Path(f"{name}.yaml").read_text())["data"]["missing"] == "mean"
        code, out, err = call(f"{name}-no", *flags, "--set", "data.missing=refuse")
        assert (code, out) == (2, "")
        assert err.startswith("--set: data.missing: ")
        assert call(f"{name}-drop", *flags, "--set", "data.missing=drop") == (0, ANY, "")


def test_columns_that_name_rows_are_left_out_and_said(call: Call) -> None:
    rows = "".join(f"P{i},{i % 50},{'ill' if i % 3 else 'well'}\n" for i in range(120))
    Path("named.csv").write_text("patient,age,state\n" + rows)
    flags = ["--data", "named.csv", "--target", "state"]
    code, out, _ = call("named", *flags)
    assert code == 0
    assert "left out of data.features, since no two of its rows have the same text: patient\n" in out
    assert yaml.safe_load(Path("named.yaml").read_text())["data"]["features"] == ["age"]
    wanted = ["--set", "data.features=[patient, age]", "--set", "data.categorical=[patient]"]
    code, out, _ = call("wanted", *flags, *wanted)
    assert code == 0
    assert "left out" not in out
    dates = "".join(f"2024-{1 + i % 12}-{1 + i % 7},{i % 50},{'ill' if i % 3 else 'well'}\n" for i in range(120))
    Path("dated.csv").write_text("day,age,state\n" + dates)
    flags = ["--data", "dated.csv", "--target", "state"]
    said = "have a look: column day becomes 84 one-hot columns or more; a date, say, is better made a number"
    assert said in call("dated", *flags)[1]
    assert "one-hot columns or more" not in call("undated", *flags, "--set", "data={features: [age]}")[1]
    Path("only.csv").write_text("patient,state\n" + "".join(f"P{i},{'ill' if i % 3 else 'well'}\n" for i in range(120)))
    assert call("only", "--data", "only.csv", "--target", "state")[0] == 0  # it is all there is
    assert yaml.safe_load(Path("only.yaml").read_text())["data"]["categorical"] == ["patient"]


def test_columns_fit_the_features_and_the_division_that_settings_name(call: Call) -> None:
    rows = "".join(f"P{i},{i % 50},{'abc'[i % 3]},{'no' if i % 4 else 'yes'},{i % 2}\n" for i in range(120))
    Path("v.csv").write_text("patient,age,ward,smoker,state\n" + rows)
    flags = ["--data", "v.csv", "--target", "state"]

    def data(name: str, *settings: str) -> dict[str, Any]:
        code, _, err = call(name, *flags, *settings)
        assert code == 0, err
        found: dict[str, Any] = yaml.safe_load(Path(f"{name}.yaml").read_text())["data"]
        return found

    named = data("named", "--set", "data.features=[age, smoker]")
    assert (named["features"], named["categorical"]) == (["age", "smoker"], ["smoker"])
    assert "categorical" not in data("numbers", "--set", "data.features=[age]")
    by = data("by", "--set", "data.partition={scheme: natural_id, partition_by: ward}")
    assert (by["features"], by["categorical"]) == (["age", "smoker"], ["smoker"])
    assert "clients" not in by
    by = data("by-flag", "--partition", "natural_id", "--set", "data.partition.partition_by=ward", "--clients", "3")
    assert by["clients"] == 3
    both = data(
        "both", "--set", "data.partition={scheme: natural_id, partition_by: ward}",
        "--set", "data.features=[age, ward]",
    )  # fmt: skip
    assert both["categorical"] == ["ward"]  # it was asked for


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--algorithm", "fedprox", "--set", "algorithm.mu=-1"], "algorithm.mu: found -1"),
        (["--algorithm", "fedasync", "--set", "participation.weights=foo"], "participation.weights: "),
    ],
)
def test_what_was_given_is_never_replaced(call: Call, flags: list[str], said: str) -> None:
    code, out, err = call("given", *flags)
    assert (code, out) == (2, "")
    assert said in err
    assert not Path("given.yaml").exists()


def test_the_ending_of_a_file_comes_before_its_target(call: Call) -> None:
    code, _, said = call("x.yaml", "--data", "table.xlsx", "--target", "y")
    assert (code, "--target" in said) == (2, False)
    assert "--data: unknown data set 'table.xlsx'" in said
    assert ", or a file that ends in " in said
    assert "--target: found with the data set 'digits'" in call("x.yaml", "--data", "digits", "--target", "y")[2]


def test_no_comment_of_a_section_comes_twice(call: Call, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c,y\n" + "".join(f"{i},{i % 7},{i % 3}x,{i % 2}\n" for i in range(40)))
    assert call("x.yaml", "--data", "t.csv", "--target", "y")[0] == 0
    text = Path("x.yaml").read_text(encoding="utf-8")
    of_data = text[text.index("\ndata:") : text.index("\nmodel:")]
    said = [line.rpartition("# ")[2].partition(" (")[0] for line in of_data.splitlines() if "# " in line]
    assert len(said) > 15
    assert sorted(set(said)) == sorted(said)
    assert (
        "  # the column to predict, or the list of its one-hot columns or of a regression's targets.\n  target: y"
        in text
    )
    assert "# features: null  # the columns it is predicted from" in text
    assert text.count("are the widths of its hidden layers") == 1
