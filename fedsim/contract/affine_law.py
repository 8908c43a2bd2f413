"""The law of affine directions: where an algorithm says them, steps along them are its local steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.client import directions_of, standing
from fedsim.contract.bench import CLIENTS, Bench, ExactOracle, with_keys
from fedsim.contract.tools import LawBrokenError, compare
from fedsim.core.fields import keys_of

_TOLERANCE = 1e-12
_STEPS = 3
_SETTINGS: tuple[dict[str, float], ...] = ({"clip": 0.1}, {"momentum": 0.5, "weight_decay": 0.1})
_HINT = "scale, pull and shift are to be those of direction: scale g + pull x + shift"
_RATE_HINT = "scale, pull and shift are the same at every rate: where oracle.lr is in direction, it has no such numbers"


def affine_directions(bench: Bench) -> str:
    """Where an algorithm has `affine_direction`, SGD along it is what its local steps do: also with a `clip`, with
    momentum and weight decay, and at a lower rate than `lr`."""
    a = bench.algorithm
    worst = [_furthest(bench, a, "", _HINT)]
    worst += [_furthest(bench, one, f" with {words}", _HINT) for one, words in _others(a)]
    worst.append(_furthest(bench, a, " at a lower rate, as lr_decay has it", _RATE_HINT, 0.5))
    known = [far for far in worst if far is not None]
    if known:
        return f"largest difference {max(known):.1e}"
    names = _standing(bench)
    if names:
        return f"steps are taken one by one: no affine directions are known of {', '.join(names)} in local"
    return "it has no affine directions, steps are taken one by one"


def _others(a: Algorithm) -> Iterator[tuple[Algorithm, str]]:
    """The algorithm with other keys of its steps, where it takes them and has none of them yet."""
    allowed = keys_of(type(a))
    for some in _SETTINGS:
        keys = {key: value for key, value in some.items() if key in allowed and not getattr(a, key)}
        other = with_keys(a, **keys) if keys else None
        if other is not None:
            yield other, " and ".join(f"{key} {value:g}" for key, value in keys.items())


def _standing(bench: Bench) -> list[str]:
    """What keeps the algorithm from steps along the affine directions that it has."""
    received, keeps = bench.somewhere()
    a, local = bench.algorithm, bench.algorithm.start(received, keeps)
    if a.rule is None or a.affine_direction(received, keeps) is None:
        return []
    return standing(local, ("x", *a.affine_beside(received, keeps)))


def _furthest(bench: Bench, a: Algorithm, under: str, hint: str, slower: float = 1.0) -> float | None:
    """How far steps along affine directions get from local steps; None: there are no such directions."""
    received, keeps = bench.somewhere()
    local = a.start(received, keeps)
    moved = None if a.rule is None else directions_of(a, local, received, keeps)
    if a.rule is None or moved is None:
        return None
    lr = torch.full((CLIENTS, 1), slower * a.lr, dtype=torch.float64)
    oracle, worst = ExactOracle(bench, slice(None), lr), 0.0
    rows = {name: local[name].clone() for name in moved}
    remembered = {name: {k: v.contiguous() for k, v in a.local_solver.start(x).items()} for name, x in rows.items()}
    calls = sum(1 if along.climb is None else 2 for along, _ in moved.values())
    if a.calls_per_step != calls:
        raise LawBrokenError(f"calls_per_step is {a.calls_per_step}, affine directions take {calls} gradients per step")
    for number in range(1, _STEPS + 1 if bench.any_steps else 2):
        local = a.local_step(oracle, local, received, keeps)
        for name, (along, times) in moved.items():
            x, rule = rows[name], a.rule.along(along)
            rule.step(x, rule.gradient(oracle.grad, x), lr * times, remembered[name])
            method = f"affine_{'direction' if name == 'x' else 'beside'}"
            what = f"{name} after local step {number} and along {method}{under}"
            worst = max(worst, compare(what, {name: local[name]}, {name: x}, _TOLERANCE, hint))
    return worst
