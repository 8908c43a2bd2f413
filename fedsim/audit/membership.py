"""Membership inference: can who holds the final model tell which examples it was trained on?

The game: every example of every client is in or out by a fair coin, and the whole scenario is run on those that are in.
The attack scores all examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from fedsim.audit.base import Audit, Finding, Outcome, Subject, chunked, supervised
from fedsim.audit.influence import MOST_PARAMETERS, influence_scores
from fedsim.audit.scores import Roc, confidence, lira, roc, summary
from fedsim.core import rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.tokens import widened
from fedsim.core.types import Count, NonNegative
from fedsim.data.tokenized import tokens_of
from fedsim.engine.assembly import Material

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = "TPR at 0.1 % FPR needs some thousand non-members to mean anything; here it stands on {0} false positives"
_GAME = (
    "The attacker has the final model (on a graph: the mean model) and candidate examples, knows the training procedure"
    "{more}, and must say which examples were trained on. Half of each client's examples are members, by fair coins, "
    "so the models are trained on half of the data."
)


@register.audit("loss")
@dataclass(frozen=True, kw_only=True)
class LossAttack(Audit):
    """Membership inference by the loss: examples that the model fits well are guessed to be members (Yeom et al. 2018).

    `targets`: models that are trained and attacked, one after another.
    """

    targets: Count = 2

    def run(self, subject: Subject) -> Finding:
        games = [Game(subject, i) for i in range(self.targets)]
        curves = []
        for game in games:
            subject.say(f"loss: model {game.index + 1} of {self.targets}")
            curves.append(roc(-game.losses(game.train()), game.members))
        return _finding({"loss": curves}, _GAME.format(more=""))


@register.audit("lira")
@dataclass(frozen=True, kw_only=True)
class LikelihoodRatioAttack(Audit):
    """Membership inference by likelihood ratios (LiRA), Carlini et al. 2022, arXiv 2112.03570.

    `shadows` + 1 models are trained; each is the target once, with the others as shadow models.

    `mode`: ``online`` compares with models that had the example and models that had not, ``offline`` with the latter
    only. `variance`: ``global`` (better below some 64 shadow models) or ``per_example``.
    """

    shadows: Annotated[int, Field(ge=2)] = 16
    mode: Literal["online", "offline", "both"] = "both"
    variance: Literal["global", "per_example"] = "global"

    def run(self, subject: Subject) -> Finding:
        if not subject.classifies:
            raise InputError("found a regression problem; LiRA needs classes, allowed: the audit 'loss'", "audit.lira")
        if not tokens_of(subject.material.data).single:
            found = "found token targets; LiRA needs one class per example"
            raise InputError(f"{found}, allowed: the audit 'loss'", "audit.lira")
        games = [Game(subject, i) for i in range(self.shadows + 1)]
        phi, losses = [], []
        for game in games:
            subject.say(f"lira: model {game.index + 1} of {len(games)}")
            outcome = game.train()
            phi.append(game.confidences(outcome))
            losses.append(game.losses(outcome))
        confidences, members = np.stack(phi), np.stack([g.members for g in games])
        curves: dict[str, list[Roc]] = {}
        for mode in ("online", "offline") if self.mode == "both" else (self.mode,):
            curves[f"lira_{mode}"] = [
                roc(lira(confidences[t], *_without(t, confidences, members), mode, self.variance), members[t])
                for t in range(len(games))
            ]
        curves["loss"] = [roc(-losses[t], members[t]) for t in range(len(games))]
        more = f" and can rerun it on data like it ({self.shadows} shadow models)"
        notes = ("The targets share their shadow models, so their spread is smaller than that of independent attacks.",)
        return _finding(curves, _GAME.format(more=more), notes)


@register.audit("iha")
@dataclass(frozen=True, kw_only=True)
class InverseHessianAttack(Audit):
    """Membership inference by inverse Hessians (IHA), Suri, Zhang and Evans 2024, arXiv 2406.11544, for small models.

    `targets`: models that are trained and attacked. `damping` is added to the Hessian's eigenvalues.
    """

    targets: Count = 1
    damping: NonNegative = 0.2

    def run(self, subject: Subject) -> Finding:
        if not subject.material.data.train_x.is_floating_point():
            raise InputError("IHA needs inputs that are real numbers, found integers", key="data.dataset")
        curves: dict[str, list[Roc]] = {"iha": [], "loss": []}
        for i in range(self.targets):
            subject.say(f"iha: model {i + 1} of {self.targets}")
            game = Game(subject, i)
            outcome = game.train()
            task = supervised(outcome.assembly)
            algorithm = outcome.assembly.algorithm_of(subject.scenario)
            if task.dim > MOST_PARAMETERS:
                found = f"found a model of {task.dim} parameters; IHA computes its whole Hessian, allowed: at most"
                raise InputError(f"{found} {MOST_PARAMETERS}", key="model")
            if algorithm.solver is not None:
                raise InputError("IHA knows the keys momentum and weight_decay alone", key="algorithm.solver")
            rows = torch.as_tensor(game.pool, device=task.device)
            scores = influence_scores(
                task.kernel.module, task.loss, outcome.params, task.inputs[rows], task.targets[rows],
                torch.as_tensor(game.members), algorithm.lr, algorithm.momentum, algorithm.weight_decay, self.damping,
            )  # fmt: skip
            curves["iha"].append(roc(scores, game.members))
            curves["loss"].append(roc(-game.losses(outcome), game.members))
        model = (
            "The attacker has the final model, every training example but the one in question, and takes the training "
            "for stochastic gradient descent on all data with the scenario's lr, momentum and weight_decay: much more "
            "than LiRA's attacker has, so the two do not compare. Members are half of each client's examples."
        )
        return _finding(curves, model)


class Game:
    """One model of the membership game: its coins, its training, and what the model says about every example."""

    def __init__(self, subject: Subject, index: int) -> None:
        self.subject, self.index = subject, index
        self.pool: Ints = np.sort(np.concatenate(subject.material.rows))
        coins = rng.generator(subject.scenario.seed, "audit_members", index)
        inside = np.zeros(len(subject.material.data.train_y), dtype=np.bool_)
        self.rows: list[Ints] = []
        for rows in subject.material.rows:
            chosen = rows[coins.random(len(rows)) < 0.5]
            if len(chosen) == 0:  # a client needs an example
                chosen = rows[[coins.integers(len(rows))]]
            self.rows.append(chosen)
            inside[chosen] = True
        self.members: Bools = inside[self.pool]

    def train(self) -> Outcome:
        """The scenario on the members."""
        material = self.subject.material

        def half(own: Material) -> Material:
            return replace(own, data=material.data, rows=self.rows)

        return self.subject.train(half, self.index + 1)

    def losses(self, outcome: Outcome) -> Floats:
        """Loss of every example of the pool, in float64."""
        return self._scores(outcome, lambda task, out, y: task.loss(out.double(), y))

    def confidences(self, outcome: Outcome) -> Floats:
        """phi of every example of the pool."""
        return self._scores(outcome, lambda _, out, y: confidence(out, y))

    def _scores(self, outcome: Outcome, score: Any) -> Floats:
        task = supervised(outcome.assembly)
        found = []
        for rows in chunked(torch.as_tensor(self.pool, device=task.device)):
            out = task.kernel.outputs(outcome.params.unsqueeze(0), widened(task.inputs[rows]))[0]
            found.append(score(task, out, task.targets[rows]).cpu())
        values: Floats = torch.cat(found).double().numpy()
        return values


def _without(target: int, phi: Floats, members: Bools) -> tuple[Floats, Bools]:
    others = np.arange(len(phi)) != target
    return phi[others], members[others]


def _finding(curves: dict[str, list[Roc]], threat_model: str, notes: Sequence[str] = ()) -> Finding:
    def picture() -> Figure:
        from fedsim.figures.audit import roc_figure

        return roc_figure({name: [(c.fpr, c.tpr) for c in found] for name, found in curves.items()})

    results = {name: summary(found) for name, found in curves.items()}
    first = next(iter(results.values()))
    few = [_FEW.format(int(0.001 * first["non_members"]))] if first["non_members"] < 5000 else []
    return Finding(threat_model, results, notes=(*notes, *few), figures={"roc": partial(picture)})
