"""The documentation site: it builds without a warning, its links lead somewhere, and it needs no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

import fedsim
from fedsim.cli.app import app
from fedsim.cli.parts import plurals
from fedsim.core.registry import lookup, names
from fedsim.scenario.schema import scenario_schema

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a built page links to, what it loads, and where in it links can lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {"", "__skip"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and (href := given.get("href")):
            self.links.append(href)
        if tag in ("script", "img", "iframe", "source") and (source := given.get("src")):
            self.loads.append(source)
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev") and (href := given.get("href")):
            self.loads.append(href)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as CI and readers build it."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install -e '.[docs]'")
    pytest.importorskip("nbconvert", reason="nbconvert is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html") if file.name != "404.html"}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    """Also of pages that are made at the build, and of the navigation."""
    lost = []
    for file, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in anchors:
                lost.append(f"{file.relative_to(site)}: {link}")
    assert lost == []


def test_it_loads_nothing_from_other_hosts(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        assert [source for source in page.loads if urlsplit(source).netloc] == [], file.name
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"';]*", style.read_text(encoding="utf-8")) == []


def test_every_part_key_command_and_name_is_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    reference = site / "reference"
    for word, kind in plurals().items():
        for name in names(kind):
            if lookup(kind, name).__module__.startswith("fedsim."):
                assert name.replace("_", "-") in pages[reference / f"{word}.html"].anchors, f"{kind} {name}"
    keys = (reference / "keys.html").read_text(encoding="utf-8")
    assert [k for k in scenario_schema()["properties"] if f"<code>{k}</code>" not in keys] == []
    assert set(getattr(typer.main.get_command(app), "commands", {})) <= pages[reference / "commands.html"].anchors
    python = pages[reference / "python.html"].anchors | pages[reference / "python-parts.html"].anchors
    shown = {anchor.rpartition(".")[2] for anchor in python if anchor.startswith("fedsim.")}
    assert set(fedsim.__all__) - {"report"} <= shown
    assert "fedsim.reports.report.write_report" in python
