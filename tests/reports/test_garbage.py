"""Reports on folders whose files hold anything: a sentence that names the file, or a page; never a traceback."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import TransformNode

import fedsim
from fedsim.core.errors import InputError
from fedsim.figures.html import page
from fedsim.reports.groups import find_runs, group_runs
from fedsim.reports.report import write_report
from fedsim.reports.sections import Page, made
from fedsim.reports.setting import environments
from fedsim.scenario.load import given

DATA: dict[str, Any] = {
    "dataset": "digits",
    "clients": 4,
    "limit": 120,
    "partition": {"scheme": "dirichlet", "alpha": 1.0},
}
RUN: dict[str, Any] = {"rounds": 2, "eval_every": 1, "device": "cpu", "threads": 1, "trace": True}
CLOCKED: dict[str, Any] = {
    "data": DATA, "model": {"name": "linear"}, "algorithm": {"name": "fedavg", "lr": 0.1}, "run": RUN,
    "participation": {"mode": "fixed_interval", "window": 1.0},
    "system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}},
}  # fmt: skip
PRIVATE: dict[str, Any] = {
    "data": DATA, "model": {"name": "linear"}, "algorithm": {"name": "fedavg", "lr": 0.1}, "run": RUN,
    "participation": {"mode": "synchronous", "fraction": 0.5, "sampling": "poisson"},
    "privacy": {"mechanism": "dp_fedavg", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3},
}  # fmt: skip
GRAPH: dict[str, Any] = {
    "data": DATA, "model": {"name": "linear"}, "algorithm": {"name": "dspodfl", "lr": 0.1}, "run": RUN,
    "topology": {"graph": "ring"},
}  # fmt: skip
SCENARIOS = {"clocked": CLOCKED, "private": PRIVATE, "graph": GRAPH}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind; the clocked one also as a deployment of it would look."""
    home = tmp_path_factory.mktemp("runs")
    found = {name: fedsim.run(given(values), out=home / name).dir for name, values in SCENARIOS.items()}
    deployed = home / "deployed"
    shutil.copytree(found["clocked"], deployed)
    (deployed / "deployment.json").write_text(json.dumps({"of": 4, "clients": 4}))
    answers = [
        {"at": 0.5 * i, "client": i % 4, "round": 1 + i // 4, "status": "used" if i else "late", "reason": "slow",
         "seconds": 0.1, "work": 0.05}
        for i in range(8)
    ]  # fmt: skip
    (deployed / "replies.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    return {**found, "deployed": deployed}


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _rows_of(value: Any) -> Callable[[Path], None]:
    """Every value of every row of a file of rows, or of an object, becomes `value`."""

    def damage(path: Path) -> None:
        def changed(node: Any) -> Any:
            return {k: changed(v) for k, v in node.items()} if isinstance(node, dict) else value

        if path.suffix not in (".json", ".jsonl"):
            path.write_text(str(value)[:50])
            return
        text = path.read_text()
        documents = text.splitlines() if path.suffix == ".jsonl" else [text]
        path.write_text("\n".join(json.dumps(changed(json.loads(d))) for d in documents) + "\n")

    return damage


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "random bytes": lambda path: path.write_bytes(random.Random(str(path.name)).randbytes(4096)),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": _folder,
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(2048)),
    "a number": lambda path: path.write_text("17\n"),
    "a list": lambda path: path.write_text('[1, "a", null]\n'),
    "an object": lambda path: path.write_text('{"a": {"b": [1e308]}}\n'),
    "huge numbers": _rows_of(10**400),
    "large floats": _rows_of(1e308),
    "negative": _rows_of(-7),
    "text": _rows_of("x"),
    "null": _rows_of(None),
    "lists": _rows_of([[1], {}]),
    "digits": lambda path: path.write_text("9" * 5000),
    "deep": lambda path: path.write_text("[" * 100_000),
}


def _damaged_files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and "checkpoint" not in f.parts)


OF_A_KIND = ("privacy.json", "releases.jsonl", "topology.graphml")
"""Files that only some runs have; the deployment has all the others."""


def _files(name: str, folder: Path) -> list[str]:
    names = sorted(f.name for f in folder.iterdir() if f.is_file())
    return [n for n in names if name == "deployed" or (name != "clocked" and n in OF_A_KIND)]


def _page(places: list[Path], out: Path, curves: bool) -> str:
    """The page; without `curves`, which take the longest and know numbers alone, only its other parts."""
    if curves:
        return write_report(places, out).read_text()
    runs = find_runs(places)
    groups, differing = group_runs(runs)
    blocks = [*made(Page(runs, groups, differing, [], _saved), []), *environments(runs)]
    return page(str(len(blocks)), blocks)


_DRAWN: dict[bytes, bytes] = {}
"""Pictures by their figures: most figures know nothing of the file that is damaged, and are the same on every page."""


class _Content(pickle.Pickler):
    """All that a figure has, but for the addresses by which its transforms know each other."""

    def reducer_override(self, node: object) -> Any:
        if not isinstance(node, TransformNode):
            return NotImplemented
        return object.__new__, (type(node),), {**node.__getstate__(), "_parents": None}


def _saved(_: str, figure: Figure) -> bytes:
    content, picture = io.BytesIO(), io.BytesIO()
    _Content(content).dump(figure)
    key = content.getvalue()
    if key not in _DRAWN:
        figure.savefig(picture, format="png", dpi=20)
        _DRAWN[key] = picture.getvalue()
    return _DRAWN[key]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_page_or_a_sentence(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    for name, source in runs.items():
        for file in _files(name, source):
            place = tmp_path / name
            shutil.copytree(source, place)
            DAMAGE[kind](place / file)
            others = [runs["clocked"]] if name == "deployed" and file == "params.safetensors" else []
            try:
                said = _page([place, *others], tmp_path / "page.html", curves=file == "metrics.jsonl")
                named = "</html>" in said
            except InputError as error:
                said = str(error)
                named = str(place) in said and "\n" not in said
            except Exception as error:
                raise AssertionError(f"{name}/{file}: {type(error).__name__}: {error}") from error
            assert named, (name, file, said[:200])
            shutil.rmtree(place)


def test_a_section_says_which_file_it_could_not_read(runs: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(runs["deployed"], place)
    (place / "replies.jsonl").write_text('{"client": 0}\n')
    page = write_report(place).read_text()
    assert "replies.jsonl or trace.jsonl or params.safetensors of one of these runs is not as fedsim writes it" in page
    assert "<h2>Schedule" in page
