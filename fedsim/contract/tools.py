"""What laws are made of: a result per law, comparisons that say where two sets of tensors differ, and by how much."""

from __future__ import annotations

import dataclasses
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from fedsim.algorithms.round import Effort, Round
from fedsim.contract.bench import CLIENTS, DIMENSION, START
from fedsim.core.documents import Document, override
from fedsim.core.errors import InputError, Problem
from fedsim.core.fields import dump_part, keys_of, make_part
from fedsim.core.registry import KINDS, load_object, lookup
from fedsim.core.returned import WrongFormError
from fedsim.core.types import State
from fedsim.models.draws import global_draws

UNSEEDED = "it draws from a generator that the seed does not reach (a global one, or one of its own without a seed)"
"""What a part does that gives other numbers in a second call, if it keeps nothing."""
_SEEDED = "same seed"
"""How the names of laws begin on which comparisons of two calls depend."""
_SETTINGS = {"algorithm": " (inherit ServerAlgorithm or GossipAlgorithm)", "participation": ""}
"""Kinds of parts that are for a server or for a graph, and how one says it."""


@dataclass(frozen=True)
class CheckResult:
    """One law: whether it holds, and the largest difference found or what to look at."""

    name: str
    passed: bool
    detail: str
    differs: str | None = None
    """Where two calls gave other numbers: what differs, without advice."""


class LawBrokenError(Exception):
    """A law does not hold; the message says where and by how much."""


class DiffersError(LawBrokenError):
    """Two calls that should agree do not; `what` is the message without the advice."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


def explained(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The same, where parts that give other numbers in every call get no other advice than to mend that."""
    broken = next((r for r in results if r.name.startswith(_SEEDED) and not r.passed), None)
    if broken is None:
        return list(results)
    follows = f"may follow from '{broken.name}', which has to hold first"
    return [r if r is broken or r.differs is None else replace(r, detail=f"{r.differs}; {follows}") for r in results]


def part_of(kind: str, name: str, settings: Sequence[str]) -> Any:
    """The part called `name`, made of ``key=value`` settings, to be held to the laws of its kind.

    Raises
    ------
    InputError
        There is no such part, it is of another kind or lacks methods, or the settings are wrong or do not suffice.
    """
    part, base = lookup(kind, name), load_object(KINDS[kind].base or "")
    values = override(Document({}), list(settings)).values
    if hasattr(base, "from_function") and not isinstance(part, type):
        return base.from_function(name, part, values)
    if not (isinstance(part, type) and issubclass(part, base) and dataclasses.is_dataclass(part)):
        raise InputError(f"'{name}' is {part!r}, allowed: a frozen dataclass that inherits fedsim.{base.__name__}")
    missing = sorted(getattr(part, "__abstractmethods__", ()))
    if missing:
        raise InputError(f"'{name}' does not define {', '.join(missing)}, allowed: a {kind} that does")
    if kind in _SETTINGS and getattr(part, "setting", None) not in ("server", "gossip"):
        raise InputError(f"'{name}' does not say its setting; allowed: server, gossip{_SETTINGS[kind]}")
    try:
        return make_part(part, values)
    except InputError as error:
        raise with_advice(error, part) from None


def with_advice(error: InputError, part: type[Any]) -> InputError:
    """The same problems, those with keys of `part` with the option that sets them."""

    def advised(problem: Problem) -> Problem:
        key = (problem.key or "").rpartition(".")[2]
        if key not in keys_of(part):
            return problem
        return replace(problem, message=f"{problem.message}; give --set {key}=...")

    return InputError(advised(p) for p in error.problems)


def checked(name: str, test: Callable[[], str], part: type[Any] | None = None) -> CheckResult:
    """Whether a law holds.

    Raises
    ------
    InputError
        The `part` itself asks for other keys than it was given.
    """
    try:
        return CheckResult(name, True, test())
    except InputError as error:
        advised = error if part is None else with_advice(error, part)
        if str(advised) != str(error):
            raise advised from None
        return CheckResult(name, False, f"{type(error).__name__}: {error} ({_where(error)})")
    except DiffersError as broken:
        return CheckResult(name, False, str(broken), broken.what)
    except (LawBrokenError, WrongFormError) as broken:
        return CheckResult(name, False, str(broken))
    except Exception as error:  # somebody's own code may fail in any way
        return CheckResult(name, False, f"{type(error).__name__}: {error} ({_where(error)})")


def _where(error: Exception) -> str:
    """The innermost line of the algorithm's own code, or of anything."""
    frames = traceback.extract_tb(error.__traceback__)
    package, torch_home = Path(__file__).parent.parent, Path(torch.__file__).parent
    outside = [f for f in frames if not any(home in Path(f.filename).parents for home in (package, torch_home))]
    built_in = [f for f in frames if (package / "algorithms") in Path(f.filename).parents]
    frame = (outside or built_in or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"


def compare(where: str, one: State, other: State, tolerance: float, hint: str) -> float:
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
            raise DiffersError(f"{where} '{key}'{row} differs by {largest:.1e}, allowed: {tolerance:g}", hint)
        worst = max(worst, largest)
    return worst


def form(what: str, tensors: Any, leading: tuple[int, ...]) -> None:
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


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, (Effort, Round)):
        return {f.name: copied(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return None


def unchanged(method: str, given: Any, copy: Any) -> None:
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


def same_from_yaml(part: Any) -> str:
    """Written to a scenario and read again it is the same part."""
    text = yaml.safe_dump(dump_part(part))
    try:
        again = make_part(type(part), yaml.safe_load(text))
    except InputError as error:
        raise LawBrokenError(f"what it writes cannot be read again: {error}") from None
    if again != part:
        keys = [f.name for f in dataclasses.fields(part) if getattr(part, f.name) != getattr(again, f.name)]
        raise LawBrokenError(f"{', '.join(keys) or 'it'} changes: {part} becomes {again}")
    return f"{len(dump_part(part))} keys"


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Set the global generators, and put them back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - what a user's code may use
    with global_draws():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
