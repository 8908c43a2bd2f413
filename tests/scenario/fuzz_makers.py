"""What the fuzzer is made of: small inputs that work, ways to break them, and the law that every answer keeps."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hypothesis import strategies as st

from fedsim.cli.app import main
from fedsim.core.registry import kinds, names

SECONDS = 20
BYTES = 2**30
LONGEST = 2000
"""Characters of an answer: more is a dump, not a sentence."""

RUN = {"rounds": 2, "device": "cpu", "threads": 1}
DATA = {"dataset": "digits", "clients": 4, "limit": 100}
SCENARIOS: dict[str, dict[str, Any]] = {
    "server": {
        "name": "s", "seed": 1, "data": {**DATA, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
        "model": {"name": "mlp", "hidden": [8]},
        "algorithm": {"name": "fedprox", "lr": 0.1, "batch_size": 8, "mu": 0.1},
        "participation": {"fraction": 0.5, "dropout": 0.1}, "compression": {"name": "top_k", "fraction": 0.1},
        "aggregator": {"name": "trimmed_mean", "trim": 0.1}, "attack": {"name": "sign_flip", "attackers": [1]},
        "run": {**RUN, "metrics": [], "eval_samples": 20},
    },
    "private": {
        "data": DATA, "model": {"name": "linear"}, "algorithm": {"name": "fedavg", "lr": 0.1},
        "participation": {"sampling": "poisson", "fraction": 0.5},
        "privacy": {"mechanism": "dp_fedavg", "epsilon": 2.0, "clip_norm": 1.0}, "run": RUN,
    },
    "clocked": {
        "data": {"dataset": "synthetic", "alpha": 0.5, "beta": 0.5, "clients": 4}, "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.01},
        "participation": {"mode": "fedbuff", "buffer": 2, "concurrency": 3},
        "system": {
            "compute": {"model": "lognormal", "sigma": 1.0}, "jitter": {"model": "exponential", "mean": 1.0},
            "availability": {"model": "on_off", "on": 20.0, "off": 10.0},
        },
        "run": {**RUN, "seconds": 200.0},
    },
    "gossip": {
        "data": DATA, "model": {"name": "linear", "init": "zeros"}, "algorithm": {"name": "dspodfl", "lr": 0.1},
        "topology": {"graph": "random_geometric", "radius": 0.9, "weights": "metropolis"},
        "participation": {"mode": "gossip", "compute": {"beta": [0.8, 0.8]}, "links": 0.5}, "run": RUN,
    },
    "two graphs": {
        "data": DATA, "model": {"name": "linear"}, "algorithm": {"name": "dfedavg", "lr": 0.5, "batch_size": "full"},
        "topology": {"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "complete"}]}, "run": RUN,
    },
}  # fmt: skip

JUNK: list[Any] = [
    None, True, False, "", "x", "ring", "fedavg", "1", "1e3", "2020-01-01", "\t", "a\nb", "ü" * 300, "nan", "../..",
    -1, 0, 1, 2, 3, 7, 0.0, -0.5, 0.5, 1.0, 1.5, 1e-320, -1e308, float("nan"), float("inf"), float("-inf"),
    [], [[]], [None], [1, "x"], [0.5, 0.5], [[1, 2], [3]], {}, {"": None}, {"x": {}}, {"name": "x"}, {1: 2},
    {"beta": [0, -1]}, {None: 1}, {"a.b": 1}, ["x"] * 50,
]  # fmt: skip
HUGE: list[Any] = [101, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 10**18, 1e18, 1e308, 1e30, 123456789.5]
"""Numbers that may ask for more work than a test has time for: such scenarios are planned, not run."""


LIKE: dict[type, list[Any]] = {
    bool: [True, False],
    int: [-1, 0, 1, 2, 3, 5, 17, 100],
    float: [-1.0, 0.0, 1e-320, 1e-12, 0.01, 0.3, 0.999, 1.0, 1.5, 100.0, 1e30],
    str: [*sorted({name for kind in kinds() for name in names(kind)}), "full", "uniform", "zeros", "estimated"],
}
LIKE_HUGE: dict[type, list[Any]] = {int: [10**4, *HUGE[:9]], float: [1e9, 1e300]}
"""Values of the type that a key has, so that the next check is the one that is asked."""

KINDS = ("set", "like", "like", "like", "drop", "misspell", "add", "move", "nest")


@dataclass(frozen=True)
class Change:
    """One thing done to a nested value: at which of its places, what, and with which junk."""

    place: int
    kind: str
    junk: Any
    huge: bool = False


def changes(huge: bool) -> st.SearchStrategy[list[Change]]:
    junk = st.sampled_from([*JUNK, *HUGE] if huge else JUNK)
    ways = st.sampled_from(KINDS)
    return st.lists(st.builds(Change, st.integers(0, 9999), ways, junk, st.just(huge)), min_size=1, max_size=3)


def changed(values: Any, done: list[Change]) -> Any:
    """A copy of nested mappings and lists with the changes made."""
    values = copy.deepcopy(values)
    for change in done:
        places = list(_places(values))
        if not places:
            break
        holder, key = places[change.place % len(places)]
        junk = copy.deepcopy(change.junk)
        if change.kind == "set":
            holder[key] = junk
        elif change.kind == "like":
            others = LIKE.get(type(holder[key]), [junk]) + (LIKE_HUGE.get(type(holder[key]), []) if change.huge else [])
            holder[key] = others[change.place // 7 % len(others)]
        elif change.kind == "drop":
            del holder[key]
        elif change.kind == "nest":
            holder[key] = [holder[key]] if change.place % 2 else {str(key): holder[key]}
        elif change.kind == "move":
            other, there = places[(change.place * 7 + 3) % len(places)]
            other[there] = copy.deepcopy(holder[key])
        elif isinstance(holder, dict):
            if change.kind == "misspell":
                holder[f"{key}s"] = holder.pop(key)
            else:
                holder[junk if isinstance(junk, (str, int)) else "more"] = junk
    return values


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in list(items):
        yield values, key
        yield from _places(value)


@dataclass(frozen=True)
class Damage:
    """One thing done to bytes: where (a share of their length), what, and with which junk."""

    at: float
    kind: str
    junk: bytes


WORDS = [
    b"", b"0", b"-1", b"nan", b"inf", b"1e400", b"99999999999999999999", b"1000000000", b"x", b"\x00", b"\xff\xfe",
    b"\n", b",", b";", b"\t", b'"', b"{", b"[", b"]", b"}", b": ", b"&a ", b"*a", b"!!int ", b"- ", b"#", b"<", b"&lt;",
    b"~~~~~~~~", b"\xff" * 8,
    b"\x7f\xff\xff\xff", b"[" * 200, b"{" * 5000, b"9" * 5000, "é".encode(), b"\r", b"null", b"true",
    b"''",
]  # fmt: skip


def damages() -> st.SearchStrategy[list[Damage]]:
    ways = st.sampled_from(["cut", "flip", "insert", "replace", "drop", "double"])
    one = st.builds(Damage, st.floats(0, 1, exclude_max=True), ways, st.sampled_from(WORDS))
    return st.lists(one, min_size=1, max_size=3)


def damaged(data: bytes, done: list[Damage]) -> bytes:
    """The bytes with the damage done; ``replace`` takes the place of one word."""
    for damage in done:
        i = int(damage.at * len(data))
        if damage.kind == "cut":
            data = data[:i]
        elif damage.kind == "flip" and data:
            data = data[:i] + bytes([data[i] ^ (1 << (len(damage.junk) % 8))]) + data[i + 1 :]
        elif damage.kind == "insert":
            data = data[:i] + damage.junk + data[i:]
        elif damage.kind == "replace":
            word = re.compile(rb"[\w.+-]+").search(data, i)
            data = data[: word.start()] + damage.junk + data[word.end() :] if word else data
        elif damage.kind == "drop":
            data = data[:i] + data[i + 16 :]
        elif damage.kind == "double":
            data = data[:i] + data[max(0, i - 40) : i] + data[i:]
    return data


class TooLong(BaseException):
    """The command has used more CPU seconds than an answer may; no ``except Exception`` takes it."""


@dataclass(frozen=True)
class Answer:
    code: object
    out: str
    err: str


def ask(*argv: str) -> Answer:
    """Run a command in this process; whatever it raises but SystemExit is raised.

    The memory that it may ask for on top of what the process has is limited, so is its time.
    """
    out, err = io.StringIO(), io.StringIO()
    before, path, modules = sys.argv, list(sys.path), set(sys.modules)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (_size() + BYTES, hard))
    sys.argv = ["fedsim", *argv]
    code: object = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        sys.argv, sys.path[:] = before, path
        for name in set(sys.modules) - modules:
            if name.startswith("own_"):
                del sys.modules[name]
    return Answer(code, out.getvalue(), err.getvalue())


def _size() -> int:
    """Bytes of address space that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def keeps_the_law(answer: Answer, *files: str) -> None:
    """Exit 0; or 2 and every line says where, the scenario or one of `files`; or 1 and a sentence."""
    said = answer.err.strip()
    assert "Traceback" not in answer.out + answer.err, said
    assert answer.code in (0, 1, 2), (answer.code, said)
    if answer.code == 0:
        return
    assert said, "no word of what is wrong"
    assert not re.search(r"MemoryError|allocate|object at 0x|discriminator|pydantic|Input should", said), said
    for line in said.splitlines():
        assert len(line) <= LONGEST, f"{len(line)} characters: {line[:LONGEST]}"
        if answer.code == 2:
            place = re.match(r"(\S+?)(:\d+)?: \S", line)
            assert place is not None, said
            assert Path(place[1]).name in ("s.yaml", *files), said


def as_yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
