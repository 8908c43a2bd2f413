"""What a run leaves in its directory beside its rows: what it was made of, checkpoints, and what privacy spent."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.backends.base import Backend
from fedsim.engine.assembly import Assembly
from fedsim.engine.attackers import record, write_record
from fedsim.engine.checkpoint import save_checkpoint
from fedsim.engine.failures import Failures
from fedsim.engine.inputs import write_inputs
from fedsim.engine.run_directory import save_report, save_topology
from fedsim.engine.run_state import RunState
from fedsim.engine.totals import Totals
from fedsim.participation.base import Arrival
from fedsim.participation.record import is_empty, trace_row
from fedsim.scenario.sections import Scenario

LOG = logging.getLogger("fedsim")
_EARLY = 10
"""A run in which nobody has taken part by that round says so then, and not at its end alone."""


class Records:
    """The directory `folder` of a run, as far as the loop writes it."""

    def __init__(self, folder: Path, scenario: Scenario, assembly: Assembly) -> None:
        self.folder, self.scenario, self.assembly = folder, scenario, assembly
        self._next_report = 0.0

    @property
    def place(self) -> str:
        """What numbers depend on in their last bits."""
        return f"{self.scenario.backend} {self.assembly.device} {torch.get_num_threads()} {torch.__version__}"

    def inputs(self) -> None:
        """What the run was made of: columns and names of its data, its partition, its attackers, its graph."""
        write_inputs(self.folder, self.assembly.about, self.assembly.counts, self.assembly.task.sizes)
        write_record(self.folder, record(self.scenario, self.assembly.pipeline.run, self.assembly.network))
        if self.assembly.network is not None:
            save_topology(self.folder, self.assembly.network.topology)

    def schedule(self, parts: Sequence[Arrival], number: int) -> dict[str, Any]:
        """The row of ``trace.jsonl``; the first one says what the nodes of a graph file are called, and each one who of
        those that took part attacks."""
        network, attackers = self.assembly.network, self.assembly.pipeline.run.attackers
        names = None if network is None or number > 1 else network.topology.names
        row = trace_row(parts)
        if attackers:
            row["attackers"] = np.intersect1d(np.concatenate([part.clients for part in parts]), attackers)
        return row | ({} if names is None else {"names": names})

    def report(self, always: bool = True) -> None:
        """``privacy.json``; between checkpoints as often as it costs next to nothing."""
        now = time.monotonic()
        if always or now > self._next_report:
            save_report(self.folder, self.assembly.privacy.report())
            self._next_report = now + 100 * (time.monotonic() - now)

    def checkpoint(self, number: int, totals: Totals, home: RunState, backend: Backend, failures: Failures) -> None:
        """All that an exact resume needs."""
        progress = {"round": number, "totals": asdict(totals), "privacy": self.assembly.privacy.save()}
        self.report()
        state, clients = home.kept(), backend.save()
        failures.take(durable=True)  # now all that was begun is done
        backend.checkpointed(save_checkpoint(self.folder, progress, state, clients))


def note_empty(totals: Totals, parts: Sequence[Arrival], number: int, failed: bool) -> None:
    """Count a round in which nobody took part; say so where there has been no other by an early round."""
    totals.empty += is_empty(parts)
    totals.skipped += any(part.skipped is not None for part in parts)
    if number == _EARLY and totals.empty == number:
        LOG.warning("round %d: %s", number, totals.remark(number, failed))
