"""Flips and crops: the images they make, how they are drawn, and that nothing but training sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fedsim
from fedsim.core.errors import InputError
from fedsim.data.augment import Augment, moved
from fedsim.engine.assembly import assemble
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import parse


def obvious(image: np.ndarray, mirrored: int, rows: int, columns: int, pad: int) -> np.ndarray:
    """Mirror, pad with zeros, cut out: one image, as one would write it down."""
    _, height, width = image.shape
    image = image[:, :, ::-1] if mirrored else image
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    return padded[:, pad + rows : pad + rows + height, pad + columns : pad + columns + width]


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 8, 8)])
def test_images_are_mirrored_padded_and_cut_out(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    images = random.normal(size=(2, 40, *shape))
    moves = np.stack([random.integers(0, 2, (2, 40)), *random.integers(-4, 5, (2, 2, 40))], axis=-1).astype(np.int16)
    found = moved(torch.from_numpy(images), torch.from_numpy(moves)).numpy()
    for i in np.ndindex(2, 40):
        assert np.array_equal(found[i], obvious(images[i], *moves[i].tolist(), 4))


def test_standing_still_changes_nothing() -> None:
    images = torch.randn(3, 4, 2, 5, 6)
    assert torch.equal(moved(images, torch.zeros(3, 4, 3, dtype=torch.int16)), images)


def test_how_often_and_how_far() -> None:
    """Over 60,000 samples: half mirrored, the given share cropped, all offsets alike and independent of one another."""
    augment = Augment(flip=True, crop=2, crop_probability=0.5)
    moves = augment.draw(0, np.arange(30), np.arange(30) % 7, 20, 100).reshape(-1, 3)
    assert abs(moves[:, 0].mean() - 0.5) < 0.01
    still = (moves[:, 1:] == 0).all(1).mean()
    assert abs(still - (0.5 + 0.5 / 25)) < 0.01
    cells = moves[:, 0] * 25 + (moves[:, 1] + 2) * 5 + moves[:, 2] + 2
    counts = np.delete(np.bincount(cells, minlength=50), [12, 37])  # all but the cells of those that stand still
    expected = len(moves) * 0.5 / 50
    assert ((counts - expected) ** 2 / expected).sum() < 90  # chi-square, 48 cells: 1e-4 of the mass lies beyond 90
    assert not Augment().draw(0, np.arange(3), np.ones(3, dtype=int), 2, 5).any()
    always = Augment(crop=1).draw(0, np.arange(50), np.ones(50, dtype=int), 2, 9)
    assert abs((always[..., 1:] == 0).mean() - 1 / 3) < 0.05
    assert not always[..., 0].any()


def test_a_draw_depends_on_client_round_step_and_place_alone() -> None:
    augment = Augment(flip=True, crop=3)
    clients, rounds = np.array([4, 9, 2]), np.array([1, 5, 1])
    together = augment.draw(7, clients, rounds, 6, 8)
    for i in range(3):
        assert np.array_equal(augment.draw(7, clients[[i]], rounds[[i]], 6, 5)[0], together[i, :, :5])
    assert not np.array_equal(augment.draw(8, clients, rounds, 6, 8), together)
    assert not np.array_equal(augment.draw(7, clients, rounds + 1, 6, 8), together)
    assert not np.array_equal(together[0, 0], together[0, 1])


# --- in training ---------------------------------------------------------------------------------------------------


def scenario(model: dict[str, Any], algorithm: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 5, "limit": 200, "partition": {"scheme": "dirichlet", "alpha": 1.0},
                 **data},
        "model": model,
        "algorithm": {"local_epochs": 2, "batch_size": 8, "lr": 0.05, **algorithm},
        "run": {"rounds": 2, "device": "cpu", "dtype": "float64", "threads": 1},
    }  # fmt: skip


AUGMENT = {"flip": True, "crop": 2, "crop_probability": 0.75}
MODELS = {
    "stacked chain": {"name": "mlp", "hidden": [8]},
    "rows": {"name": "cnn", "channels": [2], "hidden": 4},
}


def task_of(settings: dict[str, Any]) -> SupervisedTask:
    task = assemble(parse(settings)).task
    assert isinstance(task, SupervisedTask)
    return task


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("batch", [8, "full"])
def test_the_oracle_sees_moved_images_and_the_same_ones_every_time(model: dict[str, Any], batch: Any) -> None:
    plain, task = (task_of(scenario(model, {"name": "fedavg"}, **d)) for d in ({}, {"augment": AUGMENT}))
    clients, rounds, steps = np.array([3, 0, 2]), np.array([4, 4, 2]), np.array([3, 3, 3])
    lr = torch.ones(3, 1, dtype=torch.float64)
    x = torch.stack([task.initial()] * 3)
    before = task.inputs.clone()
    for step in (0, 2):
        oracle = task.plan(clients, rounds, steps, batch, True).oracle(step, 3, lr)
        untouched = plain.plan(clients, rounds, steps, batch, True).oracle(step, 3, lr)
        moves = task.augment.draw(0, clients, rounds, 3, oracle.inputs.shape[1])[:, step]  # type: ignore[union-attr,attr-defined]
        for i in np.ndindex(moves.shape[:2]):
            expected = obvious(untouched.inputs[i].numpy(), *moves[i].tolist(), 2)  # type: ignore[attr-defined]
            assert np.array_equal(oracle.inputs[i].numpy(), expected)  # type: ignore[attr-defined]
        g = oracle.grad(x)
        assert torch.equal(oracle.grad(x), g)
        assert (g - untouched.grad(x)).abs().max() > 1e-4
        each = oracle.per_sample_grad(x)
        counts = (each.abs().sum(-1) > 0).sum(1, keepdim=True)
        assert (each.sum(1) / counts - g).abs().max() < 1e-13
    assert torch.equal(task.inputs, before)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    "algorithm", [{"name": "fedavg"}, {"name": "scaffold"}, {"name": "feddyn", "alpha": 0.1}], ids=lambda a: a["name"]
)
def test_numbers_do_not_depend_on_chunks(model: dict[str, Any], algorithm: dict[str, Any], tmp_path: Path) -> None:
    settings = scenario(model, algorithm, augment=AUGMENT)
    whole = fedsim.run(settings, out=tmp_path / "whole")
    alone = fedsim.run({**settings, "run": {**settings["run"], "chunk_rows": 1}}, out=tmp_path / "alone")
    assert (whole.params - alone.params).abs().max() < 1e-13
    plain = fedsim.run(scenario(model, algorithm), out=tmp_path / "plain")
    assert (whole.params - plain.params).abs().max() > 1e-3
    again = fedsim.run(whole.dir / "scenario.yaml", out=tmp_path / "again")  # what was resolved says all
    assert torch.equal(again.params, whole.params)


def test_evaluations_see_the_images_as_they_are() -> None:
    plain, augmented = (task_of(scenario(MODELS["rows"], {"name": "fedavg"}, **d)) for d in ({}, {"augment": AUGMENT}))
    assert augmented.evaluate(plain.initial()) == plain.evaluate(plain.initial())
    rows = torch.stack([plain.initial()] * 2)
    assert augmented.node_accuracy(rows) == plain.node_accuracy(rows)


@pytest.mark.parametrize(
    "augment, message",
    [
        (True, r"data.augment: found True, allowed: a mapping, e.g. {flip: true, crop: 4}"),
        ({"flp": True}, r"data.augment.flp: unknown key \(did you mean 'flip'\?\); allowed: flip, crop"),
        ({"flip": 0.5}, "data.augment.flip: found 0.5, allowed: true or false"),
        ({"crop": -1}, "data.augment.crop: found -1, allowed: greater than or equal to 0"),
        ({"crop": 8}, "data.augment.crop: found 8 for images of 8x8; allowed: 0 to 7"),
        ({"crop": 1, "crop_probability": 2.0}, "crop_probability: found 2.0, allowed: less than or equal to 1"),
    ],
)  # fmt: skip
def test_wrong_augmentation_is_refused(augment: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assemble(parse(scenario(MODELS["rows"], {"name": "fedavg"}, augment=augment)))


def test_only_images_are_augmented(tmp_path: Path) -> None:
    settings = scenario({"name": "linear"}, {"name": "fedavg"})
    settings["data"] = {"dataset": "synthetic", "alpha": 1, "beta": 1, "clients": 4, "augment": {"flip": True}}
    with pytest.raises(InputError, match=r"data.augment: found samples of shape \[60\]; allowed only for images"):
        assemble(parse(settings))
    np.savez(tmp_path / "q.npz", A=np.ones((2, 3)), b=np.ones((2, 3)))
    file = tmp_path / "s.yaml"
    data = {"dataset": "quadratic", "file": "q.npz", "augment": {"flip": True}}
    file.write_text(yaml.safe_dump({"data": data, "algorithm": {"name": "fedavg"}}))
    with pytest.raises(InputError, match=r"s.yaml:\d+: data.augment: a quadratic problem has no images"):
        assemble(fedsim.load(file))
