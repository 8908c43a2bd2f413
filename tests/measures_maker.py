"""A module of measures and loggers that lies outside the package, as somebody's own would."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = "own_measures"
TEXT = '''
from dataclasses import dataclass, field

import numpy as np
import torch

from fedsim.core.metrics import Measure, Metric
from fedsim.core.types import Count
from fedsim.engine.watch import Logger, Watcher


@dataclass(frozen=True, kw_only=True)
class F1(Measure):
    """F1 of one class."""

    of: Count = 1

    @property
    def metrics(self):
        return [Metric(f"f1_{self.of}", f"F1 of {self.of}", "share", larger_is_better=True, public=True)]

    def evaluate(self, view):
        answers = view.task.answers(view.centre)
        guessed, true = answers.guesses == self.of, answers.targets == self.of
        both = int(guessed.sum() + true.sum())
        return {f"f1_{self.of}": 2 * float((guessed & true).sum()) / both if both else 0.0}


@dataclass(frozen=True)
class Undeclared(Measure):
    """Says nothing of what it measures; it rises and falls."""

    def evaluate(self, view):
        return {"wave": float((view.round * 7) % 5)}


@dataclass(frozen=True)
class Variates(Measure):
    """What clients and nodes keep."""

    of: str = "c"
    metrics = [Metric("kept", "kept", larger_is_better=False), Metric("spread", "spread", log=True)]

    def evaluate(self, view):
        clients = np.arange(view.task.num_clients)
        kept = torch.cat([view.kept(self.of, clients[3:]), view.kept(self.of, clients[:3])])
        return {"kept": kept.double().square().sum(), "spread": float(view.state("x").double().abs().sum())}


@dataclass(frozen=True)
class Spread(Measure):
    """How far apart nodes are."""

    metrics = [Metric("furthest", larger_is_better=False)]

    def evaluate(self, view):
        rows = view.state("x", np.array([2, 0, 1]))
        return {"furthest": float((rows - view.centre).norm(dim=-1).max())}


@dataclass(frozen=True)
class Taken(Measure):
    """A name that every run has."""

    metrics = [Metric("test_loss", larger_is_better=False)]

    def evaluate(self, view):
        return {"test_loss": 0.0}


@dataclass(frozen=True)
class Text(Measure):
    """No number."""

    def evaluate(self, view):
        return {"words": "many"}


@dataclass(frozen=True, kw_only=True)
class Lines(Logger):
    """Writes down what it is told, and fails when it is asked to."""

    file: str
    fails_at: int = -1

    def watcher(self):
        return _Lines(self.file, self.fails_at)


class _Lines(Watcher):
    def __init__(self, file, fails_at):
        self.file, self.fails_at = file, fails_at

    def note(self, text):
        with open(self.file, "a") as out:
            out.write(text + "\\\\n")

    def began(self, run):
        self.note(f"began {run.resumed_at} {run.dir.name} {tuple(run.now().centre.shape)} {run.columns['round'].words}")

    def round(self, number, row):
        if number == self.fails_at:
            raise OSError("the server is away")
        self.note(f"round {number} {sorted(row)[0] if row else None}")

    def scheduled(self, row):
        self.note(f"scheduled {row['round']}")

    def saving(self):
        self.note("saving")

    def ended(self, run):
        self.note(f"ended {(run.dir / 'params.safetensors').exists()}")

    def closed(self, error):
        self.note(f"closed {type(error).__name__}")
'''.replace("\\\\n", "\\n")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The module's name, while it can be imported; its folder is that of the test."""
    (tmp_path / f"{NAME}.py").write_text(TEXT, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(NAME, None)
    yield NAME
    sys.modules.pop(NAME, None)
