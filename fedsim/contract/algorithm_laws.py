"""The laws of algorithms, each a function of the bench: what it measured, or a LawBrokenError that says where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.client import change, changed
from fedsim.algorithms.round import Effort, Report
from fedsim.contract.affine_law import affine_directions
from fedsim.contract.bench import CLIENTS, DIMENSION, EVERYBODY, Bench, ExactOracle
from fedsim.contract.keys_law import keys_of_steps
from fedsim.contract.tools import (
    UNSEEDED,
    LawBrokenError,
    compare,
    copied,
    form,
    global_seed,
    same_from_yaml,
    unchanged,
)
from fedsim.core.fields import keys_of
from fedsim.core.types import Message, State, norm
from fedsim.messages.robust import Median

ROUNDS = 4
DESCENT_ROUNDS = 100
TOLERANCE = 1e-12
_PARTS = ("what is sent", "what stays", "what is kept")
_SHARDS: Mapping[str, list[list[int]]] = {
    "in two shards": [[0, 2, 3, 5], [1, 4]],
    "in three shards": [[5, 0], [1, 2], [3, 4]],
    "one by one": [[i] for i in range(CLIENTS)],
}
_ROWS_HINT = (
    "something mixes clients, counts them or depends on their order; reduce with dim=-1, keepdim=True "
    "(fedsim.core.types.norm, dot)"
)
_PAST_HINT = (
    "messages move the state past aggregate, where a robust aggregator cannot protect it; let all of them go through "
    "aggregate, or say needs = Needs(through_aggregate=False), and such aggregators are refused"
)


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
            worst = max(worst, compare(f"all clients at once and {how}: {what}", one, other, TOLERANCE, _ROWS_HINT))
    return f"largest difference {worst:.1e}"


def same_seed(bench: Bench) -> str:
    """The same keys give the same numbers, whatever the global generators are at."""
    runs = []
    for seed in (1, 2):
        with global_seed(seed):
            runs.append(list(bench.simulate(EVERYBODY, ROUNDS, bench.noise)))
    hint = f"{UNSEEDED}, or keeps something between runs; draw from keys (fedsim.rng) and keep nothing"
    for (what, one), (_, other) in zip(*runs, strict=True):
        compare(f"two runs of the same seed: {what}", one, other, 0.0, hint)
    return "bit for bit"


def inputs_untouched(bench: Bench) -> str:
    """No method changes what it is given."""
    task, a = bench.task(0.0), bench.algorithm
    calls = 0

    def call(method: str, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        copies = [copied(v) for v in arguments]
        result = getattr(a, method)(*arguments)
        for given, copy in zip(arguments, copies, strict=True):
            unchanged(method, given, copy)
        return result

    initial = bench.initial(task)
    state = call("init", initial)
    if not bench.gossip:
        state |= call("of_clients", torch.as_tensor(bench.p).unsqueeze(1))
    keeps = call("init_client", task.initial().expand(CLIENTS, -1).clone())
    for number in (1, 2):
        clients, _ = bench.cohort(number, full=True)
        steps = np.full(CLIENTS, 2 if bench.any_steps else 1)
        if bench.flows:
            state = call("flow", state, torch.full((CLIENTS, 1), 0.3, dtype=torch.float64))
        received = call("broadcast", state)
        info, aggregate = bench.round(number, clients, steps)
        local = {k: v.expand(CLIENTS, -1).clone() for k, v in call("start", received, keeps).items()}
        oracle = ExactOracle(bench, slice(None), info.lr)
        for _ in range(int(steps[0])):
            call("direction", oracle, local["x"], received, keeps)
            call("affine_direction", received, keeps)
            call("affine_beside", received, keeps)
            local = call("local_step", oracle, local, received, keeps)
        travels, stays, keeps = call(
            "message", local, received, keeps, Effort(info.steps, info.lr, bench.loss(received))
        )
        state = call("combine", state, travels | stays, info, aggregate)
    return f"{calls} calls left their inputs as they were"


def last_axis_only(bench: Bench) -> str:
    """The client's half gives for rows ``[m, d]`` what it gives for each row ``[d]`` alone."""
    a = bench.algorithm
    received, keeps = bench.somewhere()
    steps = 2 if bench.any_steps else 1
    lr, loss = torch.full((CLIENTS, 1), a.lr, dtype=torch.float64), bench.loss(received)

    def half(rows: Any) -> Report:
        mine, kept = {k: v[rows] for k, v in received.items()}, {k: v[rows] for k, v in keeps.items()}
        local, oracle = a.start(mine, kept), ExactOracle(bench, rows, lr[rows])
        for _ in range(steps):
            local = a.local_step(oracle, local, mine, kept)
        lost = None if loss is None else loss[rows]
        return a.message(local, mine, kept, Effort(torch.full_like(lr, steps)[rows], lr[rows], lost))

    stacked, worst = half(slice(None)), 0.0
    for i in range(CLIENTS):
        for what, rows, row in zip(_PARTS, stacked, half(i), strict=True):
            mine = {k: v[i] if v.dim() > 1 else v for k, v in rows.items()}
            where = f"client {i} as a row of [m, d] and alone as [d]: {what}"
            worst = max(worst, compare(where, mine, row, TOLERANCE, _ROWS_HINT))
    return f"largest difference {worst:.1e}"


def follows_lr(bench: Bench) -> str:
    """A quarter of the learning rate makes local steps shorter: `oracle.lr` has the rate of the round."""
    a, (received, keeps) = bench.algorithm, bench.somewhere()
    if "lr" not in keys_of(type(a)):
        return "it has no learning rate"

    def walked(lr: float) -> Tensor:
        oracle = ExactOracle(bench, slice(None), torch.full((CLIENTS, 1), lr, dtype=torch.float64))
        first = local = a.start(received, keeps)
        for _ in range(2 if bench.any_steps else 1):
            local = a.local_step(oracle, local, received, keeps)
        return norm(local["x"] - first["x"])

    whole, quarter = walked(a.lr), walked(a.lr / 4)
    if bool((quarter > 0.5 * whole).any()):
        raise LawBrokenError(
            f"local steps walk {float(quarter.max()):.3g} at a quarter of the learning rate and "
            f"{float(whole.max()):.3g} at the whole, so that lr_decay does not reach them; use oracle.lr, not self.lr"
        )
    return f"{float(quarter.max()):.3g} at a quarter of the rate, {float(whole.max()):.3g} at the whole"


def flows_on(bench: Bench) -> str:
    """What happens between events is the same in one stretch and in several, and in no time nothing happens."""
    if not bench.gossip:
        return "a server's state changes in rounds alone"
    a, rows = bench.algorithm, bench.task(0.0).initial().expand(CLIENTS, -1)
    generator, column = torch.Generator().manual_seed(0), torch.arange(CLIENTS, dtype=torch.float64).unsqueeze(1)
    state = {k: v + torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in a.init(rows.clone()).items()}
    compare("the state after no time", state, a.flow(state, 0 * column), 0.0, "flow by 0 seconds is to change nothing")
    if not bench.flows:
        compare("the state after a second", state, a.flow(state, 0 * column + 1), 0.0, "say needs = Needs(flows=True)")
        return "nothing happens between events"
    once, twice = a.flow(state, column / 2), a.flow(a.flow(state, column / 6), column / 3)
    hint = "it is to be the solution of an equation in time: an Euler step is none, however short"
    worst = compare("the state after several seconds, in one and in two stretches", once, twice, TOLERANCE, hint)
    return f"largest difference {worst:.1e}"


def message_without_a_step(bench: Bench) -> str:
    """`message` works on what `start` gives, in the form that it has after a step."""
    a, (received, keeps) = bench.algorithm, bench.somewhere()
    none = torch.zeros((CLIENTS, 1), dtype=torch.float64)
    lr, start, loss = none + a.lr, a.start(received, keeps), bench.loss(received)
    try:
        idle = a.message(start, received, keeps, Effort(none, lr, loss))
    except KeyError as error:
        raise LawBrokenError(
            f"message needs {error}, which only local_step makes; clients without a step and fedsim plan have what "
            "start gives alone: let start make it, or do without it"
        ) from None
    local = a.local_step(ExactOracle(bench, slice(None), lr), start, received, keeps)
    busy = a.message(local, received, keeps, Effort(none + 1, lr, loss))
    for what, one, other in zip(_PARTS[:2], idle, busy, strict=False):  # clients without a step keep what they had
        forms = [{k: v.shape[-1] for k, v in m.items()} for m in (one, other)]
        if forms[0] != forms[1]:
            raise LawBrokenError(f"{what} is {forms[0]} without a local step and {forms[1]} after one")
        for k, v in one.items():
            if not bool(torch.isfinite(v).all()):
                raise LawBrokenError(f"{what} without a local step: '{k}' is not finite")
    if a.sends_change:
        try:
            moved = a.message(changed(change(local, received)), received, keeps, Effort(none + 1, lr, loss))
        except KeyError as error:
            raise LawBrokenError(f"message is marked with reads_change, but reads {error} of local") from None
        for what, one, other in zip(_PARTS, busy, moved, strict=True):
            compare(f"{what} of x and of its change alone", one, other, 0.0, "read change(local, received), not x")
    return f"{', '.join(idle[0] | idle[1])}"


def through_aggregate(bench: Bench) -> str:
    """What a client sends beyond all bounds leaves a median where it is, and with it the whole state."""
    a = bench.algorithm
    if bench.gossip:
        return "a graph mixes with a matrix, no aggregator is asked"
    if not a.needs.through_aggregate:
        return "it says that it does not, and robust aggregators are refused"
    if a.needs.linear_mixing is not None:
        return "it says that rules have to be linear, and robust aggregators are refused"
    state = a.init(bench.initial(bench.task(0.0)))
    for number in (1, 2, 3):
        clients, steps = bench.cohort(number, full=True)
        found = list(bench.simulate(EVERYBODY, number, bench.noise, full=True))
        messages = next(v for what, v in found if what == f"round {number}, message")
        info, _ = bench.round(number, clients, steps)
        beyond = 1e6 * max([1.0, *(float(v.abs().max()) for v in messages.values())])  # whatever the others send
        far, farther = (a.combine(state, _spoiled(messages, v), info, _median) for v in (beyond, 2 * beyond))
        said = f"round {number}, state with client 0 at {beyond:.0e} and at twice that under a median:"
        compare(said, far, farther, 0.0, _PAST_HINT)
        state = next(v for what, v in found if what == f"round {number}, state")
    return "a client beyond all bounds moves nothing under a median"


def _spoiled(messages: Message, value: float) -> Message:
    return {k: torch.cat([torch.full_like(v[:1], value), v[1:]]) for k, v in messages.items()}


def _median(values: Tensor, weights: Tensor | None = None) -> Tensor:
    return Median()(values, torch.full_like(values[:, 0], 1 / len(values)) if weights is None else weights)


def right_form(bench: Bench) -> str:
    """States and messages are dicts of tensors ``[..., d]`` or ``[..., 1]`` of the parameters' dtype."""
    a, task = bench.algorithm, bench.task(0.0)
    rows = (CLIENTS,) if bench.gossip else ()
    x = task.initial()
    form("init", a.init(bench.initial(task)), rows)
    form("of_clients", known := a.of_clients(torch.as_tensor(bench.p).unsqueeze(1)), (CLIENTS,))
    form("broadcast", a.broadcast(a.init(bench.initial(task))), rows)
    form("init_client", a.init_client(x.unsqueeze(0)), (1,))
    _one_client(bench)
    state: State = {}
    for what, tensors in bench.simulate(EVERYBODY, 2, bench.noise, full=True):
        state = tensors if what.endswith("state") else state
        leading = rows if what.endswith("state") else (CLIENTS,)
        form(what, {k: v for k, v in tensors.items() if k not in known}, leading)
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
    form("start", local, (1,))
    local = a.local_step(ExactOracle(bench, slice(0, 1), a.lr * one), local, received, kept)
    form("local_step", local, (1,))
    result = a.message(local, received, kept, Effort(one, a.lr * one, one))
    if not (isinstance(result, tuple) and len(result) == len(_PARTS)):
        found = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        raise LawBrokenError(f"message gave {found}, allowed: three dicts, {', '.join(_PARTS)}")
    for what, tensors in zip(_PARTS, result, strict=True):
        form(f"message, {what}", tensors, (1,))
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
    return same_from_yaml(bench.algorithm)


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
    "lr_decay reaches local steps": follows_lr,
    "affine_direction is what steps do": affine_directions,
    "keys of steps count": keys_of_steps,
    "message needs no local step": message_without_a_step,
    "states flow on between events": flows_on,
    "the state moves through aggregate": through_aggregate,
    "descends on a quadratic": descends,
    "YAML round trip": yaml_round_trip,
}
