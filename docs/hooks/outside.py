"""Pages of the site for what lies beside docs/: scenario files, graphs, changes; links that lead out lead to them.

On a forge ``../scenarios/quickstart.yaml`` is a file of the repository. A site has to bring it along.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PLACE = "files"
_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "topologies/README.md")
_SOURCES = ("scenarios/*.yaml", "scenarios/*.py", "deploy/*", "reproductions/*.yaml")
_LANGUAGES = {".yaml": "yaml", ".py": "python", ".toml": "toml"}
_UNSEARCHED = "---\nsearch: {exclude: true}\n---\n\n"  # a find of a word in some file is no help
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages of docs/gallery stand in the navigation without being named there."""
    gallery = sorted(p.name for p in Path(config.docs_dir, "gallery").glob("*.md"))
    section = next(entry["Gallery"] for entry in config.nav or [] if "Gallery" in entry)
    section += [f"gallery/{name}" for name in gallery if f"gallery/{name}" not in str(section)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in _PAGES:
        text = _led((ROOT / name).read_text(encoding="utf-8"), name, f"{PLACE}/{name}")
        files.append(File.generated(config, f"{PLACE}/{name}", content=text))
    for path in sorted(p for pattern in _SOURCES for p in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        source = path.read_text(encoding="utf-8")
        text = f"{_UNSEARCHED}# {path.name}\n\n````{_LANGUAGES.get(path.suffix, 'text')}\n{source}````\n"
        file = File.generated(config, f"{PLACE}/{name}.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    place = page.file.src_uri
    return markdown if place.startswith(f"{PLACE}/") else _led(markdown, f"docs/{place}", place)


def _led(text: str, origin: str, place: str) -> str:
    """The text with its links, which are of the repository's file `origin`, as they are for the site's page `place`."""

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found[1]))
        inside = target.removeprefix("docs/").replace(".ipynb", ".md")
        if not target.startswith("docs/"):
            inside = f"{PLACE}/{target}" + ("" if target.endswith(".md") else ".md")
        return posixpath.relpath(inside, posixpath.dirname(place) or ".")

    return _LINK.sub(moved, text)
