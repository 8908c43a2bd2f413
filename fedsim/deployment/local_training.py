"""The client's half of an algorithm in somebody's own ClientApp: their model, their batches, their loss.

`make_strategy` says which algorithm it is, with every message. What a client keeps between rounds is in Flower's
``context.state``, which a SuperNode forgets when it is restarted; the client then begins anew, and the server says so.
It is kept for one Strategy: another one, whose server half knows nothing of it, finds clients that begin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.algorithms.base import Effort, ServerAlgorithm
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.oracle import Oracle
from fedsim.core.types import State
from fedsim.deployment.carried import ALGORITHM, AVERAGED, MARK, WORK, flat, others, parameters, record, vectors

_KEPT = "fedsim-kept"


def train_locally(
    message: Any,
    context: Any,
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    examples: int,
    metrics: Mapping[str, float] | None = None,
) -> Any:
    """Train as the server's algorithm says, one local step for each batch; the answer to `message`.

    Parameters
    ----------
    message, context : what Flower gives a ClientApp's function for ``train``.
    model : the client's model; its weights become those that the message brings, and after that the trained ones.
    batches : pairs of inputs and targets on the model's device, in the order of training; epochs are passes in it.
    loss : of ``model(inputs)`` and the targets, a scalar; the mean over the batch as a rule.
    examples : how many the client has; weights follow from it.
    metrics : further numbers for the answer.

    Raises
    ------
    InputError
        The message is not of `make_strategy`, its arrays are not those of `model`, or there is no batch.
    """
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
    from flwr.app import Message as FlowerMessage

    config = next((c for c in message.content.config_records.values() if ALGORITHM in c), None)
    if config is None:
        raise InputError("the message says nothing of an algorithm; allowed: messages of a Strategy of make_strategy")
    algorithm = part_from("algorithm", "name", json.loads(config[ALGORITHM]))
    (key, sent) = next(iter(message.content.array_records.items()))
    arrays = {k: v.numpy() for k, v in sent.items()}
    names = parameters(arrays, config[AVERAGED])
    _load(model, arrays, names)
    whole = flat(arrays, names).unsqueeze(0)
    places = _Places(model, names)
    received = places.once({"x": whole, **{k: v.to(whole.dtype) for k, v in vectors(arrays).items()}})
    x = received["x"]
    place = f"{_KEPT}-{config.get(MARK, '')}"
    kept, fresh = _kept(context, place, algorithm, x)
    lr = float(algorithm.lr_at(np.array([config["server-round"]]))[0])
    travels, after, steps = _work(algorithm, received, kept, model, places.names, batches, loss, lr)
    if after:
        context.state[place] = ArrayRecord({k: Array(v.numpy()) for k, v in after.items()})
    now = {k: v.detach().cpu().numpy() for k, v in model.state_dict().items()}
    more = {k: v.reshape(-1) for k, v in places.everywhere(travels).items() if k != "delta"}
    content = RecordDict(
        {
            key: record({k: now[k] for k in arrays if k in now}, more),
            "metrics": MetricRecord({**(metrics or {}), "num-examples": examples}),
            WORK: ConfigRecord({"steps": steps, "fresh": fresh}),
        }
    )
    return FlowerMessage(content, reply_to=message)


def _work(
    algorithm: ServerAlgorithm,
    received: State,
    kept: State,
    model: nn.Module,
    names: list[str],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    lr: float,
) -> tuple[State, State, int]:
    """What is sent, what is kept, and the steps; the model ends where the work did."""
    x, steps = received["x"], 0
    received = algorithm.receive(received, kept)
    local = algorithm.begin(received, kept)
    rate = torch.full((1, 1), lr, dtype=x.dtype)
    model.train()
    for inputs, targets in batches:
        oracle = _Batch(model, names, inputs, targets, loss, rate)
        local = algorithm.local_step(oracle, local, received, kept)
        steps += 1
    if steps == 0:
        raise InputError("found no batch, allowed: at least one: a client that does nothing has nothing to answer")
    effort = Effort(torch.full_like(rate, float(steps)), rate)
    travels, _, after = algorithm.report(local, received, kept, effort)
    put(model, names, x + travels["delta"] if "delta" in travels else local["x"])
    return travels, after, steps


def _kept(context: Any, place: str, algorithm: ServerAlgorithm, x: Tensor) -> tuple[State, bool]:
    """What the client keeps, and whether it begins with it."""
    begin = algorithm.fresh_client(x)
    found = context.state.array_records.get(place)
    if found is None or not begin:
        return begin, bool(begin)
    state = {k: torch.from_numpy(np.array(v.numpy())) for k, v in found.items()}
    same = state.keys() == begin.keys() and all(state[k].shape == v.shape for k, v in begin.items())
    return (state, False) if same else (begin, True)


class _Places:
    """Where parameters are in the server's vector, which has those that layers share (tied weights) several times.

    The client trains each of them once: else a norm, to ascend by or to clip to, counted it several times.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        own = dict(model.named_parameters(remove_duplicate=False))
        last = {id(own[name]): name for name in names}  # whose values a model has that loaded all of them
        self.names = [name for name in names if last[id(own[name])] == name]
        there, here = _spans(own, names), _spans(own, self.names)
        nothing = torch.arange(0)
        self.chosen = torch.cat([nothing, *(there[name] for name in self.names)])
        self.back = torch.cat([nothing, *(here[last[id(own[name])]] for name in names)])

    @property
    def shared(self) -> bool:
        """Whether some are there several times."""
        return len(self.chosen) < len(self.back)

    def once(self, vectors: State) -> State:
        """Vectors of the server ``[..., d]`` with each parameter once; what has another length stays as it is."""
        if not self.shared:
            return vectors
        return {k: v[..., self.chosen] if v.shape[-1:] == self.back.shape else v for k, v in vectors.items()}

    def everywhere(self, vectors: State) -> State:
        """The way back."""
        if not self.shared:
            return vectors
        return {k: v[..., self.back] if v.shape[-1:] == self.chosen.shape else v for k, v in vectors.items()}


def _spans(own: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Where the numbers of each parameter are in one vector of them all."""
    sizes = [own[name].numel() for name in names]
    return dict(zip(names, torch.split(torch.arange(sum(sizes)), sizes), strict=True))


class _Batch(Oracle):
    """The gradient of the model's loss on one batch, rows of one."""

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        inputs: Any,
        targets: Any,
        loss: Callable[[Any, Any], Tensor],
        lr: Tensor,
    ) -> None:
        super().__init__(lr)
        self.model, self.names, self.inputs, self.targets, self.loss = model, names, inputs, targets, loss

    def grad(self, x: Tensor) -> Tensor:
        put(self.model, self.names, x)
        own = dict(self.model.named_parameters(remove_duplicate=False))
        trained = [name for name in self.names if own[name].requires_grad]
        found = torch.autograd.grad(
            self.loss(self.model(self.inputs), self.targets), [own[name] for name in trained], allow_unused=True
        )
        by = dict(zip(trained, found, strict=True))
        rows = [torch.zeros_like(own[n]) if by.get(n) is None else by[n] for n in self.names]
        return torch.cat([g.detach().reshape(-1).to(x) for g in rows if g is not None]).unsqueeze(0)

    def per_sample_grad(self, x: Tensor) -> Tensor:
        raise InputError("a batch of one's own has no gradients of single samples; allowed: deploy it as a scenario")


def put(model: nn.Module, names: list[str], x: Tensor) -> None:
    """Give the model's parameters the values of the row `x` ``[1, d]``."""
    own, start = dict(model.named_parameters(remove_duplicate=False)), 0
    with torch.no_grad():
        for name in names:
            count = own[name].numel()
            own[name].copy_(x[0, start : start + count].reshape(own[name].shape))
            start += count


def _load(model: nn.Module, arrays: Mapping[str, Any], names: list[str]) -> None:
    """Give the model the weights that were sent.

    Raises
    ------
    InputError
        They are not those of the model, or the model does not train what the server takes for parameters.
    """
    state = model.state_dict()
    carried = others(arrays, names)
    if {*names, *carried} != set(state):
        found = sorted({*names, *carried} ^ set(state))
        raise InputError(f"the server's arrays are not those of this model: {', '.join(found)} is in one of them alone")
    for name in state:
        if tuple(state[name].shape) != tuple(arrays[name].shape):
            found, here = list(arrays[name].shape), list(state[name].shape)
            raise InputError(f"the server's array '{name}' is {found}, this model's {here}; allowed: the same")
    own = dict(model.named_parameters(remove_duplicate=False))
    if foreign := [name for name in names if name not in own]:
        raise InputError(
            f"found '{foreign[0]}', which the server takes for a parameter and this model does not; "
            "allowed: make_strategy(averaged=[...]) with the end of its name"
        )
    model.load_state_dict({k: torch.from_numpy(np.array(arrays[k])) for k in state})
