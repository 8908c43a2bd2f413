"""Membership scores of examples, and what a ROC curve says about them. Larger scores mean: a member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Bools, Floats

LOW_RATES = (0.01, 0.001)
"""False positive rates at which the true positive rate is reported."""


def confidence(outputs: Tensor, targets: Tensor) -> Tensor:
    """``phi = log p_y - log sum_{y' != y} p_y'``, outputs ``[N, k]`` and classes ``[N]`` -> ``[N]``, in float64.

    The logit of the confidence in the right class (Carlini et al., arXiv 2112.03570), which is about Gaussian over
    models. For one output z (logistic loss) it is z or -z. Computed from the outputs: rounding p_y to 1 would lose it.
    """
    z = outputs.double()
    if z.shape[-1] == 1:
        return z.squeeze(-1) * (2 * targets - 1)
    log_p = torch.log_softmax(z, -1)
    own = targets.unsqueeze(-1)
    others = log_p.scatter(-1, own, -torch.inf)
    return log_p.gather(-1, own).squeeze(-1) - torch.logsumexp(others, -1)


def lira(
    target: Floats,
    shadows: Floats,
    members: Bools,
    mode: Literal["online", "offline"] = "online",
    variance: Literal["global", "per_example"] = "global",
) -> Floats:
    """Likelihood-ratio scores ``[N]``: arXiv 2112.03570, Algorithm 1 (online) and section VI-C (offline).

    ``online: log N(phi; in) - log N(phi; out)``, ``offline: (phi - mean_out) / std_out``, which orders examples as the
    one-sided ``-log P[N(out) > phi]`` does.

    Parameters
    ----------
    target : ``[N]``, phi under the model under attack.
    shadows, members : ``[S, N]``, phi under the shadow models, and which examples each was trained on.
    variance : ``per_example``, or one for all examples inside and one for all outside, which is better for few shadows.

    An example that no shadow had (or all had) gets the pooled mean of its side.
    """
    inside, outside = _gaussian(shadows, members, variance), _gaussian(shadows, ~members, variance)
    out_score = (target - outside[0]) / outside[1]
    if mode == "offline":
        return out_score
    in_score = (target - inside[0]) / inside[1]
    return 0.5 * (out_score**2 - in_score**2) + np.log(outside[1]) - np.log(inside[1])


def _gaussian(phi: Floats, chosen: Bools, variance: str) -> tuple[Floats, Floats]:
    """Mean and standard deviation per example ``[N]`` over the models that `chosen` picks."""
    count = chosen.sum(0)
    pooled = float(phi[chosen].mean())
    total = np.where(chosen, phi, 0.0).sum(0)
    mean = np.where(count > 0, total / np.maximum(count, 1), pooled)
    squares = np.where(chosen, (phi - mean) ** 2, 0.0).sum(0)
    freedom = np.maximum(count - 1, 0)
    common = float(np.sqrt(squares.sum() / max(int(freedom.sum()), 1)))
    own = np.sqrt(squares / np.maximum(freedom, 1))
    std = np.where(freedom > 0, own, common) if variance == "per_example" else np.full(len(mean), common)
    return mean, np.maximum(std, 1e-12)


@dataclass(frozen=True)
class Roc:
    """A ROC curve, from (0, 0) to (1, 1), and how many members and others it is made of."""

    fpr: Floats
    tpr: Floats
    members: int
    others: int

    @property
    def auc(self) -> float:
        """Area under the curve."""
        from sklearn.metrics import auc

        return float(auc(self.fpr, self.tpr))

    @property
    def balanced_accuracy(self) -> float:
        """``max (TPR + 1 - FPR) / 2`` over thresholds; the threshold is chosen on the same examples."""
        return float(np.max(self.tpr + 1 - self.fpr) / 2)

    def tpr_at(self, rate: float) -> float | None:
        """The largest TPR at a FPR of at most `rate`; None where `rate` is less than one of the others."""
        if rate * self.others < 1:
            return None
        return float(self.tpr[self.fpr <= rate].max())


def roc(scores: Floats, members: Bools) -> Roc:
    """The curve of `scores` ``[N]``."""
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(members, scores, drop_intermediate=False)
    return Roc(fpr, tpr, int(members.sum()), int((~members).sum()))


def summary(curves: list[Roc]) -> dict[str, Any]:
    """Means and sample standard deviations over targets, with the counts behind them."""

    def spread(values: list[float]) -> dict[str, float | None]:
        return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}

    table: dict[str, Any] = {
        "targets": len(curves),
        "members": int(np.mean([c.members for c in curves])),
        "non_members": int(np.mean([c.others for c in curves])),
        "auc": spread([c.auc for c in curves]),
        "balanced_accuracy": spread([c.balanced_accuracy for c in curves]),
    }
    for rate in LOW_RATES:
        found = [t for c in curves if (t := c.tpr_at(rate)) is not None]
        allowed = int(rate * table["non_members"])
        table[f"tpr_at_fpr_{rate:g}"] = (
            {**spread(found), "false_positives": allowed} if len(found) == len(curves) else None
        )
    return table
