"""Gradient inversion with a generative prior: GIFD (Fang et al., ICCV 2023, arXiv 2308.04699).

The search is not among all images but among those that a generator makes, first by its code, then by the features
between its layers, each time near what was found before. The generator is the attacker's, trained on other data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.audit.base import Subject
from fedsim.audit.generator import Generator, Maker, find_factory
from fedsim.audit.observed import Observed
from fedsim.audit.reconstruction import Guess, Reconstruction, total_variation
from fedsim.core import rng
from fedsim.core.errors import InputError, RunError
from fedsim.core.registry import register
from fedsim.core.types import Count, NonNegative, Positive

_WARM_UP, _RAMP_DOWN = 0.05, 0.75
_KEY = "audit.gifd.generator"
_TINY = 1e-300


@register.audit("gifd")
@dataclass(frozen=True, kw_only=True)
class GenerativeInversion(Reconstruction):
    """GIFD: a generator's code is searched, then its features layer by layer; the image of the best layer is the guess.

    ``min 1 - cos(message(G(h)), message) + total_variation * TV(G(h)) + image_norm * |G(h)| / (H W)`` over the code
    (which keeps its norm), then over the input h of layer 1, 2, ..., within an l1 ball around what the layers before
    made of what was found. Adam warms up over a twentieth of the iterations and slows down over the last three
    quarters. Of all layers and restarts the image whose message has the least angle is returned.

    Parameters
    ----------
    generator : ``pkg.mod:factory``, see `fedsim.audit.generator`.
    iterations : for each layer.
    restarts : codes ``z ~ N(0, I)`` from which all layers are searched.
    radius : of the l1 ball of one example's features, for all layers or a list with one number per layer after the
        first.
    """

    generator: str
    iterations: Count = 1000
    restarts: Count = 4
    lr: Positive = 0.1
    total_variation: NonNegative = 1e-4
    image_norm: NonNegative = 1e-6
    radius: Positive | Annotated[list[Positive], Field(min_length=1)] = 10.0

    factory: Callable[..., Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factory", find_factory(self.generator, "generator"))

    def check(self, subject: Subject) -> None:
        super().check(subject)
        data = subject.material.data
        labels = data.train_y[:2] if data.num_classes is None else torch.tensor([0, data.num_classes - 1])
        self._made(tuple(data.train_x.shape[1:]), data.num_classes, labels)

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Guess:
        assert labels is not None
        generator = self._made(gradients.shape, gradients.num_classes, labels)
        low, high = gradients.box
        goal = gradients.message / gradients.message.norm().clamp_min(_TINY)

        def matching(x: Tensor) -> Tensor:
            sent = gradients.replay(low + (high - low) * x, labels)
            value: Tensor = 1 - torch.dot(sent, goal) / sent.norm().clamp_min(_TINY)
            return value

        found = []
        for restart in range(self.restarts):
            draw = rng.generator(restart, "audit_inversion")
            z = torch.as_tensor(draw.standard_normal((gradients.images, *generator.latent)), device=goal.device)
            for layer, x in enumerate(self.images_by_layer(generator, z, labels, matching)):
                x = x.clamp(0, 1)
                found.append((float(matching(x).detach()), restart, layer, x))
        if not found:
            text = f"none of {self.restarts} restarts stayed finite with lr {self.lr:g}, allowed: a smaller lr"
            raise RunError(f"{_KEY}: {text}")
        loss, _, layer, x = min(found, key=lambda f: f[:3])
        return Guess(low + (high - low) * x, {"layer": layer, "matching_loss": loss})

    def images_by_layer(
        self, generator: Generator, z: Tensor, labels: Tensor, matching: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """The image found at each layer in turn, from the code `z` on, as far as all numbers stay finite.

        Parameters
        ----------
        z : ``[b, *latent]``.
        matching : how badly images ``[b, *shape]`` in 0..1 fit, differentiable.
        """
        h = z
        for k in range(len(generator.layers)):

            def loss(h: Tensor, k: int = k) -> Tensor:
                x = generator(h, labels, k)
                return matching(x) + self._regularisation(x)

            project = keep_norm(h) if k == 0 else stay_within(h, self._radius(k))
            h = search(h, loss, self.iterations, self.lr, project)
            x = generator(h, labels, k)
            if not bool(x.isfinite().all()) or not bool(matching(x).isfinite()):
                return
            yield x
            h = generator.layer(k, h, labels)

    def _regularisation(self, x: Tensor) -> Tensor:
        value: Tensor = self.image_norm * x.norm() / math.prod(x.shape[-2:] if x.dim() == 4 else x.shape[1:])
        return value + self.total_variation * total_variation(x) if x.dim() == 4 else value

    def _radius(self, k: int) -> float:
        return self.radius[k - 1] if isinstance(self.radius, list) else self.radius

    def _made(self, shape: tuple[int, ...], num_classes: int | None, labels: Tensor) -> Generator:
        generator = Maker(self.generator, self.factory, _KEY).make(shape, num_classes, labels)
        features = len(generator.layers) - 1
        if isinstance(self.radius, list) and len(self.radius) != features:
            found = f"found {len(self.radius)} numbers, but the generator has {features + 1} layers"
            raise InputError(f"{found}; allowed: one number, or {features}", "audit.gifd.radius")
        return generator


def search(
    start: Tensor, loss: Callable[[Tensor], Tensor], iterations: int, lr: float, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Where Adam gets from `start`, each step followed by `project`; the last point, as in the authors' code."""
    h = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([h], lr=lr)
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = lr * pace(i / iterations)
        (h.grad,) = torch.autograd.grad(loss(h), h)
        optimizer.step()
        with torch.no_grad():
            h.copy_(project(h))
    return h.detach()


def pace(t: float) -> float:
    """The share of the learning rate after a share t of the iterations: a linear warm-up, and half a cosine down."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / _RAMP_DOWN))
    return down * min(1.0, t / _WARM_UP)


def keep_norm(start: Tensor) -> Callable[[Tensor], Tensor]:
    """A projection of codes ``[b, ...]`` to the norms that those of `start` have."""
    norms = start.flatten(1).norm(dim=1)

    def project(z: Tensor) -> Tensor:
        factor: Tensor = norms / z.flatten(1).norm(dim=1).clamp_min(_TINY)
        return z * factor.reshape(-1, *[1] * (z.dim() - 1))

    return project


def stay_within(start: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
    """A projection of features ``[b, ...]`` to the l1 balls around those of `start`."""
    return lambda h: start + onto_l1_ball(h - start, radius)


def onto_l1_ball(v: Tensor, radius: float) -> Tensor:
    """The nearest points to rows ``[b, ...]`` whose absolute values sum to at most `radius` (Duchi et al. 2008).

    All values shrink by the same theta, as far as 0.
    """
    flat = v.flatten(1)
    size = flat.abs()
    falling = size.sort(dim=1, descending=True).values
    count = torch.arange(1, falling.shape[1] + 1, device=v.device, dtype=v.dtype)
    thetas = (falling.cumsum(1) - radius) / count
    last = (falling > thetas).sum(1, keepdim=True) - 1  # these keep something; at least one, as the radius is positive
    theta = thetas.gather(1, last.clamp_min(0)).clamp_min(0)
    return (flat.sign() * (size - theta).clamp_min(0)).reshape(v.shape)
