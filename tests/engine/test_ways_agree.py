"""Whatever a scenario is made of, the ways to compute it agree: threads, chunks, kernels, disks, resumed runs, Flower.

Scenarios are drawn, the same every time. ``FEDSIM_FUZZ=20 pytest tests/engine/test_ways_agree.py`` draws 20 times as
many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flower_loopback import Deployment
from random_scenarios import ROUNDS, N, agree, random_scenario

import fedsim
from fedsim.core.errors import InputError
from fedsim.participation.gossip import Gossip
from fedsim.participation.synchronous import Synchronous
from fedsim.scenario.load import parse

MANY = round(12 * float(os.environ.get("FEDSIM_FUZZ", "1")))
EXACT: dict[str, dict[str, Any]] = {"threads": {"threads": 2}, "disk": {"client_state": "disk"}}
CLOSE: dict[str, dict[str, Any]] = {
    "operators": {"operator_threads": 2, "threads": None}, "chunks": {"chunk_rows": 1}, "rows": {"kernel": "rows"},
}  # fmt: skip


def allowed(run: Callable[[], fedsim.Run]) -> fedsim.Run | None:
    """None where this way is refused for the scenario."""
    try:
        return run()
    except InputError:
        return None


@pytest.mark.parametrize("number", range(MANY))
def test_ways_agree(number: int, tmp_path: Path) -> None:
    scenario = random_scenario(number, tmp_path)
    print(scenario)

    def computed(name: str, resume: bool = False, **keys: Any) -> fedsim.Run:
        run = {key: value for key, value in {**scenario["run"], **keys}.items() if value is not None}
        return fedsim.run({**scenario, "run": run}, tmp_path / name, resume)

    one = computed("one")
    for name, keys in {**EXACT, **CLOSE}.items():
        other = allowed(lambda name=name, keys=keys: computed(name, **keys))  # type: ignore[misc]
        if other is not None:
            agree(one, other, exactly=name in EXACT)
    if allowed(lambda: computed("parts", rounds=1 + number % (ROUNDS - 1))) is not None:
        agree(one, computed("parts", resume=True), exactly=True)
    timed = "system" in scenario or not isinstance(parse(scenario).participation, (Synchronous, Gossip))
    if not timed and "privacy" not in scenario:  # deployed, clients draw noise from secrets of their own
        other = allowed(lambda: Deployment(tmp_path / "app", scenario, N).run())
        if other is not None:
            agree(one, other, exactly=False, without=["time"])
