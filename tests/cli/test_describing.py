"""``fedsim list`` and ``fedsim describe``: every part says what it is, and nothing of it is written down twice."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docs_pages import ROOT

from fedsim.cli.parts import goes_with, modes, plurals, references
from fedsim.core.described import keys, papers, prose
from fedsim.core.errors import InputError
from fedsim.core.fields import keys_of, make_part
from fedsim.core.registry import kinds, lookup, names

Call = Callable[..., tuple[int, str, str]]
EVERY = [
    (kind, name) for kind in kinds() for name in names(kind) if lookup(kind, name).__module__.startswith("fedsim.")
]


@pytest.mark.parametrize("kind", kinds())
def test_every_part_has_its_keys_with_their_defaults(kind: str) -> None:
    """The keys told are the fields; making a part of the defaults that are told gives the part without any key."""
    for name in names(kind):
        part: Any = lookup(kind, name)
        assert prose(part), name
        if not dataclasses.is_dataclass(part):
            assert keys(part) == []
            continue
        told = keys(part)
        assert sorted(k.name for k in told) == sorted(keys_of(part)), name  # type: ignore[arg-type]
        if any(k.required for k in told):
            continue
        given = {k.name: k.default for k in told if k.default is not None}
        try:
            without = make_part(part, {})  # type: ignore[arg-type]
        except InputError:  # a part that wants one of two keys has none by default
            continue
        assert make_part(part, given) == without, name  # type: ignore[arg-type]


def test_papers_are_those_of_the_docstrings() -> None:
    """Every paper that a part is of has an entry, and every entry is of a part."""
    found = {number for kind, name in EVERY for number in papers(lookup(kind, name))}
    assert found == set(references())
    for number, entry in references().items():
        assert re.match(r"@misc\{(\w+),\n", entry), number
        assert {"title", "author", "year", "eprint", "archivePrefix"} == set(re.findall(r"(\w+) = \{", entry)), number
        assert f"year = {{20{number[:2]}}}" in entry, number
        assert entry.count("{") == entry.count("}"), number
    assert len({entry.split(",")[0] for entry in references().values()}) == len(references())
    assert papers(lookup("algorithm", "fedspeed")) == ["2302.10429"]  # of its own docstring
    assert papers(lookup("algorithm", "scaffold")) == ["1910.06378"]  # of its module's first paragraph
    assert papers(lookup("algorithm", "fedadam")) == ["2003.00295"]  # of the module's sentence about sources
    assert papers(lookup("algorithm", "fedgamma")) == []  # of a paper without such a number


def test_modes_are_those_of_the_table() -> None:
    """What an algorithm says of modes is what the checks of scenarios say, which the page of combinations tells."""
    text = (ROOT / "docs" / "combinations.md").read_text(encoding="utf-8")
    every = set(names("participation"))
    found: dict[str, set[str]] = {}
    for table, under in re.findall(r"((?:^\|.*\n)+)((?:^(?!\|).*\n)*)", text, re.MULTILINE):
        letters = dict(re.findall(r"^\* ([A-Z]): (.*(?:\n  .*)*)", under, re.MULTILINE))
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        header, _, *rows = [[letters.get(cell, cell) for cell in line] for line in cells]
        if header[0] == "algorithm":
            for label, *cells in rows:
                for column, cell in zip(header[1:], cells, strict=True):
                    yes = every & set(re.findall(r"`(\w+)`", column)) if cell == "✓" else set()
                    for name in re.findall(r"`(\w+)`", label):
                        found.setdefault(name, set()).update(yes)
    assert found == {name: set(modes(lookup("algorithm", name))) for name in names("algorithm")}


def test_describe_says_what_a_part_is(call: Call) -> None:
    code, out, _ = call("describe", "fedspeed")
    assert code == 0
    assert "direction = (1 - alpha) g(y) + alpha g(y + e) - g_i + (y - x) / lambda" in out
    assert re.search(r"lambda +10 +a number > 0 +inverse of the coefficient", out)
    assert re.search(r"participation +synchronous\s", out)
    assert re.search(r"not asynchronous, fedbuff, fixed_interval: .*the server's h balances one common round", out)
    assert "eprint = {2302.10429}" in out
    assert "2305.11584}" not in out  # FedSMOO's
    assert "algorithm: {name: fedspeed}" in out


def test_describe_as_json_has_the_same_facts(call: Call) -> None:
    (facts,) = json.loads(call("describe", "dirichlet", "--json")[1])
    assert facts["scenario"] == "data: {partition: {scheme: dirichlet, alpha: ...}}"
    alpha = next(k for k in facts["keys"] if k["key"] == "alpha")
    assert (alpha["required"], alpha["default"]) == (True, None)
    assert facts["arxiv"] == ["1905.12022"]
    assert facts["goes_with"] == {}
    listed = json.loads(call("list", "partitions", "--json")[1])
    assert listed["dirichlet"]["keys"] == facts["keys"]


def test_a_name_of_several_kinds_is_all_of_them(call: Call) -> None:
    both = json.loads(call("describe", "exponential", "--json")[1])
    assert [f["kind"] for f in both] == [k for k in kinds() if "exponential" in names(k)]
    assert len(both) > 1
    (one,) = json.loads(call("describe", "exponential", "--kind", "graphs", "--json")[1])
    assert one["kind"] == "graph"
    code, out, err = call("describe", "fedsped")
    assert (code, out) == (2, "")
    assert "did you mean 'fedspeed'?" in err
    assert call("describe", "ring", "--kind", "model")[0] == 2


def test_a_part_of_ones_own_is_described(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine_described.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim import Positive\n"
        "from fedsim.algorithms.fedavg import FedAvg\n\n\n@dataclass(frozen=True, kw_only=True)\nclass Mine(FedAvg):\n"
        '    """FedAvg with `pull` (arXiv 1812.06127).\n\n    Parameters\n    ----------\n'
        '    pull : how strong it is.\n    """\n\n    pull: Positive = 0.25\n'
    )
    (facts,) = json.loads(call("describe", "mine_described:Mine", "--json")[1])
    assert facts["keys"][0] == {
        "key": "pull", "required": False, "default": 0.25, "allowed": "a number greater than 0",
        "says": "how strong it is.",
    }  # fmt: skip
    assert "Federated Optimization in Heterogeneous Networks" in facts["bibtex"][0]
    assert "fedbuff" in facts["goes_with"]["participation"][""]
    text = (tmp_path / "mine_described.py").read_text()
    (tmp_path / "mine_asking.py").write_text(text.replace(" = 0.25", ""))
    (facts,) = json.loads(call("describe", "mine_asking:Mine", "--json")[1])
    assert (facts["keys"][0]["required"], facts["goes_with"]) == (True, {})
    assert "fedbuff" in facts["modes"]


def test_list_tells_keys_and_modes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100000")
    lines = call("list", "algorithms")[1].splitlines()
    row = next(line for line in lines if line.startswith(" fedspeed "))
    assert "lambda=10, alpha=1, dual=all, rho=0.1" in row
    assert row.rstrip().endswith("modes: synchronous")
    assert " lr=0.1" not in row
    assert re.match(r"common keys, left out above: .*\blr=0.1\b", lines[-1])
    assert "alpha (required)" in call("list", "partitions")[1]
    for word in plurals():
        assert call("list", word)[0] == 0, word
    assert call("list", "rules")[1].splitlines()[1:] == call("list", "aggregators")[1].splitlines()[1:]


def test_what_goes_with_a_rule_is_asked_of_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["dspodfl", "fedavg", "feddyn"]
    monkeypatch.setattr("fedsim.cli.parts.names", lambda kind: few if kind == "algorithm" else names(kind))
    found = goes_with("aggregator", "krum")["algorithm"]
    assert set(found.pop("")) == {"fedavg", "dspodfl"}
    ((why, of),) = found.items()
    assert (of, "protect nothing" in why) == (["feddyn"], True)
    assert goes_with("dataset", "csv") == {}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, shell))
    code, out, _ = call("--show-completion")
    assert code == 0
    assert "_FEDSIM_COMPLETE=complete_" + shell in out


def test_the_shell_gets_commands_and_kinds(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FEDSIM_COMPLETE", "complete_bash")
    for typed, wanted in (("fedsim ru", ["run", "runs"]), ("fedsim list al", ["algorithms"])):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
        code, out, _ = call()
        assert (code, out.split()) == (0, wanted)


@pytest.mark.parametrize(
    "name,more,kind,told",
    [
        ("net", [], "model", {"width": 8, "depth": None}),
        ("Net", [], "model", {"bias": True}),
        ("links", [], "graph", {"share": 0.5}),
        ("plain", ["--kind", "model"], "model", {"width": 3}),
    ],
)
def test_a_function_of_ones_own_is_described(
    call: Call, tmp_path: Path, name: str, more: list[str], kind: str, told: dict[str, Any]
) -> None:
    """By its arguments it is known which kind it makes; those that fedsim does not give are its keys."""
    (tmp_path / "mine_made.py").write_text(
        "from torch import nn\n\n\ndef net(input_shape, num_outputs, depth, width=8):\n"
        '    """Dense layers."""\n\n\n'
        'class Net(nn.Module):\n    """Dense."""\n\n    def __init__(self, num_outputs, bias=True):\n        ...\n\n\n'
        'def links(n, seed, share=0.5):\n    """Some."""\n\n\ndef plain(width=3):\n    """Any."""\n'
    )
    (facts,) = json.loads(call("describe", f"mine_made:{name}", *more, "--json")[1])
    assert (facts["kind"], {k["key"]: k["default"] for k in facts["keys"]}) == (kind, told)
    assert [k["key"] for k in facts["keys"] if k["required"]] == [
        key for key, default in told.items() if default is None
    ]
    assert facts["says"]
    if name == "plain":
        code, _, err = call("describe", "mine_made:plain")
        assert (code, "allowed: --kind model or --kind graph or --kind metric" in err) == (2, True)


def test_kinds_have_names_that_say_what_they_are(call: Call) -> None:
    assert plurals()["pre-aggregators"] == "pre"
    assert "pres" not in plurals()
    assert call("list", "pres")[1].splitlines()[1:] == call("list", "pre-aggregators")[1].splitlines()[1:]
