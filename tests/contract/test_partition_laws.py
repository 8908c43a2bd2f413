"""The laws of partition schemes: built-in ones keep them, and a broken one is found by each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fedsim

BROKEN = """
from dataclasses import dataclass

import numpy as np

from fedsim import Partition


@dataclass(frozen=True)
class Shared(Partition):
    def assign(self, labels, clients, seed):
        return [np.arange(5) for _ in range(clients)]


@dataclass(frozen=True)
class Nothing(Partition):
    def assign(self, labels, clients, seed):
        pass


@dataclass(frozen=True)
class Changing(Partition):
    def assign(self, labels, clients, seed):
        labels.sort()
        return np.array_split(np.arange(len(labels)), clients)


@dataclass(frozen=True)
class Global(Partition):
    def assign(self, labels, clients, seed):
        return np.array_split(np.random.permutation(len(labels)), clients)
"""
BUILT_IN = {  # those by a column or by float targets have none here
    "iid": [], "linear": [], "square": [], "exponential": [], "dirichlet": ["alpha=1.0"],
    "shard": ["num_shards_per_partition=2"], "pathological": ["num_classes_per_partition=3"],
    "labels_per_node": ["labels=3"],
    "inner_dirichlet": ["alpha=1.0"], "size": ["partition_sizes=[60, 60, 60, 60]"],
}  # fmt: skip


@pytest.mark.parametrize("scheme", BUILT_IN)
def test_built_in_schemes_keep_them(scheme: str) -> None:
    results = fedsim.check(scheme, BUILT_IN[scheme], "partition")
    assert [(r.name, r.detail) for r in results if not r.passed] == []
    assert len(results) == 4


@pytest.mark.parametrize(
    "name,law",
    [
        ("Shared", "every client has rows of its own"),
        ("Nothing", "every client has rows of its own"),
        ("Changing", "inputs are not mutated"),
        ("Global", "same seed, same numbers"),
    ],
)
def test_a_broken_one_is_found(name: str, law: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_schemes.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert law in [r.name for r in fedsim.check(f"broken_schemes:{name}") if not r.passed]
