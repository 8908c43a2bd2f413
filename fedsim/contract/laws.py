"""The laws every algorithm has to keep; ``fedsim check PKG.MOD:CLASS`` checks them on anybody's own.

They are checked on small generated quadratics (`bench`): different objectives, unequal local steps, noisy
gradients, float64. An exception inside the algorithm is a failed check that names it, never a crash.
"""

from __future__ import annotations

import dataclasses
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Effort, Report, Round
from fedsim.contract.bench import CLIENTS, DIMENSION, EVERYBODY, START, Bench, ExactOracle
from fedsim.core.documents import Document, override
from fedsim.core.errors import InputError
from fedsim.core.fields import dump_part, make_part
from fedsim.core.registry import lookup
from fedsim.core.types import State

ROUNDS = 4
DESCENT_ROUNDS = 100
TOLERANCE = 1e-12
_PARTS = ("what is sent", "what stays", "what is kept")
_SHARDS: Mapping[str, list[list[int]]] = {
    "in two shards": [[0, 2, 3, 5], [1, 4]],
    "in three shards": [[5, 0], [1, 2], [3, 4]],
    "one by one": [[i] for i in range(CLIENTS)],
}


@dataclass(frozen=True)
class CheckResult:
    """One law: whether it holds, and the largest difference found or what to look at."""

    name: str
    passed: bool
    detail: str


class LawBrokenError(Exception):
    """A law does not hold; the message says where and by how much."""


def check_algorithm(name: str, settings: list[str]) -> list[CheckResult]:
    """Check every law on the algorithm called `name` (registered, or ``pkg.mod:Class``).

    Parameters
    ----------
    settings : ``key=value`` for the algorithm's keys, values in YAML.

    Raises
    ------
    InputError
        No such algorithm, it is not one, or the settings are wrong.
    """
    kind = lookup("algorithm", name)
    if not (isinstance(kind, type) and issubclass(kind, Algorithm) and dataclasses.is_dataclass(kind)):
        raise InputError(
            f"'{name}' is {kind!r}, allowed: a frozen dataclass that inherits fedsim.algorithms.base.Algorithm"
        )
    missing = sorted(kind.__abstractmethods__)
    if missing:
        raise InputError(
            f"'{name}' does not define {', '.join(missing)}, allowed: an algorithm that defines all of its methods"
        )
    if getattr(kind, "setting", None) not in ("server", "gossip"):
        raise InputError(f"'{name}' has no setting, allowed: inherit ServerAlgorithm or GossipAlgorithm")
    algorithm = make_part(kind, override(Document({}), settings).values)
    results = [_checked("keys fit together", lambda: _keys(algorithm))]
    if not results[0].passed:
        return results
    bench = Bench(algorithm)
    return results + [_checked(law, lambda test=test: test(bench)) for law, test in LAWS.items()]  # type: ignore[misc]


# --- the laws ---------------------------------------------------------------------------------------------------------


def same_in_shards(bench: Bench) -> str:
    """Stacked = sharded = single, over several rounds with what clients keep between them."""
    whole = list(bench.simulate(EVERYBODY, ROUNDS, bench.noise))
    ways: dict[str, tuple[list[list[int]], int | None]] = {k: (v, None) for k, v in _SHARDS.items()}
    ways["in chunks of two rows"] = (EVERYBODY, 2)
    worst = 0.0
    for how, (shards, chunk_rows) in ways.items():
        for (what, one), (_, other) in zip(
            whole, bench.simulate(shards, ROUNDS, bench.noise, chunk_rows=chunk_rows), strict=True
        ):
            worst = max(worst, _compare(f"all clients at once and {how}: {what}", one, other, TOLERANCE, _ROWS_HINT))
    return f"largest difference {worst:.1e}"


def same_seed(bench: Bench) -> str:
    """The same keys give the same numbers, whatever the global generators are at."""
    runs = []
    for seed in (1, 2):
        with _global_seed(seed):
            runs.append(list(bench.simulate(EVERYBODY, ROUNDS, bench.noise)))
    hint = (
        "it draws from a global generator or keeps something between runs; draw from keys (fedsim.rng) and keep nothing"
    )
    for (what, one), (_, other) in zip(*runs, strict=True):
        _compare(f"two runs of the same seed: {what}", one, other, 0.0, hint)
    return "bit for bit"


def inputs_untouched(bench: Bench) -> str:
    """No method changes what it is given."""
    task, a = bench.task(0.0), bench.algorithm
    calls = 0

    def call(method: str, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        copies = [_copy(v) for v in arguments]
        result = getattr(a, method)(*arguments)
        for given, copy in zip(arguments, copies, strict=True):
            _unchanged(method, given, copy)
        return result

    initial = bench.initial(task)
    state = call("init", initial)
    keeps = call("init_client", task.initial().expand(CLIENTS, -1).clone())
    for number in (1, 2):
        clients, _ = bench.cohort(number, full=True)
        steps = np.full(CLIENTS, 2 if bench.any_steps else 1)
        received = call("broadcast", state)
        info, aggregate = bench.round(number, clients, steps)
        local = {k: v.expand(CLIENTS, -1).clone() for k, v in call("start", received, keeps).items()}
        oracle = ExactOracle(bench, slice(None), info.lr)
        for _ in range(int(steps[0])):
            call("direction", oracle, local["x"], received, keeps)
            local = call("local_step", oracle, local, received, keeps)
        travels, stays, keeps = call("message", local, received, keeps, Effort(info.steps, info.lr))
        state = call("combine", state, travels | stays, info, aggregate)
    return f"{calls} calls left their inputs as they were"


def last_axis_only(bench: Bench) -> str:
    """The client's half gives for rows ``[m, d]`` what it gives for each row ``[d]`` alone."""
    task, a = bench.task(0.0), bench.algorithm
    generator = torch.Generator().manual_seed(0)

    def some(v: Tensor) -> Tensor:
        return v + torch.randn(v.shape, generator=generator, dtype=v.dtype)

    state = {k: some(v) for k, v in a.init(task.initial().expand(CLIENTS, -1).clone()).items()}
    received = {k: v.expand(CLIENTS, -1).clone() for k, v in a.broadcast(state).items()}
    keeps = {k: some(v) for k, v in a.init_client(task.initial().expand(CLIENTS, -1).clone()).items()}
    steps = 2 if bench.any_steps else 1
    lr = torch.full((CLIENTS, 1), a.lr, dtype=torch.float64)

    def half(rows: Any) -> Report:
        mine, kept = {k: v[rows] for k, v in received.items()}, {k: v[rows] for k, v in keeps.items()}
        local, oracle = a.start(mine, kept), ExactOracle(bench, rows, lr[rows])
        for _ in range(steps):
            local = a.local_step(oracle, local, mine, kept)
        return a.message(local, mine, kept, Effort(torch.full_like(lr, steps)[rows], lr[rows]))

    stacked, worst = half(slice(None)), 0.0
    for i in range(CLIENTS):
        for what, rows, row in zip(_PARTS, stacked, half(i), strict=True):
            mine = {k: v[i] if v.dim() > 1 else v for k, v in rows.items()}
            where = f"client {i} as a row of [m, d] and alone as [d]: {what}"
            worst = max(worst, _compare(where, mine, row, TOLERANCE, _ROWS_HINT))
    return f"largest difference {worst:.1e}"


def right_form(bench: Bench) -> str:
    """States and messages are dicts of tensors ``[..., d]`` or ``[..., 1]`` of the parameters' dtype."""
    a, task = bench.algorithm, bench.task(0.0)
    rows = (CLIENTS,) if bench.gossip else ()
    x = task.initial()
    _form("init", a.init(bench.initial(task)), rows)
    _form("broadcast", a.broadcast(a.init(bench.initial(task))), rows)
    _form("init_client", a.init_client(x.unsqueeze(0)), (1,))
    _one_client(bench)
    state: State = {}
    for what, tensors in bench.simulate(EVERYBODY, 2, bench.noise, full=True):
        state = tensors if what.endswith("state") else state
        leading = rows if what.endswith("state") else (CLIENTS,)
        _form(what, tensors, leading)
    if "x" not in state or state["x"].shape != (*rows, DIMENSION):
        found = f"shape {list(state['x'].shape)}" if "x" in state else f"keys {list(state)}"
        raise LawBrokenError(f"the state has {found}, allowed: 'x' of shape {[*rows, DIMENSION]}, the parameters")
    return f"state {', '.join(state)}"


def _one_client(bench: Bench) -> None:
    """What the methods of the client's half return."""
    a, x = bench.algorithm, bench.task(0.0).initial().unsqueeze(0)
    received, kept = {k: v.reshape(1, -1) for k, v in a.broadcast(a.init(x)).items()}, a.init_client(x)
    one = torch.ones((1, 1), dtype=torch.float64)
    local = a.start(received, kept)
    _form("start", local, (1,))
    local = a.local_step(ExactOracle(bench, slice(0, 1), a.lr * one), local, received, kept)
    _form("local_step", local, (1,))
    result = a.message(local, received, kept, Effort(one, a.lr * one))
    if not (isinstance(result, tuple) and len(result) == len(_PARTS)):
        found = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        raise LawBrokenError(f"message gave {found}, allowed: three dicts, {', '.join(_PARTS)}")
    for what, tensors in zip(_PARTS, result, strict=True):
        _form(f"message, {what}", tensors, (1,))
    travels, stays, _ = result
    if stays and not bench.gossip:
        raise LawBrokenError(
            f"message lets {', '.join(stays)} stay with the client, where the server cannot combine it; "
            "allowed: nothing stays under a server (the second dict is empty)"
        )
    if both := sorted(set(travels) & set(stays)):
        raise LawBrokenError(f"message sends {', '.join(both)} and lets it stay, allowed: one of the two")


def yaml_round_trip(bench: Bench) -> str:
    """Written to a scenario and read again it is the same algorithm."""
    a = bench.algorithm
    text = yaml.safe_dump(dump_part(a))
    try:
        again = make_part(type(a), yaml.safe_load(text))
    except InputError as error:
        raise LawBrokenError(f"what it writes cannot be read again: {error}") from None
    if again != a:
        keys = [f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(again, f.name)]
        raise LawBrokenError(f"{', '.join(keys) or 'it'} changes: {a} becomes {again}")
    return f"{len(dump_part(a))} keys"


def descends(bench: Bench) -> str:
    """On a strongly convex quadratic with exact gradients and everybody taking part the loss falls."""
    task = bench.task(0.0)
    assert task._optimum is not None
    lowest = task.evaluate(task._optimum)["train_loss"]
    first = task.evaluate(task.initial())["train_loss"] - lowest
    last: State = {}
    for what, tensors in bench.simulate(EVERYBODY, DESCENT_ROUNDS, 0.0, full=True):
        last = tensors if what.endswith("state") else last
    x = last["x"].mean(0) if bench.gossip else last["x"]
    gap = task.evaluate(x)["train_loss"] - lowest
    if not gap <= 0.9 * first:
        grew = "not finite" if not np.isfinite(gap) else f"{gap:.3g}"
        raise LawBrokenError(
            f"the loss started {first:.3g} above its minimum and after {DESCENT_ROUNDS} rounds is {grew} above it, "
            f"allowed: at most {0.9 * first:.3g}; is a sign wrong (delta = local - received, so descent is + delta), "
            "or does nothing reach the state?"
        )
    return f"from {first:.3g} above the minimum to {gap:.3g}"


LAWS: Mapping[str, Callable[[Bench], str]] = {
    "form of states and messages": right_form,
    "inputs are not mutated": inputs_untouched,
    "stacked = sharded = single": same_in_shards,
    "arithmetic on the last axis": last_axis_only,
    "same seed, same numbers": same_seed,
    "descends on a quadratic": descends,
    "YAML round trip": yaml_round_trip,
}


# --- helpers ----------------------------------------------------------------------------------------------------

_ROWS_HINT = (
    "something mixes clients, counts them or depends on their order; reduce with dim=-1, keepdim=True "
    "(fedsim.core.types.norm, dot)"
)


def _checked(name: str, test: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, True, test())
    except LawBrokenError as broken:
        return CheckResult(name, False, str(broken))
    except Exception as error:  # somebody's own code may fail in any way
        return CheckResult(name, False, f"{type(error).__name__}: {error} ({_where(error)})")


def _where(error: Exception) -> str:
    """The innermost line of the algorithm's own code, or of anything."""
    frames = traceback.extract_tb(error.__traceback__)
    package, torch_home = Path(__file__).parent, Path(torch.__file__).parent
    outside = [f for f in frames if not any(home in Path(f.filename).parents for home in (package, torch_home))]
    built_in = [f for f in frames if (package / "algorithms") in Path(f.filename).parents]
    frame = (outside or built_in or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"


def _keys(algorithm: Algorithm) -> str:
    try:
        algorithm.check(CLIENTS)
    except InputError as error:
        raise LawBrokenError(str(error)) from None
    return f"{type(algorithm).__name__}, {algorithm.setting}"


def _compare(where: str, one: State, other: State, tolerance: float, hint: str) -> float:
    """The largest difference; LawBrokenError where it exceeds `tolerance` times the largest number (or the start's)."""
    if set(one) != set(other):
        raise LawBrokenError(f"{where} has keys {sorted(one)} and {sorted(other)}; {hint}")
    worst = 0.0
    for key, v in one.items():
        if v.shape != other[key].shape:
            raise LawBrokenError(f"{where} '{key}' has shapes {list(v.shape)} and {list(other[key].shape)}; {hint}")
        for tensor in (v, other[key]):
            if not bool(torch.isfinite(tensor).all()):
                raise LawBrokenError(f"{where} '{key}' is not finite")
        difference = (v - other[key]).abs()
        largest = float(difference.max()) if difference.numel() else 0.0
        if largest > tolerance * max(float(v.abs().max()), max(START)):
            row = f" of client {int(difference.amax(-1).argmax())}" if v.dim() == 2 and len(v) == CLIENTS else ""
            raise LawBrokenError(f"{where} '{key}'{row} differs by {largest:.1e}, allowed: {tolerance:g}; {hint}")
        worst = max(worst, largest)
    return worst


def _form(what: str, tensors: Any, leading: tuple[int, ...]) -> None:
    if not isinstance(tensors, dict):
        raise LawBrokenError(f"{what}: found {type(tensors).__name__}, allowed: a dict of tensors")
    for key, v in tensors.items():
        if not isinstance(v, Tensor):
            raise LawBrokenError(f"{what}: '{key}' is {type(v).__name__}, allowed: a tensor")
        allowed = [[*leading, DIMENSION], [*leading, 1]]
        if list(v.shape) not in allowed:
            raise LawBrokenError(f"{what}: '{key}' has shape {list(v.shape)}, allowed: {allowed[0]} or {allowed[1]}")
        if v.dtype != torch.float64:
            raise LawBrokenError(f"{what}: '{key}' is {v.dtype}, allowed: the parameters' own, here torch.float64")


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    if isinstance(value, (Effort, Round)):
        return {f.name: _copy(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return None


def _unchanged(method: str, given: Any, copy: Any) -> None:
    if isinstance(given, Tensor):
        given, copy = {"params": given}, {"params": copy}
    elif isinstance(given, (Effort, Round)):
        given = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    if not isinstance(given, dict):
        return
    if set(given) != set(copy):
        raise LawBrokenError(f"{method} added or removed keys of its input: {sorted(copy)} became {sorted(given)}")
    for key, v in given.items():
        if isinstance(v, Tensor) and not torch.equal(v, copy[key]):
            change = float((v - copy[key]).abs().max()) if v.shape == copy[key].shape else float("nan")
            raise LawBrokenError(
                f"{method} changed its input '{key}' by up to {change:.1e}; make a new tensor, do not work in place"
            )


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Set the global generators, and put them back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - what a user's code may use
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
