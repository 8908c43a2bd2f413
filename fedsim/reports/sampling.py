"""What `fedsim plan` says of samples: how many are kept, how large their file is, and what comes before round 1."""

from __future__ import annotations

from typing import Any

import torch

from fedsim.engine.assembly import Assembly
from fedsim.engine.samples import FILE
from fedsim.scenario.sections import Scenario


def sampling_facts(s: Scenario, a: Assembly) -> dict[str, Any]:
    """Facts of an algorithm that keeps samples; none of another."""
    sampling = s.algorithm.sampling
    if sampling is None:
        return {}
    chains, kept, before = s.algorithm.tokens or 1, sampling.count(s.run.rounds), s.algorithm.before(a.task)
    item = torch.empty((), dtype=a.task.dtype).element_size()
    return {
        "chains": chains,
        "samples kept": f"{kept * chains:,}, {chains} in each of {kept:,} rounds",
        FILE: f"{kept * (chains * a.task.dim * item + 16):,} bytes, and as many while the run ends",
        "sample gradients before round 1": f"{before.gradients:,}",
        "bytes sent before round 1": f"{before.bytes:,}",
    }
