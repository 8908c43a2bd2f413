"""A mechanism that is for one algorithm says which mechanisms go with another one."""

from __future__ import annotations

import pytest

from fedsim.cli.combinations import refusal
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names
from fedsim.engine.assembly import assemble
from fedsim.privacy.others import going_with
from fedsim.scenario.load import parse


def test_gaussian_noise_under_fedavg_says_what_goes_with_it() -> None:
    values = {
        "data": {"dataset": "digits", "clients": 4, "limit": 80},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "privacy": {"mechanism": "gaussian", "noise_multiplier": 1.0},
    }
    with pytest.raises(InputError) as error:
        assemble(parse(values))
    assert str(error.value).endswith(
        "privacy.mechanism: this mechanism is for algorithm diff2 (with restart_every: 1, DP-GD); allowed with this "
        "one: dp_sgd, dp_fedavg, dp_ftrl, local_dp"
    )


@pytest.mark.parametrize(
    "name", ["fedavg", "fedasync", "scaffold", "fedamd", "acid", "dpsgd", "sgp", "diff2", "diff2_bvr", "ditto"]
)
def test_they_are_those_that_the_checks_of_scenarios_let_through(name: str) -> None:
    through = [
        m for m in names("privacy") if refusal({"algorithm": {"name": name}, "privacy": {"mechanism": m}}) is None
    ]
    assert sorted(going_with(lookup("algorithm", name)())) == through
