"""What an algorithm needs of a run: robust aggregators are refused where they would protect nothing."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names
from fedsim.scenario.load import parse

SERVERS = [n for n in names("algorithm") if lookup("algorithm", n).setting == "server"]
PAST = {"scaffold", "fedgamma", "feddyn", "fedspeed", "fedsmoo", "fedamd", "diff2_bvr", "ef21", "ef21_w", "powersgd"}
ROBUST = [{"name": "median"}, {"name": "trimmed_mean", "trim": 0.2}]


def scenario(name: str, aggregator: dict[str, Any], **keys: Any) -> dict[str, Any]:
    made = {
        "data": {"dataset": "quadratic", "file": "q.npz"},
        "algorithm": {"name": name, **keys},
        "aggregator": aggregator,
    }
    if name == "fal":
        made["adversary"] = {"eps": 0.1}
    if name == "fedasync":
        made["participation"] = {"mode": "asynchronous", "weights": "identical"}
    return made


@pytest.mark.parametrize("aggregator", ROBUST, ids=lambda a: a["name"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_robust_aggregator_is_refused_where_it_would_protect_nothing(name: str, aggregator: dict[str, Any]) -> None:
    if name == "fedasync":
        with pytest.raises(InputError, match="with mode asynchronous every message is combined by itself"):
            parse(scenario(name, aggregator))
        return
    if name == "fsgld":
        with pytest.raises(InputError, match="what one client sends, which it would compare with nothing"):
            parse(scenario(name, aggregator))
        return
    if name not in PAST:
        assert parse(scenario(name, aggregator)).algorithm.needs.through_aggregate
        return
    with pytest.raises(InputError, match=rf"aggregator.name: found '{aggregator['name']}', but '{name}' moves"):
        parse(scenario(name, aggregator))


@pytest.mark.parametrize("aggregator", [{"name": "mean"}, {"name": "trimmed_mean", "trim": 0.0}], ids=str)
@pytest.mark.parametrize("name", sorted(PAST))
def test_a_mean_is_not(name: str, aggregator: dict[str, Any]) -> None:
    assert not parse(scenario(name, aggregator)).algorithm.needs.through_aggregate


def test_it_may_depend_on_a_key() -> None:
    """The amended models of ``dual: active`` all go through the aggregator."""
    assert parse(scenario("fedspeed", {"name": "median"}, dual="active")).algorithm.needs.through_aggregate
