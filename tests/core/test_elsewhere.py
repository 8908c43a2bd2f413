"""What is answered to names of papers and other projects: what they are called here, or how a scenario says them."""

from __future__ import annotations

from importlib import import_module

import pytest

from fedsim.core.elsewhere import _PARTS
from fedsim.core.errors import InputError, nearest
from fedsim.core.fields import part_from
from fedsim.core.registry import KINDS, lookup, names

EVERY = sorted({name for kind in KINDS for name in names(kind)})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("SCAFFOLD", "scaffold"), ("EF21-W", "ef21_w"), ("FedProx", "fedprox"), ("fed-avg", "fedavg"),
     ("Push-DIGing", "push_diging"), ("FedBuff", "fedbuff"), ("DP-SGD", "dp_sgd"), ("DPSGD", "dpsgd")],
)  # fmt: skip
def test_neither_case_nor_hyphens_matter(name: str, meant: str) -> None:
    assert nearest(name, EVERY) == f" (did you mean '{meant}'?)"


@pytest.mark.parametrize(
    ("name", "said"),
    [("fedfix", " (FedFix is participation: {mode: fixed_interval})"),
     ("FedBuff", " (FedBuff is participation: {mode: fedbuff})"),
     ("fedavgm", " (FedAvgM is algorithm: {name: fedavg, server_momentum: 0.9})"),
     ("gossip SGD", " (Gossip SGD is algorithm: {name: dpsgd})"),
     ("PushSum", " (Push-Sum is algorithm: {name: sgp})")],
)  # fmt: skip
def test_what_is_no_algorithm_of_its_own_is_said_as_a_scenario_says_it(name: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        lookup("algorithm", name)
    assert f"unknown algorithm '{name}'{said}; allowed: " in str(error.value)


@pytest.mark.parametrize("name", ["DP-SGD", "dp_sgd"])
def test_private_descent_is_not_taken_for_decentralized_descent(name: str) -> None:
    assert nearest(name, names("algorithm")) == " (DP-SGD is privacy: {mechanism: dp_sgd})"
    assert nearest("D-PSGD", EVERY) == " (D-PSGD is algorithm: {name: dpsgd})"


def test_partitioners_of_flwr_datasets_are_schemes() -> None:
    partitioner = import_module("flwr_datasets.partitioner")
    classes = [name for name in dir(partitioner) if name.endswith("Partitioner") and name != "Partitioner"]
    found = {name: nearest(name, names("partition")) for name in classes}
    assert found["DirichletPartitioner"] == " (did you mean 'dirichlet'?)"
    assert found["GroupedNaturalIdPartitioner"] == " (did you mean 'grouped_natural_id'?)"
    schemes = {said.split("'")[1] for said in found.values() if said}
    assert schemes == set(names("partition")) - {"labels_per_node"}
    with pytest.raises(InputError, match=r"'PathologicalPartitioner' \(did you mean 'pathological'\?\)"):
        part_from("partition", "scheme", {"scheme": "PathologicalPartitioner"})


def test_what_the_table_says_is_there() -> None:
    """Every ``name:`` and ``mode:`` of the table is a registered name."""
    import re

    said = [name for here in _PARTS.values() for name in re.findall(r"(?:name|mode|mechanism): (\w+)", here)]
    assert len(said) > 15
    assert set(said) <= set(EVERY)
