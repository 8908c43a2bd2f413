"""What accumulates over a run."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.algorithms.base import Algorithm
from fedsim.core.oracle import Task
from fedsim.engine.inquiry import Cost
from fedsim.participation.base import Arrival


@dataclass
class Totals:
    """What accumulates over a run, part of every checkpoint."""

    time: float = 0.0
    wall: float = 0.0
    bytes_sent: int = 0
    gradients: int = 0
    delay_processing: float = 0.0
    delay_transmission: float = 0.0
    contributions: int = 0
    staleness: int = 0
    communications: int = 0
    """In continuous time: how often two nodes mixed over their link."""
    empty: int = 0
    """Rounds in which nobody took part."""
    loss_evaluations: int = 0
    """Losses of single samples that clients evaluated for the algorithm, or for who is to take part."""
    skipped: int = 0
    """Rounds with too few messages for the aggregator."""

    def ask(self, cost: Cost) -> None:
        """Add what it took to ask clients before a round who takes part."""
        self.bytes_sent += cost.bytes
        self.loss_evaluations += cost.evaluations

    def remark(self, rounds: int, failed: bool = False) -> str | None:
        """What to say after `rounds` of which more than half changed nothing: the model hardly moves, or not at all.

        `failed`: the work of clients raised, and they were left out.
        """
        if 2 * self.skipped > rounds:
            return (
                f"{self.skipped} of the {rounds} rounds had too few messages for the aggregator and were skipped: "
                "lower its f, or let more clients take part; trace.jsonl says what each of them lacked"
            )
        if 2 * self.empty <= rounds:
            return None
        which = f"any of the {rounds} rounds" if self.empty == rounds else f"{self.empty} of the {rounds} rounds"
        if failed:
            return f"nobody took part in {which}: look first at why clients' local work raised, in failures.jsonl"
        return (
            f"nobody took part in {which}: look at participation (deadline, sampling, dropout, window, timeout) and "
            "system, or on a graph at participation.compute and topology.spells; "
            "fedsim plan --schedule shows who would deliver when"
        )

    def count(self, event: Arrival, message_bytes: int, algorithm: Algorithm, task: Task) -> None:
        """Add what a round's clients sent and computed, each of its messages of that many bytes."""
        self.bytes_sent += event.sends * message_bytes
        self.gradients += algorithm.gradients(task, event.clients, event.rounds, event.steps)
        if algorithm.evaluates_on is not None:
            asked = task.loss_samples(event.clients, algorithm.evaluates_on)
            self.loss_evaluations += len(algorithm.candidates) * asked
        self.communications += sum(len(tick.nodes) == 2 for tick in event.ticks or ())
        self.contributions += len(event.clients)
        self.staleness += int(event.staleness.sum())
        if event.delays is not None:
            self.delay_processing += event.delays[0]
            self.delay_transmission += event.delays[1]
