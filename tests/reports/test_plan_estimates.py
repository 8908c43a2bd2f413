"""What a plan says of all rounds is near what the run does, where one round does not stand for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim

SAMPLED = {"participation": {"fraction": 0.3}}
FEDFIX = {
    "participation": {"mode": "fixed_interval", "window": 0.5},
    "system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}},
}
BUFFERED = {**FEDFIX, "participation": {"mode": "fedbuff", "buffer": 3, "concurrency": 5}}
SPORADIC = {
    "algorithm": {"name": "dspodfl", "lr": 0.01, "batch_size": 16},
    "topology": {"graph": "ring"},
    "participation": {"compute": {"model": "beta", "a": 0.5, "b": 0.5}, "links": 0.5},
}


@pytest.mark.parametrize(
    "sections", [SAMPLED, FEDFIX, BUFFERED, SPORADIC], ids=["sampled", "fedfix", "buffered", "gossip"]
)
def test_a_plan_says_about_what_a_run_costs(tmp_path: Path, sections: dict[str, Any]) -> None:
    scenario = {
        "data": {"dataset": "digits", "clients": 10, "limit": 400, "partition": {"scheme": "linear"}},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "local_epochs": 1},
        "run": {"rounds": 60, "eval_every": 60},
        **sections,
    }
    work = fedsim.plan(scenario)["work"]
    last = fedsim.run(scenario, out=tmp_path / "run", progress=False).metrics.iloc[-1]
    said = float(work["sample gradients in all"].removeprefix("about ").replace(",", ""))
    assert said == pytest.approx(last["gradients"], rel=0.15)
