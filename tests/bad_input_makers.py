"""Makers of broken input: a case is a command line, the files it reads, and what its answer must say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from data_makers import idx_bytes, pictures, save_quadratic, write_images

File = str | bytes | Callable[[Path], Any]
"""A file's content, or what makes it in the test's folder."""

SERVER = """\
name: bad
seed: 0
data:
  dataset: digits
  clients: 4
  limit: 100
  partition: {scheme: iid}
model:
  name: mlp
  hidden: [8]
algorithm:
  name: fedavg
  lr: 0.1
  batch_size: 8
participation:
  fraction: 0.5
run: {rounds: 2, device: cpu}
"""
GOSSIP = """\
data:
  dataset: quadratic
  file: q.npz
algorithm:
  name: dspodfl
  lr: 0.1
topology:
  graph: ring
participation:
  compute: 0.5
run:
  rounds: 2
  device: cpu
"""
SWEEP = """\
scenario: s.yaml
set:
  run.rounds: 2
cases:
  plain: {}
  proximal:
    algorithm.name: fedprox
grid:
  algorithm.lr: [0.1, 0.2]
"""


@dataclass(frozen=True)
class Case:
    name: str
    argv: list[str]
    says: tuple[str, ...]
    files: dict[str, File] = field(default_factory=dict)


def server(old: str, new: str, *says: str, **files: File) -> Case:
    """The server scenario with `old` replaced by `new`."""
    assert SERVER.count(old) == 1
    return Case(
        f"server: {new or 'no ' + old}", ["plan", "s.yaml"], says, {"s.yaml": SERVER.replace(old, new), **files}
    )


def gossip(old: str, new: str, *says: str, files: dict[str, File] | None = None) -> Case:
    """The gossip scenario with `old` replaced by `new`; three clients unless `files` says otherwise."""
    assert GOSSIP.count(old) == 1
    text = GOSSIP.replace(old, new)
    return Case(
        f"gossip: {new or 'no ' + old}",
        ["plan", "s.yaml"],
        says,
        {"q.npz": save_quadratic, "s.yaml": text, **(files or {})},
    )


def setting(text: str, *says: str) -> Case:
    return Case(f"--set {text}", ["plan", "s.yaml", "--set", text], says, {"s.yaml": SERVER})


def whole(name: str, content: File, *says: str) -> Case:
    """Another scenario file altogether."""
    return Case(name, ["plan", "s.yaml"], says, {"s.yaml": content})


def data(name: str, section: str, *says: str, files: dict[str, File]) -> Case:
    """A data section on line 1, and its files."""
    text = (
        f"data: {{{section}, clients: 2}}\nmodel: {{name: linear}}\nalgorithm: {{name: fedavg}}\nrun: {{device: cpu}}\n"
    )
    return Case(f"data: {name}", ["plan", "s.yaml"], says, {"s.yaml": text, **files})


def quadratic(name: str, *says: str, **arrays: Any) -> Case:
    files: dict[str, File] = {"s.yaml": GOSSIP, "q.npz": lambda folder: save_quadratic(folder, **arrays)}
    return Case(f"quadratic: {name}", ["plan", "s.yaml"], says, files)


def graph(name: str, content: File, *says: str) -> Case:
    """A graph file for three clients."""
    text = GOSSIP.replace("graph: ring", f"graph: file\n  path: {name}")
    return Case(
        f"graph file: {says[0]}", ["plan", "s.yaml"], says, {"s.yaml": text, "q.npz": save_quadratic, name: content}
    )


def sweep(old: str, new: str, *says: str) -> Case:
    assert SWEEP.count(old) == 1
    return Case(f"sweep: {new}", ["sweep", "w.yaml"], says, {"s.yaml": SERVER, "w.yaml": SWEEP.replace(old, new)})


def command(*argv: str, says: tuple[str, ...], **files: File) -> Case:
    return Case("fedsim " + " ".join(argv), list(argv), says, files)


def own_model(module: str, code: str, *says: str) -> Case:
    """Somebody's own model, ``module:Net``, in a file beside the scenario."""
    source = f"import torch\nfrom torch import nn\n\n{code}\n"
    text = SERVER.replace("name: mlp\n  hidden: [8]", f"name: {module}:Net")
    return Case(f"own model: {module}", ["plan", "s.yaml"], says, {"s.yaml": text, f"{module}.py": source})


def at(line: int, key: str, file: str = "s.yaml") -> str:
    """The beginning of an answer: the place of what is wrong."""
    return f"{file}:{line}: {key}: "


def image_files(labels: list[Any], image: str = "image") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for split in ("train", "test"):
            write_images(folder / f"{split}.parquet", list(pictures(len(labels))), labels, image)

    return make


def idx_files(train_labels: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for split in ("train", "t10k"):
            (folder / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(pictures(4)))
            (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(4) % 2))
        (folder / "train-labels-idx1-ubyte").write_bytes(train_labels)

    return make


def arrays(**named: Any) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "d.npz", **named)


def write(case: Case, folder: Path) -> None:
    """The case's files."""
    for name, content in case.files.items():
        if callable(content):
            content(folder)
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def assert_answers(case: Case, code: object, out: str, err: str) -> None:
    """Exit code 2 and no traceback; the answer says what it must, each problem in one line."""
    assert code == 2, err
    assert "Traceback" not in err + out
    for text in case.says:
        assert text in err
    if "Usage:" not in err and "╭" not in err:
        for line in err.splitlines():  # one line per problem, each with its place
            assert re.match(r"[^ ].*: .+|unknown ", line), line
