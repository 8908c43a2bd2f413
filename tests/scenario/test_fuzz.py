"""Broken scenarios and files of all kinds: each is answered in a sentence, soon, in little memory, and with its place.

The examples are the same every time. ``FEDSIM_FUZZ=20 pytest tests/scenario/test_fuzz.py`` tries 20 times as many, new
ones each time.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_files import (
    DATA_FILES,
    GRAPH_FILES,
    PICTURES,
    TRACES,
    claims,
    on_graph,
    on_trace,
    put,
    reading,
    shown_in,
)
from fuzz_makers import (
    BYTES,
    SCENARIOS,
    SECONDS,
    Answer,
    Change,
    Damage,
    as_yaml,
    ask,
    changed,
    changes,
    damaged,
    damages,
    keeps_the_law,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TIMES = float(os.environ.get("FEDSIM_FUZZ", "1"))


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=max(1, int(examples * TIMES)), derandomize=TIMES == 1, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One working folder for all examples: each writes its files over those of the last."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("fuzz")
        patch.chdir(place)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("COLUMNS", "200")
        yield place


def run(scenario: dict[str, Any]) -> Answer:
    """The answer of ``fedsim run``; the folder is as if nothing had been run before."""
    Path("s.yaml").write_text(as_yaml(scenario), encoding="utf-8")
    shutil.rmtree("out", ignore_errors=True)
    answer = ask("run", "s.yaml", "--json", "--out", "out")
    assert answer.code != 2 or not Path("out").exists(), f"refused and yet written: {answer.err}"
    return answer


def test_the_inputs_that_are_broken_work() -> None:
    for scenario in SCENARIOS.values():
        assert run(scenario).code == 0
    for scenario, files in [
        *DATA_FILES.values(),
        *((on_graph(name), {name: content}) for name, content in GRAPH_FILES.items()),
        *((on_trace(name), {name: content}) for name, content in TRACES.items()),
    ]:
        put(files)
        answer = run(scenario)
        assert answer.code == 0, answer.err


@fuzz(60)
@given(base=st.sampled_from(sorted(SCENARIOS)), done=changes(huge=True))
def test_plans_of_changed_scenarios(base: str, done: list[Change]) -> None:
    values = copy.deepcopy(SCENARIOS[base])
    if base == "clocked":  # known: jobs of 10^30 s on devices that come and go every 20 s are followed without end
        del values["system"]["availability"]
    Path("s.yaml").write_text(as_yaml(changed(values, done)), encoding="utf-8")
    keeps_the_law(ask("plan", "s.yaml", "--json"))


@fuzz(50)
@given(base=st.sampled_from(sorted(SCENARIOS)), done=changes(huge=False))
def test_runs_of_changed_scenarios(base: str, done: list[Change]) -> None:
    keeps_the_law(run(changed(SCENARIOS[base], done)))


@fuzz(40)
@given(base=st.sampled_from(sorted(SCENARIOS)), done=damages())
def test_damaged_scenarios(base: str, done: list[Damage]) -> None:
    Path("s.yaml").write_bytes(damaged(as_yaml(SCENARIOS[base]).encode(), done))
    keeps_the_law(ask("plan", "s.yaml", "--json"))


@fuzz(90)
@given(kind=st.sampled_from(sorted(DATA_FILES)), which=st.integers(0, 3), done=damages())
def test_damaged_data_files(kind: str, which: int, done: list[Damage]) -> None:
    scenario, files = DATA_FILES[kind]
    name = sorted(files)[which % len(files)]
    put({**files, name: damaged(files[name], done)})
    keeps_the_law(run(scenario), *files)


@fuzz(70)
@given(name=st.sampled_from(sorted(GRAPH_FILES)), done=damages())
def test_damaged_graph_files(name: str, done: list[Damage]) -> None:
    put({name: damaged(GRAPH_FILES[name], done)})
    keeps_the_law(run(on_graph(name)), name)


@fuzz(40)
@given(name=st.sampled_from(sorted(TRACES)), done=damages())
def test_damaged_trace_files(name: str, done: list[Damage]) -> None:
    put({name: damaged(TRACES[name], done)})
    keeps_the_law(run(on_trace(name)), name)


SHAPES = ["(8,)", "()", "(0, 3)", "(8, 0)", "(8, 1)", "(-1, 8)", "(10**9,)", "(1000000000,)", "(1, 9999999999)", "8"]
TYPES = ["<f8", ">f8", "<f2", "<i8", ">i2", "|b1", "<c16", "|O", "<M8[s]", "<U4", "|S8", "|V8", "zz"]


@fuzz(40)
@given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(TYPES),
    name=st.sampled_from(["x", "y", "z"]),
)
def test_npz_headers_that_lie(shape: str, dtype: str, name: str) -> None:
    put({"d.npz": claims(shape, dtype, name)})
    keeps_the_law(run(reading("npz", path="d.npz")), "d.npz")


SIDES = [-1, 0, 1, 8, 8191, 8193, 30_000, 2**16 - 1, 2**31 - 1]
PACKED = {"nothing": b"", "8 x 8": zlib.compress(b"\0" * 72), "much": zlib.compress(b"\0" * 2**27)}


@fuzz(30)
@given(
    kind=st.sampled_from(sorted(PICTURES)),
    sides=st.tuples(st.sampled_from(SIDES), st.sampled_from(SIDES)),
    packed=st.sampled_from(sorted(PACKED)),
    done=damages(),
    whole=st.booleans(),
)
def test_pictures_that_claim_much(
    kind: str, sides: tuple[int, int], packed: str, done: list[Damage], whole: bool
) -> None:
    picture = PICTURES[kind](*sides, PACKED[packed])
    picture = picture if whole else damaged(picture, done)
    put({"d.parquet": shown_in([picture] * 4)})
    keeps_the_law(run(reading("parquet", path="d.parquet", target="label")), "d.parquet")


LARGE: dict[str, tuple[str, dict[str, bytes]]] = {
    "aliases": ("a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)), {}),
    "edges": (as_yaml(on_graph("g.edges")), {"g.edges": b"40000000\n0 1\n2 3"}),
    "npz": (as_yaml(reading("npz", path="d.npz")), {"d.npz": claims("(8589934592, 8)")}),
    "complete graph": (as_yaml({**SCENARIOS["gossip"], "topology": {"graph": "complete"}}).replace(
        "clients: 4", "clients: 100000"), {}),
    "classes": (as_yaml(reading("csv", path="d.csv", target="y", num_classes=10**8)), {"d.csv": b"x,y\n1,0\n2,1\n"}),
    "clients": (as_yaml(SCENARIOS["clocked"]).replace("clients: 4", "clients: 1000000000000"), {}),
}  # fmt: skip


PLANS = """
import os
import resource
import sys
import traceback

import fedsim.engine.assembly
from fedsim.cli.app import main

most, seconds = map(int, sys.argv[1:3])
for folder in sys.argv[3:]:
    if os.fork() == 0:  # a process of its own, so that each has its own limits and its own peak
        os.chdir(folder)
        for number, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        sys.argv = ["fedsim", "plan", "s.yaml", "--json"]
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0], flush=True)
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What is said of each scenario of `LARGE`, with the most memory that it took as last line."""
    folders = {name: tmp_path_factory.mktemp("large") for name in sorted(LARGE)}
    for name, place in folders.items():
        scenario, files = LARGE[name]
        with contextlib.chdir(place):
            put(files)
            Path("s.yaml").write_text(scenario, encoding="utf-8")
    limits = [str(4 * BYTES), str(SECONDS)]  # of address space, so that a mistake ends here and not with the machine
    done = subprocess.run(
        [sys.executable, "-c", PLANS, *limits, *map(str, folders.values())], capture_output=True, text=True, check=True
    )
    return {
        name: Answer(int(code), (place / "out").read_text(), (place / "err").read_text())
        for (name, place), code in zip(folders.items(), done.stdout.split(), strict=True)
    }


@pytest.mark.parametrize("name", sorted(LARGE))
def test_small_files_cannot_take_the_machine(name: str, planned: dict[str, Answer]) -> None:
    """In a process of its own, whose largest memory and time are measured."""
    answer = planned[name]
    keeps_the_law(answer, *LARGE[name][1])
    assert answer.code == 2, answer.out
    assert int(answer.out.split("peak")[1]) * 1024 < BYTES
