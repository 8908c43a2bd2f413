"""What client-level mechanisms share: whole updates are clipped at the client, and sums have public denominators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Effort, Round, ServerAlgorithm
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.types import Message
from fedsim.messages.aggregators import Mean
from fedsim.participation.base import Setting
from fedsim.participation.synchronous import Synchronous


def importance(setting: Setting) -> Floats:
    """p_i of every client in the objective, ``[n]``: public sample shares, or all alike for ``weighting: uniform``."""
    assert isinstance(setting.algorithm, ServerAlgorithm)
    p = np.asarray(setting.task.importance, dtype=np.float64)
    return p if setting.algorithm.weighting == "samples" else np.full(len(p), 1.0 / len(p))


def check_server(setting: Setting, mechanism: str) -> None:
    """Raise InputError unless a server takes the mean of ``delta`` messages in synchronous rounds and sees no more."""
    algorithm = setting.algorithm
    if not isinstance(algorithm, ServerAlgorithm):
        message = (
            f"'{mechanism}' protects a client's update on its way to a server; allowed on a graph: decor, muffliato"
        )
        raise InputError(message, key="privacy.mechanism")
    if not isinstance(setting.aggregator, Mean):
        raise InputError("the noise is made for a weighted mean, allowed: mean", key="aggregator.name")
    if not isinstance(setting.participation, Synchronous):
        raise InputError("the noise is made for one sum per round, allowed: synchronous", key="participation.mode")
    check_sent(algorithm)


def check_sent(algorithm: ServerAlgorithm) -> None:
    """Raise InputError unless clients send ``delta`` alone, and all that is done with it is the weighted mean."""
    name = type(algorithm).__name__
    params = torch.linspace(-1.0, 1.0, 3, dtype=torch.float64)
    sent = _message(algorithm, params, params + 0.1)
    if list(sent) != ["delta"]:
        raise InputError(
            f"{name} sends {', '.join(sent)}; one clipped and noised vector, delta, is all that is accounted for: "
            "allowed: algorithms that send nothing else, such as fedavg, fedprox and fedadam, or dp_sgd",
            key="algorithm.name",
        )
    if _looks_at_messages(algorithm, params):
        raise InputError(
            f"{name} uses clients' updates in another way than through their weighted mean, which is all that has "
            "noise; allowed: algorithms that use the mean alone, such as fedavg, fedprox and fedadam, or dp_sgd",
            key="algorithm.name",
        )


def clip_update(delta: Tensor, bound: float | Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[m, d]`` scaled down to norm `bound`, and whether each was within it already, ``[m, 1]``."""
    size = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    return delta * (bound / size.clamp_min(1e-12)).clamp(max=1.0), size <= bound


def _message(algorithm: ServerAlgorithm, params: Tensor, local: Tensor) -> Message:
    client, one = algorithm.fresh_client(params.unsqueeze(0)), params.new_ones((1, 1))
    received = algorithm.receive(algorithm.broadcast(algorithm.init(params)), client)
    rows = {k: v.reshape(1, -1) for k, v in received.items()}
    start = algorithm.start(rows, client)
    return algorithm.message({**start, "x": local.unsqueeze(0)}, rows, client, Effort(one, one, one))[0]


def _looks_at_messages(algorithm: ServerAlgorithm, params: Tensor) -> bool:
    """Whether the next state depends on messages in another way than through ``aggregate(messages["delta"])``."""
    one, strange = params.new_ones((1, 1)), False

    def after(size: float) -> dict[str, Tensor]:
        messages = {"delta": torch.full_like(params, size).unsqueeze(0)}

        def aggregate(values: Tensor, weights: Tensor | None = None) -> Tensor:
            nonlocal strange
            strange = strange or values is not messages["delta"] or weights is not None
            return params

        info = Round(1, 2, one / 2, one, one * algorithm.lr, one, one * 0)
        return algorithm.combine(algorithm.init(params), messages, info, aggregate)

    first, second = after(1.0), after(-2.0)
    return strange or any(not torch.equal(first[k], second[k]) for k in first)
