"""Reconstruction of examples from what a server sees of one client: gradient inversion.

An attack is an audit with one method, ``reconstruct(gradients, model, labels)``; somebody's own, a generative one say,
is a subclass of `Reconstruction` named ``pkg.mod:Class`` in the ``audit:`` section.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.audit.base import Audit, Finding, Subject
from fedsim.audit.observed import Observed, observe
from fedsim.audit.pictures import mse, psnr, ssim
from fedsim.core import rng
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count, NonNegative, Positive
from fedsim.engine.assembly import Change, Material, assemble

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERVER = (
    "The attacker is the server, which follows the protocol and sees one client's message of the first round. It knows "
    "the model, the algorithm and its keys, the order of the client's minibatches, how many examples ({images}) the "
    "client holds, and the range of their values{labels}{clip}.{noise}"
)


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Audit):
    """Base class of attacks that reconstruct a client's examples.

    Parameters
    ----------
    images : examples that each victim holds; its data are cut down to that many.
    victims : clients attacked, one after another.
    labels : ``inferred`` from the last layer's gradient, or ``known``.
    """

    images: Count = 1
    victims: Count = 3
    labels: Literal["inferred", "known"] = "inferred"

    @abstractmethod
    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        """Guesses ``[b, *gradients.shape]`` of the examples behind `gradients`.

        `model` is in float64 and holds the parameters that the client received; `labels` ``[b]`` are the classes (for
        regression the targets) as far as they are known or inferred, else None.
        """

    def run(self, subject: Subject) -> Finding:
        victims = min(self.victims, len(subject.material.rows))
        if not subject.material.data.train_x.is_floating_point():
            raise InputError("inputs are searched among real numbers, found integers", key="data.dataset")
        assembly = assemble(subject.scenario, cut(self.images, victims))
        cases = []
        for victim in range(victims):
            subject.say(f"{type(self).__name__}: client {victim + 1} of {victims}")
            seen, inputs, truth = observe(subject.scenario, assembly, victim, subject.material.data.num_classes)
            labels: Tensor | None = truth if self.labels == "known" or seen.num_classes is None else infer_labels(seen)
            guess = self.reconstruct(seen, seen.replay.module, labels).detach()
            if guess.shape != inputs.shape:
                found, allowed = list(guess.shape), list(inputs.shape)
                raise InputError(f"'{type(self).__name__}' returned examples {found}, allowed: {allowed}", "audit")
            cases.append(_Case.of(seen, inputs, truth, guess, labels))
        known = "" if self.labels == "inferred" else ", and their labels"
        clip = (
            "" if seen.clip is None else f", and that gradients are clipped to {seen.clip:g}, which its guesses are too"
        )
        private = assembly.privacy.claims and assembly.privacy.ledger.claim.trust == "local"
        noise = " The message has the client's noise in it, which cannot be replayed." if private else ""
        if assembly.privacy.claims and not private:
            noise = " Noise is added after the server has seen the message (trust central), so none protects from it."
        model = _SERVER.format(images=self.images, labels=known, clip=clip, noise=noise)
        return _finding(cases, model)


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


def cut(images: int, victims: int) -> Change:
    """The first `victims` clients hold only their first `images` examples."""

    def change(material: Material) -> Material:
        rows = [r[:images] if i < victims else r for i, r in enumerate(material.rows)]
        return replace(material, rows=rows)

    return change


def infer_labels(gradients: Observed) -> Tensor:
    """Classes ``[b]`` from the last layer's gradient: the most negative entries (iDLG, Zhao et al., arXiv 2001.02610).

    The gradient of the last bias is the mean of softmax minus one-hot vectors, negative only where a class is there.
    Each class is taken at most once until all have been.
    """
    names = list(gradients)
    last = gradients[names[-1]]
    per_class = last if last.dim() == 1 else last.flatten(1).sum(1)
    order = per_class.argsort()
    return order[torch.arange(gradients.images, device=order.device) % len(order)]


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of ``[b, C, H, W]``, both directions added."""
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()


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


@dataclass(frozen=True)
class _Case:
    """One victim: its examples and the guesses, matched and scaled to 0..1."""

    originals: list[Floats]
    guesses: list[Floats]
    right_labels: int | None

    @classmethod
    def of(cls, seen: Observed, inputs: Tensor, truth: Tensor, guess: Tensor, labels: Tensor | None) -> _Case:
        from scipy.optimize import linear_sum_assignment

        low, high = seen.box
        a = ((inputs - low) / (high - low)).cpu().numpy()
        b = np.clip(((guess - low) / (high - low)).cpu().numpy(), 0, 1)
        cost = [[mse(x, y) for y in b] for x in a]
        own, match = linear_sum_assignment(np.array(cost))
        right = None
        if seen.num_classes is not None and labels is not None:
            shared = Counter(truth.tolist()) & Counter(labels.tolist())
            right = sum(shared.values())
        return cls([a[i] for i in own], [b[j] for j in match], right)


def _finding(cases: Sequence[_Case], threat_model: str) -> Finding:
    pairs = [(a, b) for case in cases for a, b in zip(case.originals, case.guesses, strict=True)]
    pictures = pairs[0][0].ndim == 3 and min(pairs[0][0].shape[1:]) > 1

    def spread(values: list[float], best: Callable[[list[float]], float]) -> dict[str, Any]:
        finite = [v for v in values if math.isfinite(v)] or [math.nan]
        return {"mean": float(np.mean(values)), "std": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
                "best": best(values)}  # fmt: skip

    results: dict[str, Any] = {"victims": len(cases), "examples": len(pairs)}
    results["psnr_db"] = spread([min(psnr(a, b), 200.0) for a, b in pairs], max)
    results["mse"] = spread([mse(a, b) for a, b in pairs], min)
    if pictures:
        results["ssim"] = spread([ssim(a, b) for a, b in pairs], max)
    right = [case.right_labels for case in cases]
    if all(r is not None for r in right):
        results["label_accuracy"] = sum(r for r in right if r is not None) / len(pairs)
    results["psnr_db_each"] = [round(min(psnr(a, b), 200.0), 2) for a, b in pairs]

    def picture() -> Figure:
        from fedsim.figures.audit import reconstruction_figure

        return reconstruction_figure([(a, b, f"{min(psnr(a, b), 200.0):.1f} dB") for a, b in pairs])

    notes = (
        "PSNR and SSIM of values scaled to 0..1 by the training data's range; PSNR is cut at 200 dB. Below some 12 dB "
        "nothing is to be seen. A victim's data are cut down to the examples attacked; more of them make it harder.",
    )
    return Finding(threat_model, results, notes=notes, figures={"images": partial(picture)} if pictures else {})
