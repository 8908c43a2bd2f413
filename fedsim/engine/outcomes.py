"""What comes of rounds: what a round did, how far apart a graph's nodes are, and what a merge of them sends."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.algorithms.base import Algorithm
from fedsim.core.oracle import Task
from fedsim.core.types import message_bytes
from fedsim.graphs.presence import There
from fedsim.participation.base import Arrival


@dataclass(frozen=True)
class Combined:
    """What a round did: the event without the clients that were left out, and the bytes of each of its messages.

    None where a server got nobody's results, so that there is nothing to count.
    """

    event: Arrival
    message_bytes: int | None


@dataclass(frozen=True)
class NodeFacts:
    """How far apart a graph's honest nodes are: mean squared distance to `centre`, and their own models' mean and
    lowest accuracy."""

    distance: float
    accuracy: float | None
    lowest: float | None
    there: There | None = None
    """On a graph whose links and nodes come and go: who is there, and is measured."""


def merge_bytes(algorithm: Algorithm, task: Task) -> int:
    """Bytes of a merge of all nodes: every node sends every other one all that it mixes, uncompressed."""
    x = task.common()
    n, state = task.num_clients, algorithm.init(x.unsqueeze(0))
    return n * (n - 1) * message_bytes({k: v for k, v in state.items() if v.shape[-1] == len(x)} | task.common_carried)
