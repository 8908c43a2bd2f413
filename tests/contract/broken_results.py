"""Graphs, measures, loggers and sections of reports that break one law each, and a good one of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import torch
from scipy import sparse

import fedsim
from fedsim.core.metrics import Metric
from fedsim.graphs.base import Graph
from fedsim.graphs.cleaning import tidy
from fedsim.graphs.mixing_matrix import BaseMixing
from fedsim.reports.sections import Page

# ruff: noqa: ARG001 - own graphs are called with a seed
# --- graphs -----------------------------------------------------------------------------------------------------------


def wheel(n: int, seed: int, spokes: int = 3) -> nx.Graph[Any]:
    """A ring whose node 0 has `spokes` more links; a good one."""
    graph = nx.cycle_graph(n)
    graph.add_edges_from((0, 2 + i) for i in range(spokes))
    return graph


def chance(n: int, seed: int) -> nx.Graph[Any]:
    return nx.random_labeled_tree(n)


@dataclass(frozen=True, kw_only=True)
class TooMany(Graph):
    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        return [tidy(nx.cycle_graph((n or 5) + 1))]


class _Leaky(BaseMixing):
    redrawn = True

    def realised(self, fired: Any) -> sparse.csr_array:
        return 0.5 * self.matrix


@dataclass(frozen=True, kw_only=True)
class LosesWeight(Graph):
    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        return [tidy(nx.complete_graph(n or 5))]

    def mixing(self, n: int) -> BaseMixing:
        return _Leaky(sparse.csr_array(np.full((n, n), 1 / n)), directed=False)


@dataclass(frozen=True, kw_only=True)
class ForgetsItsLength(Graph):
    length: float = 1.0
    drawn: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", self.length + 1)

    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        return [tidy(nx.path_graph(n or 5))]


# --- measures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Size(fedsim.Measure):
    """The norm of the model; a good one, of any objective."""

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("size", public=True),)

    def evaluate(self, view: Any) -> dict[str, float]:
        return {"size": float(view.centre.norm())}


class Misnames(Size):
    def evaluate(self, view: Any) -> dict[str, float]:
        return {"sice": 1.0}


@dataclass(frozen=True, kw_only=True)
class TakesAName(fedsim.Measure):
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("test_loss"),)

    def evaluate(self, view: Any) -> dict[str, float]:
        return {"test_loss": 1.0}


class GivesATensor(Size):
    def evaluate(self, view: Any) -> Any:
        return {"size": view.centre}


class Noisy(Size):
    def evaluate(self, view: Any) -> dict[str, float]:
        return {"size": float(torch.rand(()))}


class Normalises(Size):
    def evaluate(self, view: Any) -> dict[str, float]:
        return {"size": float(view.centre.mul_(0.5).norm())}


class TellsTheTrainingLoss(Size):
    def evaluate(self, view: Any) -> dict[str, float]:
        return {"size": view.task.evaluate(view.centre)["train_loss"]}


class TellsWhatClientsKeep(Size):
    def evaluate(self, view: Any) -> dict[str, float]:
        return {"size": float(view.kept("c", view.honest).norm())}


@dataclass(frozen=True, kw_only=True)
class TellsOfAClient(Size):
    def check(self, task: Any) -> None:
        task.answers(task.initial(), 0)  # quadratics have no rows

    def evaluate(self, view: Any) -> dict[str, float]:
        return {"size": float(view.task.answers(view.centre, 0).outputs.mean())}


class AsksForPersonalModels(Size):
    def evaluate(self, view: Any) -> dict[str, float]:
        return {"size": float(view.kept("personal", view.honest).norm())}


# --- loggers ----------------------------------------------------------------------------------------------------------


class _Counts(fedsim.Watcher):
    def __init__(self) -> None:
        self.rounds = 0

    def round(self, number: int, row: Any) -> None:
        self.rounds += 1


@dataclass(frozen=True, kw_only=True)
class Counts(fedsim.Logger):
    """A good one."""

    def watcher(self) -> fedsim.Watcher:
        return _Counts()


_ONE = _Counts()


class Shared(Counts):
    def watcher(self) -> fedsim.Watcher:
        return _ONE


class NoWatcher(Counts):
    def watcher(self) -> Any:
        return print


class NeedsAccuracy(Counts):
    def watcher(self) -> fedsim.Watcher:
        class Needs(_Counts):
            def round(self, number: int, row: Any) -> None:
                self.rounds += row["f1"]

        return Needs()


class Meddles(Counts):
    def watcher(self) -> fedsim.Watcher:
        class Meddling(_Counts):
            def began(self, run: Any) -> None:
                run.now().centre.mul_(0.5)

        return Meddling()


class Renames(Counts):
    def watcher(self) -> fedsim.Watcher:
        class Renaming(_Counts):
            def began(self, run: Any) -> None:
                self.file = run.dir / "metrics.jsonl"

            def ended(self, run: Any) -> None:
                self.file.write_text(self.file.read_text().replace("0", "1"))

        return Renaming()


class OpensANewFile(Counts):
    def watcher(self) -> fedsim.Watcher:
        class Opening(_Counts):
            def began(self, run: Any) -> None:
                (run.dir / "log.txt").open("x").close()

        return Opening()


class ClosesItsFile(Counts):
    def watcher(self) -> fedsim.Watcher:
        class Closing(_Counts):
            def began(self, run: Any) -> None:
                self.file = (run.dir / "log.txt").open("a")

            def closed(self, error: Any) -> None:
                self.file.close()

        return Closing()


# --- sections of reports ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths(fedsim.ReportSection):
    """How many evaluations each run has; a good one."""

    title: ClassVar[str] = "Evaluations"

    def blocks(self, page: Page) -> Iterable[object]:
        return [page.table(["group", "evaluations"], [[g.label, len(g.runs[0].rows)] for g in page.groups])]


class Untitled(Lengths):
    title = ""


class Raw(Lengths):
    def blocks(self, page: Page) -> Iterable[object]:
        return ["<b>three runs</b>"]


class NeedsRows(Lengths):
    def blocks(self, page: Page) -> Iterable[object]:
        return [page.paragraph(run.rows[-1]["test_loss"]) for run in page.runs]


class Unescaped(Lengths):
    def blocks(self, page: Page) -> Iterable[object]:
        from markupsafe import Markup

        return [Markup(f"<p>{group.label}</p>") for group in page.groups]


class Draws(Lengths):
    def blocks(self, page: Page) -> Iterable[object]:
        return [page.paragraph(float(torch.rand(())))]


class Writes(Lengths):
    def blocks(self, page: Page) -> Iterable[object]:
        (page.runs[0].dir / "seen").touch()
        return []


class Sorts(Lengths):
    def blocks(self, page: Page) -> Iterable[object]:
        rows: Any = page.runs[0].rows
        rows.reverse()
        return []
