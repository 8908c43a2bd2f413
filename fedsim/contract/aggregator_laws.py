"""What a rule of a server promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.contract.graph_rule_laws import graph_rule_laws
from fedsim.contract.message_laws import GLOBAL_HINT, ROUNDS, TOLERANCE, M, messages_of
from fedsim.contract.tools import LawBrokenError, compare, copied, global_seed, same_from_yaml, unchanged
from fedsim.core.job import Contribution, RunFacts
from fedsim.core.types import Message, State
from fedsim.messages.aggregators import Aggregator
from fedsim.messages.graph_rules import GraphRule
from fedsim.messages.vectors import vectors

_MOST, _SETTLED, _FAR = 500, 1000, 1e6


def aggregator_laws(rule: Aggregator) -> Mapping[str, Callable[[], str]]:
    """Laws of one aggregator, a server's or that of a graph's nodes."""
    if isinstance(rule, GraphRule):
        return graph_rule_laws(rule)
    tests = {
        "form of what it returns": _form,
        "the weights' mass is kept": _mass,
        "it is as linear as it says": _linear,
        "attackers lead it nowhere": _attackers,
        "what is not finite is left out": _finite,
        "what it keeps can be resumed": _state,
        "inputs are not mutated": _inputs,
        "same seed, same numbers": _seed,
    }
    laws: dict[str, Callable[[], str]] = {law: partial(_of_enough, rule, test) for law, test in tests.items()}
    return {**laws, "YAML round trip": partial(same_from_yaml, rule)}


class _Bench:
    """Rounds of as many clients as the rule needs, at least `M`."""

    def __init__(self, rule: Aggregator) -> None:
        self.rule = rule
        enough = (m for m in range(M, _MOST) if rule.lacks(np.arange(m)) is None)
        found = next(enough, None)
        if found is None:
            raise LawBrokenError(f"it needs more than {_MOST} messages: {rule.lacks(np.arange(_MOST))}")
        self.m = found

    def messages(self, number: int) -> Message:
        return messages_of(number, self.m)

    def weights(self, scale: float = 1.0) -> Tensor:
        share = torch.arange(1.0, self.m + 1, dtype=torch.float64)
        return scale * share / share.sum()

    def fresh(self, messages: Message) -> State:
        return self.rule.fresh({k: v[:1] for k, v in messages.items()})

    def bound(self, messages: Message, weights: Tensor | None = None, state: State | None = None) -> Any:
        one = np.ones(self.m, dtype=np.int64)
        return self.rule.bind_in(
            messages,
            self.weights() if weights is None else weights,
            self.fresh(messages) if state is None else state,
            Contribution(1, np.arange(self.m), one, one),
            RunFacts(5, self.m),
        )

    def spared(self) -> list[int]:
        """Rows that attackers may have: from the last one on, but for a client that the rule trusts."""
        trusted = getattr(self.rule, "root", None)
        return [i for i in reversed(range(self.m)) if i != trusted]


def _of_enough(rule: Aggregator, test: Callable[[_Bench], str]) -> str:
    return test(_Bench(rule))


def _form(bench: _Bench) -> str:
    messages = bench.messages(1)
    aggregate, _ = bench.bound(messages)
    for k, v in messages.items():
        found = aggregate(v)
        if not isinstance(found, Tensor) or found.shape != v.shape[1:] or found.dtype != v.dtype:
            what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise LawBrokenError(f"of '{k}' {list(v.shape)} it made {what}, allowed: {v.dtype} {list(v.shape[1:])}")
        if not bool(torch.isfinite(found).all()):
            raise LawBrokenError(f"of '{k}' it made numbers that are not finite")
    return f"{bench.m} rows to one"


def _mass(bench: _Bench) -> str:
    """Where all rows are alike, v, it returns sum(w) v: weights of virtual time are not lost.

    A rule that keeps something may take some rounds to get there.
    """
    worst = 0.0
    for scale in (1.0, 0.7, 2.5):
        weights = bench.weights(scale)
        alike = {k: v[:1].expand(bench.m, -1).clone() for k, v in bench.messages(2).items()}
        state = bench.fresh(alike)
        for _ in range(_SETTLED):
            aggregate, after = bench.bound(alike, weights, state)
            if all(torch.equal(v, state[k]) for k, v in after.items()):
                break
            state = after
        for k, v in alike.items():
            where = f"equal rows with weights that sum to {scale:g}: '{k}'"
            hint = "return sum(w) times a mean of the rows, so that what virtual time weighs is kept"
            worst = max(worst, compare(where, {k: aggregate(v)}, {k: scale * v[0]}, 1e-9, hint))
    return f"largest difference {worst:.1e}"


def _linear(bench: _Bench) -> str:
    messages, weights = bench.messages(3), bench.weights(0.9)
    aggregate, _ = bench.bound(messages, weights)
    worst = max(float((aggregate(v) - weights @ v).abs().max()) for v in messages.values())
    if bench.rule.linear and worst > TOLERANCE:
        raise LawBrokenError(f"linear = True, but it differs from weights @ values by {worst:.1e}; say linear = False")
    return f"linear = {bench.rule.linear}, {worst:.1e} from the weighted sum"


def _attackers(bench: _Bench) -> str:
    """As many messages beyond all bounds as it tolerates leave the result near the others."""
    count = bench.rule.tolerates(bench.m)
    evil = bench.spared()[:count]
    messages = bench.messages(6)
    largest = max(float(v.abs().max()) for v in messages.values())
    for v in (messages[k] for k in vectors(messages)):
        v[evil] = _FAR * torch.arange(1.0, v.shape[-1] + 1, dtype=v.dtype)
    aggregate, _ = bench.bound(messages)
    worst = max(float(aggregate(v).abs().max()) for v in messages.values())
    if count and worst > 10 * largest:
        raise LawBrokenError(
            f"it says that it tolerates {count} of {bench.m}, but with so many at {_FAR:g} the result has {worst:.1e}, "
            f"and the others' numbers end at {largest:.1e}"
        )
    return f"{count} of {bench.m}"


def _finite(bench: _Bench) -> str:
    """A message that is not finite is left out by a rule that tolerates attackers."""
    if not bench.rule.tolerates(bench.m):
        return "it says that it tolerates no attacker"
    for bad in (torch.nan, torch.inf, -torch.inf):
        messages = bench.messages(7)
        messages["other"][bench.spared()[0], 1] = bad
        aggregate, _ = bench.bound(messages)
        for k, v in messages.items():
            if not bool(torch.isfinite(aggregate(v)).all()):
                raise LawBrokenError(f"with {bad} in one message it made numbers of '{k}' that are not finite")
    return "NaN and infinity"


def _state(bench: _Bench) -> str:
    """What it keeps has one form in all rounds, that of `fresh`, so that a checkpoint can hold it."""
    state = bench.fresh(bench.messages(1))
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in state.items()}
    for number in range(1, ROUNDS + 1):
        _, state = bench.bound(bench.messages(number), state=state)
        found = {k: (tuple(v.shape), v.dtype) for k, v in state.items()}
        if found != shapes:
            raise LawBrokenError(f"after round {number} it keeps {found}, allowed: what fresh gives, {shapes}")
    return f"keeps {', '.join(shapes) or 'nothing'}"


def _inputs(bench: _Bench) -> str:
    messages, weights = bench.messages(4), bench.weights()
    state = bench.fresh(messages)
    before = copied(messages), copied(state), weights.clone()
    aggregate, _ = bench.bound(messages, weights, state)
    for v in messages.values():
        aggregate(v)
    unchanged("bind", messages, before[0])
    unchanged("bind", state, before[1])
    unchanged("bind", {"weights": weights}, {"weights": before[2]})
    return "messages, weights and state are as they were"


def _seed(bench: _Bench) -> str:
    found: list[State] = []
    for seed in (1, 2):
        with global_seed(seed):
            messages = bench.messages(5)
            aggregate, _ = bench.bound(messages)
            found.append({k: aggregate(v) for k, v in messages.items()})
    compare("two calls with the same messages: the aggregate", found[0], found[1], 0.0, GLOBAL_HINT)
    return "bit for bit"
