"""One row of ``metrics.jsonl``: what a run's model is worth after a round, and what it took to get there."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedsim.engine.assembly import Assembly
from fedsim.engine.states import NodeFacts
from fedsim.engine.totals import Totals
from fedsim.scenario.sections import Scenario


def evaluate(
    number: int, totals: Totals, nodes: NodeFacts | None, centre: Tensor, scenario: Scenario, assembly: Assembly
) -> dict[str, Any]:
    """The row of round `number`; `centre` ``[d]`` is the model that is evaluated."""
    row: dict[str, Any] = {"round": number, "time": totals.time, "wall": round(totals.wall, 6)}
    row |= assembly.task.evaluate(centre)
    if nodes is not None:
        if nodes.accuracy is not None:
            row["node_accuracy"] = nodes.accuracy
        row["consensus_distance"] = nodes.distance
        row["delay_processing"], row["delay_transmission"] = totals.delay_processing, totals.delay_transmission
        row["delay_total"] = totals.delay_processing + totals.delay_transmission
    if scenario.participation.clocked:
        row["staleness_mean"] = totals.staleness / max(totals.contributions, 1)
    row["bytes_sent"], row["gradients"] = totals.bytes_sent, totals.gradients
    return row | assembly.privacy.columns()
