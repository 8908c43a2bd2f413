"""Whatever a scenario is made of, actors give the numbers of one process, and so does a run that goes on among them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from random_scenarios import ROUNDS, agree, random_scenario

import fedsim

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
MANY = round(6 * float(os.environ.get("FEDSIM_FUZZ", "1")))


@pytest.mark.parametrize("number", range(1000, 1000 + MANY))
def test_actors_agree_with_one_process(number: int, tmp_path: Path) -> None:
    scenario = random_scenario(number, tmp_path)
    print(scenario)
    one = fedsim.run(scenario, tmp_path / "one")
    on_ray = {**scenario, "backend": {"name": "ray", "actors": 2}}
    agree(one, fedsim.run(on_ray, tmp_path / "ray"), exactly=False)
    fedsim.run({**scenario, "run": {**scenario["run"], "rounds": 1 + number % (ROUNDS - 1)}}, tmp_path / "parts")
    agree(one, fedsim.run(on_ray, tmp_path / "parts", resume=True), exactly=False)
