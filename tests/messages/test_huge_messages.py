"""Attackers may send numbers of any size: rules do what their formulas say, whatever the largest message is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import graph_rules as slow
from reference import rules as loops
from scipy import sparse

from fedsim.core.fields import part_from
from fedsim.messages.distances import lengths, ranks
from fedsim.messages.graph_rules import rule_of
from fedsim.messages.heard import Heard
from fedsim.messages.robust import RobustRule

Make = Callable[..., Any]
TYPES = [torch.float64, torch.float32]
RATIOS = [1e6, 1e13, 1e20, 1e30]
ONE, OTHER = np.array([1.0, -0.5, 0.8]), np.array([-0.7, 1.0, 0.2])
BEYOND = [(torch.float64, 1e155), (torch.float64, 1e160), (torch.float64, 1e300), (torch.float32, 1e19),
          (torch.float32, 1e25), (torch.float32, 3e37), (torch.float64, 1.7e308), (torch.float32, 3e38)]  # fmt: skip


def close(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 2e-5


def messages(n: int, sizes: tuple[float, float], dtype: torch.dtype) -> torch.Tensor:
    """Two attackers' messages of these sizes, then honest ones in [0, 1]."""
    values = np.random.default_rng(n).uniform(0, 1, (n, 3))
    values[0], values[1] = sizes[0] * ONE, sizes[1] * OTHER
    return torch.as_tensor(values).to(dtype)


# --- nodes of a graph -------------------------------------------------------------------------------------------------

W = np.full((9, 9), 1 / 9)


def at_nodes(name: str, values: torch.Tensor, **keys: Any) -> Any:
    """What all nodes of a complete graph make of it, in float64."""
    given = {} if name in ("clipped_gossip", "median") else {"f": 2}
    rule = rule_of(part_from("aggregator", "name", {"name": name, **given, **keys}))
    assert rule is not None
    n = np.arange(len(values))
    return rule.mix(Heard(values, n, sparse.csr_array(W), n)).double().numpy()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", sorted(slow.RULES))
def test_graph_rules_with_attackers_of_different_sizes(name: str, ratio: float, dtype: torch.dtype) -> None:
    for sizes in ((50.0, 50.0 * ratio), (50.0 * ratio, 50.0)):
        values = messages(9, sizes, dtype)
        found, exact = at_nodes(name, values), values.double().numpy()
        for i in range(2, 9):
            others = {j: exact[j] for j in range(9) if j != i}
            expected = slow.RULES[name](exact[i], others, dict.fromkeys(others, 1 / 9), 2)
            assert found[i] == pytest.approx(expected, rel=close(dtype), abs=close(dtype)), (i, sizes)


@pytest.mark.parametrize(("dtype", "size"), BEYOND, ids=str)
@pytest.mark.parametrize(
    ("name", "keys", "beyond"),
    [("nna", {}, 0.0), ("gts", {}, 0.0), ("ios", {}, 0.0), ("bridge", {}, 0.0), ("median", {}, 0.0),
     ("cs_plus", {}, 0.5), ("cs_he", {}, 0.5), ("clipped_gossip", {"tau": 1.0}, 0.25), ("krum", {}, 0.0),
     ("trimmed_mean", {}, 0.0), ("meamed", {}, 0.0)],
    ids=str,
)  # fmt: skip
def test_honest_nodes_stay_together(
    name: str, keys: dict[str, Any], beyond: float, dtype: torch.dtype, size: float
) -> None:
    """Those that clip may leave the honest range by two links' weights times the bound."""
    for sizes in ((size, size), (size, -size), (size, 7.0)):
        found = at_nodes(name, messages(9, sizes, dtype), **keys)[2:]
        assert found.min() > -beyond, sizes
        assert found.max() < 1 + beyond, sizes


def test_clipping_at_the_bound_of_he_follows_its_formula() -> None:
    values = messages(9, (1e160, 3e200), torch.float64)
    found, exact = at_nodes("cs_he", values), values.numpy()
    for i in range(2, 9):
        others = {j: exact[j] for j in range(9) if j != i}
        expected = slow.RULES["cs_he"](exact[i], others, dict.fromkeys(others, 1 / 9), 2)
        assert found[i] == pytest.approx(expected, abs=1e-12)


def test_lengths_of_any_size() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    for scale in (1e-300, 1e-160, 1.0, 1e155, 1e160, 1e300):
        assert lengths(vectors * scale).tolist() == pytest.approx([5 * scale, 0.0, 3 * scale], rel=1e-14, abs=0.0)
    assert lengths(torch.tensor([[3e38, -3e38]])).tolist() == pytest.approx([3e38 * 2**0.5], rel=1e-6)


def test_ties_are_between_distances_and_not_in_proportion_to_the_largest() -> None:
    nearly = 1.0 + 2.0**-45
    found = ranks(
        torch.tensor([[1e20, nearly, 3.0, 1.0, 1e7], [2.0, 0.0, 0.0, torch.inf, 1e-300]], dtype=torch.float64)
    )
    assert found.tolist() == [[3.0, 0.0, 1.0, 0.0, 2.0], [2.0, 0.0, 0.0, 3.0, 1.0]]


# --- a server ---------------------------------------------------------------------------------------------------------


def of_loops(rows: list[list[float]]) -> list[tuple[str, dict[str, Any], list[float]]]:
    """Rules of eleven rows, and what slow ones make of them."""
    return [
        ("median", {}, loops.median(rows)),
        ("trimmed_mean", {"f": 2}, loops.trimmed_mean(rows, 2)),
        ("meamed", {"f": 2}, loops.meamed(rows, 2)),
        ("krum", {"f": 2}, loops.krum(rows, 2)),
        ("multi_krum", {"f": 2}, loops.multi_krum(rows, 2)),
        ("bulyan", {"f": 2}, loops.bulyan(rows, 2)),
        ("geometric_median", {}, loops.geometric_median(rows)),
        ("centered_clipping", {"tau": 1.0}, loops.centered_clipping(rows, [0.0] * 3, 1.0)),
        ("centered_clipping", {"tau": 1.0, "iters": 3}, loops.centered_clipping(rows, [0.0] * 3, 1.0, 3)),
        ("fltrust", {"root": 10}, loops.fltrust(rows[:10], rows[10])),
        ("median", {"pre": {"name": "nnm", "f": 2}}, loops.median(loops.nnm(rows, 2))),
        ("trimmed_mean", {"f": 2, "pre": "nnm"}, loops.trimmed_mean(loops.nnm(rows, 2), 2)),
        ("median", {"pre": {"name": "arc", "f": 2}}, loops.median(loops.arc(rows, 2))),
        ("meamed", {"f": 2, "pre": "arc"}, loops.meamed(loops.arc(rows, 2), 2)),
        ("median", {"pre": {"name": "clip", "c": 0.7}}, loops.median([loops.clipped(v, 0.7) for v in rows])),
    ]


def at_server(name: str, keys: dict[str, Any], values: torch.Tensor) -> list[float]:
    rule = part_from("aggregator", "name", {"name": name, **keys})
    assert isinstance(rule, RobustRule)
    found: list[float] = rule.of(values).double().tolist()
    return found


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
def test_server_rules_with_attackers_of_different_sizes(ratio: float, dtype: torch.dtype) -> None:
    for sizes in ((50.0, 50.0 * ratio), (50.0 * ratio, 50.0)):
        values = messages(11, sizes, dtype)
        for name, keys, expected in of_loops(values.double().tolist()):
            off = pytest.approx(expected, rel=close(dtype), abs=close(dtype))
            assert at_server(name, keys, values) == off, (name, keys, sizes)


@pytest.mark.parametrize(("dtype", "size"), BEYOND, ids=str)
def test_server_rules_beyond_what_can_be_squared(dtype: torch.dtype, size: float) -> None:
    """Those that measure single messages follow their formula as far as norms go; all stay with the honest ones."""
    for sizes in ((size, size), (size, -size), (size, 7.0)):
        values = messages(11, sizes, dtype)
        rows = values if size <= 1e300 else messages(11, (1.0, 1.0), dtype)
        for name, keys, expected in of_loops(rows.double().tolist()):
            found = at_server(name, keys, values)
            assert min(found) > -0.5, (name, keys, sizes)
            assert max(found) < 1.5, (name, keys, sizes)
            if size <= 1e300 and not _picks(name, keys):
                assert found == pytest.approx(expected, rel=close(dtype), abs=close(dtype)), (name, keys, sizes)


def _picks(name: str, keys: dict[str, Any]) -> bool:
    """Whether squares of distances between messages count: there, who sends such numbers is left out."""
    return name in ("krum", "multi_krum", "bulyan") or "nnm" in str(keys)


def test_the_geometric_median_feels_the_direction_of_a_huge_message() -> None:
    rows = messages(11, (1e160, 1e170), torch.float64)
    expected = loops.geometric_median(rows.tolist())
    assert at_server("geometric_median", {}, rows) == pytest.approx(expected, abs=1e-9)
    near = rows.clone()
    near[0], near[1] = 1e6 * torch.as_tensor(ONE), 1e6 * torch.as_tensor(OTHER)
    assert at_server("geometric_median", {}, rows) == pytest.approx(at_server("geometric_median", {}, near), abs=1e-5)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e160), ("float32", 1e25)])
@pytest.mark.parametrize("name", ["nna", "gts", "cs_plus", "cs_he", "ios", "bridge"])
def test_a_run_under_a_huge_sign_flip(quadratic: Make, run_scenario: Make, name: str, dtype: str, scale: float) -> None:
    def distance(size: float) -> float:
        found = run_scenario(
            data=quadratic(n=6, d=3, seed=1).section(),
            algorithm={"name": "dfedavg", "lr": 0.1},
            topology={"graph": "complete"},
            attack={"name": "sign_flip", "attackers": [1], "scale": size},
            aggregator={"name": name, "f": 1},
            run={"rounds": 3, "dtype": dtype},
        )
        return float(np.abs(found.params.numpy()[[0, 2, 3, 4, 5]]).max())

    assert distance(scale) == pytest.approx(distance(1e6), rel=0.05)
