"""The documents show what works: their commands and programs run and their scenarios load."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from docs_pages import PAGES, ROOT, Item, items
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.core import registry
from fedsim.sweeps.files import points
from fedsim.sweeps.reproduced.files import known

_OWN_TESTS = ("install", "pip ", "pytest", "chromium")


def rounds(text: str) -> int:
    """Enough to try a file: of a schedule every window has a round, and of runs that may be stopped the first one."""
    grace = re.search(r"\bgrace: (\d+)", text)
    return 20 if "schedule:" in text else 2 if grace is None else int(grace[1])


def shortened(text: str) -> str:
    """A scenario's or a sweep's file with fewer rounds in what a sweep sets by itself, and fewer steps of an attack."""
    few = re.sub(r"\brun\.rounds: \d+", f"run.rounds: {rounds(text)}", text)
    return re.sub(r"\biterations: \d+", "iterations: 20", few)


def _varies_rounds(text: str) -> bool:
    """Whether it is a sweep whose runs differ in their rounds, so that ``--set`` would be refused."""
    values = yaml.safe_load(text)
    cases = (values.get("cases") or {}).values() if "scenario" in values else ()
    return any("run.rounds" in (case or {}) for case in cases) or "run.rounds" in values.get("grid", {})


class Desk:
    """A page's folder, in which its items are tried in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tried: dict[Item, Callable[[], None]] = {}
        self.missing: set[str] = set()

    def attempt(self, item: Item) -> None:
        """Try all items of the page up to `item`, and say what became of that one."""
        for earlier in items(item.block.page):
            if earlier not in self.tried:
                self.tried[earlier] = self._outcome(earlier)
            if earlier == item:
                break
        self.tried[item]()

    def _outcome(self, item: Item) -> Callable[[], None]:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.chdir(self.folder):
                reason = self._try(item)
        except (Exception, SystemExit) as error:
            message = f"{item}: {type(error).__name__}: {error}\n{output.getvalue()}"
            return lambda: pytest.fail(message, pytrace=False)
        return (lambda: pytest.skip(reason)) if reason else lambda: None

    def _try(self, item: Item) -> str | None:
        """Do it; a reason where it cannot be done here."""
        block = item.block
        if item.command is not None:
            return self._run(item.command)
        place = self.folder / (block.file or "unnamed.yaml")
        place.write_text(block.text, encoding="utf-8")
        if block.language == "python":
            _as_a_script(block.text, place)
        elif block.is_scenario and "name: wrong" not in block.text:
            fedsim.load(place)
        return None

    def _run(self, command: str) -> str | None:
        words = shlex.split(command)
        arguments = words[words.index("fedsim") + 1 :]
        if any(word in command for word in _OWN_TESTS):
            return "installs, or has tests of its own"
        if arguments[0] == "reproduce" and len(arguments) > 1 and "--quick" not in arguments:
            if arguments[1] in known():
                return "has a test of its own"
            arguments += ["--quick"]
        if arguments[0] in ("run", "sweep"):
            text = Path(arguments[1]).read_text(encoding="utf-8")
            if not _varies_rounds(text):  # those of a file are short already
                arguments += ["--set", f"run.rounds={rounds(text)}"]
        if reason := self._needs(arguments):
            if "--out" in arguments:
                self.missing.add(arguments[arguments.index("--out") + 1])
            elif arguments[0] == "sweep":
                self.missing.add(f"sweeps/{Path(arguments[1]).stem}")
            return reason
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return None

    def _needs(self, arguments: list[str]) -> str | None:
        if self.missing & set(arguments):
            return "its run was skipped"
        if arguments[0] not in ("run", "plan", "sweep", "topology") or not arguments[1].endswith(".yaml"):
            return None
        settings = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
        is_sweep = arguments[0] == "sweep"
        scenario = points(arguments[1], settings)[1][0].scenario if is_sweep else fedsim.load(arguments[1], settings)
        if not hasattr(scenario.dataset, "hub"):
            return None
        path = getattr(scenario.dataset, "path", None)
        if path is None:
            return f"needs {scenario.dataset.hub} from the hub"
        return None if (scenario.base / path).exists() else f"needs a local copy of {scenario.dataset.hub}"


def _as_a_script(text: str, place: Path) -> None:
    """Run it as a script or a notebook is run: what it defines is in the module ``__main__``."""
    whole = sys.modules["__main__"]
    sys.modules["__main__"] = module = ModuleType("__main__")
    try:
        exec(compile(text, str(place), "exec"), vars(module))
    finally:
        sys.modules["__main__"] = whole


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Desk]]:
    """``desks(page)``: a folder with scenarios/ and topologies/; imports and registrations are taken back."""
    made: dict[Path, Desk] = {}
    path, modules = list(sys.path), set(sys.modules)
    parts = {kind: dict(found) for kind, found in registry._parts.items()}

    def desk(page: Path) -> Desk:
        if page not in made:
            folder = tmp_path_factory.mktemp(page.stem)
            for name in ("scenarios", "topologies"):
                shutil.copytree(ROOT / name, folder / name)
            for file in (folder / "scenarios").glob("*.yaml"):
                file.write_text(shortened(file.read_text(encoding="utf-8")), encoding="utf-8")
            sys.path.insert(0, str(folder))
            made[page] = Desk(folder)
        return made[page]

    yield desk
    sys.path[:] = path
    homes = {str(d.folder) for d in made.values()}
    for name in set(sys.modules) - modules:
        if str(Path(getattr(sys.modules[name], "__file__", None) or "/").parent) in homes:
            del sys.modules[name]
    for kind, found in parts.items():
        for name in set(registry._parts[kind]) - set(found):
            if ":" not in name and not registry._parts[kind][name].__module__.startswith("fedsim."):
                del registry._parts[kind][name]


@pytest.mark.slow
@pytest.mark.parametrize("item", [i for page in PAGES for i in items(page)], ids=str)
def test_what_a_page_shows_works(item: Item, desks: Callable[[Path], Desk]) -> None:
    desks(item.block.page).attempt(item)
