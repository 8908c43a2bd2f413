"""Batch normalisation by choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import own_models
import pytest
import torch
from torch import nn

import fedsim
from fedsim.engine.assembly import assemble
from fedsim.models import exported
from fedsim.models.exported import grouped
from fedsim.models.nature import PLAIN, nature_of
from fedsim.models.norms import prepare, training
from fedsim.scenario.load import parse

X = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))


def scenario(name: str, choice: str | None, **sections: Any) -> dict[str, Any]:
    model = {"name": f"own_models:{name}", **({} if choice is None else {"batch_norm": choice})}
    return {
        "data": {"dataset": "digits", "clients": 4},
        "model": {**model, **sections.pop("model", {})},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 7, **sections.pop("algorithm", {})},
        "run": {"rounds": 3, "dtype": "float64", "eval_samples": 50, **sections.pop("run", {})},
        **sections,
    }


def test_group_normalisation_takes_the_place_of_batch_normalisation() -> None:
    module = own_models.Normed(3)
    weight, names = module.first.weight, [name for name, _ in module.named_parameters()]
    new = grouped(module)
    assert isinstance(new.first, nn.GroupNorm)
    assert new.first.weight is weight
    assert (new.first.num_groups, grouped(nn.BatchNorm1d(5)).num_groups) == (2, 1)
    assert [name for name, _ in new.named_parameters()] == names
    assert not list(new.named_buffers())
    assert nature_of(new, X).plain


def test_frozen_statistics_stay_while_the_rest_trains() -> None:
    module = prepare(own_models.NormedDropped(3), "frozen")
    training(module, True)
    assert (module.training, module.norm.training, module.drop.training) == (True, False, True)
    nature = nature_of(module, X)
    assert nature.draws
    assert not nature.buffers.total
    assert nature_of(prepare(own_models.Normed(3), "frozen"), X).plain


@pytest.mark.parametrize("name", ["Whole", "Tied", "TiedConvolutions"])
def test_others_are_plain(name: str) -> None:
    assert nature_of(getattr(own_models, name)(3), X) == PLAIN


def test_what_training_changes_is_found_and_stays_as_it_was() -> None:
    module = own_models.Normed(3)
    before = {name: b.clone() for name, b in module.named_buffers()}
    nature = nature_of(module, X)
    assert set(nature.buffers.names) == set(before)
    assert nature.buffers.total == 2 * (4 + 4 + 1)
    assert all(torch.equal(b, before[name]) for name, b in module.named_buffers())
    assert set(nature_of(own_models.Counting(3), X).buffers.names) == {"mean", "steps"}


@pytest.mark.parametrize("choice", ["group", "frozen"])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"run": {"kernel": "stacked"}},
        {"topology": {"graph": "ring"}, "algorithm": {"name": "dspodfl"}},
        {"privacy": {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5,
                     "sampling_rate": 0.1}},
        {"compression": {"name": "top_k", "k": 20}},
    ],
    ids=lambda s: "-".join(s) or "fedavg",
)  # fmt: skip
def test_models_of_one_sample_go_with_everything(choice: str, sections: dict[str, Any], tmp_path: Path) -> None:
    made = scenario("Normed", choice, **{k: dict(v) for k, v in sections.items()})
    if "privacy" in sections:
        made["algorithm"].pop("batch_size")
    run = fedsim.run(made, out=tmp_path / "run")
    assert run.params.isfinite().all()
    assert run.params.shape[-1] == assemble(parse(made)).task.dim


@pytest.mark.parametrize("choice", ["group", "frozen"])
@pytest.mark.parametrize("name", ["Normed", "NormedDropped"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export_normalises_in_the_same_way(choice: str, name: str, suffix: str, tmp_path: Path) -> None:
    run = fedsim.run(scenario(name, choice), out=tmp_path / "run")
    run.export(tmp_path / f"model{suffix}")
    loaded = exported.load(tmp_path / f"model{suffix}")
    rows = X.double().reshape(6, *loaded.about["data"]["input"]["shape"])
    with torch.no_grad():
        assert torch.equal(loaded.outputs(rows), run.model()(loaded.encoder(rows)))
