"""What a local solver promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.solvers import LocalSolver
from fedsim.contract.tools import LawBrokenError, compare, copied, global_seed, same_from_yaml, unchanged
from fedsim.core import rng
from fedsim.core.types import State

M, D, STEPS = 6, 5, 6
TOLERANCE = 1e-12
_HINT = "reduce with dim=-1, keepdim=True: a row may not depend on the others"


def solver_laws(solver: LocalSolver) -> Mapping[str, Callable[[], str]]:
    """Laws of one solver."""
    return {
        "form of points and state": partial(_form, solver),
        "arithmetic on the last axis": partial(_rows, solver),
        "inputs are not mutated": partial(_inputs, solver),
        "same seed, same numbers": partial(_seed, solver),
        "a step in place is x - lr v": partial(_in_place, solver),
        "weights of directions add up": partial(_weights, solver),
        "descends on a quadratic": partial(_descends, solver),
        "YAML round trip": partial(same_from_yaml, solver),
    }


def _directions() -> Tensor:
    keys = rng.key(0, "contract", np.arange(STEPS)[:, None, None], np.arange(M)[None, :, None])
    return torch.as_tensor(rng.normal(rng.fold(keys, np.arange(D)[None, None, :])))


def _walk(solver: LocalSolver, rows: slice | int = slice(None), constant: bool = False) -> tuple[Tensor, State]:
    """Some steps along given directions from 0, and what is remembered then."""
    directions = torch.ones(STEPS, M, D, dtype=torch.float64) if constant else _directions()
    lr = torch.linspace(0.01, 0.02, M, dtype=torch.float64).unsqueeze(1)[rows]
    x = torch.zeros(M, D, dtype=torch.float64)[rows]
    state = solver.start(x)
    for v in directions:
        x, state = solver.step(x, v[rows], lr, state)
    return x, state


def _form(solver: LocalSolver) -> str:
    x = torch.zeros(M, D, dtype=torch.float64)
    fresh = solver.start(x)
    found, after = _walk(solver)
    if found.shape != x.shape or found.dtype != x.dtype:
        raise LawBrokenError(f"step made {found.dtype} {list(found.shape)} of x, allowed: {x.dtype} {list(x.shape)}")
    for what, state in (("start", fresh), ("step", after)):
        for k, v in state.items():
            if list(v.shape) not in ([M, D], [M, 1]) or v.dtype != x.dtype:
                raise LawBrokenError(
                    f"{what}: '{k}' is {v.dtype} {list(v.shape)}, allowed: rows [{M}, {D}] or [{M}, 1]"
                )
    if set(fresh) != set(after):
        raise LawBrokenError(f"step remembers {sorted(after)}, allowed: what start gives, {sorted(fresh)}")
    return f"remembers {', '.join(fresh) or 'nothing'}"


def _rows(solver: LocalSolver) -> str:
    (x, state), worst = _walk(solver), 0.0
    for i in range(M):
        alone, kept = _walk(solver, i)
        mine = {"x": x[i], **{k: v[i] for k, v in state.items()}}
        worst = max(worst, compare(f"row {i} alone", mine, {"x": alone, **kept}, TOLERANCE, _HINT))
    return f"largest difference {worst:.1e}"


def _inputs(solver: LocalSolver) -> str:
    given = {
        "x": torch.zeros(M, D, dtype=torch.float64),
        "v": _directions()[0],
        "lr": torch.ones(M, 1, dtype=torch.float64),
    }
    state = solver.start(given["x"])
    before = copied(given), copied(state)
    solver.step(given["x"], given["v"], given["lr"], state)
    unchanged("step", given, before[0])
    unchanged("step", state, before[1])
    return "x, direction and state are as they were"


def _seed(solver: LocalSolver) -> str:
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            found.append({"x": _walk(solver)[0]})
    compare("two walks along the same directions", found[0], found[1], 0.0, "a solver draws nothing")
    return "bit for bit"


def _in_place(solver: LocalSolver) -> str:
    if not solver.in_place:
        return "not offered"
    x, v = _directions()[0], _directions()[1]
    lr = torch.full((M, 1), 0.1, dtype=torch.float64)
    found, _ = solver.step(x, v, lr, solver.start(x))
    compare("one step", {"x": x - lr * v}, {"x": found}, TOLERANCE, "say in_place = False")
    return "x - lr v"


def _weights(solver: LocalSolver) -> str:
    """Along one constant direction it goes as far as the weights that it says."""
    said = solver.weight_sum(torch.full((M, 1), float(STEPS), dtype=torch.float64))
    if said is None:
        return "a round's change is no weighted sum"
    if getattr(solver, "weight_decay", 0.0) > 0:
        return "not with weight decay"
    x, _ = _walk(solver, constant=True)
    lr = torch.linspace(0.01, 0.02, M, dtype=torch.float64).unsqueeze(1)
    compare("distance over lr", {"x": (-x / lr)[:, :1]}, {"x": said}, 1e-9, "weight_sum says otherwise")
    return f"{float(said[0]):.4g} for {STEPS} steps"


def _descends(solver: LocalSolver) -> str:
    x = torch.full((1, D), 3.0, dtype=torch.float64)
    lr, state, first = torch.full((1, 1), 0.02, dtype=torch.float64), solver.start(x), float(x.norm())
    for _ in range(400):
        x, state = solver.step(x, x, lr, state)
    if not float(x.norm()) < 0.9 * first:
        raise LawBrokenError(
            f"|x| was {first:.3g} and is {float(x.norm()):.3g} after 400 steps along x; descent is - v"
        )
    return f"from {first:.3g} to {float(x.norm()):.2g}"
