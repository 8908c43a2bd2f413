"""What rules of a graph's nodes do not go together with is refused before anything is written; the rest is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.core.errors import InputError

NNA = {"name": "nna", "f": 1}


def scenario(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "synthetic", "clients": 7, "iid": True, "dimension": 3, "num_classes": 2},
        "model": {"name": "linear"},
        "algorithm": {"name": "dfedavg"},
        "topology": {"graph": "ring"},
        "run": {"rounds": 2},
        **sections,
    }


@pytest.mark.parametrize(
    ("sections", "key", "says"),
    [
        ({"algorithm": {"name": "gradient_tracking"}, "aggregator": NNA}, "aggregator.name", "only where a matrix"),
        ({"algorithm": {"name": "gradient_tracking"}, "aggregator": {"name": "median"}}, "aggregator.name", "matrix"),
        ({"algorithm": {"name": "dspodfl"}, "participation": {"mode": "poisson"}, "aggregator": NNA},
         "participation.mode", "two nodes that mix at a tick hear one neighbour each; allowed: mode gossip"),
        ({"privacy": {"mechanism": "decor", "noise_multiplier": 1.0, "clip_norm": 1.0}, "aggregator": NNA},
         "privacy.mechanism", "correlated noise cancels only where a matrix mixes"),
        ({"privacy": {"mechanism": "muffliato", "noise_multiplier": 1.0, "clip_norm": 1.0}, "aggregator": NNA},
         "privacy.mechanism", "accounted for with the mixing matrix"),
        ({"algorithm": {"name": "fedavg"}, "topology": None, "aggregator": NNA}, "aggregator.name",
         "that is a rule of a graph's nodes"),
        ({"aggregator": {"name": "krum", "f": 1}}, "aggregator.f",
         "node 0 has its own message and hears 2: Krum with f = 1"),
        ({"topology": {"graph": "star"}, "aggregator": {"name": "trimmed_mean", "f": 1}}, "aggregator.f",
         "node 1 has its own message and hears 1"),
        ({"topology": {"graph": "complete"}, "aggregator": {"name": "krum", "f": 40}}, "aggregator.f",
         "allowed: at most 2, or more neighbours"),
        ({"participation": {"mode": "gossip", "merge": "final"}, "attack": {"name": "sign_flip", "attackers": 0}},
         "merge", "found beside the attack 'sign_flip', but a merge would average"),
        ({"algorithm": {"name": "monna", "wait": "quorum"}}, "algorithm.wait", "'mean' has no f"),
        ({"algorithm": {"name": "monna", "wait": "quorum"}, "aggregator": {"name": "trimmed_mean", "f": 1}},
         "aggregator.f", "hears 1"),
        ({"aggregator": {"name": "nna"}}, "aggregator.f", "missing"),
        ({"aggregator": {"name": "nna", "f": -1}}, "aggregator.f", "found -1"),
        ({"aggregator": {"name": "clipped_gossip", "tau": 0}}, "aggregator.tau", "found 0"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(tmp_path: Path, sections: dict[str, Any], key: str, says: str) -> None:
    values = {k: v for k, v in scenario(**sections).items() if v is not None}
    with pytest.raises(InputError) as error:
        fedsim.run(values, out=tmp_path / "run")
    assert key in str(error.value)
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_plan_says() -> None:
    facts = fedsim.plan(scenario(topology={"graph": "complete"}, aggregator={"name": "nna", "f": 1}))["network"]
    assert facts["every node runs"] == "nna"
    assert facts["others that a node hears"] == "6 to 6, mean 6"
    assert facts["attackers among them that it tolerates"] == 1
    assert facts["notes on the rule"] == ["weights of links are ignored"]
    facts = fedsim.plan(scenario(topology={"graph": "complete"}, aggregator={"name": "nna", "f": 2}))["network"]
    assert "not more than 5 f messages are sent to 7 nodes (0, 1, 2, 3, 4, 5, 6)" in facts["notes on the rule"][1]
    facts = fedsim.plan(scenario(topology={"graph": "star"}, aggregator={"name": "cs_plus", "f": 1}))["network"]
    (note,) = facts["notes on the rule"]
    assert note.startswith("fewer than 2 f + 1 others are heard by 6 nodes (1, 2, 3, 4, 5, 6)")
    assert "every node runs" not in fedsim.plan(scenario())["network"]


def test_exchanges_are_counted() -> None:
    one, two = (
        fedsim.plan(scenario(algorithm={"name": "monna", "exchanges": k}))["messages"]["sent in the first round"]
        for k in (1, 2)
    )
    assert float(two.split()[0]) == pytest.approx(2 * float(one.split()[0]), rel=1e-3)
