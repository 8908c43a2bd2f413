"""What reconstruction attacks share: the victims, what their guesses are measured by, and how they are shown.

An attack is an audit with one method, ``reconstruct(gradients, model, labels)``; somebody's own is a subclass of
`Reconstruction` named ``pkg.mod:Class`` in the ``audit:`` section.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.audit.base import Audit, Finding, Pair, Subject
from fedsim.audit.observed import Observed, observe
from fedsim.audit.pictures import is_picture, measured, mse
from fedsim.core.errors import InputError
from fedsim.core.returned import made_by, said
from fedsim.core.types import Count
from fedsim.engine.assembly import Change, Material, assemble

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERVER = (
    "The attacker is the server, which follows the protocol and sees one client's message of the first round. It knows "
    "the model, the algorithm and its keys, the order of the client's minibatches, how many examples ({images}) the "
    "client holds, and the range of their values{labels}{clip}.{noise}"
)


@dataclass(frozen=True)
class Guess:
    """The examples ``[b, *shape]`` that an attack guesses, and numbers by name that it has to say about them."""

    examples: Tensor
    told: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Audit):
    """Base class of attacks that reconstruct a client's examples.

    Parameters
    ----------
    images : examples that each victim holds; its data are cut down to that many.
    victims : clients attacked, one after another; all where there are fewer.
    labels : ``inferred`` from the last layer's gradient, or ``known``.
    """

    images: Count = 1
    victims: Count = 3
    labels: Literal["inferred", "known"] = "inferred"

    @abstractmethod
    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor | Guess:
        """Guesses ``[b, *gradients.shape]`` of the examples behind `gradients`.

        `model` is in float64 and holds the parameters that the client received; `labels` ``[b]`` are the classes (for
        regression the targets) as far as they are known or inferred, else None.
        """

    def check(self, subject: Subject) -> None:
        if not subject.material.data.train_x.is_floating_point():
            raise InputError("inputs are searched among real numbers, found integers", key="data.dataset")
        held = [len(rows) for rows in subject.material.rows[: self.victims]]
        if self.images > min(held):
            found = f"found images {self.images}, but client {held.index(min(held))} holds {min(held)} examples"
            raise InputError(f"{found}; allowed: at most {min(held)}", key="audit")

    def run(self, subject: Subject) -> Finding:
        victims = min(self.victims, len(subject.material.rows))
        if victims < self.victims:
            subject.say(f"{type(self).__name__}: attacks {victims} clients, not {self.victims}: there are no more")
        assembly = assemble(subject.scenario, cut(self.images, victims))
        cases = []
        for victim in range(victims):
            subject.say(f"{type(self).__name__}: client {victim + 1} of {victims}")
            seen, inputs, truth = observe(subject.scenario, assembly, victim, subject.material.data.num_classes)
            labels: Tensor | None = truth if self.labels == "known" or seen.num_classes is None else infer_labels(seen)
            guess = self._looked_at(self.reconstruct(seen, seen.replay.module, labels), inputs)
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

    def _looked_at(self, found: Any, inputs: Tensor) -> Guess:
        """The guess in the form of `inputs`; InputError where somebody's own attack made something else."""
        guess = found if isinstance(found, Guess) else Guess(found)
        examples, allowed = guess.examples, list(inputs.shape)
        if not isinstance(examples, Tensor) or examples.shape != inputs.shape:
            text = f"{made_by(self, 'reconstruct')} returned {said(examples)}, allowed: examples {allowed}"
            raise InputError(text, "audit")
        if not bool(examples.isfinite().all()):
            text = f"{made_by(self, 'reconstruct')} returned examples that are not finite, allowed: numbers {allowed}"
            raise InputError(text, "audit")
        return replace(guess, examples=examples.detach())


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


@dataclass(frozen=True)
class _Case:
    """One victim: its examples and the guesses, matched and scaled to 0..1, and what the attack said of them."""

    pairs: list[Pair]
    right_labels: int | None
    told: Mapping[str, float]

    @classmethod
    def of(cls, seen: Observed, inputs: Tensor, truth: Tensor, guess: Guess, labels: Tensor | None) -> _Case:
        from scipy.optimize import linear_sum_assignment

        low, high = seen.box
        a = ((inputs - low) / (high - low)).cpu().numpy()
        b = np.clip(((guess.examples - low) / (high - low)).cpu().numpy(), 0, 1)
        cost = [[mse(x, y) for y in b] for x in a]
        own, match = linear_sum_assignment(np.array(cost))
        right = None
        if seen.num_classes is not None and labels is not None:
            shared = Counter(truth.tolist()) & Counter(labels.tolist())
            right = sum(shared.values())
        return cls([(a[i], b[j]) for i, j in zip(own, match, strict=True)], right, guess.told)


def _finding(cases: Sequence[_Case], threat_model: str) -> Finding:
    pairs = tuple(pair for case in cases for pair in case.pairs)
    measures = [measured(a, b) for a, b in pairs]
    pictures = is_picture(pairs[0][0])

    def spread(name: str, best: Callable[[list[float]], float]) -> dict[str, Any]:
        values = [m[name] for m in measures]
        finite = [v for v in values if math.isfinite(v)] or [math.nan]
        return {"mean": float(np.mean(values)), "std": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
                "median": float(np.median(values)), "best": best(values)}  # fmt: skip

    results: dict[str, Any] = {"victims": len(cases), "examples": len(pairs)}
    results["psnr_db"] = spread("psnr_db", max)
    results["mse"] = spread("mse", min)
    if pictures:
        results["ssim"] = spread("ssim", max)
    right = [case.right_labels for case in cases]
    if all(r is not None for r in right):
        results["label_accuracy"] = sum(r for r in right if r is not None) / len(pairs)
    each = [round(m["psnr_db"], 2) for m in measures]
    results["psnr_db_each"] = each
    for name in cases[0].told:
        results[f"{name}_each"] = [case.told[name] for case in cases]

    notes = (
        "PSNR and SSIM of values scaled to 0..1 by the training data's range; PSNR is cut at 200 dB. Below some 12 dB "
        "nothing is to be seen. A victim's data are cut down to the examples attacked; more of them make it harder.",
    )
    figures = {"images": partial(_picture, {"guess": pairs})} if pictures else {}
    return Finding(threat_model, results, notes=notes, figures=figures, reconstructed=pairs)


def compared(found: Mapping[str, Finding]) -> tuple[list[list[str]], Callable[[], Figure] | None]:
    """What several attacks made of the same victims: lines of a table under `HEADINGS`, and all guesses in one picture.

    There is no picture where the examples are no images, or where the attacks have no victim in common.
    """
    findings = {name: f for name, f in found.items() if f.reconstructed}
    lines = []
    for name, f in findings.items():
        ssim, right = f.results.get("ssim"), f.results.get("label_accuracy")
        db, error = f.results["psnr_db"], f.results["mse"]
        numbers = [f"{db['median']:.1f}", f"{db['mean']:.1f}", f"{db['best']:.1f}"]
        numbers += ["\N{EN DASH}" if ssim is None else f"{ssim['median']:.3f}", f"{error['median']:.2g}"]
        lines.append([name, str(len(f.reconstructed)), *numbers, "\N{EN DASH}" if right is None else f"{right:.0%}"])
    common = min((len(f.reconstructed) for f in findings.values()), default=0)
    columns = list(zip(*(f.reconstructed[:common] for f in findings.values()), strict=True))
    same = [c for c in columns if is_picture(c[0][0]) and all(np.array_equal(c[0][0], pair[0]) for pair in c)]
    if len(findings) < 2 or not same:
        return lines if len(findings) > 1 else [], None
    return lines, partial(_picture, {name: [c[i] for c in same] for i, name in enumerate(findings)})


HEADINGS = ["attack", "examples", "PSNR, median (dB)", "mean", "best", "SSIM, median", "MSE, median", "labels found"]


def _picture(guesses: Mapping[str, Sequence[Pair]]) -> Figure:
    """The originals, and below them what each attack guesses."""
    from fedsim.figures.audit import reconstruction_figure

    rows = {"original": [(original, "") for original, _ in next(iter(guesses.values()))]}
    for name, pairs in guesses.items():
        rows[name] = [(guess, f"{measured(original, guess)['psnr_db']:.1f} dB") for original, guess in pairs]
    return reconstruction_figure(rows)
