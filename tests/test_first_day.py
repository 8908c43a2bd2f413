"""The timed path of a new user: its steps stand on the pages, each in at most three commands."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

import pytest
from docs_pages import ROOT, items, script


@pytest.fixture(scope="module")
def first_day() -> ModuleType:
    return script("benchmarks/first_day.py")


def test_each_step_is_a_few_commands_of_a_page(first_day: ModuleType) -> None:
    for step in first_day.STEPS:
        commands = step.commands()
        assert 1 <= len(commands) <= first_day.MOST, step.name
        if step.page != "README.md":  # which begins with an installation
            tried = {item.command for item in items(ROOT / step.page)}
            assert set(commands) <= tried, "tests/test_docs.py runs them"
        named = set(re.findall(r"\b[\w-]+\.(?:yaml|csv)\b", " ".join(commands)))
        saved = " ".join(block.text for block in step.files()) + " ".join(commands)
        for name in named:
            assert name in saved or list(ROOT.rglob(name)), f"{step.name}: where does {name} come from?"
    assert len(first_day.TESTS.commands()) == 1


def test_the_table_says_what_the_script_does(first_day: ModuleType) -> None:
    """The steps, pages and numbers of commands in CONTRIBUTING.md, and seconds for each of them."""
    text = first_day.TABLE.read_text(encoding="utf-8")
    shown = re.findall(r"^\| ([a-zA-Z ]+) \| `([^`]+)` \| (\d+) \| ([\w ]+) \|$", text, re.MULTILINE)
    steps = [*first_day.STEPS, first_day.TESTS]
    assert [row[:3] for row in shown] == [(s.name, s.page, str(len(s.commands()))) for s in steps]
    assert all(row[3].isdigit() for row in shown[:-1])


def test_the_table_takes_its_place(first_day: ModuleType) -> None:
    found = [(step, 1.4) for step in first_day.STEPS] + [(first_day.TESTS, None)]
    made = first_day.table(found, "abc1234", busy=True)
    assert made.rstrip().endswith("commit abc1234, beside other work.")
    page = f"before\n\n{first_day.MARKS[0]}old\n{first_day.MARKS[1]}after\n"
    once = first_day.written(page, made)
    assert once.startswith("before\n\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert first_day.written(once, made) == once
    assert "| first sweep | `docs/runs.md` | 2 | 1 |" in once
    assert "| not measured |" in once


def test_a_command_that_fails_is_named(first_day: ModuleType, tmp_path: Path) -> None:
    desk = first_day.Desk(tmp_path, dict(os.environ))
    assert desk.run("echo yes") < 60
    with pytest.raises(SystemExit, match=r"exit status 3: echo so; exit 3\nso"):
        desk.run("echo so; exit 3")
