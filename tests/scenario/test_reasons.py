"""What is refused is refused once, for the reason that is the algorithm's own."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.core.errors import InputError
from fedsim.scenario.load import parse

SECTIONS: dict[str, dict[str, Any]] = {
    "compression": {"compression": {"name": "top_k", "k": 10}},
    "attack": {"attack": {"name": "sign_flip", "attackers": 0.3}},
    "rule": {"aggregator": {"name": "median"}},
    "personal": {"model": {"name": "mlp", "hidden": [6], "personal": ["3"]}},
}
ALONE = "clients train alone and send nothing"
POOLED = "all data are in one place and nothing is sent"
SAME = "moves client and server along the same messages"
ASKS = "asks what the server's own models lose"
OWN = "trains a model of each client's own, which is a whole one"
REASONS = [
    *(("local", section, ALONE) for section in SECTIONS), *(("centralized", section, POOLED) for section in SECTIONS),
    ("gossip_local", "compression", ALONE), ("gossip_local", "attack", ALONE), ("gossip_local", "personal", ALONE),
    ("scaffold", "compression", SAME), ("scaffold", "attack", SAME), ("afl", "attack", "weighs clients by losses"),
    ("afl", "personal", ASKS), ("qffl", "personal", ASKS), ("ifca", "personal", ASKS), ("ditto", "personal", OWN),
    ("gossip_apfl", "personal", OWN), ("scaffold", "personal", "keeps more about all parameters than the model itself"),
]  # fmt: skip


@pytest.mark.parametrize("name,section,why", REASONS)
def test_the_reason_is_the_algorithms_own(name: str, section: str, why: str) -> None:
    graph = {"topology": {"graph": "ring"}} if name.startswith("gossip") else {}
    data, model = {"dataset": "digits", "clients": 6}, {"name": "linear"}
    with pytest.raises(InputError) as caught:
        parse({"data": data, "model": model, "algorithm": {"name": name}, **graph, **SECTIONS[section]})
    (problem,) = caught.value.problems
    assert why in problem.message
