"""partition.csv: written and read alike by the quick way for numbers alone and by the way that takes everything."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.core.errors import InputError
from fedsim.data import partition_csv
from fedsim.data.partition_csv import FILE, read_table, write_partition
from fedsim.data.proportions import equal_shares


@pytest.mark.parametrize("names", [(), ("anna", 'b "x", y', "c\nd") * 3334], ids=["numbers", "names"])
@pytest.mark.parametrize("labels", [None, ("cat", "dog, small", "3")], ids=["sizes", "labels"])
def test_what_is_written_is_read_by_either_way(tmp_path, monkeypatch, names, labels):
    clients = 10_002  # more than one block
    counts = np.random.default_rng(0).integers(0, 2**40, (clients, 3))
    write_partition(tmp_path, None if labels is None else counts, counts.sum(axis=1), labels or (), names)
    quick = read_table(tmp_path / FILE)
    monkeypatch.setattr(partition_csv, "_plain", lambda _: None)
    slow = read_table(tmp_path / FILE)
    for found in (quick, slow):
        assert found.samples.dtype == np.int64
        np.testing.assert_array_equal(found.samples, counts.sum(axis=1))
        assert found.names == (list(names) or None)
        if labels is None:
            assert found.counts is None
            assert found.labels == []
        else:
            np.testing.assert_array_equal(found.counts, counts)
            assert found.labels == list(labels)


@pytest.mark.parametrize(
    "content",
    [
        "0,3\n\n1,4\n",
        "0,3\n1\n",
        "0,3\n1,4,5\n",
        "0,3\n1,\n",
        "0,3\n,4\n",
        "0,3\n1,9" + "9" * 30,
        "\n",
        ",\n",
        "0,3.5\n",
    ],
)
def test_numbers_that_are_no_table_are_refused_as_text_is(tmp_path, content):
    (tmp_path / FILE).write_text("client,samples\n" + content)
    with pytest.raises(InputError, match=r"partition.csv:[23]: found .*, allowed: 2 whole numbers"):
        read_table(tmp_path / FILE)


@pytest.mark.parametrize("rows", [0, 1, 7, 40])
@pytest.mark.parametrize("clients", [1, 3, 7, 11])
def test_equal_shares_are_those_of_numpy(rows, clients):
    made = equal_shares(np.arange(rows), clients)
    for mine, its in zip(made, np.array_split(np.arange(rows), clients), strict=True):
        np.testing.assert_array_equal(mine, its)
