"""Sections of a report: what stands between the curves and the scenarios, and sections of somebody's own.

The built-in ones are in the files beside this one. One of your own is a `ReportSection` that ``fedsim report --section
pkg.mod:Name`` names; it sees the runs as the page does, from their directories alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from fedsim.core.errors import InputError, reason
from fedsim.core.fields import part_from
from fedsim.core.metrics import Metric
from fedsim.core.registry import Part
from fedsim.figures import html
from fedsim.reports.attackers import attackers
from fedsim.reports.clients import clients
from fedsim.reports.deployment import deployments
from fedsim.reports.groups import Group, Record
from fedsim.reports.merging import merging
from fedsim.reports.privacy import privacy
from fedsim.reports.schedule import schedules
from fedsim.reports.setting import partitions, topologies
from fedsim.reports.tradeoffs import tradeoffs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Page:
    """A page in the making.

    Attributes
    ----------
    runs : what there is to report about: each with `dir`, `scenario` (nested mappings), `rows` (one mapping per
        evaluation), `seed`, `finished`.
    groups : the same runs, those that differ only in their seed together: each with `label` and `runs`.
    differing : dotted keys in which groups differ.
    shown : what the columns of the metrics mean.
    save : keeps a figure as PNG beside the page, under a name.
    """

    runs: Sequence[Record]
    groups: Sequence[Group]
    differing: Sequence[str]
    shown: Sequence[Metric]
    save: Callable[[str, Figure], bytes]

    def heading(self, text: str) -> object:
        return html.heading(2, text)

    def paragraph(self, text: str) -> object:
        return html.paragraph(text)

    def table(self, header: Sequence[object], rows: Iterable[Sequence[object]]) -> object:
        """A table whose first column holds words and whose others hold numbers."""
        return html.table(list(header), rows, text=(0,))

    def figure(self, name: str, figure: Figure, says: str) -> object:
        """A matplotlib figure, also kept as ``figures/<name>.png``; `says` describes it to whoever cannot see it."""
        self.save(name, figure)
        return html.inline_svg(figure, name, says)


class ReportSection(Part, ABC):
    """Base class of the parts that ``--section`` names; its fields are its keys."""

    title: ClassVar[str]
    """Its heading."""

    @abstractmethod
    def blocks(self, page: Page) -> Iterable[object]:
        """What stands under the heading, from the methods of `page`; nothing where there is nothing to say."""


@dataclass(frozen=True)
class _BuiltIn:
    """A section that comes with fedsim: what it is about, and the files of a run directory that it reads."""

    title: str
    blocks: Callable[[Page], Iterable[object]]
    files: tuple[str, ...]

    def made(self, page: Page) -> list[object]:
        """Its blocks; where the files hold anything else than a run writes, a note that says so."""
        try:
            return list(self.blocks(page))
        except Exception as error:  # such files lead to errors of every kind
            which = " or ".join(self.files)
            note = f"{which} of one of these runs is not as fedsim writes it ({type(error).__name__}: {reason(error)})"
            return [page.heading(self.title), html.notes([note])]


SECTIONS = (
    _BuiltIn(
        "Trade-offs", lambda p: tradeoffs(p.groups, p.differing, p.shown, p.save), ("metrics.jsonl", "topology.graphml")
    ),
    _BuiltIn(
        "Clients",
        lambda page: clients(page.groups, page.shown, page.save),
        ("clients.parquet", "metrics.jsonl", "partition.csv"),
    ),
    _BuiltIn("Merging", lambda page: merging(page.groups, page.save), ("scenario.yaml", "metrics.jsonl")),
    _BuiltIn(
        "Attackers",
        lambda page: attackers(page.groups, page.shown, page.save),
        ("attack.json", "metrics.jsonl", "topology.graphml"),
    ),
    _BuiltIn(
        "Deployment",
        lambda page: deployments(page.runs, page.shown),
        ("deployment.json", "replies.jsonl", "trace.jsonl", "params.safetensors"),
    ),
    _BuiltIn(
        "Schedule",
        lambda page: schedules(page.groups, page.save),
        ("scenario.yaml", "partition.csv", "trace.jsonl", "params.safetensors"),
    ),
    _BuiltIn("Privacy", lambda page: privacy(page.groups), ("privacy.json", "releases.jsonl")),
    _BuiltIn("Partition of the data", lambda page: partitions(page.groups, page.save), ("partition.csv",)),
    _BuiltIn("Graph", lambda page: topologies(page.groups, page.save), ("topology.graphml",)),
)
"""The built-in sections, in their order."""


def made(page: Page, own: Sequence[ReportSection]) -> Iterator[object]:
    """The built-in sections, then `own`."""
    for section in SECTIONS:
        yield from section.made(page)
    for part in own:
        made_by = part.blocks(page)
        if isinstance(made_by, str) or not isinstance(made_by, Iterable):
            name = type(part).__name__
            raise InputError(
                f"{name}.blocks gave {type(made_by).__name__}, allowed: a list of what the page's methods make"
            )
        blocks = list(made_by)
        if blocks:
            yield page.heading(part.title)
            yield from blocks


def sections_named(named: Sequence[str | Mapping[str, Any]]) -> list[ReportSection]:
    """The parts that are named: each ``pkg.mod:Name``, or a mapping (or its YAML) with its `name` and its keys.

    Raises
    ------
    InputError
        There is no such part, or its keys are wrong.
    """
    found = []
    for one in named:
        keys: Any = yaml.safe_load(one) if isinstance(one, str) and one.lstrip().startswith("{") else one
        keys = {"name": keys} if isinstance(keys, str) else keys
        try:
            found.append(part_from("section", "name", keys))
        except InputError as error:
            raise error.under("--section") from None
    return found
