"""Gradient inversion: the replay is the client's own work, and attacks find what is to be found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.audit.base import Subject
from fedsim.audit.command import audit
from fedsim.audit.observed import observe
from fedsim.audit.reconstruction import cut, infer_labels, total_variation
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

sys.path.append(str(Path(__file__).parent))  # own_attack
SIGMOID = {"name": "mlp", "hidden": [16], "activation": "sigmoid"}
DP_GD = {"name": "diff2", "lr": 0.1, "restart_every": 1, "clip_norm": 0.5}


def scenario(algorithm: dict[str, Any] | None = None, **sections: Any) -> Any:
    return parse(
        {
            "data": {"dataset": "digits", "clients": 4, "limit": 200},
            "model": SIGMOID,
            "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": "full", **(algorithm or {})},
            "run": {"rounds": 3, "device": "cpu", "threads": 1, "dtype": "float64"},
            **sections,
        }
    )


@pytest.mark.parametrize(
    "algorithm,sections",
    [
        ({"local_steps": 1}, {}),
        ({"local_steps": 4, "momentum": 0.5, "weight_decay": 0.1}, {}),
        ({"local_epochs": 2, "batch_size": 2}, {}),
        ({"local_steps": 3, "batch_size": 2}, {}),
        ({"local_steps": 2, "clip": 0.05}, {}),
        ({"name": "fedprox", "mu": 0.7, "local_steps": 3}, {}),
        ({"name": "scaffold", "local_steps": 2}, {}),
        ({"name": "feddyn", "alpha": 0.3, "local_steps": 2}, {}),
        ({"local_steps": 2}, {"model": {"name": "cnn", "channels": [2], "hidden": 8}}),
        (DP_GD, {"privacy": {"mechanism": "gaussian", "epsilon": 3}}),
        ({"local_steps": 2}, {"compression": {"name": "top_k", "fraction": 0.1, "feedback": "ef14"}}),
        ({"local_steps": 2}, {"compression": {"name": "rand_k", "k": 200, "scaled": True}}),
        ({}, {"compression": {"name": "none"}}),
    ],
    ids=str,
)
def test_the_replay_of_the_truth_is_the_message(algorithm: dict[str, Any], sections: dict[str, Any]) -> None:
    s = scenario(algorithm, **sections)
    seen, inputs, labels = observe(s, assemble(s, cut(3, 2)), 1, 10)
    assert inputs.shape == (3, 1, 8, 8)
    again = seen.replay(inputs, labels)
    assert torch.allclose(again, seen.message, rtol=1e-9, atol=1e-12)
    other = seen.replay(inputs.flip(-1), labels)
    assert not torch.allclose(other, seen.message, rtol=1e-3)


COMPRESSED: dict[str, tuple[dict[str, Any], float]] = {  # keys, and how like a retraced message is to the one sent
    "none": ({}, 1.0),
    "top_k": ({"k": 40}, 1.0),
    "rand_k": ({"k": 40}, 1.0),
    "qsgd": ({"levels": 255, "contractive": True}, 0.95),
    "natural": ({}, 0.94),
    "sign": ({}, 0.3),  # which has no sizes
}


@pytest.mark.parametrize("name", [n for n in names("compressor") if lookup("compressor", n).__module__[:6] == "fedsim"])
def test_every_compressor_can_be_retraced(name: str) -> None:
    """What an attacker compares guesses with is differentiable, and for the truth it is like what was sent."""
    keys, least = COMPRESSED[name]
    s = scenario({"local_steps": 2}, compression={"name": name, **keys})
    seen, inputs, labels = observe(s, assemble(s, cut(1, 1)), 0, 10)
    again = seen.replay(inputs.requires_grad_(), labels)
    like = float(torch.cosine_similarity(again.detach(), seen.message, dim=0))
    assert like > least - 1e-9
    if name != "sign":
        assert float((again.norm() / seen.message.norm()).detach()) == pytest.approx(1, abs=1e-9 if least == 1 else 0.1)
    (slope,) = torch.autograd.grad(again.square().sum(), inputs)
    assert float(slope.norm()) > 0


def test_after_one_step_the_mapping_is_the_gradient() -> None:
    s = scenario()
    assembly = assemble(s, cut(2, 1))
    seen, inputs, labels = observe(s, assembly, 0, 10)
    model = seen.replay.module
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    for (name, parameter), g in zip(
        model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        assert torch.allclose(seen[name], g, atol=1e-12), (name, parameter.shape)
    assert len(seen) == 4


@pytest.mark.parametrize("algorithm", [{}, {"clip": 0.01}, {"local_steps": 1, "lr": 3.0}], ids=str)
def test_a_linear_model_gives_its_example_away_exactly(algorithm: dict[str, Any]) -> None:
    found = audit(scenario(algorithm, model={"name": "linear"}), ["first_layer"]).audits[0].finding.results
    assert min(found["psnr_db_each"]) > 150
    assert found["label_accuracy"] == 1
    assert found["ssim"]["mean"] == pytest.approx(1)


def test_dp_without_noise_for_the_server_does_not_hide_it() -> None:
    central = scenario(DP_GD, privacy={"mechanism": "gaussian", "epsilon": 3})
    local = scenario(DP_GD, privacy={"mechanism": "gaussian", "epsilon": 3, "trust": "local"})
    seen = [audit(s, ["first_layer"]).audits[0].finding for s in (central, local)]
    assert min(seen[0].results["psnr_db_each"]) > 150
    assert max(seen[1].results["psnr_db_each"]) < 12
    assert "trust central" in seen[0].threat_model
    assert "noise in it" in seen[1].threat_model


def test_idlg_finds_the_image_behind_several_steps() -> None:
    s = scenario({"local_steps": 2}, audit={"idlg": {"victims": 1, "restarts": 1, "iterations": 150}})
    found = audit(s).audits[0].finding.results
    assert found["psnr_db"]["mean"] > 40
    assert found["label_accuracy"] == 1


def test_dlg_finds_the_label_too() -> None:
    s = scenario(audit={"dlg": {"victims": 1, "restarts": 2, "iterations": 200}})
    assert audit(s).audits[0].finding.results["psnr_db"]["mean"] > 40


def test_the_angle_is_enough_for_a_likeness() -> None:
    keys = {"victims": 1, "iterations": 200, "lr": 0.1, "total_variation": 0.001}
    found = audit(scenario(audit={"inverting_gradients": keys})).audits[0].finding.results
    assert found["psnr_db"]["mean"] > 15


def test_labels_are_read_off_the_last_layer() -> None:
    s = scenario()
    seen, _, truth = observe(s, assemble(s, cut(1, 4)), 2, 10)
    assert infer_labels(seen).tolist() == truth.tolist()


def test_total_variation_by_hand() -> None:
    x = torch.tensor([[[[0.0, 1.0], [3.0, 1.0]]]])
    assert float(total_variation(x)) == pytest.approx((3 + 0) / 2 + (1 + 2) / 2)


def test_somebodys_own_attack_plugs_in() -> None:
    report = audit(scenario(audit={"own_attack:Catalogue": {"levels": 5, "victims": 2}}))
    finding = report.audits[0].finding
    assert finding.results["examples"] == 2
    assert 0 < finding.results["psnr_db"]["mean"] < 20
    assert "the server" in finding.threat_model


@pytest.mark.parametrize(
    "make,attack,key",
    [
        (lambda: scenario(DP_GD, privacy={"mechanism": "gaussian", "epsilon": 3, "trust": "secagg"}), "idlg",
         "privacy.trust"),
        (lambda: scenario(model={"name": "cnn", "channels": [2], "hidden": 8}), "first_layer", "model"),
        (lambda: scenario(), "own_attack:WrongShape", "audit"),
        (lambda: scenario(), "own_attack:NotFinite", "audit"),
        (lambda: scenario(), "own_attack:NoTensor", "audit"),
        (lambda: parse({**{k: v for k, v in scenario().document.values.items() if k != "algorithm"},
                        "algorithm": {"name": "dspodfl"}, "topology": {"graph": "ring"}}), "idlg", "algorithm"),
    ],
    ids=["secagg", "cnn", "shape", "nan", "no tensor", "gossip"],
)  # fmt: skip
def test_what_cannot_be_attacked_is_said(make: Any, attack: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        audit(make(), [attack])
    assert caught.value.problems[0].key == key


def test_more_images_than_a_victim_has_are_refused() -> None:
    held = [len(rows) for rows in Subject(scenario()).material.rows[:2]]
    keys = {"idlg": {"victims": 2, "images": min(held) + 1}}
    with pytest.raises(InputError, match=f"found images {min(held) + 1}, but client .* allowed: at most {min(held)}"):
        audit(scenario(audit=keys))


def test_a_victim_holds_as_many_images_as_asked() -> None:
    material = Subject(scenario()).material
    rows = cut(2, 1)(material).rows
    assert [len(r) for r in rows] == [2, *(len(r) for r in material.rows[1:])]
    assert np.array_equal(rows[0], material.rows[0][:2])
