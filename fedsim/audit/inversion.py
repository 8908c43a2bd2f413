"""Gradient inversion without a prior of the data: DLG, iDLG, Inverting Gradients, and what a first layer gives away."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.audit.observed import Observed
from fedsim.audit.reconstruction import Reconstruction, total_variation
from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count, NonNegative, Positive


@register.audit("dlg")
@dataclass(frozen=True, kw_only=True)
class DeepLeakage(Reconstruction):
    """Deep leakage from gradients (DLG), Zhu et al. 2019: examples and soft labels are optimised together by L-BFGS.

    ``min_{x, y} |message(x, y) - message|^2``; for smooth activations. `restarts`: starting points, of which the best
    match is kept.
    """

    iterations: Count = 200
    restarts: Count = 2

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        if gradients.num_classes is None:
            raise InputError("found a regression problem; DLG guesses classes, allowed: 'inverting_gradients'", "audit")

        def attempt(start: Tensor, logits: Tensor) -> tuple[Tensor, float]:
            return _match(gradients, start, logits, self.iterations)

        return _best(gradients, self.restarts, attempt)


@register.audit("idlg")
@dataclass(frozen=True, kw_only=True)
class ImprovedDeepLeakage(Reconstruction):
    """Improved DLG (iDLG), Zhao et al. 2020: the labels are read off the last layer, L-BFGS finds the examples.

    ``min_x |message(x) - message|^2``; for smooth activations. `restarts`: starting points.
    """

    iterations: Count = 200
    restarts: Count = 2

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        assert labels is not None

        def attempt(start: Tensor, _: Tensor) -> tuple[Tensor, float]:
            return _match(gradients, start, labels, self.iterations)

        return _best(gradients, self.restarts, attempt)


@register.audit("inverting_gradients")
@dataclass(frozen=True, kw_only=True)
class InvertingGradients(Reconstruction):
    """Inverting Gradients, Geiping et al. 2020, arXiv 2003.14053: the angle between messages, and total variation.

    ``min_x 1 - cos(message(x), message) + total_variation * TV(x)`` by Adam on the signs of the gradient, with steps
    that fall to a tenth after 3/8, 5/8 and 7/8 of the `iterations`, inside the box of values. `lr` counts in the box's
    width.
    """

    iterations: Count = 1000
    restarts: Count = 1
    lr: Positive = 0.05
    total_variation: NonNegative = 0.01

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        low, high = gradients.box
        goal = gradients.message / gradients.message.norm().clamp_min(1e-300)

        def attempt(start: Tensor, _: Tensor) -> tuple[Tensor, float]:
            x = start.clone().requires_grad_()
            optimizer = torch.optim.Adam([x], lr=self.lr * (high - low))
            marks = [int(self.iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, marks, 0.1)
            for _step in range(self.iterations):
                sent = gradients.replay(x, labels)
                value = 1 - torch.dot(sent, goal) / sent.norm().clamp_min(1e-300)
                if x.dim() == 4 and self.total_variation > 0:
                    value = value + self.total_variation * total_variation((x - low) / (high - low))
                (g,) = torch.autograd.grad(value, x)
                x.grad = g.sign()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    x.clamp_(low, high)
            return x.detach(), float(value.detach())

        return _best(gradients, self.restarts, attempt)


@register.audit("first_layer")
@dataclass(frozen=True, kw_only=True)
class FirstLayer(Reconstruction):
    """Reads one example exactly off a first fully connected layer with bias: ``x = dW[i] / db[i]``.

    i is the unit with the largest |db|. After one step on one example this is exact for any loss, and clipping, which
    scales dW and db alike, does not change it (Geiping et al. 2020, Proposition 3.1). Of several examples it gives
    mixtures.
    """

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        named = [(n, m) for n, m in model.named_modules() if not list(m.children()) and not isinstance(m, nn.Flatten)]
        if not named or not isinstance(named[0][1], nn.Linear) or named[0][1].bias is None:
            raise InputError(
                "the model's first layer has to be fully connected, with a bias; allowed: linear, mlp", "model"
            )
        name = named[0][0]
        weight, bias = gradients[f"{name}.weight"], gradients[f"{name}.bias"]
        units = bias.abs().argsort(descending=True)[: gradients.images]
        units = units[torch.arange(gradients.images, device=units.device) % len(units)]
        denominators = bias[units].unsqueeze(1)
        safe = torch.where(denominators == 0, torch.ones_like(denominators), denominators)
        return (weight[units] / safe).reshape(-1, *gradients.shape).clamp(*gradients.box)


def _match(gradients: Observed, start: Tensor, labels: Tensor, iterations: int) -> tuple[Tensor, float]:
    """L-BFGS on the squared distance of messages, over the examples (and labels, where they are logits)."""
    x = start.clone(memory_format=torch.contiguous_format).requires_grad_()
    free = [x]
    if labels.dim() == 2:
        labels = labels.clone().requires_grad_()
        free.append(labels)
    scale = float(gradients.message.square().sum()) or 1.0
    optimizer = torch.optim.LBFGS(
        free, lr=1.0, max_iter=iterations, history_size=50, tolerance_grad=1e-14, tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def distance() -> float:
        value = (gradients.replay(x, labels) - gradients.message).square().sum() / scale
        for variable, g in zip(free, torch.autograd.grad(value, free), strict=True):
            variable.grad = g.contiguous()
        return float(value.detach())

    optimizer.step(distance)  # type: ignore[no-untyped-call]
    return x.detach(), distance()


def _best(gradients: Observed, restarts: int, attempt: Callable[[Tensor, Tensor], tuple[Tensor, float]]) -> Tensor:
    """The best match over starting points, drawn inside the box of values."""
    found = []
    low, high = gradients.box
    b, k, device = gradients.images, gradients.num_classes or 1, gradients.message.device
    for i in range(restarts):
        draw = rng.generator(i, "audit_inversion")
        start = torch.as_tensor(draw.uniform(low, high, (b, *gradients.shape)), device=device)
        x, value = attempt(start, torch.as_tensor(draw.standard_normal((b, k)), device=device))
        found.append((value if math.isfinite(value) else math.inf, i, x))
    return torch.nan_to_num(min(found, key=lambda f: f[:2])[2])
