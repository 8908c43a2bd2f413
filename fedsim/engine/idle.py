"""One client's message in one place: what the mechanism and the pipeline add to what the algorithm sends.

Whoever takes messages from elsewhere compares their names, shapes and types with it.
"""

from __future__ import annotations

import numpy as np

from fedsim.clients.round import begin, initial
from fedsim.clients.worker import Worker
from fedsim.core.job import Job
from fedsim.core.types import Message
from fedsim.engine.assembly import Assembly


def received_by_one(assembly: Assembly, worker: Worker) -> Message:
    """What one client receives before the first round, with the public numbers that a mechanism adds (a clip norm)."""
    nodes = None if assembly.network is None else assembly.task.num_clients
    sent = begin(worker.algorithm, initial(worker.algorithm, assembly.task, nodes))
    return assembly.privacy.broadcast({k: v if v.dim() == 1 else v[:1] for k, v in sent.items()})


def idle_message(assembly: Assembly, worker: Worker) -> Message:
    """What a client that does no work sends, ``[1, ...]``: every message of a run has this form."""
    idle = Job(np.zeros(1, np.int64), np.ones(1, np.int64), np.zeros(1, np.int64), received_by_one(assembly, worker))
    return worker.run(idle)
