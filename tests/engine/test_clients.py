"""Clients evaluated one by one: the table of clients and its columns against the model in plain PyTorch, row by row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.data.local_test import hold_out
from fedsim.engine.assembly import assemble
from fedsim.engine.client_rows import FILE
from fedsim.engine.run_directory import Run
from fedsim.scenario.load import given

SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 7, "limit": 400, "local_test": 0.25},
    "model": {"name": "mlp", "hidden": [16]},
    "algorithm": {"name": "fedavg", "lr": 0.2, "local_epochs": 1},
    "run": {"rounds": 4, "eval_every": 2, "threads": 1, "metrics": [{"name": "macro_f1"}]},
}
PARTS = {"dirichlet": {"scheme": "dirichlet", "alpha": 0.5, "min_partition_size": 4}, "linear": {"scheme": "linear"}}


def scenario(**sections: Any) -> dict[str, Any]:
    return {k: {**SERVER.get(k, {}), **sections.get(k, {})} for k in {**SERVER, **sections}}


def held_rows(values: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The held-out inputs and targets of each client."""
    tests = assemble(given(values)).task.tests  # type: ignore[attr-defined]
    return [(tests.inputs[tests.of(c)], tests.targets[tests.of(c)]) for c in range(len(tests.sizes))]


def by_hand(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Accuracy and loss of one sample after the other."""
    with torch.no_grad():
        outputs = [model(row.unsqueeze(0))[0] for row in x]
    losses = [float(torch.nn.functional.cross_entropy(o.double(), t)) for o, t in zip(outputs, y, strict=True)]
    return float(np.mean([int(o.argmax()) == int(t) for o, t in zip(outputs, y, strict=True)])), float(np.mean(losses))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fedsim.run(scenario(data={"partition": PARTS["dirichlet"]}), out=tmp_path_factory.mktemp("clients") / "run")


def test_the_table_has_what_the_exported_model_says_of_each_row(served: Run) -> None:
    last = served.clients[served.clients["round"] == 4].set_index("client")
    model = served.model().eval()
    for client, (x, y) in enumerate(held_rows(scenario(data={"partition": PARTS["dirichlet"]}))):
        accuracy, loss = by_hand(model, x, y)
        assert last.accuracy[client] == pytest.approx(accuracy, abs=1e-12)
        assert last.loss[client] == pytest.approx(loss, abs=1e-6)
        assert last.test_samples[client] == len(x)
    assert (last.train_samples + last.test_samples).sum() == 400


def test_columns_sum_the_table_up(served: Run) -> None:
    table, rows = served.clients, served.metrics.set_index("round")
    assert table[["round", "client"]].drop_duplicates().shape[0] == len(table) == 3 * 7
    for number, part in table.groupby("round"):
        for name, worst in (("accuracy", min), ("loss", max), ("macro_f1", min)):
            values, row = part[name].to_numpy(), rows.loc[number]
            assert row[f"client_{name}_mean"] == pytest.approx(values.mean(), rel=1e-12)
            assert row[f"client_{name}_std"] == pytest.approx(values.std(), rel=1e-12)
            assert row[f"client_{name}_worst"] == worst(values)
            assert row[f"client_{name}_weighted_mean"] == pytest.approx(np.average(values, weights=part.test_samples))
            for k in range(1, 10):
                assert row[f"client_{name}_decile_{k}"] == pytest.approx(np.quantile(values, k / 10), rel=1e-12)
    columns = served.columns
    assert columns["client_accuracy_worst"].larger_is_better
    assert columns["client_loss_mean"].larger_is_better is False
    assert columns["client_accuracy_std"].larger_is_better is None
    assert not columns["client_accuracy_mean"].public


@pytest.mark.parametrize("sizes", [[2, 3, 50, 7], [2] * 5])
def test_held_out_rows_are_each_clients_own_and_keyed_by_it_alone(sizes: list[int]) -> None:
    rows = np.split(np.random.default_rng(3).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    train, held = hold_out(rows, 0.2, seed=5)
    for own, kept, out in zip(rows, train, held, strict=True):
        assert len(kept)
        assert len(out) == np.clip(round(len(own) * 0.2), 1, len(own) - 1)
        assert sorted([*kept, *out]) == sorted(own)
    other = hold_out([rows[0], rows[1] + 1000], 0.2, seed=5)[1]
    assert np.array_equal(other[0], held[0])
    assert np.array_equal(other[1] - 1000, held[1])
    longer = hold_out([np.arange(40)], 0.2, seed=5)[1][0]
    assert not np.array_equal(longer, hold_out([np.arange(40)], 0.2, seed=6)[1][0])


@pytest.mark.parametrize("partition", [*PARTS.values()], ids=[*PARTS])
def test_what_is_held_out_does_not_train(partition: dict[str, Any]) -> None:
    task = assemble(given(scenario(data={"partition": partition}))).task
    tests = task.tests  # type: ignore[attr-defined]
    assert task.sizes.sum() + tests.sizes.sum() == 400
    assert not set(task.indices.tolist()) & set(tests.indices.tolist())  # type: ignore[attr-defined]
    assert np.array_equal(task.importance, task.sizes / task.sizes.sum())


def test_a_client_with_one_row_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    values = scenario(data={"clients": 3, "partition": {"scheme": "size", "partition_sizes": [5, 1, 4]}})
    with pytest.raises(InputError, match="client 1 has 1 row") as caught:
        fedsim.run(values, out=tmp_path / "run")
    assert caught.value.problems[0].key == "data.local_test"
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_has_every_client_of_every_round_once(tmp_path: Path) -> None:
    whole = fedsim.run(scenario(run={"rounds": 6}), out=tmp_path / "whole").clients
    fedsim.run(scenario(run={"rounds": 4}), out=tmp_path / "run")
    resumed = fedsim.run(scenario(run={"rounds": 6}), out=tmp_path / "run", resume=True).clients
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


Rows = Callable[[pa.Table], pa.Table]
DAMAGE: dict[str, tuple[Rows, str]] = {
    "no column": (lambda t: t.drop_columns(["loss"]), r"has the columns round .* but the run writes .*loss \(double\)"),
    "one more": (lambda t: t.append_column("x", t["loss"]), r"x \(double\), but the run writes"),
    "of another type": (lambda t: t.set_column(0, "round", t["round"].cast(pa.float64())), r"round \(double\)"),
    "as text": (lambda t: t.set_column(5, "loss", t["loss"].cast(pa.string())), r"loss \(string\)"),
    "a row less": (lambda t: t.slice(1), "has 6 clients in round 0, and 7 in round"),
    "a row twice": (lambda t: pa.concat_tables([t, t.slice(3, 1)]), "has clients twice in a round"),
    "no number": (
        lambda t: t.set_column(1, "client", pa.array([None, *t["client"].to_pylist()[1:]], pa.int64())),
        "has rows without a round or a client",
    ),
}


@pytest.mark.parametrize("changed,says", [*DAMAGE.values()], ids=[*DAMAGE])
def test_rows_that_the_run_did_not_write_are_found_before_it_goes_on(
    changed: Rows, says: str, ended: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(ended, tmp_path / "run")
    pq.write_table(changed(pq.read_table(folder / FILE)), folder / FILE)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name[0] != "."}
    with pytest.raises(RunError, match=f"{says}.*start from the beginning"):
        fedsim.run(scenario(run={"rounds": 6}), out=folder, resume=True)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_a_page_that_is_damaged_is_found_before_it_goes_on(ended: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ended, tmp_path / "run")
    with pq.ParquetFile(folder / FILE) as file:
        column = file.metadata.row_group(0).column(5)
    content = bytearray((folder / FILE).read_bytes())
    at = column.dictionary_page_offset or column.data_page_offset
    content[at : at + 40] = bytes(40)
    (folder / FILE).write_bytes(content)
    with pytest.raises(RunError, match=r"clients\.parquet cannot be read: .*start from the beginning"):
        fedsim.run(scenario(run={"rounds": 6}), out=folder, resume=True)


def test_columns_in_another_order_are_gone_on_with(ended: Path, tmp_path: Path) -> None:
    folder, table = shutil.copytree(ended, tmp_path / "run"), pq.read_table(ended / FILE)
    pq.write_table(table.select(table.column_names[::-1]), folder / FILE)
    found = fedsim.run(scenario(run={"rounds": 6}), out=folder, resume=True).clients
    assert list(found) == table.column_names[::-1]
    assert len(found) == 4 * 7


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run(scenario(run={"rounds": 4}), out=tmp_path_factory.mktemp("ended") / "run").dir


def test_rows_that_a_checkpoint_implies_are_asked_for(tmp_path: Path) -> None:
    fedsim.run(scenario(run={"rounds": 4}), out=tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(RunError, match=r"clients\.parquet is missing"):
        fedsim.run(scenario(run={"rounds": 6}), out=tmp_path / "run", resume=True)
