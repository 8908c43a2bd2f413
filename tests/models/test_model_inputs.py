"""Models are tried on rows of the data, in the data's type; integers stay integers all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.models.losses import loss_function
from fedsim.scenario.load import parse

OWN = """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self, num_outputs, vocab=30, dim=4):
        super().__init__()
        self.table, self.rnn = nn.Embedding(vocab, dim), nn.GRU(dim, 5, batch_first=True)
        self.head = nn.Linear(5, num_outputs)

    def forward(self, x):
        assert x.dtype == torch.int64
        return self.head(self.rnn(self.table(x))[0][:, -1])

class Bag(Tokens):
    def forward(self, x):
        assert x.dtype == torch.int64
        return self.head(torch.cat([self.table(x).mean(1), x[:, :1] * 0], 1))

class Log(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.head = nn.Linear(6, num_outputs)

    def forward(self, x):
        return self.head(torch.log(x))

class Positive(Log):
    def forward(self, x):
        assert (x > 0).all(), "not data"
        return super().forward(x)
"""
DRAW = np.random.default_rng(1)
TOKENS = DRAW.integers(1, 29, (60, 6))
TOKENS[50] = 29  # beyond the rows that one looks at first
LABELS = np.arange(60) % 3


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fedsim_test_inputs.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "tokens.npz", x=TOKENS, y=LABELS)
    np.savez(tmp_path / "floats.npz", x=DRAW.random((60, 6)) + 0.1, y=LABELS)
    return tmp_path


def scenario(folder: Path, file: str, model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    name = model["name"]
    return {
        "data": {"dataset": "npz", "path": str(folder / file), "clients": 4, **sections.pop("data", {})},
        "model": {**model, "name": name if name in ("mlp", "linear") else f"fedsim_test_inputs:{name}"},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_epochs": 1},
        "run": {"rounds": 2, **sections.pop("run", {})},
        **sections,
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", ["auto", "rows"])
def test_an_embedding_gets_integers(folder: Path, dtype: str, kernel: str) -> None:
    run = fedsim.run(
        scenario(folder, "tokens.npz", {"name": "Tokens"}, run={"dtype": dtype, "kernel": kernel}), out=folder / "run"
    )
    assert run.params.isfinite().all()
    assert run.params.dtype == getattr(torch, dtype)


def test_rows_alone_and_stacked_agree(folder: Path) -> None:
    ends = [
        fedsim.run(
            scenario(folder, "tokens.npz", {"name": "Tokens"}, run={"dtype": "float64", "kernel": way}),
            out=folder / way,
        ).params
        for way in ("rows", "auto")
    ]
    assert torch.allclose(*ends, atol=1e-12)


def test_private_training_takes_integers(folder: Path) -> None:
    private = {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 0.2}
    algorithm = {"name": "fedavg", "lr": 0.1, "local_steps": 1}
    run = fedsim.run(
        scenario(folder, "tokens.npz", {"name": "Bag"}, privacy=private) | {"algorithm": algorithm},
        out=folder / "private",
    )
    assert run.params.isfinite().all()


@pytest.mark.parametrize("vocab", [29, 5])
def test_a_token_that_the_embedding_has_not_is_found_before_the_run(folder: Path, vocab: int) -> None:
    with pytest.raises(InputError, match=r"found id \d+ in row \d+ of the training data, but 'table' has") as caught:
        fedsim.run(scenario(folder, "tokens.npz", {"name": "Tokens", "vocab": vocab}), out=folder / "run")
    assert caught.value.problems[0].key == "model.name"
    assert not (folder / "run").exists()


@pytest.mark.parametrize("name", ["mlp", "linear"])
def test_models_of_floats_get_integers_as_floats(folder: Path, name: str) -> None:
    made = assemble(parse(scenario(folder, "tokens.npz", {"name": name})))
    assert made.task.inputs.dtype == torch.float32  # type: ignore[attr-defined]
    assert made.about is not None
    assert made.about["input"]["model_takes"] == "float32"
    np.savez(folder / "same.npz", x=TOKENS.astype(np.float32), y=LABELS)
    same = assemble(parse(scenario(folder, "same.npz", {"name": name})))
    assert torch.equal(made.task.inputs, same.task.inputs)  # type: ignore[attr-defined]


def test_a_model_is_tried_on_data_not_on_random_numbers(folder: Path) -> None:
    assert assemble(parse(scenario(folder, "floats.npz", {"name": "Positive"}))).task.dim == 21
    np.savez(folder / "negative.npz", x=-np.ones((60, 6)), y=LABELS)
    with pytest.raises(InputError, match="gives outputs that are NaN before any training"):
        assemble(parse(scenario(folder, "negative.npz", {"name": "Log"})))


@pytest.mark.parametrize("mode", ["standard", "unit"])
def test_integers_are_never_scaled(folder: Path, mode: str) -> None:
    with pytest.raises(InputError, match=f"found {mode} for inputs that are integers") as caught:
        assemble(parse(scenario(folder, "tokens.npz", {"name": "mlp"}, data={"normalize": mode})))
    assert caught.value.problems[0].key == "data.normalize"


def test_lists_of_integers_in_parquet_stay_integers(folder: Path) -> None:
    import datasets

    rows = {"tokens": TOKENS.tolist(), "label": [f"class {k}" for k in LABELS]}
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "t.parquet"))
    section = scenario(folder, "tokens.npz", {"name": "Tokens"})
    section["data"] = {"dataset": "parquet", "path": str(folder / "t.parquet"), "target": "label", "clients": 3}
    made = assemble(parse(section))
    assert made.task.inputs.dtype == torch.uint8  # type: ignore[attr-defined]  # as stored; the model sees int64
    rows["tokens"][4] = [1, 2]
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "t.parquet"))
    with pytest.raises(InputError, match=r"'tokens' of .*row 4 has 2 values, row 0 has 6"):
        assemble(parse(section))


@pytest.mark.parametrize("attack", ["canaries", "dlg"])
def test_audits_that_change_inputs_need_real_numbers(folder: Path, attack: str) -> None:
    from fedsim.audit import command

    section = scenario(folder, "tokens.npz", {"name": "Tokens"})
    section["algorithm"] = {"name": "fedavg", "lr": 0.1, "local_steps": 1, "batch_size": 4}
    if attack == "canaries":
        del section["algorithm"]["batch_size"]
        section["privacy"] = {
            "mechanism": "dp_sgd",
            "clip_norm": 1.0,
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "sampling_rate": 0.2,
        }
    with pytest.raises(InputError, match="real numbers"):
        command.audit(parse(section), [attack], None)


def test_a_loss_that_is_a_class() -> None:
    with pytest.raises(InputError, match=r"'torch.nn:CrossEntropyLoss' is a class; allowed: a function of") as caught:
        loss_function("torch.nn:CrossEntropyLoss")
    assert caught.value.problems[0].key == "loss"
