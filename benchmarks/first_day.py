"""A new user's first day, timed: a fresh clone, then the commands that the pages state, one page after the other.

    python benchmarks/first_day.py [--tests] [--write]

What is committed is cloned into a temporary folder. The commands are read from the Markdown pages and run as they
stand, each page in the clone, with the environment that the README's command makes. Files that a page shows are saved
before, as a reader does; a program that makes data is run. Neither counts. `--tests` runs the README's test command to
its end, too. `--write` puts the table into CONTRIBUTING.md. A command that fails, and a step of more than three
commands, end it with exit status 1.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from docs_pages import Block, blocks  # noqa: E402

MOST = 3
TABLE = ROOT / "CONTRIBUTING.md"
MARKS = "<!-- first day: begin -->\n", "<!-- first day: end -->\n"


@dataclass(frozen=True)
class Step:
    """What a new user does: the commands of the first block of `page` in which `word` stands."""

    name: str
    page: str
    word: str

    def block(self) -> Block:
        return next(b for b in blocks(ROOT / self.page) if b.language == "bash" and self.word in b.text)

    def commands(self) -> list[str]:
        """As they stand on the page, without the comments beside them."""
        lines = re.sub(r"\\\n *", "", self.block().text).splitlines()
        return [line.split("  #")[0].strip() for line in lines if line.strip()]

    def files(self) -> list[Block]:
        """What the page has shown until there, to be saved."""
        mine = self.block()
        return [b for b in blocks(ROOT / self.page) if b.file and b.line < mine.line]


STEPS = (
    Step("install and run the main job", "README.md", "fedsim run"),
    Step("first federation", "docs/start/first-federation.md", "fedsim run"),
    Step("first report", "docs/start/first-federation.md", "fedsim report"),
    Step("first graph", "docs/start/first-graph.md", "fedsim run"),
    Step("first own CSV", "docs/start/own-data.md", "fedsim new"),
    Step("first own model", "docs/start/own-model.md", "fedsim run"),
    Step("first sweep", "docs/runs.md", "fedsim sweep"),
)
TESTS = Step("install and run the tests", "README.md", "pytest")


@dataclass(frozen=True)
class Desk:
    """A clone, and the environment of processes in it."""

    clone: Path
    environment: dict[str, str]

    def run(self, command: str) -> float:
        """Run it in a shell, as it stands; seconds."""
        began = time.monotonic()
        done = subprocess.run(command, shell=True, cwd=self.clone, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(
                f"failed with exit status {done.returncode}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return time.monotonic() - began

    def save(self, block: Block) -> None:
        assert block.file is not None
        (self.clone / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            self.run(f"python {shlex.quote(block.file)}")


def first_day(folder: Path, tests: bool) -> list[tuple[Step, float | None]]:
    """Every step with its seconds; None where it was not tried."""
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "FEDSIM_CACHE")}
    python = str(Path(sys.executable).parent)
    desk = Desk(folder / "fedsim", outside | {"PATH": f"{python}{os.pathsep}{outside['PATH']}"})
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(desk.clone)], check=True)
    found: list[tuple[Step, float | None]] = []
    for step in STEPS:
        for block in step.files():
            desk.save(block)
        found.append((step, sum(map(desk.run, step.commands()))))
        print(f"{step.name}: {found[-1][1]:.1f} s", flush=True)
        binaries = desk.clone / ".venv" / "bin"  # from the first step on `fedsim` means that one
        environment = {**desk.environment, "PATH": f"{binaries}{os.pathsep}{desk.environment['PATH']}"}
        desk = replace(desk, environment=environment) if step is STEPS[0] else desk
    return [*found, (TESTS, sum(map(desk.run, TESTS.commands())) if tests else None)]


def table(found: list[tuple[Step, float | None]], commit: str, busy: bool) -> str:
    """In Markdown, with where and when it was measured."""
    rows = [
        f"| {step.name} | `{step.page}` | {len(step.commands())} | "
        f"{'not measured' if seconds is None else f'{seconds:.0f}'} |"
        for step, seconds in found
    ]
    python = platform.python_version()
    beside = ", beside other work" if busy else ""
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {python}"
    where = f"{machine}, {datetime.date.today()}, commit {commit}{beside}."
    return "\n".join(["| step | page | commands | seconds |", "|---|---|---|---|", *rows, "", where, ""])


def written(text: str, made: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{made}\n{MARKS[1]}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tests", action="store_true", help="run the README's test command to its end, too")
    parser.add_argument("--write", action="store_true", help=f"put the table into {TABLE.name}")
    given = parser.parse_args()
    if long := [step.name for step in (*STEPS, TESTS) if len(step.commands()) > MOST]:
        sys.exit(f"more than {MOST} commands: {', '.join(long)}")
    head = ["git", "rev-parse", "--short", "HEAD"]  # before it moves on
    commit = subprocess.run(head, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    busy = os.getloadavg()[0] > (os.cpu_count() or 1) / 2  # before it makes work itself
    with tempfile.TemporaryDirectory(prefix="first-day-") as folder:
        made = table(first_day(Path(folder), given.tests), commit, busy)
    print(made)
    if given.write:
        TABLE.write_text(written(TABLE.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
