"""Robust rules: the numbers of a table worked out by hand, slow references, identities, breakdown, rows without end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rules
from torch import Tensor

from fedsim.core.errors import InputError, RunError
from fedsim.core.fields import dump_part, make_part
from fedsim.core.registry import lookup
from fedsim.messages.distances import Table, square_distances
from fedsim.messages.pre import buckets
from fedsim.messages.robust import RobustRule
from fedsim.messages.selection import scores

H = [[1, 2, -1], [2, 1, 0], [0, 2, 1], [1, 0, -2], [3, 1, 1]]
V = torch.tensor([*H, [-9, 8, 7], [-8, 9, 7]], dtype=torch.float64)
W = torch.cat([V[:5], V[:5] + 0.5, V[5:6]])


def rule(name: str, **keys: Any) -> RobustRule:
    made = make_part(lookup("aggregator", name), keys)
    assert isinstance(made, RobustRule)
    return made


TABLE: list[tuple[str, dict[str, Any], Tensor, list[float]]] = [
    ("median", {}, V, [1, 2, 1]),
    ("trimmed_mean", {"f": 2}, V, [2 / 3, 5 / 3, 2 / 3]),
    ("trimmed_mean", {"trim": 0.3}, V, [2 / 3, 5 / 3, 2 / 3]),
    ("krum", {"f": 2}, V, [2, 1, 0]),
    ("krum", {"f": 2, "closest": "m-f-1"}, V, [2, 1, 0]),
    ("multi_krum", {"f": 2}, V, [1.4, 1.2, -0.2]),
    ("meamed", {"f": 2}, V, [1.4, 1.2, -0.2]),
    ("median", {"pre": {"name": "nnm", "f": 2}}, V, [1.4, 1.2, -0.2]),
    ("trimmed_mean", {"f": 2, "pre": "nnm"}, V, [1.4, 1.2, -0.2]),
    ("trimmed_mean", {"f": 0, "pre": {"name": "nnm", "f": 2}}, V, [0.2, 2.1142857143, 0.6571428571]),
    ("bulyan", {"f": 2}, W, [1.5, 1.5, 0]),
    ("geometric_median", {}, V, [0.6900413632, 1.7750046166, 0.3239488343]),
    ("geometric_median", {"start": "zero", "nu": 0.1, "iters": 3, "tol": 0.0}, V,
     [0.7160890705, 1.7635666231, 0.2929261978]),
    ("centered_clipping", {"tau": 1.0}, V, [0.2048420344, 0.5257396545, 0.0644558401]),
    ("centered_clipping", {"tau": 1.0, "iters": 3}, V, [0.5273091694, 1.2515352318, 0.1642090034]),
    ("fltrust", {"root": 7}, torch.cat([V, V.new_tensor([[1, 1, 0]])]), [0.8043911657, 0.7663095454, -0.0273472039]),
]  # fmt: skip


@pytest.mark.parametrize("name,keys,rows,expected", TABLE, ids=lambda v: str(v) if isinstance(v, (str, dict)) else "")
def test_the_table(name: str, keys: dict[str, Any], rows: Tensor, expected: list[float]) -> None:
    assert rule(name, **keys).of(rows).tolist() == pytest.approx(expected, abs=6e-11)


def test_scores_of_krum() -> None:
    assert scores(square_distances(Table((V,))), 2).tolist() == [13, 11, 21, 25, 21, 355, 345]


def test_buckets_in_their_order() -> None:
    rows = buckets(V, list(range(7)), 2)
    assert rows.tolist()[-1] == V[6].tolist()  # the last one is of fewer
    assert rule("median").of(rows).tolist() == [-1.25, 3, 1.75]


def test_the_middle_of_an_even_number_is_the_mean_of_two() -> None:
    assert rule("median").of(V[:6])[0] == 1.0
    assert rule("median").of(V[:6])[1] == 1.5


# --- slow references --------------------------------------------------------------------------------------------------

ROWS = st.integers(7, 12).flatmap(
    lambda m: st.integers(1, 4).flatmap(
        lambda d: st.lists(st.lists(st.integers(-6, 6), min_size=d, max_size=d), min_size=m, max_size=m)
    )
)
"""Whole numbers, so that ties are many and distances exact."""


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(0, 2))
def test_against_loops(rows: list[list[float]], f: int) -> None:
    values = torch.tensor(rows, dtype=torch.float64)
    m = len(rows)
    expected: list[tuple[str, dict[str, Any], list[float]]] = [
        ("median", {}, rules.median(rows)),
        ("trimmed_mean", {"f": f}, rules.trimmed_mean(rows, f)),
        ("meamed", {"f": f}, rules.meamed(rows, f)),
        ("krum", {"f": f}, rules.krum(rows, f)),
        ("multi_krum", {"f": f}, rules.multi_krum(rows, f)),
        ("multi_krum", {"f": f, "keep": 2}, rules.multi_krum(rows, f, 2)),
        ("geometric_median", {"nu": 0.1, "iters": 30}, rules.geometric_median(rows, 0.1, 30)),
        ("centered_clipping", {"tau": 1.5, "iters": 2}, rules.centered_clipping(rows, [0.0] * len(rows[0]), 1.5, 2)),
        ("meamed", {"f": f, "pre": "nnm"}, rules.meamed(rules.nnm(rows, f), f)),
        ("median", {"pre": {"name": "arc", "f": f}}, rules.median(rules.arc(rows, f))),
        ("median", {"pre": {"name": "clip", "c": 2.0}}, rules.median([rules.clipped(v, 2.0) for v in rows])),
    ]
    if m >= 4 * f + 3:
        expected.append(("bulyan", {"f": f}, rules.bulyan(rows, f)))
    for name, keys, result in expected:
        assert rule(name, **keys).of(values).tolist() == pytest.approx(result, abs=1e-9), (name, keys)


@settings(max_examples=20, deadline=None)
@given(ROWS, st.lists(st.integers(1, 6), min_size=4, max_size=4))
def test_trust_against_a_loop(rows: list[list[float]], g: list[int]) -> None:
    kept = [v for v in rows if any(v)]
    root = [float(x) for x in g[: len(rows[0])]]
    if not any(sum(x * y for x, y in zip(v, root, strict=True)) > 0 for v in kept):
        return
    values = torch.tensor([root, *kept], dtype=torch.float64)
    assert rule("fltrust", root=0).of(values).tolist() == pytest.approx(rules.fltrust(kept, root), abs=1e-9)


def test_where_nobody_is_trusted_the_trusted_client_decides() -> None:
    assert rule("fltrust", root=1).of(torch.tensor([[-1.0, 0.0], [2.0, 1.0], [0.0, 0.0]])).tolist() == [2.0, 1.0]


# --- laws -------------------------------------------------------------------------------------------------------------

ALIKE = [
    ("trimmed_mean", {"f": 0}), ("meamed", {"f": 0}), ("multi_krum", {"f": 0}), ("bulyan", {"f": 0}),
    ("median", {"pre": {"name": "nnm", "f": 0}}), ("krum", {"f": 0, "pre": "nnm"}),
]  # fmt: skip


@pytest.mark.parametrize("name,keys", ALIKE, ids=str)
def test_nothing_to_tolerate_is_the_mean(name: str, keys: dict[str, Any]) -> None:
    assert rule(name, **keys).of(V).tolist() == pytest.approx(V.mean(0).tolist(), abs=1e-12)


@pytest.mark.parametrize("name", ["median", "krum", "geometric_median"])
def test_these_are_not(name: str) -> None:
    keys = {"f": 0} if name == "krum" else {}
    assert float((rule(name, **keys).of(V) - V.mean(0)).abs().max()) > 0.1


RULES: list[tuple[str, dict[str, Any]]] = [
    ("median", {}), ("trimmed_mean", {"f": 2}), ("meamed", {"f": 2}), ("krum", {"f": 2}), ("multi_krum", {"f": 2}),
    ("bulyan", {"f": 2}), ("geometric_median", {}), ("multi_krum", {"f": 2, "pre": "nnm"}),
    ("centered_clipping", {"tau": 1.0}), ("meamed", {"f": 2, "pre": "arc"}),
]  # fmt: skip
SHIFTED = [r for r in RULES if r[0] != "centered_clipping" and r[1].get("pre") != "arc"]


@pytest.mark.parametrize("name,keys", [r for r in RULES if r[0] != "bulyan"], ids=str)
def test_the_order_of_clients_changes_nothing(name: str, keys: dict[str, Any]) -> None:
    """Of bulyan's last picks the two rows that are nearest to each other tie always, and the lower one is taken."""
    rows = torch.as_tensor(np.random.default_rng(3).standard_normal((11, 6)))
    found = rule(name, **keys).of(rows)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(11)
        assert rule(name, **keys).of(rows[order]).tolist() == pytest.approx(found.tolist(), abs=1e-10)


@pytest.mark.parametrize("name,keys", SHIFTED, ids=str)
def test_shift_and_scale_go_through(name: str, keys: dict[str, Any]) -> None:
    rows = torch.as_tensor(np.random.default_rng(4).standard_normal((11, 6)))
    shift = torch.arange(6, dtype=torch.float64)
    moved = rule(name, **keys).of(3 * rows + shift)
    assert moved.tolist() == pytest.approx((3 * rule(name, **keys).of(rows) + shift).tolist(), abs=1e-5)


BREAKDOWN = [
    ("median", {}, 5), ("trimmed_mean", {"f": None}, 5), ("meamed", {"f": None}, 5), ("geometric_median", {}, 5),
    ("median", {"pre": {"name": "nnm", "f": None}}, 5), ("krum", {"f": None}, 4), ("multi_krum", {"f": None}, 4),
    ("bulyan", {"f": None}, 2),
]  # fmt: skip


@pytest.mark.parametrize("name,keys,most", BREAKDOWN, ids=str)
def test_how_many_attackers_of_eleven_they_withstand(name: str, keys: dict[str, Any], most: int) -> None:
    rows = torch.as_tensor(np.random.default_rng(5).standard_normal((11, 3)))
    for f in range(6):
        bad = rows.clone()
        bad[:f] = 1e6 + torch.arange(3)
        told = {k: f if v is None else {**v, "f": f} if isinstance(v, dict) else v for k, v in keys.items()}
        made = rule(name, **told)
        if f <= most:
            assert float(made.of(bad).abs().max()) < 10
        else:
            assert made.needs(11) is not None


def test_buckets_break_earlier() -> None:
    """Of six buckets of two, four may have an attacker among 11: a median of six follows them in some order."""
    rows = torch.ones(11, 1, dtype=torch.float64)
    rows[[0, 2, 4, 6]] = 1e6
    assert float(rule("median").of(buckets(rows, list(range(11)), 2))) > 1e5
    rows[6] = 1.0
    assert float(rule("median").of(buckets(rows, list(range(11)), 2))) < 1e6


@pytest.mark.parametrize("name,keys", RULES, ids=str)
def test_rows_that_are_not_finite_are_left_out(name: str, keys: dict[str, Any]) -> None:
    """They count as attackers: the rest is combined as if f were as many fewer."""
    rows = torch.as_tensor(np.random.default_rng(6).standard_normal((13, 4)))
    bad = rows.clone()
    bad[3, 1], bad[8, 0] = torch.nan, torch.inf
    left = rows[[i for i in range(13) if i not in (3, 8)]]
    fewer = {k: 0 if k == "f" else v for k, v in keys.items()}
    assert rule(name, **keys).of(bad).tolist() == pytest.approx(rule(name, **fewer).of(left).tolist(), abs=1e-12)


def test_where_nothing_is_finite_nothing_comes_of_it() -> None:
    assert bool(rule("median").of(torch.full((5, 2), torch.nan)).isnan().all())


def test_float32_rows_whose_squares_overflow() -> None:
    rows = torch.as_tensor(np.random.default_rng(7).standard_normal((9, 5))).float()
    rows[:2] = torch.tensor([3e38, -3e38, 3e38, -3e38, 3e38])
    for name, keys in RULES:
        if name != "bulyan":
            assert float(rule(name, **keys).of(rows).abs().max()) < 10, name


def test_distances_of_near_rows_in_float32() -> None:
    """They are differences: where the Gram formula loses everything they are right to float32's own precision."""
    rows = 1000 + torch.as_tensor(np.random.default_rng(8).standard_normal((6, 5000))).float() * 1e-2
    exact = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    found = square_distances(Table((rows,)))
    off = (found - exact).abs()[exact > 0] / exact[exact > 0]
    assert float(off.max()) < 1e-5
    assert bool((found.diagonal() == 0).all())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.as_tensor(np.random.default_rng(9).standard_normal((11, 400)))
    whole = [rule(name, **keys).of(rows) for name, keys in RULES]
    monkeypatch.setattr("fedsim.messages.distances._BLOCK", 100)
    monkeypatch.setattr("fedsim.messages.distances._PART", 333)
    for (name, keys), found in zip(RULES, whole, strict=True):
        assert float((rule(name, **keys).of(rows) - found).abs().max()) < 1e-10, name


# --- whole messages ---------------------------------------------------------------------------------------------------


def bound(made: RobustRule, messages: dict[str, Tensor], weights: Tensor | None = None) -> Any:
    m = len(next(iter(messages.values())))
    w = torch.full((m,), 1 / m, dtype=torch.float64) if weights is None else weights
    return made.bind(messages, w, made.fresh({k: v[:1] for k, v in messages.items()}))[0]


def test_one_client_is_chosen_for_all_that_it_sent() -> None:
    """Not one for its direction and another one for its number of steps."""
    messages = {"d": V, "other": V.flip(0), "steps": torch.arange(7, dtype=torch.float64).unsqueeze(1)}
    aggregate = bound(rule("krum", f=2), messages)
    chosen = int(aggregate(messages["steps"]).round())
    assert aggregate(messages["d"]).tolist() == pytest.approx(V[chosen].tolist())
    assert aggregate(messages["other"]).tolist() == pytest.approx(V.flip(0)[chosen].tolist())


def test_numbers_of_one_per_client_take_no_part_in_distances() -> None:
    far = {"d": V, "steps": torch.tensor([[0.0], [1e9], [0.0], [0.0], [0.0], [0.0], [0.0]], dtype=torch.float64)}
    assert bound(rule("krum", f=2), far)(V).tolist() == pytest.approx([2, 1, 0])


def test_a_vector_of_one_number_is_clipped_all_the_same() -> None:
    clipped = rule("median", pre={"name": "clip", "c": 1.0})
    one = torch.tensor([[5.0], [7.0], [9.0]], dtype=torch.float64)
    assert bound(clipped, {"delta": one})(one).tolist() == pytest.approx([1.0])
    wide = torch.tensor([[5.0, 0], [7.0, 0], [9.0, 0]], dtype=torch.float64)
    assert bound(clipped, {"delta": wide, "steps": one})(one).tolist() == pytest.approx([7.0])


def test_trimmed_mean_weighs_what_it_keeps() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [9.0]], dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.6, 0.1], dtype=torch.float64)
    assert float(bound(rule("trimmed_mean", f=1), {"d": rows}, weights)(rows)) == pytest.approx((0.2 + 1.2) / 0.8)


@pytest.mark.parametrize("mass", [1.0, 0.707])
@pytest.mark.parametrize("name,keys", RULES, ids=str)
def test_it_is_the_mass_of_the_weights_times_the_rule(name: str, keys: dict[str, Any], mass: float) -> None:
    rows = torch.as_tensor(np.random.default_rng(1).standard_normal((11, 3)))
    weights = torch.full((11,), mass / 11, dtype=torch.float64)
    made = rule(name, **keys)
    assert bound(made, {"d": rows}, weights)(rows).tolist() == pytest.approx((mass * made.of(rows)).tolist(), abs=1e-12)


def test_centered_clipping_starts_from_its_own_past() -> None:
    made = rule("centered_clipping", tau=1.0, iters=2)
    weights = torch.full((7,), 0.5 / 7, dtype=torch.float64)
    state, v = made.fresh({"d": V[:1]}), [0.0, 0.0, 0.0]
    for number in range(4):
        rows = V + number
        aggregate, state = made.bind({"d": rows}, weights, state)
        v = rules.centered_clipping(rows.tolist(), v, 1.0, 2)
        assert aggregate(rows).tolist() == pytest.approx([0.5 * x for x in v], abs=1e-12)
        assert state["d"].squeeze(0).tolist() == pytest.approx(v, abs=1e-12)
        derived = aggregate(2 * rows)  # no message of its own: moved from its median by the same shares
        assert float((derived - (2 * rows).median(0).values * 0.5).abs().max()) < 8


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,keys,message",
    [
        ("trimmed_mean", {"f": 1, "trim": 0.2}, "found both 'f' and 'trim'"),
        ("median", {"pre": "nnm"}, "the rule has no f that nnm could take"),
        ("krum", {"f": -1}, "f: "),
        ("krum", {}, "f: "),
        ("krum", {"f": 1, "closest": "m"}, "closest"),
        ("krum", {"f": 1, "pre": "nmm"}, "did you mean 'nnm'"),
        ("krum", {"f": 1, "pre": {"name": "bucketing"}}, "pre.s: "),
        ("krum", {"f": 1, "pre": []}, "a list of at least one"),
        ("fltrust", {"root": 0, "pre": {"name": "clip", "c": 1.0}}, "without pre"),
        ("geometric_median", {"start": "middle"}, "start"),
        ("centered_clipping", {"tau": 0.0}, "tau"),
    ],
)
def test_keys_that_are_refused(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(name, **keys)


@pytest.mark.parametrize("pre", ["arc", {"name": "nnm", "f": 1}, [{"name": "clip", "c": 2.0}, "nnm"]], ids=str)
def test_what_comes_before_is_written_and_read_again(pre: Any) -> None:
    made = rule("krum", f=2, pre=pre)
    assert rule("krum", **dump_part(made)) == made


def test_too_few_messages() -> None:
    assert rule("krum", f=2).needs(7) is None
    assert rule("krum", f=2).needs(6) == "Krum with f = 2 needs at least 7 messages (2f + 3), found 6"
    assert "found 4 of 7 messages" in str(rule("krum", f=2, pre={"name": "bucketing", "s": 2}).needs(7))
    assert rule("bulyan", f=1).needs(6) is not None
    assert rule("krum", f=1, closest=7).needs(7) is not None
    assert rule("multi_krum", f=1, keep=9).needs(8) is not None
    assert rule("median", pre={"name": "nnm", "f": 3}).needs(6) is not None
    with pytest.raises(RunError, match="needs at least 7 messages"):
        rule("krum", f=2).of(V[:6])
