"""Keyed random numbers: permutations are permutations, draws have the laws they claim, keys do not collide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.core import rng

ALPHA = 1e-6  # seeds are fixed: a wrong law fails by far more, a right one practically never


def assert_uniform(values: np.ndarray, cells: int) -> None:
    """Chi-square test of integers in [0, cells)."""
    counts = np.bincount(values.ravel(), minlength=cells)
    assert len(counts) == cells
    expected = values.size / cells
    assert expected > 20
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(1 - ALPHA, cells - 1)


# --- permutations ---------------------------------------------------------------------------------


def test_permutations_are_what_they_were() -> None:
    """Minibatches of all runs are made of them; sizes that spread along an axis of their own."""
    keys = rng.key(7, "batch", np.arange(3)[:, None, None], 2, np.arange(2)[None, :, None])
    size = np.array([5, 40, 1000])[:, None, None]
    found = rng.permute(keys, np.minimum(np.arange(6), size - 1), size)
    assert found.tolist() == [
        [[2, 4, 3, 1, 0, 0], [4, 0, 1, 3, 2, 2]],
        [[22, 28, 39, 6, 7, 26], [3, 37, 20, 32, 2, 38]],
        [[728, 533, 324, 479, 771, 444], [692, 124, 403, 539, 906, 925]],
    ]
    assert rng.permute(keys[1], 3, 40).tolist() == [[6], [32]]


def test_every_size_from_1_to_200_is_permuted() -> None:
    keys = rng.key(0, "test", np.arange(20))[:, None]
    for size in range(1, 201):
        order = rng.permute(keys, np.arange(size)[None, :], size)
        assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(size), (20, 1))), size


@given(seed=st.integers(0, 2**64 - 1), size=st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_any_key_permutes_any_size(seed: int, size: int) -> None:
    assert np.array_equal(np.sort(rng.permute(rng.key(seed, "any"), np.arange(size), size)), np.arange(size))


def test_sizes_broadcast() -> None:
    sizes = np.array([[1], [2], [7], [40]])
    positions = np.minimum(np.arange(40)[None, :], sizes - 1)
    keys = rng.key(3, "sizes", np.arange(4)[:, None])
    together = rng.permute(keys, positions, sizes)
    for i, size in enumerate(sizes[:, 0]):
        alone = rng.permute(keys[i], np.arange(size), int(size))
        assert np.array_equal(together[i, :size], alone)


@given(seed=st.integers(0, 2**32), shape=st.tuples(*[st.integers(1, 5)] * 3), largest=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_places_outside_are_permuted_ahead_or_one_after_the_other(
    seed: int, shape: tuple[int, int, int], largest: int
) -> None:
    """One pass over them with the others leads where several passes over few of them lead."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, largest, size=(shape[0], 1, 1), endpoint=True)
    positions = random.integers(0, 10**6, size=shape) % sizes
    keys = rng.key(seed, "ahead", np.arange(shape[0])[:, None, None], np.arange(shape[1])[:, None])
    found = []
    for most in (-1, rng._AHEAD):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rng, "_AHEAD", most)
            found.append(rng.permute(keys, positions, sizes))
    assert found[0].shape == found[1].shape == shape
    assert found[0].dtype == found[1].dtype
    assert np.array_equal(*found)


def test_a_huge_set_costs_only_what_is_drawn() -> None:
    drawn = rng.permute(rng.key(1, "huge"), np.arange(2000), 10**12)
    assert len(set(drawn.tolist())) == 2000
    assert drawn.min() >= 0
    assert drawn.max() < 10**12
    assert abs(drawn.mean() / 10**12 - 0.5) < 5 / np.sqrt(12 * 2000)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 10, 16, 31, 32, 33, 50, 100])
def test_every_place_is_equally_likely_for_every_element(size: int) -> None:
    order = rng.permute(rng.key(7, "marginal", np.arange(40_000))[:, None], np.arange(size)[None, :], size)
    for position in {0, 1, size // 2, size - 1}:
        assert_uniform(order[:, position], size)


@pytest.mark.parametrize("size", [2, 3, 4, 6, 9, 20, 32, 40])
def test_all_pairs_are_equally_likely(size: int) -> None:
    places = np.array([0, size - 1])
    first, last = rng.permute(rng.key(8, "pairs", np.arange(80_000))[:, None], places[None, :], size).T
    assert (first != last).all()
    assert_uniform(first * (size - 1) + last - (last > first), size * (size - 1))


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_all_orders_are_equally_likely(size: int) -> None:
    number = {order: i for i, order in enumerate(itertools.permutations(range(size)))}
    drawn = rng.permute(rng.key(9, "orders", np.arange(60_000))[:, None], np.arange(size)[None, :], size)
    assert_uniform(np.array([number[tuple(row)] for row in drawn.tolist()]), len(number))


@pytest.mark.parametrize("size,batch", [(10, 3), (40, 8), (7, 6)])
def test_all_subsets_of_a_minibatch_are_alike(size: int, batch: int) -> None:
    """Pairs of samples meet in a minibatch as often as draws without replacement make them: b (b - 1) / (n (n - 1))."""
    draws = 20_000
    drawn = rng.permute(rng.key(10, "batch", np.arange(draws))[:, None], np.arange(batch)[None, :], size)
    member = np.zeros((draws, size))
    np.put_along_axis(member, drawn, 1.0, axis=1)
    together = member.T @ member / draws
    p, q = batch / size, batch * (batch - 1) / (size * (size - 1))
    off = ~np.eye(size, dtype=bool)
    assert np.abs(np.diag(together) - p).max() < 5.5 * np.sqrt(p * (1 - p) / draws)
    assert np.abs(together[off] - q).max() < 5.5 * np.sqrt(q * (1 - q) / draws)


# --- keys -----------------------------------------------------------------------------------------


def test_keys_differ_by_every_part_and_their_order() -> None:
    base = (5, "batch", 3, 4, 5)
    others = [
        (6, "batch", 3, 4, 5), (5, "work", 3, 4, 5), (5, "batch", 2, 4, 5), (5, "batch", 3, 3, 5),
        (5, "batch", 3, 4, 6), (5, "batch", 4, 3, 5), (5, "batch", 3, 4), (5, "batch", 3, 4, 5, 0),
        (5, "batch"), (-5, "batch", 3, 4, 5),
    ]  # fmt: skip
    keys = [int(rng.key(*k)[0]) for k in [base, *others]]
    assert len(set(keys)) == len(keys)


def test_no_collisions_among_a_million_keys() -> None:
    client, round_, step = np.arange(100)[:, None, None], np.arange(100)[None, :, None], np.arange(25)[None, None, :]
    keys = [rng.key(seed, "batch", client, round_, step).ravel() for seed in range(4)]
    assert len(np.unique(np.concatenate(keys))) == 4 * 100 * 100 * 25


def test_keys_of_arrays_are_the_keys_of_their_elements() -> None:
    grid = rng.key(1, "p", np.arange(3)[:, None], np.arange(4)[None, :])
    for i, j in itertools.product(range(3), range(4)):
        assert grid[i, j] == rng.key(1, "p", i, j)[0]
    assert np.array_equal(rng.key(1, "p", 2, 3), rng.fold(rng.key(1, "p", 2), 3))
    assert rng.key(1, "p", -1)[0] == rng.key(1, "p", np.array([-1]))[0]


def test_numbers_known_for_good() -> None:
    """What a scenario gives today it gives in every later version: these draws are part of the contract."""
    assert rng.permute(rng.key(0, "batch", 1, 2, 3), np.arange(6), 6).tolist() == [4, 1, 0, 2, 5, 3]
    assert rng.uniform(rng.key(0, "compute", np.arange(3), 1)) == pytest.approx(
        [0.11890866029677427, 0.27462108960019005, 0.11513893834200406], abs=0
    )
    assert rng.generator(0, "cohort", 1).integers(0, 1000, 4).tolist() == [67, 83, 131, 909]


def test_generators_depend_on_every_part() -> None:
    draws = {
        rng.generator(*parts).random()
        for parts in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1)]
    }
    assert len(draws) == 6
    assert rng.generator(0, "a", 1).random() == rng.generator(0, "a", 1).random()


# --- laws -----------------------------------------------------------------------------------------

KEYS = rng.key(11, "laws", np.arange(200_000))


def test_uniform_numbers() -> None:
    u = rng.uniform(KEYS)
    assert u.min() >= 0
    assert u.max() < 1
    assert_uniform((u * 500).astype(int), 500)
    assert_uniform((u[:-1] * 20).astype(int) * 20 + (u[1:] * 20).astype(int), 400)  # neighbours are independent
    assert stats.kstest(u, "uniform").pvalue > ALPHA


def test_the_largest_and_smallest_word_stay_inside() -> None:
    words = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert rng.uniform(words).tolist() == [0.0, 1 - 2**-53]
    assert rng.integers(words, 7).tolist() == [0, 6]
    assert np.isfinite(rng.normal(words)).all()


def test_normal_numbers() -> None:
    z = rng.normal(KEYS)
    n = len(z)
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(stats.skew(z)) < 5 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(z)) < 5 * np.sqrt(24 / n)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 5 / np.sqrt(n)
    assert stats.kstest(z, "norm").pvalue > ALPHA


@pytest.mark.parametrize("high", [1, 2, 3, 10, 1000])
def test_integers(high: int) -> None:
    drawn = rng.integers(KEYS, high)
    assert drawn.min() >= 0
    if high == 1:
        assert not drawn.any()
    else:
        assert_uniform(drawn, high)


def test_integers_with_a_bound_each() -> None:
    high = np.tile([1, 5, 9], 60_000)
    drawn = rng.integers(KEYS[: len(high)], high)
    assert (drawn < high).all()
    assert_uniform(drawn[high == 5], 5)
    assert_uniform(drawn[high == 9], 9)


def test_numbers_of_one_key_are_not_tied_to_those_of_its_neighbours() -> None:
    """Clients, rounds and steps count up by one; their draws must not."""
    grid = rng.uniform(rng.key(2, "compute", np.arange(300)[:, None], np.arange(300)[None, :]))
    limit = 5 / np.sqrt(grid.size)
    for one, other in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid, grid.T)):
        off = slice(None) if one is not grid else ~np.eye(300, dtype=bool)
        a, b = (one[off].ravel(), other[off].ravel())
        assert abs(np.corrcoef(a, b)[0, 1]) < (limit if one is not grid else 2 * limit)


@pytest.mark.parametrize("word", ["word", b"word", None])
def test_a_part_of_a_key_is_a_number(word: object) -> None:
    with pytest.raises(
        TypeError, match=r"found the part .* of a key, allowed: whole numbers; words go into the purpose"
    ):
        rng.key(0, "purpose", word)


def test_symmetric_numbers_are_uniform_and_independent() -> None:
    keys = rng.key(3, "test", np.arange(2000))
    found = rng.symmetric(keys, 41)
    assert found.shape == (2000, 41)
    assert np.array_equal(found[:, :7], rng.symmetric(keys, 7))
    assert np.array_equal(found[5], rng.symmetric(keys[5:6], 41)[0])
    assert_uniform((found.astype(np.int64) + 2**15) >> 9, 128)
    assert_uniform(found.astype(np.int64) & 127, 128)  # the low bits, too
    sizes = np.abs(np.corrcoef(found[:, :16].astype(np.float64), rowvar=False) - np.eye(16))
    assert sizes.max() < 6 / np.sqrt(2000)
