"""Files and sections that are small, and graphs that would not fit: refused before they take the machine."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.core.errors import InputError
from fedsim.graphs.readers import MOST_BYTES
from fedsim.graphs.topology import build_topology

LARGE: list[tuple[str, Any, str]] = [
    ("g.edges", b"1000000000\n0 1\n", "1,000,000,000 nodes, allowed: at most 1,000,000"),
    ("g.edges", b"9" * 4000 + b"\n0 1\n", "whole numbers of at most 18 digits"),
    ("g.s6", b":~~?BDwO@__\n", "nodes, allowed: at most 1,000,000"),
    ("g.g6", b"~~?@@@@@@\n", "nodes, allowed: at most 1,000,000"),
    (
        "g.csv.gz",
        lambda: gzip.compress(b"0,1\n" * (MOST_BYTES // 4 + 1), 1),
        "too large once unpacked, allowed: at most 256 MiB",
    ),
    ("g.graphml", b'<!DOCTYPE x [<!ENTITY a "b">]><graphml/>', "found an entity declaration"),
    ("g.json", b"[" * 100_000, "cannot be read as json"),
    ("g.json", b'{"a": 1}', "found other JSON, allowed: node-link data"),
    ("g.gml", b"graph [ " * 100_000, "cannot be read as gml"),
    ("g.edgelist", b"a b {" + b"[" * 10_000 + b"}\n", "allowed: {'name': value, ...}"),
    ("g.edgelist", b"a b 1 2 3\n", "allowed: two nodes, and a weight"),
    ("g.g6", b"A_\nA_\n", "found 2 graphs, allowed: one"),
    ("g.csv", b"source,target,Type\na,b,directed\nb,a,undirected\n", "found directed and undirected edges"),
]


READS = """
import os
import sys
from pathlib import Path

from fedsim.core.errors import InputError
from fedsim.graphs.topology import build_topology

for path in sys.argv[1:]:
    if os.fork() == 0:  # a process of its own, so that each has its own peak
        try:
            build_topology({"graph": "file", "path": path}, None, 0, Path())
        except InputError as error:
            print(error, flush=True)
        print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0], flush=True)
        os._exit(0)
    print("code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What is said of each file of `LARGE`, the most memory that it took, and the exit code."""
    folder = tmp_path_factory.mktemp("large")
    paths = [folder / str(number) / name for number, (name, _, _) in enumerate(LARGE)]
    for path, (_, data, _) in zip(paths, LARGE, strict=True):
        path.parent.mkdir()
        path.write_bytes(data() if callable(data) else data)
    command = [sys.executable, "-c", READS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True)
    found = re.split(r"^code (-?\d+)\n", done.stdout, flags=re.MULTILINE)
    return [[*said.splitlines(), code] for said, code in zip(found[::2], found[1::2], strict=False)]


@pytest.mark.parametrize("number", range(len(LARGE)), ids=[f"{n}-{w[:25]}" for n, _, w in LARGE])
def test_small_files_cannot_take_the_machine(number: int, large: list[list[str]]) -> None:
    name, _, words = LARGE[number]
    *said, peak, code = large[number]
    assert code == "0"
    assert words in said[0]
    assert name in said[0]
    assert len(said) == 1
    assert len(said[0]) < 500
    assert int(peak.removeprefix("peak ")) < 1_000_000  # KiB


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"graph": "complete", "nodes": 100_000}, "4,999,950,000 edges, allowed: at most 10,000,000"),
        ({"graph": "erdos_renyi", "p": 0.5, "nodes": 10_000}, "24,997,500 edges"),
        ({"graph": "random_geometric", "radius": 2.0, "nodes": 10_000}, "49,995,000 edges"),
        ({"graph": "k_regular", "degree": 1000, "nodes": 100_000}, "50,000,000 edges"),
        ({"graph": "barabasi_albert", "m": 1000, "nodes": 100_000}, "100,000,000 edges"),
        ({"graph": "watts_strogatz", "k": 1000, "p": 0.1, "nodes": 100_000}, "50,000,000 edges"),
        ({"graph": "ring", "nodes": 10**12}, "1,000,000,000,000 nodes, allowed: at most 1,000,000"),
        ({"graph": "hypercube", "nodes": 2**63}, "far more nodes"),
        ({"graph": "grid", "rows": 10**6, "cols": 10**6}, "1,000,000,000,000 nodes"),
    ],
)
def test_a_graph_that_would_not_fit_is_refused_before_it_is_made(section: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        build_topology(section, None, 0, Path())
    assert caught.value.problems[0].key == "graph"
