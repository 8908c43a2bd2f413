"""Whether what a part hands back has the form that was asked for: a wrong one is named, before it is broadcast.

A check is one comparison of shapes; nothing is computed, and no device is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.core.errors import RunError
from fedsim.core.modules import plain_name
from fedsim.core.rules import Affine, Climb

_PACKAGE = __name__.partition(".")[0]


class WrongFormError(RunError):
    """A part handed back something of another form than was asked for; the message names its method."""


def formed(found: Any, shape: Sequence[int], dtype: torch.dtype | None, part: object, *methods: str) -> Tensor:
    """`found`, a tensor of that shape and type (None: any) that one of `methods` of `part` made.

    Raises
    ------
    WrongFormError
        It is something else. The first of the methods that is somebody's own is named.
    """
    if isinstance(found, Tensor) and found.shape == shape and (dtype is None or found.dtype == dtype):
        return found
    raise WrongFormError(f"{made_by(part, *methods)} made {said(found)}, allowed: {_allowed([list(shape)], dtype)}")


def like(found: Any, given: Tensor, part: object, *methods: str) -> Tensor:
    """As `formed`, where the form is that of `given`."""
    return formed(found, given.shape, given.dtype, part, *methods)


def by_row(
    found: Any, widths: Mapping[str, Tensor] | None, m: int, x: Tensor, part: object, method: str
) -> Mapping[str, Tensor]:
    """`found`, tensors by name that hold a row for each of m clients, or one row for all of them.

    Parameters
    ----------
    widths : tensors of the same names whose last axes and types they have; None: any names, last axes d or 1.
    x : parameters ``[..., d]``.

    Raises
    ------
    WrongFormError
        It is something else.
    """
    _mapping(found, part, method)
    if widths is not None and found.keys() != widths.keys():
        whose, names = made_by(part, method), ", ".join(widths) or "nothing"
        raise WrongFormError(f"{whose} made {', '.join(map(str, found)) or 'nothing'}, allowed: {names}")
    for name, v in found.items():
        width = None if widths is None else widths[name].shape[-1]
        fits = isinstance(v, Tensor) and v.dim() in (1, 2) and (v.dim() == 1 or v.shape[0] in (1, m))
        if fits and (v.shape[-1] in (1, x.shape[-1]) if width is None else v.shape[-1] == width):
            continue
        allowed = [[m, w] for w in ((x.shape[-1], 1) if width is None else (width,))]
        raise WrongFormError(f"{made_by(part, method)} made '{name}' {said(v)}, allowed: {_allowed(allowed, None)}")
    return found  # type: ignore[no-any-return]


def same_form(found: Any, given: Mapping[str, Tensor], part: object, *methods: str) -> Mapping[str, Tensor]:
    """`found`, tensors by name, among them all of `given`, in the same form.

    Raises
    ------
    WrongFormError
        One of them is missing, or of another form.
    """
    _mapping(found, part, *methods)
    for name, v in given.items():
        mine = found.get(name)
        if isinstance(mine, Tensor) and mine.shape == v.shape and mine.dtype == v.dtype:
            continue
        if name in found and not isinstance(v, Tensor) and getattr(mine, "shape", None) == v.shape:
            continue  # rows that lie elsewhere
        what = f"'{name}' {said(mine)}" if name in found else f"no '{name}'"
        raise WrongFormError(f"{made_by(part, *methods)} made {what}, allowed: {_allowed([list(v.shape)], v.dtype)}")
    return found  # type: ignore[no-any-return]


def affine(found: Any, x: Tensor, part: object, method: str) -> Affine | None:
    """`found`, directions of rows x ``[m, d]`` in numbers; None: there are none.

    Raises
    ------
    WrongFormError
        It is something else.
    """
    if found is None:
        return None
    whose = made_by(part, method)
    if not isinstance(found, Affine):
        kind = type(found).__name__
        raise WrongFormError(f"{whose} made {kind}, allowed: an Affine of fedsim.core.rules, or None")
    for name in ("scale", "pull"):
        if not isinstance(value := getattr(found, name), int | float):
            raise WrongFormError(f"{whose} made {name} {kind_of(value)}, allowed: a number")
    climb = found.climb
    if not isinstance(climb, Climb | None):
        raise WrongFormError(f"{whose} made climb {kind_of(climb)}, allowed: a Climb of fedsim.core.rules, or None")
    for name in () if climb is None else ("rho", "share"):
        if not isinstance(value := getattr(climb, name), int | float):
            raise WrongFormError(f"{whose} made a climb with {name} {kind_of(value)}, allowed: a number")
    v, shapes = found.shift, [list(x.shape), list(x.shape[-1:])]
    if v is None or (isinstance(v, Tensor) and list(v.shape) in shapes and v.dtype == x.dtype):
        return found
    raise WrongFormError(f"{whose} made shift {said(v)}, allowed: {_allowed(shapes, x.dtype)}, or None")


def affine_beside(
    found: Any, local: Mapping[str, Tensor], part: object, method: str
) -> dict[str, tuple[Affine, float]]:
    """`found`, directions and rates of models in `local` besides x.

    Raises
    ------
    WrongFormError
        It is something else.
    """
    _mapping(found, part, method)
    for name, value in found.items():
        if name not in local or name == "x":
            others = ", ".join(k for k in local if k != "x") or "nothing"
            raise WrongFormError(f"{made_by(part, method)} made '{name}', allowed: {others}")
        pair = value if isinstance(value, tuple) and len(value) == 2 else (None, None)
        if pair[0] is None or not isinstance(pair[1], int | float):
            kind = kind_of(value)
            raise WrongFormError(f"{made_by(part, method)} made '{name}' {kind}, allowed: a pair (Affine, rate)")
        affine(pair[0], local[name], part, method)
    return dict(found)


def aggregating(
    aggregate: Callable[..., Tensor], columns: int | None, part: object, *methods: str
) -> Callable[..., Tensor]:
    """`aggregate` whose results are looked at: a server's, or that of so many nodes of a graph (`columns`)."""

    def looked_at(values: Tensor, *given: Tensor) -> Tensor:
        made = aggregate(values, *given)
        leading = given[0].shape[:-1] if given else () if columns is None else (columns,)
        return formed(made, (*leading, *values.shape[1:]), values.dtype, part, *methods)

    return looked_at


def said(found: Any) -> str:
    """The form of something: ``torch.float64 [3, 2]``, or its type."""
    if isinstance(found, Tensor):
        return f"{found.dtype} {list(found.shape)}"
    return f"{type(found).__name__}, no tensor"


def kind_of(found: Any) -> str:
    """The form of a tensor, the type of anything else."""
    return said(found) if isinstance(found, Tensor) else type(found).__name__


def made_by(part: object, *methods: str) -> str:
    """The part and its method that hands something back, and where that is written."""
    method = next((name for name in methods if not _ours(_function(part, name))), methods[0])
    function, owner = _function(part, method), type(part)
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    whose = owner.__name__ if owner.__module__.partition(".")[0] == _PACKAGE else _own(owner)
    return f"{whose}.{method}{where}"


def _own(owner: type[Any]) -> str:
    return f"your own {plain_name(owner.__module__)}:{owner.__qualname__}"


def _function(part: object, method: str) -> Any:
    return getattr(type(part), method, None)


def _ours(function: Any) -> bool:
    return str(getattr(function, "__module__", _PACKAGE)).partition(".")[0] == _PACKAGE


def _mapping(found: Any, part: object, *methods: str) -> None:
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise WrongFormError(f"{made_by(part, *methods)} made {kind}, allowed: a dict of tensors")


def _allowed(shapes: list[list[int]], dtype: torch.dtype | None) -> str:
    kind = "a tensor" if dtype is None else str(dtype)
    return f"{kind} {' or '.join(map(str, shapes))}"
