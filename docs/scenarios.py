"""Writes docs/scenarios.md from what the scenario files say of themselves: python docs/scenarios.py"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import yaml

DOCS = Path(__file__).parent
FOLDER = DOCS.parent / "scenarios"
_FROM_HUB = {"mnist", "cifar10", "california_housing"}
HEAD = """\
# The scenarios, one by one

Each of these files runs as it is, with `fedsim run FILE`; those that are sweeps, with `fedsim sweep FILE`, and an
audit with `fedsim audit FILE`. `fedsim plan FILE` says before that how long it is and what it moves. The text is what
the file says at its top; `python docs/scenarios.py` makes this page from them.

Where data come from a hub, a copy on the disk does as well: `--set data.path=DIR` ([data.md](data.md)).
"""


def page() -> str:
    """The text of the page."""
    runs, sweeps = [], []
    for file in sorted(FOLDER.glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        (sweeps if "scenario" in values else runs).append(_entry(file.name, text, values))
    return "\n".join([HEAD, "## Scenarios\n", *runs, "## Sweeps\n", *sweeps]).rstrip("\n") + "\n"


def _entry(name: str, text: str, values: dict[str, object]) -> str:
    data = values.get("data")
    needs = isinstance(data, dict) and data.get("dataset") in _FROM_HUB and "path" not in data
    of = f"\nvaries [{values['scenario']}](../scenarios/{values['scenario']})" if "scenario" in values else ""
    head = f"**[{name}](../scenarios/{name})**{' *needs data from a hub*' if needs else ''}{of}"
    return f"{head}\n\n" + "\n".join(textwrap.wrap(_said(text), 118, break_on_hyphens=False)) + "\n"


def _said(text: str) -> str:
    """The comment at the top, without the schema's line; commands in it as code."""
    said: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "yaml-language-server" in line:
            continue
        bare = line[1:].removeprefix(" ")
        said.append(f"`{bare.strip()}`" if re.match(r"  \s*(fedsim |--set)", " " + bare) else bare.strip())
    return " ".join(said)


if __name__ == "__main__":
    (DOCS / "scenarios.md").write_text(page(), encoding="utf-8")
