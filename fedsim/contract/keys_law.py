"""The law of the keys of local steps: an algorithm that takes `momentum` or `weight_decay` does something with them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.contract.bench import CLIENTS, Bench, ExactOracle, with_keys
from fedsim.contract.tools import LawBrokenError
from fedsim.core.fields import keys_of

_KEYS = {"weight_decay": 0.3, "momentum": 0.5}
_STEPS = 2  # momentum shows in the second


def keys_of_steps(bench: Bench) -> str:
    """Local steps differ with `weight_decay` and with `momentum`, where the algorithm takes these."""
    a, heard = bench.algorithm, list[str]()
    if a.needs.steps == "own":
        return "steps are by a rule of its own"
    before = _steps(bench, a)
    for key, value in _KEYS.items():
        if key not in keys_of(type(a)) or getattr(a, key) or (key == "momentum" and not bench.any_steps):
            continue
        other = with_keys(a, **{key: value})
        if other is None:
            continue
        if all(torch.equal(v, before[name]) for name, v in _steps(bench, other).items() if name in before):
            raise LawBrokenError(
                f"{key} {value:g} is accepted and changes nothing in local_step; take steps with self.step, which has "
                f'momentum, weight_decay and solver, say needs = Needs(steps="own"), or refuse {key} in check'
            )
        heard.append(key)
    return f"{' and '.join(heard)} count" if heard else "it takes none of momentum and weight_decay"


def _steps(bench: Bench, a: Algorithm) -> dict[str, Tensor]:
    """What local steps lead to, all of it ``[m, d]``."""
    received, keeps = bench.somewhere()
    local = a.start(received, keeps)
    oracle = ExactOracle(bench, slice(None), torch.full((CLIENTS, 1), a.lr, dtype=torch.float64))
    for _ in range(_STEPS if bench.any_steps else 1):
        local = a.local_step(oracle, local, received, keeps)
    return dict(local)
