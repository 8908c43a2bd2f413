"""What travels between a ServerApp and a ClientApp: jobs, messages and greetings as Flower records, and back.

A `Message` is one to one an ArrayRecord: every tensor an array of the same name, ``[d]`` where all clients receive the
same and ``[1, d]`` where a client receives, or sends, its own row. A node of a graph leaves out what it was sent under
the same name and did not change, since the server has it. Every message's process reads this, so torch stays out of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import RunError

Arrays = dict[str, Array]
"""A `Message` while it travels."""

PROTOCOL = 6
"""Raised whenever records change, so that machines with different versions of fedsim refuse each other by name."""

ARRAYS, LISTS, MOMENTS = "arrays", "lists", "moments"
"""Records beside the facts: a message's arrays, what all agree on, and statistics of a client's own rows."""

HELLO, WORK, EXAM, BYE = "query.hello", "train", "evaluate", "query.bye"
"""Flower message types: who are you, local work, what a model says of the client's own test rows, the run is over."""

EXAMPLES = "num-examples"
"""What Flower calls the number of samples in a MetricRecord."""

LONGEST_TEXT = 200
"""Characters of a text in a record, none of them a control character: it is shown in logs and on pages."""

_KINDS = "biuf"  # numpy's letters for truth values, whole numbers and floating point numbers

R = TypeVar("R")


class BadRecord(RunError):
    """Records that are not what the other side of this protocol sends."""


@dataclass(frozen=True)
class Order:
    """One client's local work, without what it received.

    `run` names the run for the client's disk. `builds_on` is the client's last round whose message the server took (0:
    none), from whose state this job starts, and `keep` the one that the server's last checkpoint knows. `ends` says
    that it is, by the run's plan, the last one for this client, whose worker may end with it.
    """

    run: str
    client: int
    number: int
    round: int
    steps: int
    builds_on: int
    keep: int
    ends: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class Receipt:
    """What comes back beside the message: whose it is, and the seconds that the local work took.

    `fresh` says that the state it builds on was lost, so that the client began anew (``lost-state="fresh"``).
    """

    client: int
    number: int
    seconds: float
    fresh: bool = False

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise BadRecord(f"'seconds' is {self.seconds}, expected a number >= 0")


@dataclass(frozen=True)
class Verdict:
    """What comes back from an evaluation beside its metrics: whose it is, of which round, and on how many targets.

    `fresh` is that of a `Receipt`.
    """

    client: int
    round: int
    targets: int
    seconds: float
    fresh: bool = False

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise BadRecord(f"'seconds' is {self.seconds}, expected a number >= 0")


@dataclass(frozen=True)
class Greeting:
    """What a node says about itself: which client it is, of how many, and what it holds.

    `samples` are those that it trains on, and `tests` those that it is tested on. `own` says that the data are the
    node's own, not a share of the scenario's; `shape` and `classes` are then compared with the server's. `worker` says
    that a process of this run stays beside the SuperNode.
    """

    client: int
    clients: int
    samples: int
    tests: int
    own: bool
    shape: str
    classes: int
    scenario: str
    version: str
    worker: bool = False
    protocol: int = PROTOCOL


def unpack_arrays(record: Any) -> Arrays:
    """The arrays of an ArrayRecord, in this machine's byte order.

    Raises
    ------
    BadRecord
        An array cannot be read.
    """
    try:
        return {k: _array(array) for k, array in record.items()}
    except Exception as error:  # bytes from elsewhere may be wrong in any way
        raise BadRecord(f"an array cannot be read: {shown(error)}") from error


def _array(sent: Any) -> Array:
    """One array from NumPy's file format; nothing is reserved for what a header only claims."""
    if sent.stype != "numpy.ndarray":
        raise BadRecord(f"found the format {shown(sent.stype)}, expected numpy.ndarray")
    file = io.BytesIO(sent.data)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise BadRecord(f"found version {version} of NumPy's format, expected 1.0 or 2.0")
    shape, by_columns, dtype = _HEADERS[version](file)
    if dtype.kind not in _KINDS:
        raise BadRecord(f"found the type {shown(dtype)}, expected numbers")
    content = memoryview(sent.data)[file.tell() :]
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(content) != wanted:
        raise BadRecord(f"found {len(content)} bytes, expected {wanted}")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def shown(value: object, longest: int = LONGEST_TEXT) -> str:
    """Whatever came from elsewhere, fit for a line of a log: short, and without control characters."""
    text = " ".join(str(value)[: 8 * longest].split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= longest else text[:longest] + "..."


def pack(record: Order | Receipt | Verdict | Greeting, arrays: Arrays | None = None, name: str = ARRAYS) -> Any:
    """A RecordDict with `record`, and with `arrays` under `name` where there are any."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    content = RecordDict({"fedsim": ConfigRecord(asdict(record))})
    if arrays is not None:
        content[name] = ArrayRecord({k: Array(v) for k, v in arrays.items()})
    return content


def unpack(kind: type[R], content: Mapping[str, Any]) -> R:
    """The record of a RecordDict.

    Raises
    ------
    BadRecord
        It is missing, has other keys or values of another type, numbers that are not finite or texts that are not fit
        to be shown, or speaks another protocol.
    """
    found = dict(content.get("fedsim") or {})
    spoken = found.get("protocol", PROTOCOL)
    if spoken != PROTOCOL:
        raise BadRecord(
            f"the other side speaks protocol {shown(spoken)}, this side {PROTOCOL}: install the same fedsim"
        )
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if sorted(found) != sorted(names):
        raise BadRecord(f"found the keys {shown(sorted(found))}, expected {sorted(names)}")
    for f in fields(kind):  # type: ignore[arg-type]
        value, wanted = found[f.name], {"int": int, "float": float, "str": str, "bool": bool}[str(f.type)]
        if type(value) is not wanted:
            raise BadRecord(f"'{f.name}' is {shown(repr(value))}, expected {wanted.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRecord(f"'{f.name}' is {value}, expected a finite number")
        if isinstance(value, str) and shown(value) != value:
            raise BadRecord(f"'{f.name}' is {shown(value)!r}, expected at most {LONGEST_TEXT} printable characters")
    return kind(**found)


def pack_metrics(verdict: Verdict, samples: int, values: Mapping[str, float]) -> Any:
    """A RecordDict with `verdict`, and a MetricRecord of `values` and the number of samples behind them."""
    from flwr.app import MetricRecord

    content = pack(verdict)
    content["metrics"] = MetricRecord({**values, EXAMPLES: samples})
    return content


def unpack_metrics(content: Mapping[str, Any], names: Sequence[str]) -> tuple[int, dict[str, float]]:
    """The number of samples, and the values of the metrics `names`.

    Raises
    ------
    BadRecord
        They are missing, or others, or no numbers.
    """
    found = dict(content.get("metrics") or {})
    if sorted(found) != sorted([*names, EXAMPLES]):
        raise BadRecord(f"found the metrics {shown(sorted(found))}, expected {sorted([*names, EXAMPLES])}")
    samples = found.pop(EXAMPLES)
    if type(samples) is not int:
        raise BadRecord(f"'{EXAMPLES}' is {shown(repr(samples))}, expected int")
    for name, value in found.items():
        if type(value) not in (int, float):
            raise BadRecord(f"'{name}' is {shown(repr(value))}, expected a number")
    return samples, {name: float(found[name]) for name in names}
