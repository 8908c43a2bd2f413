"""Partitions: strict for every scheme, keyed by the seed, and skewed as their names promise."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.registry import names
from fedsim.data import partition
from fedsim.data.partition import Iid, label_counts
from fedsim.data.proportions import in_proportions
from fedsim.data.sets import Dataset
from fedsim.figures.partition import partition_figure


def dataset(labels: Any, clients: list[np.ndarray] | None = None) -> Dataset:
    y = torch.as_tensor(np.asarray(labels))
    x = torch.zeros(len(y), 1)
    return Dataset("made", x, y, x, y, None if y.is_floating_point() else int(y.max()) + 1, clients)


def assign_partition(section: dict[str, Any] | None, data: Dataset, clients: int, seed: int) -> list[np.ndarray]:
    """The rows that a scenario's mapping gives; what is wrong with its keys is told like what the data show."""
    try:
        scheme = None if section is None else part_from("partition", "scheme", section)
    except InputError as error:
        raise error.under("partition") from None
    return partition.assign_partition(scheme, data, clients, seed)


def labels(rows: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.arange(rows) % classes)


def check_strict(parts: list[np.ndarray], rows: int, clients: int, every_row: bool) -> None:
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and len(part) for part in parts)
    used = np.concatenate(parts)
    assert len(np.unique(used)) == len(used)
    assert used.min() >= 0
    assert used.max() < rows
    if every_row:
        assert len(used) == rows


CLASSIFICATION: list[tuple[dict[str, Any], bool]] = [
    ({"scheme": "iid"}, True),
    ({"scheme": "dirichlet", "alpha": 0.5, "min_partition_size": 1}, True),
    ({"scheme": "dirichlet", "alpha": 1, "min_partition_size": 1, "self_balancing": True}, True),
    ({"scheme": "dirichlet", "alpha": [1.0] * 6, "min_partition_size": 1}, True),
    ({"scheme": "inner_dirichlet", "alpha": 0.5}, True),
    ({"scheme": "inner_dirichlet", "alpha": 5.0, "partition_sizes": [10, 20, 30, 10, 20, 30]}, False),
    ({"scheme": "pathological", "num_classes_per_partition": 2}, False),
    ({"scheme": "pathological", "num_classes_per_partition": 2, "class_assignment_mode": "deterministic"}, False),
    ({"scheme": "pathological", "num_classes_per_partition": 9, "class_assignment_mode": "first-deterministic"}, True),
    ({"scheme": "shard", "num_shards_per_partition": 2}, False),
    ({"scheme": "shard", "shard_size": 7}, False),
    ({"scheme": "shard", "shard_size": 7, "keep_incomplete_shard": True}, True),
    ({"scheme": "shard", "num_shards_per_partition": 2, "shard_size": 5}, False),
    ({"scheme": "size", "partition_sizes": [1, 2, 3, 4, 5, 6]}, False),
    ({"scheme": "linear"}, True),
    ({"scheme": "square"}, True),
    ({"scheme": "exponential"}, True),
    ({"scheme": "labels_per_node", "labels": 2}, True),
]
REGRESSION: list[tuple[dict[str, Any], bool]] = [
    ({"scheme": "iid"}, True),
    ({"scheme": "linear"}, True),
    ({"scheme": "size", "partition_sizes": [1, 2, 3, 4, 5, 6]}, False),
    ({"scheme": "continuous", "strictness": 0.5}, True),
    ({"scheme": "continuous", "strictness": 1}, True),
    ({"scheme": "continuous", "strictness": 0}, True),
]


def test_every_scheme_is_tested() -> None:
    by_column = {"natural_id", "grouped_natural_id"}  # test_natural.py
    assert {section["scheme"] for section, _ in CLASSIFICATION + REGRESSION} | by_column == set(names("partition"))


@pytest.mark.parametrize("section, every_row", CLASSIFICATION, ids=lambda v: v["scheme"] if isinstance(v, dict) else "")
def test_partition_of_labels_is_strict_and_keyed(section: dict[str, Any], every_row: bool) -> None:
    data = dataset(labels(603))
    parts = assign_partition(section, data, 6, seed=1)
    check_strict(parts, 603, 6, every_row)
    again = assign_partition(section, data, 6, seed=1)
    other = assign_partition(section, data, 6, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert any(set(a) != set(b) for a, b in zip(parts, other, strict=True))


@pytest.mark.parametrize("clients", [1, 6, 40])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("alpha, least", [(0.3, 0), (1, 1), (100.0, 10), (1e-3, 0), (0.05, 4), (1e308, 0), ("each", 2)])
def test_proportions_are_those_of_flwr_datasets(alpha: float | str, least: int, balanced: bool, clients: int) -> None:
    """Row for row, in the same order, and refused where they refuse."""
    import datasets
    import flwr_datasets.partitioner as fl

    seed = clients
    given = labels(403, classes=7, seed=seed) * 3 - 2  # labels with gaps
    each = [0.2 + i % 3 for i in range(clients)] if isinstance(alpha, str) else alpha
    theirs = fl.DirichletPartitioner(clients, "label", each, least, balanced, shuffle=False, seed=seed)
    theirs.dataset = datasets.Dataset.from_dict({"label": given, "row": range(len(given))})
    found = in_proportions(given, each, clients, least, balanced, seed)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            wanted = [theirs.load_partition(i)["row"][:] for i in range(clients)]
    except ValueError:
        assert found is None
    else:
        assert found is not None
        assert [rows.tolist() for rows in found] == wanted


@pytest.mark.parametrize("section, every_row", REGRESSION, ids=lambda v: v["scheme"] if isinstance(v, dict) else "")
def test_partition_of_targets_is_strict_and_keyed(section: dict[str, Any], every_row: bool) -> None:
    data = dataset(np.random.default_rng(0).normal(size=200).astype(np.float32))
    parts = assign_partition(section, data, 6, seed=1)
    check_strict(parts, 200, 6, every_row)
    again = assign_partition(section, data, 6, seed=1)
    other = assign_partition(section, data, 6, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    same = all(set(a) == set(b) for a, b in zip(parts, other, strict=True))
    assert same == (section.get("strictness") == 1)  # sorting by the target alone leaves nothing to chance


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    scheme=st.sampled_from(["iid", "labels_per_node", "dirichlet", "shard", "pathological"]),
    amount=st.integers(1, 4),
)
def test_any_division_is_strict_or_refused(
    counts: list[int], clients: int, seed: int, scheme: str, amount: int
) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3, counts))  # labels with gaps
    section = {
        "iid": {},
        "labels_per_node": {"labels": amount},
        "dirichlet": {"alpha": float(amount), "min_partition_size": 1},
        "shard": {"num_shards_per_partition": amount},
        "pathological": {"num_classes_per_partition": amount},
    }[scheme]
    refused_key: str | None = None
    try:
        parts = assign_partition({"scheme": scheme, **section}, dataset(y), clients, seed)
    except InputError as error:
        refused_key = error.problems[0].key
    if clients > len(y):
        assert refused_key == "clients"
        return
    if scheme in ("labels_per_node", "pathological") and amount > len(counts):
        assert refused_key == f"partition.{next(iter(section))}"
        return
    if refused_key is not None:
        assert scheme != "iid"
        return
    every_row = scheme in ("iid", "dirichlet") or (scheme == "labels_per_node" and clients * amount >= len(counts))
    check_strict(parts, len(y), clients, every_row)
    if scheme == "iid":
        assert np.ptp([len(p) for p in parts]) <= 1
    if scheme in ("labels_per_node", "pathological"):
        assert {len(np.unique(y[p])) for p in parts} == {amount}


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 12), nodes=st.integers(1, 30), data=st.data())
def test_labels_per_node_uses_labels_evenly(classes: int, nodes: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, classes))
    y = labels(60 * classes, classes)
    counts = label_counts(
        y, assign_partition({"scheme": "labels_per_node", "labels": k}, dataset(y), nodes, 3), classes
    )
    holders = (counts > 0).sum(axis=0)
    assert ((counts > 0).sum(axis=1) == k).all()
    assert np.ptp(holders) <= 1
    for label in range(classes):
        shares = counts[counts[:, label] > 0, label]
        assert len(shares) == 0 or (np.ptp(shares) <= 1 and shares.sum() == 60)


def test_small_alpha_is_more_skewed_than_large() -> None:
    data = dataset(labels(4000))

    def largest_share(scheme: str, alpha: float) -> float:
        parts = assign_partition({"scheme": scheme, "alpha": alpha}, data, 10, 0)
        counts = label_counts(data.train_y.numpy(), parts, 10)
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    for scheme in ("dirichlet", "inner_dirichlet"):
        assert largest_share(scheme, 0.1) > 0.4
        assert largest_share(scheme, 100.0) < 0.2


def test_shards_of_two_hold_about_two_labels() -> None:
    data = dataset(labels(2000))
    parts = assign_partition({"scheme": "shard", "num_shards_per_partition": 2}, data, 10, 0)
    counts = label_counts(data.train_y.numpy(), parts, 10)
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert (counts.sum(axis=1) == 200).all()


def test_sizes_grow_as_named() -> None:
    data = dataset(labels(5500))
    for scheme, weight in (
        ("linear", np.arange(1.0, 6)),
        ("square", np.arange(1.0, 6) ** 2),
        ("exponential", np.exp(np.arange(1.0, 6))),
    ):
        sizes = [len(p) for p in assign_partition({"scheme": scheme}, data, 5, 0)]
        assert np.allclose(sizes, 5500 * weight / weight.sum(), atol=5)
    given_sizes = [len(p) for p in assign_partition({"scheme": "size", "partition_sizes": [7, 1, 9]}, data, 3, 0)]
    assert given_sizes == [7, 1, 9]


def test_contiguous_schemes_cut_shuffled_rows() -> None:
    data = dataset(np.repeat(np.arange(10), 100))
    for scheme in ("iid", "linear"):
        parts = assign_partition({"scheme": scheme}, data, 5, 0)
        counts = label_counts(data.train_y.numpy(), parts, 10)
        assert (counts[1:] > 0).all()


def test_strictness_sorts_targets() -> None:
    y = np.random.default_rng(0).normal(size=1000)

    def spread(strictness: float) -> float:
        parts = assign_partition({"scheme": "continuous", "strictness": strictness}, dataset(y), 10, 0)
        return float(np.std([y[p].mean() for p in parts]))

    assert spread(0.0) < 0.2 < spread(0.7) < spread(1.0)
    column = assign_partition({"scheme": "continuous", "strictness": 1.0}, dataset(y[:, None]), 10, 0)
    assert max(y[column[0]]) < min(y[column[9]])


def test_label_counts_by_hand() -> None:
    counts = label_counts(np.array([0, 2, 2, 1, 0]), [np.array([0, 1]), np.array([2, 4, 3])], 3)
    assert counts.tolist() == [[1, 0, 1], [1, 1, 1]]


def test_divided_data_keep_their_division() -> None:
    rows = [np.array([0, 2]), np.array([1])]
    assert assign_partition(None, dataset([0, 1, 0], rows), 2, 0) is rows


def test_iid_for_a_hundred_thousand_clients_takes_seconds() -> None:
    start = time.thread_time()  # of a processor, whatever else the machine does
    parts = Iid().assign(np.zeros(250_000, dtype=np.int64), 100_000, 0)
    assert time.thread_time() - start < 5
    check_strict(parts, 250_000, 100_000, True)


REAL = np.linspace(0, 1, 60)
BAD: list[tuple[dict[str, Any] | None, Any, int, str, str]] = [
    (None, labels(60), 61, "clients", "found 61 clients for 60 training rows; allowed: 1 to 60"),
    (None, labels(60), 0, "clients", "found 0 clients"),
    ({}, labels(60), 3, "partition.scheme", "missing; allowed: continuous, dirichlet"),
    ({"scheme": "dirichlt"}, labels(60), 3, "partition.scheme", r"did you mean 'dirichlet'\?"),
    ({"scheme": 3}, labels(60), 3, "partition.scheme", "found 3"),
    ({"scheme": "iid", "alpha": 1.0}, labels(60), 3, "partition.alpha", "unknown key"),
    ({"scheme": "dirichlet"}, labels(60), 3, "partition.alpha", "missing"),
    ({"scheme": "dirichlet", "alpha": 0.0}, labels(60), 3, "partition.alpha", "found 0.0.*greater than 0"),
    ({"scheme": "dirichlet", "alpha": "0.3"}, labels(60), 3, "partition.alpha", "found '0.3'"),
    ({"scheme": "dirichlet", "alpha": [1.0, 2.0]}, labels(60), 3, "partition.alpha", "found 2 values for 3 clients"),
    (
        {"scheme": "dirichlet", "alpha": 1.0},
        labels(60),
        7,
        "partition.min_partition_size",
        "found 10, .*allowed: 0 to 8",
    ),
    ({"scheme": "dirichlet", "alpha": 0.01}, labels(60), 6, "partition.alpha", "in 11 draws.*larger alpha"),
    (
        {"scheme": "dirichlet", "alpha": 0.001, "min_partition_size": 0},
        labels(60, 2),
        6,
        "partition.min_partition_size",
        "holds no rows",
    ),
    ({"scheme": "dirichlet", "alpha": 1.0}, REAL, 3, "partition.scheme", "regression targets; allowed: iid, size"),
    ({"scheme": "labels_per_node", "labels": 11}, labels(60), 3, "partition.labels", "allowed: 1 to 10"),
    ({"scheme": "labels_per_node", "labels": 0}, labels(60), 3, "partition.labels", "found 0"),
    ({"scheme": "labels_per_node", "labels": 2}, labels(60), 35, "partition.labels", "has 6 rows for 7 of the 35"),
    ({"scheme": "labels_per_node", "labels": 2}, REAL, 3, "partition.scheme", "regression"),
    (
        {"scheme": "pathological", "num_classes_per_partition": 11},
        labels(60),
        3,
        "partition.num_classes_per_partition",
        "the data have 10 labels",
    ),
    (
        {"scheme": "pathological", "num_classes_per_partition": 9},
        labels(60),
        10,
        "partition.num_classes_per_partition",
        "more holders than rows",
    ),
    (
        {"scheme": "pathological", "num_classes_per_partition": 1, "class_assignment_mode": "rnd"},
        labels(60),
        3,
        "partition.class_assignment_mode",
        "found 'rnd'",
    ),
    ({"scheme": "shard"}, labels(60), 3, "partition.num_shards_per_partition", "missing"),
    (
        {"scheme": "shard", "num_shards_per_partition": 30},
        labels(60),
        3,
        "partition.num_shards_per_partition",
        "90 rows",
    ),
    ({"scheme": "shard", "shard_size": 25}, labels(60), 3, "partition.shard_size", "75 rows"),
    ({"scheme": "shard", "shard_size": -1}, labels(60), 3, "partition.shard_size", "found -1"),
    ({"scheme": "size", "partition_sizes": [1, 2]}, labels(60), 3, "partition.partition_sizes", "2 values for 3"),
    ({"scheme": "size", "partition_sizes": [30, 31]}, labels(60), 2, "partition.partition_sizes", "sum to 61"),
    ({"scheme": "size", "partition_sizes": [0, 31]}, labels(60), 2, "partition.partition_sizes.0", "greater than 0"),
    ({"scheme": "linear"}, labels(60), 40, "partition", "leave the smallest of 40 clients without any"),
    ({"scheme": "exponential"}, labels(60), 9, "partition", "leave the smallest of 9"),
    ({"scheme": "exponential"}, labels(800), 800, "partition", "leave the smallest of 800"),
    ({"scheme": "continuous", "strictness": 0.5}, labels(60), 3, "partition.scheme", "found labels"),
    ({"scheme": "continuous", "strictness": 1.5}, REAL, 3, "partition.strictness", "found 1.5"),
    ({"scheme": "continuous", "strictness": 0.5}, np.ones(60), 3, "partition.strictness", "nearly equal"),
    ({"scheme": "continuous", "strictness": 0.5}, np.ones((60, 2)), 3, "partition.scheme", r"shape \[60, 2\]"),
    ({"scheme": "inner_dirichlet", "alpha": [1.0]}, labels(60), 3, "partition.alpha", "1 values for 10 labels"),
    ({"scheme": "inner_dirichlet", "alpha": 1e-3}, labels(600), 3, "partition.alpha", "ran out"),
]


@pytest.mark.parametrize("section, y, clients, key, message", BAD, ids=range(len(BAD)))
def test_bad_input(section: dict[str, Any] | None, y: Any, clients: int, key: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        assign_partition(section, dataset(y), clients, 0)
    assert caught.value.problems[0].key == key


def test_bad_input_for_divided_data() -> None:
    data = dataset([0, 1, 0], [np.array([0, 2]), np.array([1])])
    with pytest.raises(InputError, match="comes divided") as caught:
        assign_partition({"scheme": "iid"}, data, 2, 0)
    assert caught.value.problems[0].key == "partition"
    with pytest.raises(InputError, match="found 3; allowed: 2") as caught:
        assign_partition(None, data, 3, 0)
    assert caught.value.problems[0].key == "clients"


@pytest.mark.parametrize(
    "body, message",
    [
        ("[np.arange(10), np.arange(5)]", "more than one client"),
        ("[np.arange(10)]", "1 clients"),
        ("[np.arange(5), np.arange(0)]", "client 1 holds no rows"),
        ("[np.arange(5), np.arange(59, 61)]", "from 0 to 59"),
    ],
)
def test_a_users_own_scheme_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    name = f"own_scheme_{abs(hash(body))}"
    source = "from dataclasses import dataclass\nimport numpy as np\nfrom fedsim.data.partition import Partition\n"
    source += "@dataclass(frozen=True)\nclass Mine(Partition):\n"
    source += f"    def assign(self, labels, clients, seed):\n        return {body}\n"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=message):
        assign_partition({"scheme": f"{name}:Mine"}, dataset(labels(60)), 2, 0)


@pytest.mark.parametrize("clients, classes, panels", [(5, 10, 1), (60, 1, 1), (8, 30, 2), (200, 10, 3), (200, 1, 1)])
def test_figure_shows_every_row(tmp_path: Path, clients: int, classes: int, panels: int) -> None:
    counts = np.random.default_rng(0).integers(1, 50, (clients, classes))
    figure = partition_figure(counts, "a title")
    assert len(figure.axes) == panels
    assert figure.get_suptitle() == "a title"
    if clients <= 60:
        heights = np.zeros(clients)
        for bar in figure.axes[0].patches:
            heights[round(bar.get_x() + bar.get_width() / 2)] += bar.get_height()
        assert np.array_equal(heights, counts.sum(axis=1))
    else:
        sizes = figure.axes[-1 if classes == 1 else 1].lines[0].get_ydata()
        assert np.array_equal(sizes, np.sort(counts.sum(axis=1))[::-1])
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
