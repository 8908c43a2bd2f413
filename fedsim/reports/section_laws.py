"""What a section of reports promises; ``fedsim check`` holds it to this on small runs (see `fedsim.contract`)."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.contract.tools import LawBrokenError, global_seed, same_from_yaml
from fedsim.core.metrics import TABLE
from fedsim.engine.run import run
from fedsim.figures.html import Markup
from fedsim.reports.groups import group_runs, read_run
from fedsim.reports.sections import Page, ReportSection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DATA = {"data": {"dataset": "synthetic", "alpha": 0.5, "beta": 0.5, "clients": 5}, "model": {"name": "linear"}}
_RUNS: dict[str, dict[str, Any]] = {
    "server": {**_DATA, "algorithm": {"name": "fedavg", "lr": 0.05}},
    "server-again": {**_DATA, "algorithm": {"name": "fedavg", "lr": 0.05}, "seed": 1},
    "graph": {**_DATA, "algorithm": {"name": "dspodfl", "lr": 0.05}, "topology": {"graph": "ring"}},
}
_STRANGE = "<script>"


def section_laws(section: ReportSection) -> Mapping[str, Callable[[], str]]:
    """Laws of one section, on a page of three small runs."""
    return {
        "a title and blocks": partial(_blocks, section),
        "runs that recorded nothing": partial(_empty, section),
        "a name is text, not HTML": partial(_escaped, section),
        "same runs, same blocks": partial(_same, section),
        "runs are as they were": partial(_unchanged, section),
        "YAML round trip": partial(same_from_yaml, section),
    }


@contextmanager
def _page(recorded: bool = True) -> Iterator[Page]:
    """A page about three runs; where they recorded nothing, all files but the scenario are gone."""
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for name, made in _RUNS.items():
            settings = {"rounds": 2, "eval_every": 1, "device": "cpu", "trace": True}
            run({"name": name, **made, "run": settings}, folder := Path(place) / name)
            folders.append(folder)
            for file in folder.rglob("*") if not recorded else ():
                if file.is_file() and file.name != "scenario.yaml":
                    file.unlink()
        runs = [read_run(folder) for folder in folders]
        groups, differing = group_runs(runs)
        shown = [metric for metric in TABLE.values() if any(group.has(metric.name) for group in groups)]
        yield Page(runs, groups, differing, shown, _kept)


def _kept(_name: str, figure: Figure) -> bytes:
    from matplotlib import pyplot

    pyplot.close(figure)
    return b""


def _made(section: ReportSection, page: Page) -> list[object]:
    found = section.blocks(page)
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise LawBrokenError(f"blocks gave {type(found).__name__}, allowed: a list of what the page's methods make")
    return list(found)


def _blocks(section: ReportSection) -> str:
    title = getattr(section, "title", None)
    if not isinstance(title, str) or not title.strip():
        raise LawBrokenError(f"title is {title!r}, allowed: what its heading says")
    with _page() as page:
        blocks = _made(section, page)
    for block in blocks:
        if block and not isinstance(block, Markup):
            raise LawBrokenError(
                f"a block is {type(block).__name__} ({str(block)[:40]!r}), allowed: what page.paragraph, page.table, "
                f"page.heading and page.figure make"
            )
    return f"'{title}', {len(blocks)} blocks"


def _empty(section: ReportSection) -> str:
    """As of a run that was killed before its first evaluation."""
    with _page(recorded=False) as page:
        return f"{len(_made(section, page))} blocks"


def _escaped(section: ReportSection) -> str:
    with _page() as page:
        strange = [replace(group, label=_STRANGE) for group in page.groups]
        blocks = _made(section, replace(page, groups=strange))
    if any(_STRANGE in str(block) for block in blocks if isinstance(block, Markup)):
        raise LawBrokenError("a group called '<script>' is HTML on its page; give texts to the page's methods")
    return "escaped, where it is shown"


def _same(section: ReportSection) -> str:
    found = []
    with _page() as page:
        for state in (1, 2):
            with global_seed(state):
                found.append([str(block) for block in _made(section, page)])
    if found[0] != found[1]:
        which = next((i for i, (a, b) in enumerate(zip(*found, strict=False)) if a != b), "the number of blocks")
        raise LawBrokenError(
            f"block {which} differs the second time; a page shows what the runs have, no random numbers"
        )
    return f"{len(found[0])} blocks"


def _unchanged(section: ReportSection) -> str:
    with _page() as page:
        before = [(_digest(r.dir), copy.deepcopy(r.rows), copy.deepcopy(r.scenario)) for r in page.runs]
        _made(section, page)
        for record, (files, rows, scenario) in zip(page.runs, before, strict=True):
            if _digest(record.dir) != files:
                raise LawBrokenError("it wrote into a run directory, allowed: to read there, and page.figure")
            if (record.rows, record.scenario) != (rows, scenario):
                raise LawBrokenError("it changed a run's rows or scenario, which other sections see, too")
    return "directories, rows and scenarios"


def _digest(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
