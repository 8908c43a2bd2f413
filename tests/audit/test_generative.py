"""Inversion with a generative prior: the schedule is GIFD's, and somebody's own generator is looked at first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.audit.command import audit, write
from fedsim.audit.generative import (
    GenerativeInversion,
    keep_norm,
    onto_l1_ball,
    pace,
    search,
    stay_within,
)
from fedsim.audit.generator import Generator
from fedsim.audit.observed import Observed, observe
from fedsim.audit.pictures import psnr
from fedsim.audit.reconstruction import cut
from fedsim.core.errors import InputError, RunError
from fedsim.engine.assembly import Material, assemble
from fedsim.scenario.load import parse
from tests.reference import gifd as reference

ROOT = Path(__file__).parents[2]
sys.path += [str(Path(__file__).parent), str(ROOT / "scenarios")]  # own_generators, digits_generator
SHIPPED, FITTING = "digits_generator:generator", "own_generators:fitting"


def scenario(audits: dict[str, Any], **sections: Any) -> Any:
    return parse(
        {
            "data": {"dataset": "digits", "clients": 20, "limit": 400},
            "model": {"name": "mlp", "hidden": [16], "activation": "sigmoid"},
            "algorithm": {"name": "fedavg", "lr": 1.0, "batch_size": "full"},
            "run": {"rounds": 1, "device": "cpu", "threads": 1, "dtype": "float64"},
            "audit": audits,
            **sections,
        }
    )


def seen_of(images: int) -> tuple[Observed, torch.Tensor, torch.Tensor]:
    s = scenario({})
    return observe(s, assemble(s, cut(images, 1)), 0, 10)


def cosine(seen: Observed, labels: torch.Tensor) -> Any:
    return lambda x: 1 - torch.nn.functional.cosine_similarity(seen.replay(x, labels), seen.message, dim=0)


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "v,radius,expected",
    [
        ([3.0, 1.0], 2.0, [2.0, 0.0]),
        ([3.0, -2.0, 1.0], 3.0, [2.0, -1.0, 0.0]),
        ([1.0, 1.0, -1.0], 1.5, [0.5, 0.5, -0.5]),
        ([0.25, -0.25], 0.5, [0.25, -0.25]),
        ([0.0, 0.0], 1.0, [0.0, 0.0]),
    ],
)
def test_l1_projections_by_hand(v: list[float], radius: float, expected: list[float]) -> None:
    assert onto_l1_ball(torch.tensor([v]).double(), radius)[0].tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_the_l1_projection_is_that_of_the_slow_reference(seed: int) -> None:
    draw = np.random.default_rng(seed)
    v = draw.standard_normal((4, 2, 3, 5)) * np.array([0.01, 0.3, 1.0, 50.0]).reshape(4, 1, 1, 1)
    v[1, 0] = 0
    found = onto_l1_ball(torch.as_tensor(v), 3.0).numpy().reshape(4, -1)
    for row, slow in zip(found, v.reshape(4, -1), strict=True):
        assert np.allclose(row, reference.onto_l1_ball(slow, 3.0), rtol=0, atol=1e-12)
        assert np.abs(row).sum() <= 3.0 + 1e-12


def test_the_pace_of_adam() -> None:
    found = [pace(t) for t in (0.0, 0.025, 0.05, 0.25, 0.625, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0], abs=1e-15)


def test_codes_keep_their_norms() -> None:
    start = torch.tensor([[0.0, 0.0, 10.0], [1.0, 2.0, 2.0]], dtype=torch.float64)
    moved = torch.tensor([[3.0, 4.0, 0.0], [-2.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[6.0, 8.0, 0.0], [-3.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(keep_norm(start)(moved), expected, atol=1e-15)
    found = search(start, lambda z: (z - moved).square().sum(), 30, 0.1, keep_norm(start))
    assert torch.allclose(found.norm(dim=1), start.norm(dim=1))
    assert not torch.allclose(found, start, atol=0.1)


@pytest.mark.parametrize(
    "target,radius,expected",
    [
        ([3.0, -2.0, 1.0], 100.0, [3.0, -2.0, 1.0]),  # inside the ball
        ([3.0, 0.0, 0.0], 2.0, [2.0, 0.0, 0.0]),
        ([3.0, -3.0, 3.0], 1.5, [0.5, -0.5, 0.5]),
    ],
)
def test_features_are_searched_within_their_ball(target: list[float], radius: float, expected: list[float]) -> None:
    start = torch.tensor([[0.5, 0.25, -1.0]], dtype=torch.float64)
    a = start + torch.tensor([target])
    found = search(start, lambda h: (h - a).square().sum(), 400, 0.1, stay_within(start, radius))
    assert torch.allclose(found - start, torch.tensor([expected]).double(), atol=1e-6)


def test_the_schedule_is_that_of_the_slow_reference() -> None:
    seen, _, labels = seen_of(1)
    draw = torch.Generator().manual_seed(3)
    layers = [nn.Linear(3, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 6)), nn.Sequential(nn.Linear(6, 64), nn.Sigmoid())]
    for p in [p for layer in layers for p in layer.parameters()]:
        p.data = torch.randn(p.shape, generator=draw)
    layers[2].append(nn.Unflatten(-1, (1, 8, 8)))
    generator = Generator(tuple(layer.double().requires_grad_(False) for layer in layers), (3,))
    keys: dict[str, Any] = {
        "iterations": 12,
        "lr": 0.1,
        "total_variation": 0.3,
        "image_norm": 0.2,
        "radius": [0.4, 0.2],
    }
    attack = GenerativeInversion(generator=FITTING, restarts=1, **keys)
    z = torch.tensor([[0.3, -1.2, 0.8]], dtype=torch.float64)
    found = list(attack.images_by_layer(generator, z, labels, cosine(seen, labels)))
    expected = reference.images_by_layer(layers, z[0].numpy(), cosine(seen, labels), **keys)
    assert len(found) == 3
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_a_linear_generator_gives_the_example_that_it_can_make() -> None:
    """The image is one point of a linear generator's range, so its features are known: the third unit vector."""
    seen, inputs, labels = seen_of(1)
    basis = torch.rand(4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis[2] = inputs[0].flatten()
    last = nn.Sequential(nn.Linear(4, 64, bias=False), nn.Unflatten(-1, (1, 8, 8))).double().requires_grad_(False)
    last[0].weight.copy_(basis.T)
    generator = Generator((nn.Identity(), last), (4,))
    attack = GenerativeInversion(
        generator=FITTING, iterations=250, total_variation=0.0, image_norm=0.0, radius=10.0, restarts=1
    )
    z = torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    code, features = attack.images_by_layer(generator, z, labels, cosine(seen, labels))
    assert torch.linalg.lstsq(basis.T, code.flatten()).solution.norm() == pytest.approx(1.0)  # the norm of z
    assert torch.allclose(torch.linalg.lstsq(basis.T, features.flatten()).solution, torch.eye(4).double()[2], atol=1e-3)
    assert psnr(features[0].numpy(), inputs[0].numpy()) > 60


def test_the_best_layer_of_all_restarts_is_taken() -> None:
    seen, _, labels = seen_of(2)
    attack = GenerativeInversion(generator=SHIPPED, iterations=8, restarts=3)
    generator, losses = attack._made(seen.shape, 10, labels), []
    for restart in range(3):
        z = torch.as_tensor(fedsim_normal(restart, (2, 16)))
        losses += [
            float(cosine(seen, labels)(x).detach())
            for x in attack.images_by_layer(generator, z, labels, cosine(seen, labels))
        ]
    found = attack.reconstruct(seen, seen.replay.module, labels)
    assert found.told["matching_loss"] == pytest.approx(min(losses), rel=1e-9)
    assert found.told["layer"] == losses.index(min(losses)) % 3
    assert float(cosine(seen, labels)(found.examples).detach()) == pytest.approx(min(losses), rel=1e-9)


def fedsim_normal(restart: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    from fedsim.core import rng

    return rng.generator(restart, "audit_inversion").standard_normal(shape)


def test_a_search_that_blows_up_is_told() -> None:
    s = scenario({"gifd": {"generator": SHIPPED, "victims": 1, "iterations": 5, "restarts": 2, "lr": 1e308}})
    with pytest.raises(RunError, match=r"none of 2 restarts stayed finite with lr 1e\+308, allowed: a smaller lr"):
        audit(s)


# --- the generator that is shipped ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Any:
    import digits_generator

    return digits_generator


def test_it_has_not_seen_the_victims(digits: Any) -> None:
    held: list[torch.Tensor] = []

    def note(material: Material) -> Material:
        held.extend(material.data.train_x[rows].flatten(1) for rows in material.rows)
        return material

    import fedsim

    assemble(fedsim.load(ROOT / "scenarios/audit-gifd-digits.yaml"), note)
    victims, seen = torch.cat(held), digits.images()[0].flatten(1)
    assert len(victims) == 400
    assert float(torch.cdist(victims, seen).min()) > 0


def test_training_gives_the_same_generator_again_and_a_better_one_later(digits: Any) -> None:
    x, labels = digits.images()
    short, again, longer = (digits.train(x[:200], labels[:200], steps) for steps in (5, 5, 150))
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), again.parameters(), strict=True))
    z = torch.zeros(200, digits.CODE)  # the middle of each class
    errors = [float((made(z, labels[:200]) - x[:200]).detach().square().mean()) for made in (short, longer)]
    assert errors[1] < 0.8 * errors[0]


def test_a_prior_helps_where_the_message_is_compressed(tmp_path: Path) -> None:
    audits = {
        "gifd": {"generator": SHIPPED, "victims": 2, "iterations": 50, "restarts": 1},
        "inverting_gradients": {"victims": 2, "iterations": 150},
    }
    report = audit(scenario(audits, compression={"name": "top_k", "fraction": 0.05}))
    gifd, without = (done.finding.results for done in report.audits)
    assert gifd["psnr_db"]["median"] > without["psnr_db"]["median"] + 3
    assert gifd["ssim"]["median"] > without["ssim"]["median"] + 0.2
    assert set(gifd["layer_each"]) <= {0, 1, 2}
    assert all(0 <= loss < 0.5 for loss in gifd["matching_loss_each"])
    page = write(report, tmp_path).read_text("utf-8")
    assert "Reconstructions compared" in page
    assert (tmp_path / "figures/reconstructions.png").stat().st_size > 5000


# --- generators of somebody's own -------------------------------------------------------------------------------------


def test_somebodys_own_generator_is_told_what_to_make() -> None:
    s = scenario({"gifd": {"generator": FITTING, "victims": 1, "images": 2, "iterations": 3, "restarts": 1}})
    assert audit(s).audits[0].finding.results["examples"] == 2


@pytest.mark.parametrize(
    "name,says",
    [
        ("raises", "failed: RuntimeError: no weights"),
        ("wants_more", "failed: TypeError: wants_more() missing 1 required positional argument: 'path'"),
        ("no_module", "returned int, allowed: a torch.nn.Sequential or ModuleList of layers"),
        ("no_layers", "returned Linear, allowed: a torch.nn.Sequential or ModuleList of layers"),
        ("nothing", "returned no layers, allowed: a torch.nn.Sequential or ModuleList of layers"),
        ("no_latent", "has no attribute 'latent', allowed: the shape of a code without the batch, such as (16,)"),
        ("wrong_latent", "has latent (4, 0), allowed: the shape of a code without the batch, such as (16,)"),
        (
            "other_latent",
            "cannot take [2, 5] at layer 0 (Linear): RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        ("wrong_shape", "makes examples [64], allowed: [1, 8, 8], the shape of the data's"),
        (
            "other_batch",
            "made torch.float64 [1, 1, 8, 8] at layer 3 (Given) of 2 codes, allowed: torch.float64 [2, ...]",
        ),
        ("no_tensor", "made list, no tensor at layer 3 (Given) of 2 codes, allowed: torch.float64 [2, ...]"),
        ("is_nan", "made numbers at layer 3 (Given) that are not finite, allowed: finite ones"),
        ("tanh_like", "allowed: 0 to 1, the smallest to the largest of the data"),
        ("layer_raises", "cannot take [2, 1, 8, 8] at layer 3 (Given): IndexError: index 5 is out of bounds"),
        ("no_slopes", "makes examples that cannot be differentiated by their codes, allowed: no detach, no no_grad"),
        ("steep", "has slopes that are not finite, allowed: finite ones"),
        ("noisy", "makes another example of the same code (noise, or mixed examples), allowed: one example a code"),
        ("few_classes", "cannot take [2, 4] at layer 0 (Told): IndexError: index out of range in self"),
    ],
)
def test_what_cannot_generate_is_told_before_any_attack(name: str, says: str) -> None:
    audits = {"own_attack:Catalogue": {}, "gifd": {"generator": f"own_generators:{name}", "victims": 1}}
    heard: list[str] = []
    with pytest.raises(InputError) as caught:
        audit(scenario(audits), progress=heard.append)
    (problem,) = caught.value.problems
    assert problem.key == "audit.gifd.generator"
    assert problem.message.startswith(f"'own_generators:{name}' ")
    assert says in problem.message
    assert "\n" not in problem.message
    assert heard == []


@pytest.mark.parametrize(
    "keys,key,says",
    [
        ({}, "generator", "missing"),
        ({"generator": "digits"}, "generator", "found 'digits', allowed: 'pkg.mod:factory', which returns a module"),
        ({"generator": "no_such_module:f"}, "generator", "cannot import 'no_such_module'"),
        ({"generator": "own_generators:fiting"}, "generator", "did you mean 'fitting'?"),
        ({"generator": "own_generators:A_NUMBER"}, "generator", "is int, allowed: a callable that returns a module"),
        ({"generator": FITTING, "radius": -1.0}, "radius", "greater than 0"),
        ({"generator": FITTING, "radius": []}, "radius", "at least 1"),
        ({"generator": FITTING, "layers": 2}, "layers", "unknown key"),
    ],
)
def test_wrong_keys_are_told_with_the_scenario(keys: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        scenario({"gifd": keys})
    problem = caught.value.problems[0]
    assert problem.key == f"audit.gifd.{key}"
    assert says in problem.message


def test_as_many_radii_as_layers_after_the_first() -> None:
    with pytest.raises(InputError) as caught:
        audit(scenario({"gifd": {"generator": SHIPPED, "radius": [1.0, 2.0, 3.0]}}))
    (problem,) = caught.value.problems
    assert problem.key == "audit.gifd.radius"
    assert problem.message == "found 3 numbers, but the generator has 3 layers; allowed: one number, or 2"


def test_images_of_another_size_are_refused_with_the_generator() -> None:
    data = {"dataset": "synthetic", "alpha": 1, "beta": 1, "clients": 3}
    s = scenario({"gifd": {"generator": SHIPPED}}, data=data, model={"name": "linear"})
    with pytest.raises(InputError, match=r"makes examples \[1, 8, 8\], allowed: \[60\], the shape of the data's"):
        audit(s)
