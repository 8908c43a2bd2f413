"""A data set of one's own: what a run computes with, and what it refuses before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.data.form import well_formed
from fedsim.data.sets import Dataset, DatasetPart
from fedsim.deployment.work import _read_held, _share, _write_held
from fedsim.engine.inputs import importance_of
from fedsim.models.losses import loss_function
from fedsim.objective.supervised import SupervisedTask
from fedsim.reports.schedule import _assembly
from fedsim.scenario.load import load

ROWS, TESTS, CLASSES = 40, 10, 3
Change = Callable[[dict[str, Any]], None]


def made() -> dict[str, Any]:
    """The fields of a sound set."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS + TESTS, 4, generator=random), torch.arange(ROWS + TESTS) % CLASSES
    split = {"train_x": x[:ROWS], "train_y": y[:ROWS], "test_x": x[ROWS:], "test_y": y[ROWS:]}
    return {"name": "own", "num_classes": CLASSES, **{k: v.clone() for k, v in split.items()}}


@dataclass(frozen=True, kw_only=True)
class Own(DatasetPart):
    """A set whose fields a test changes."""

    change: ClassVar[Change]

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        fields = made()
        type(self).change(fields)
        return Dataset(**fields)


def run(change: Change, folder: Path, monkeypatch: pytest.MonkeyPatch, **data: Any) -> fedsim.Run:
    monkeypatch.setattr(Own, "change", staticmethod(change), raising=False)
    scenario = {
        "data": {"dataset": f"{__name__}:Own", **(data or {"clients": 4})},
        "model": {"name": "mlp", "hidden": [5]},
        "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 4},
        "run": {"rounds": 2},
    }
    return fedsim.run(scenario, folder)


def every(change: Callable[[Tensor], Any], *names: str) -> Change:
    """A change of these tensors (none named: of both inputs)."""

    def changed(fields: dict[str, Any]) -> None:
        fields.update({name: change(fields[name]) for name in names or ("train_x", "test_x")})

    return changed


class Named(Tensor):
    """A class of tensors of somebody's own."""


def inferred(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


SAME: dict[str, Change] = {
    "part of a graph of gradients": every(lambda x: x.requires_grad_() * 1.0),
    "leaves that want gradients": every(lambda x: x.requires_grad_()),
    "parameters": every(torch.nn.Parameter),
    "not contiguous": every(lambda x: x.t().contiguous().t()),
    "every second row of a larger one": every(lambda x: torch.stack([x, x], 1).reshape(-1, x.shape[1])[::2]),
    "double": every(Tensor.double),
    "double on one side": every(Tensor.double, "train_x"),
    "negated lazily": every(lambda x: torch.complex(x, -x).conj().imag),
    "of the inference mode": every(inferred),
    "of an own class": every(lambda x: x.as_subclass(Named)),
    "int32 classes": every(Tensor.int, "train_y", "test_y"),
    "uint8 classes": every(lambda y: y.to(torch.uint8), "train_y", "test_y"),
    "classes as a whole number of NumPy": lambda fields: fields.update(num_classes=np.int64(CLASSES)),
}
SMALL = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ON_BOTH = ("train_y", "test_y")
REFUSED: dict[str, tuple[Change, str]] = {
    "complex": (every(lambda x: torch.complex(x, x)), "train_x is complex64"),
    "bool": (every(lambda x: x > 0), "train_x is bool"),
    "sparse": (every(Tensor.to_sparse), "train_x is sparse_coo"),
    "csr": (every(Tensor.to_sparse_csr, "test_x"), "test_x is sparse_csr"),
    "sparse classes": (every(Tensor.to_sparse, *ON_BOTH), "train_y is sparse_coo"),
    "nested": (every(lambda x: torch.nested.nested_tensor(list(x)), "train_x"), "train_x is nested"),
    "quantized": (
        every(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "train_x"), "train_x is quantized",
    ),
    "meta": (every(lambda x: x.to("meta"), "train_x"), r"train_x is without numbers \(meta\)"),
    "an array": (every(Tensor.numpy, "train_x"), "train_x is a ndarray"),
    "a list": (every(Tensor.tolist, "test_y"), "test_y is a list"),
    "no rows": (every(lambda v: v[:0], "train_x", "train_y"), "train_x has no rows"),
    "no test rows": (every(lambda v: v[:0], "test_x", "test_y"), "test_x has no rows"),
    "no numbers in a row": (every(lambda x: x[:, :0]), r"train_x has shape \[40, 0\]"),
    "one number": (every(lambda x: x[0, 0], "train_x"), r"train_x has shape \[\]"),
    "too few classes": (every(lambda y: y[:30], "train_y"), "train_x has 40 rows and train_y 30"),
    "too many test classes": (every(lambda y: torch.cat([y, y]), "test_y"), "test_x has 10 rows and test_y 20"),
    "other test rows": (every(lambda x: x[:, :3], "test_x"), r"test rows have shape \[3\], training rows \[4\]"),
    "ids for the test": (every(Tensor.long, "test_x"), "test_x is int64, train_x float32"),
    "not a number": (every(lambda x: x.log(), "train_x"), "train_x has numbers that are not finite"),
    "infinite": (every(lambda x: x / 0, "test_x"), "test_x has numbers that are not finite"),
    "classes with a fraction": (every(Tensor.float, *ON_BOTH), "train_y is float32"),
    "a class below": (every(lambda y: y - 1, "train_y"), r"train_y has the classes -1 to 1"),
    "a class above": (every(lambda y: y + 1, "test_y"), r"test_y has the classes 1 to 3"),
    "boxes": (every(lambda y: y[:, None, None], *ON_BOTH), r"train_y has shape \[40, 1, 1\]"),
    "whole numbers to regress": (lambda fields: fields.update(num_classes=None), "train_y is int64"),
    "complex targets": (every(lambda y: torch.complex(y.float(), y.float()), *ON_BOTH), "train_y is complex64"),
    "a share of a class": (lambda fields: fields.update(num_classes=2.5), "num_classes is 2.5"),
    "no class": (lambda fields: fields.update(num_classes=0), "num_classes is 0"),
}  # fmt: skip
DIVIDED: dict[str, tuple[Any, str]] = {
    "nobody": ([], r"clients is empty \(list\)"),
    "a number": (4, "clients is int"),
    "a row of two": ([range(25), range(20, 40)], "row 20 belongs to the clients 0 and 1"),
    "a row twice": ([[0, 1, 0], [2]], "row 0 belongs to client 0 twice"),
    "a row that is not there": ([range(20), range(20, 41)], r"client 1 has the rows 20 to 40"),
    "a row from the end": ([[1, 2], [-1]], "client 1 has the rows -1 to -1"),
    "a client without rows": ([range(40), []], "client 1 has no rows"),
    "rows with a fraction": ([[0.0, 1.0], [2.0]], r"the rows of client 0 are float64 \[2\]"),
    "marks": ([np.ones(40, bool), np.zeros(40, bool)], r"the rows of client 0 are bool \[40\]"),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_numbers_give_the_same_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(lambda _: None, tmp_path / "plain", monkeypatch)
    changed = run(SAME[kind], tmp_path / "changed", monkeypatch)
    assert torch.equal(plain.params, changed.params)
    assert plain.metrics.drop(columns="wall").equals(changed.metrics.drop(columns="wall"))


@pytest.mark.parametrize("kind", SMALL)
def test_small_floats_are_the_float32_that_they_stand_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = run(every(lambda x: x.to(SMALL[kind])), tmp_path / "small", monkeypatch)
    wide = run(every(lambda x: x.to(SMALL[kind]).float()), tmp_path / "wide", monkeypatch)
    assert torch.equal(small.params, wide.params)


@pytest.mark.filterwarnings("ignore:.*(nested tensors|quantize|Sparse CSR)")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_computed_with_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, found = REFUSED[kind]
    with pytest.raises(InputError, match=rf"^data\.dataset: {found}.*; allowed: ") as error:
        run(change, tmp_path / "run", monkeypatch)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", DIVIDED)
def test_clients_that_do_not_divide_the_rows_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, found = DIVIDED[kind]
    with pytest.raises(InputError, match=rf"^data\.dataset: {found}.*; allowed: "):
        run(lambda fields: fields.update(clients=clients), tmp_path / "run", monkeypatch, partition=None)
    assert not (tmp_path / "run").exists()


def test_a_deployments_machine_knows_what_clients_count(tmp_path: Path) -> None:
    """It holds the rows of one client alone; where clients count by their samples, nothing more is kept."""
    for importance, kept in (([3.0, 1.0], None), ([1.0, 3.0], [0.25, 0.75]), (None, None)):
        given = None if importance is None else np.array(importance)
        rows = [np.arange(30), np.arange(30, 40)]
        data = Dataset(**made(), clients=rows, importance=given)
        module = torch.nn.Linear(4, CLASSES)
        task = SupervisedTask(data, rows, module, "cross_entropy", loss_function("cross_entropy"), 0,
                              torch.device("cpu"), torch.float32)  # fmt: skip
        _write_held(tmp_path / "data.safetensors", _share(task, 1))
        held, _ = _read_held(tmp_path / "data.safetensors", 1)
        assert held.sizes.tolist() == [30, 10]
        assert (None if held.importance is None else held.importance.tolist()) == kept


def test_no_set_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"load gave tuple; allowed: a fedsim\.Dataset"):
        well_formed((1, 2))


@pytest.mark.parametrize("clients", [[range(30), range(30, 40)], [torch.arange(30), torch.arange(30, 40)]])
def test_importance_weighs_clients(clients: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the number of their rows, where the data say it."""

    def divided(fields: dict[str, Any], *importance: float) -> None:
        fields.update(clients=clients, importance=np.array(importance) if importance else None)

    by_rows = run(divided, tmp_path / "rows", monkeypatch, partition=None)
    as_rows = run(lambda f: divided(f, 3.0, 1.0), tmp_path / "as rows", monkeypatch, partition=None)
    other = run(lambda f: divided(f, 1.0, 3.0), tmp_path / "other", monkeypatch, partition=None)
    assert torch.equal(by_rows.params, as_rows.params)
    assert not torch.allclose(by_rows.params, other.params)
    for of, expected in ((by_rows, [0.75, 0.25]), (as_rows, [0.75, 0.25]), (other, [0.25, 0.75])):
        assert importance_of(of.dir, np.array([30, 10])).tolist() == expected  # which is where reports read it
        assert _assembly(load(of.dir / "scenario.yaml"), of.dir).task.importance.tolist() == expected
    for wrong in ((1.0,), (1.0, -1.0), (1.0, float("nan")), (0.0, 0.0)):
        with pytest.raises(InputError, match="importance"):
            run(lambda f, w=wrong: divided(f, *w), tmp_path / "wrong", monkeypatch, partition=None)  # type: ignore[misc]
    assert not (tmp_path / "wrong").exists()
