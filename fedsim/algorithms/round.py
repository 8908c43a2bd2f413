"""What the methods of an algorithm are told of a round, and what comes of a client's work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedsim.core.oracle import Task
from fedsim.core.types import Message, State

Report = tuple[Message, Message, State]
"""What crosses the network, what stays with the node that made it, what the client keeps; see `ClientHalf.message`."""


@dataclass(frozen=True)
class Effort:
    """The local work behind each row's message: `steps` done and the learning rate used, both ``[m, 1]``.

    `loss` ``[m, 1]`` is the mean loss of the model that was received on the client's own data, where the algorithm asks
    for it (`ClientHalf.evaluates_on`).
    """

    steps: Tensor
    lr: Tensor
    loss: Tensor | None = None


@dataclass(frozen=True)
class Round:
    """What `combine` may know of a round.

    `weights` ``[m, 1]`` are the aggregation weights (None for gossip, where a mixing matrix aggregates); `importance`
    ``[m, 1]`` are the p_i of these clients in the global objective (they sum to 1 over all `num_clients`); `steps` and
    `lr` ``[m, 1]`` tell the local work; `staleness` ``[m, 1]`` counts combines since each client pulled its model;
    `roles` ``[m, 1]`` are the numbers of the clients' roles (None where all do the same); `clients` ``[m]`` are their
    own numbers.
    """

    number: int
    num_clients: int
    importance: Tensor
    steps: Tensor
    lr: Tensor
    weights: Tensor | None = None
    staleness: Tensor | None = None
    roles: Tensor | None = None
    clients: Tensor | None = None


@dataclass(frozen=True)
class Before:
    """What all clients compute and what crosses the network before round 1."""

    gradients: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Sampling:
    """After which rounds an algorithm's state is a sample that is kept: every `thin`-th one after `burn_in`."""

    burn_in: int
    thin: int

    def keeps(self, round: int) -> bool:
        """Whether the state after `round` rounds is one."""
        return round > self.burn_in and (round - self.burn_in) % self.thin == 0

    def count(self, rounds: int) -> int:
        """How many there are in that many rounds."""
        return max(rounds - self.burn_in, 0) // self.thin


@dataclass(frozen=True)
class Surroundings:
    """What an algorithm may ask about its run before it begins.

    `chi` gives (chi_1, chi_2) of the graph whose links are weighted by their rates (`fedsim.graphs.rates`). It raises
    InputError where links that fire do not connect the nodes.
    """

    task: Task
    chi: Callable[[], tuple[float, float]]
