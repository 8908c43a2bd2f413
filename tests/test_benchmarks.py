"""The benchmarks that write tables into pages run, and write what they measured: short runs of the real programs."""

from __future__ import annotations

import ast
import importlib
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_pages import ROOT

BENCHMARKS = ROOT / "benchmarks"
TABLES: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "tables.py"))


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What lies beside the programs can be imported, as where Python runs one of them."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("fedsim.clients.malloc.keep_freed_memory", lambda: None)  # it is for good, for the process
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(BENCHMARKS):
            del sys.modules[name]


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str, **constants: float) -> None:
    """Run a program's `main` here, with some of its constants changed: a start of PyTorch takes seconds."""
    program = importlib.import_module(name)
    for constant, value in constants.items():
        monkeypatch.setattr(program, constant, value)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    program.main()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with marks for both tables."""
    page = tmp_path / "page.md"
    marks = "\n\n".join(f"<!-- {name} -->\nold\n<!-- end of {name} -->" for name in ("peers", "limits"))
    page.write_text(f"before\n\n{marks}\n\nafter\n")
    return page


@pytest.mark.slow
@pytest.mark.usefixtures("beside")
def test_peers_compute_the_same_and_are_written_down(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("trial", "--peer", "loop", "--repeats", "1", "--threads", "1", "--write", str(page))
    run(monkeypatch, "peers", *words, SECONDS=0.05)
    text = page.read_text()
    assert "| ms a round (times fedsim's) | fedsim | lean PyTorch loop |" in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert text.count("old") == 1  # between the marks of the other table
    found = json.loads((tmp_path / "page-peers.json").read_text())["works"]["trial"]
    assert found["fedsim"]["gap"] == 0.0
    assert 0.0 < found["loop"]["gap"] <= 1e-4
    assert all(len(of["seconds"]) == 1 and of["seconds"][0] > 0 for of in found.values())


@pytest.mark.slow
@pytest.mark.usefixtures("beside")
def test_limits_are_shares_of_what_the_machine_does(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = ("softmax-b16", "mlp-one", "lstm", "eval-common", "eval-own")  # the last two have one folder
    run(monkeypatch, "limits", *cases, "--repeats", "1", "--write", str(page), SECONDS=0.0, STREAM=2**20, SIDE=256)
    assert "| MLP 784-200-10, one client, batch 32 |" in page.read_text()
    rows = json.loads((tmp_path / "page-limits.json").read_text())["rows"]
    softmax, mlp, lstm, common, own = rows
    assert common["flops"] == own["flops"]
    assert softmax["flops"] == 4 * 100 * 16 * 7840  # forward, and the weights' gradient
    assert mlp["flops"] == 32 * (4 * 784 * 200 + 6 * 200 * 10)  # of the second layer that of its inputs too
    assert 0.9 < lstm["flops"] / (20 * 16 * 20 * 6 * (4 * 32 * (8 + 32) + 32 * 80)) <= 1.0  # the first state is zero
    for row in rows:
        bound = max(row["flops"] / row["gemm"], row["bytes"] / row["triad"])
        assert row["share"] == pytest.approx(bound / row["seconds"])


def test_rows_that_were_not_measured_stay_and_are_named(page: Path) -> None:
    with_earlier, write = TABLES["with_earlier"], TABLES["write"]
    assert with_earlier("peers", page, {"b": 1}, lambda of: of["works"]) == ({"b": 1}, [])
    write("peers", "table", {"works": {"a": 1, "b": 2, "c": 3}}, page)
    rows, kept = with_earlier("peers", page, {"b": 5, "d": 6}, lambda of: of["works"])
    assert list(rows.items()) == [("a", 1), ("b", 5), ("c", 3), ("d", 6)]
    assert kept == ["a", "c"]
    assert TABLES["said_of"](kept) == " Of an earlier run: a; c."


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("program", ["peers.py", "limits.py"])
def test_a_page_that_is_no_file_is_refused_before_anything_is_measured(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--write", "mlp-100"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / program), run_name="__main__")
    assert ended.value.code == 2
    assert "mlp-100 is no file; what is to be measured stands before --write" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "<!-- end of peers --> <!-- peers -->", "<!-- peers -->" * 2])
def test_a_page_without_its_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        TABLES["between"](text, "peers", "table")


def test_the_page_of_speed_has_marks_for_both_tables() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for name in ("peers", "limits"):
        assert "new" in TABLES["between"](page, name, "new")


def test_every_peer_has_its_program_and_its_packages() -> None:
    """A peer's program imports what its environment has: no fedsim, except fedsim's own."""
    lists = {file.stem for file in (BENCHMARKS / "peer" / "requirements").iterdir()}
    assert lists == {"flower", "fluke", "jax", "pfl"}
    for file in ("jax_vmap", "flower_simulation", "pfl_simulated", "fluke_serial", "torch_loop", "gate", "works"):
        tree = ast.parse((BENCHMARKS / "peer" / f"{file}.py").read_text(encoding="utf-8"))
        names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not [n for n in names if n and n.split(".")[0] == "fedsim"], file


def test_every_listed_version_is_exact() -> None:
    for file in (BENCHMARKS / "peer" / "requirements").iterdir():
        for line in file.read_text(encoding="utf-8").splitlines():
            assert "==" in line, f"{file.name}: {line}"
