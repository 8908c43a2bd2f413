"""The pages of the documentation, and what is to be tried of them."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))


def script(name: str) -> ModuleType:
    """The module of a script, such as ``docs/gallery.py``, that is no part of the package."""
    called = "_".join(Path(name).with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(called, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[called] = module = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, text and first line's number."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file name in a first line like ``# my_parts.py``: what later blocks of the page call it."""
        found = re.match(r"# ([\w.-]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None

    @property
    def is_scenario(self) -> bool:
        return self.language == "yaml" and {"data", "algorithm"} <= set(yaml.safe_load(self.text) or {})


@dataclass(frozen=True)
class Item:
    """One thing to try: a command of a block, or a whole block."""

    block: Block
    command: str | None = None

    def __str__(self) -> str:
        what = self.command or self.block.file or self.block.language
        return f"{self.block.page.name}:{self.block.line} {what[:60]}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in found]


def items(page: Path) -> list[Item]:
    found = []
    for block in blocks(page):
        if block.language in ("bash", "console"):
            whole = re.sub(r"\\\n *", "", block.text)  # a command that goes on after a backslash
            lines = [line.split("  #")[0].strip() for line in whole.splitlines()]
            if re.match(r"fedsim\b", lines[0]):
                found += [Item(block, line) for line in lines if line]
        elif block.language == "python" or block.is_scenario or block.file:
            found.append(Item(block))
    return found
