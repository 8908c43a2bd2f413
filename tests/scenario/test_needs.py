"""What an algorithm needs of a run: robust aggregators are refused where they would protect nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names
from fedsim.scenario.load import parse

SERVERS = [n for n in names("algorithm") if lookup("algorithm", n).setting == "server"]
PAST = {
    "scaffold", "fedgamma", "feddyn", "fedspeed", "fedsmoo", "fedamd", "diff2_bvr", "ef21", "ef21_w", "powersgd", "afl",
}  # fmt: skip
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
    if (why := lookup("algorithm", name)().needs.alone) is not None:
        with pytest.raises(InputError, match=f"{why}, which it would compare with nothing"):
            parse(scenario(name, aggregator))
        return
    if name == "ifca":
        with pytest.raises(InputError, match="every model is the mean of its own clients' messages"):
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


EVERYBODY: dict[str, dict[str, Any]] = {
    "powersgd": {"algorithm": {"name": "powersgd"}},
    "diff2": {
        "algorithm": {"name": "diff2", "clip_norm": 1.0, "difference_clip": 1.0},
        "privacy": {"mechanism": "gaussian", "noise_multiplier": 1.0},
    },
    "ef21": {"algorithm": {"name": "fedavg"}, "compression": {"name": "top_k", "k": 1, "feedback": "ef21"}},
}
ABSENT: dict[str, dict[str, Any]] = {
    "participation.fraction": {"participation": {"fraction": 0.5}},
    "participation.deadline": {"participation": {"deadline": 1.0}},
    "system.availability": {"system": {"availability": {"model": "on_off", "on": 1.0, "off": 1.0}}},
    "system.network.loss": {"system": {"network": {"loss": 0.1}}},
    "system.departure": {"system": {"departure": 3.0}},
    "backend.client_errors": {"backend": {"name": "ray", "client_errors": "drop"}},
}


@pytest.mark.parametrize("key", ABSENT)
@pytest.mark.parametrize("who", EVERYBODY)
def test_where_all_clients_have_to_take_part_none_may_be_absent(who: str, key: str, tmp_path: Path) -> None:
    """What the algorithm or the compression remembers would be that of messages that nobody got."""
    np.savez(tmp_path / "q.npz", A=np.ones((4, 3)), b=np.ones((4, 3)))
    data = {"dataset": "quadratic", "file": str(tmp_path / "q.npz")}
    with pytest.raises(InputError) as caught:
        fedsim.run({"data": data, **EVERYBODY[who], **ABSENT[key]}, out=tmp_path / "run")
    assert key in [problem.key for problem in caught.value.problems]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name,key,keys",
    [
        ("fedavg", "lr", {}), ("fedavg", "weight_decay", {}), ("fedavg", "server_lr", {}), ("fedprox", "mu", {}),
        ("fedsam", "rho", {}), ("fedadam", "initial_accumulator", {}), ("fsgld", "exploration", {}),
        ("fedavg", "solver.weight_decay", {"solver": {"name": "adamw", "weight_decay": 1e39}}),
    ],
)  # fmt: skip
def test_a_number_that_float32_does_not_have_is_refused(name: str, key: str, keys: dict[str, Any]) -> None:
    made = scenario(name, {"name": "mean"}, **(keys or {key: 1e39}))
    if name == "fsgld":
        made["participation"] = {"clients_per_round": 1}
    with pytest.raises(
        InputError, match=r"found 1e\+39, allowed with run.dtype float32: at most 3.4028e\+38"
    ) as caught:
        parse(made)
    assert [problem.key for problem in caught.value.problems] == [f"algorithm.{key}"]
    parse({**made, "run": {"dtype": "float64"}})
