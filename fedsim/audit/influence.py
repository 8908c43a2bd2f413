"""Membership by the inverse Hessian (IHA): Suri, Zhang and Evans, arXiv 2406.11544, as in the authors' code.

For a record with loss l and gradient g at the final parameters, n training records, learning rate eta, momentum mu,
weight decay lambda, H the damped Hessian of the mean training loss, u = H^-1 g, and a the mean gradient over all
*other* records::

    I1 = l / (1 + mu)    I2 = |u|^2 / n    I3 = 2 <H^-1 a, u>    I4 = <u, H^-1 u> / n    I5 = 2 <H^-1 a, H^-1 u>
    score = I1 - (I2 + I3) (1 - eta lambda / (1 + mu)) / eta - (I4 + I5) (lambda / 2) (2 - eta lambda / (1 + mu)) / eta

The sign of I1 is that of the code; it could not be checked against the theorem.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, vmap

from fedsim.core.arrays import Floats
from fedsim.models.layout import call, layout, views
from fedsim.models.losses import Loss

MOST_PARAMETERS = 5000
_CHUNK = 64


def influence_scores(
    module: nn.Module,
    loss: Loss,
    params: Tensor,
    inputs: Tensor,
    targets: Tensor,
    members: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    damping: float,
) -> Floats:
    """Scores ``[N]``, larger for members, in float64.

    Parameters
    ----------
    params : ``[d]``, the model under attack.
    inputs, targets, members : ``[N, ...]``, all candidates, and which of them are the training set.
    damping : added to the Hessian's eigenvalues; negative ones count as 0.
    """
    places = layout(module)
    wide = copy.deepcopy(module).double()
    flat, inputs = params.double(), inputs.double()
    targets = targets.double() if targets.is_floating_point() else targets

    def one(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss(call(wide, views(w, places), places, x.unsqueeze(0)), y.unsqueeze(0)).sum()

    values = vmap(one, in_dims=(None, 0, 0))(flat, inputs, targets)
    gradients = vmap(grad(one), in_dims=(None, 0, 0), chunk_size=_CHUNK)(flat, inputs, targets)
    inside = members.to(flat.device)
    n = int(inside.sum())
    H = torch.zeros((places.total, places.total), dtype=torch.float64, device=flat.device)

    def total(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss(call(wide, views(w, places), places, x), y).sum()

    for rows in torch.split(torch.nonzero(inside).squeeze(1), _CHUNK):
        H += hessian(total)(flat, inputs[rows], targets[rows])
    eigenvalues, basis = torch.linalg.eigh(H / n)
    inverse = 1.0 / (eigenvalues.clamp_min(0) + damping)
    mean = gradients[inside].mean(0)
    others = torch.where(inside.unsqueeze(1), (n * mean - gradients) / (n - 1), mean)
    g, a = gradients @ basis, others @ basis  # in the basis of eigenvectors, H^-1 is a product by coordinates
    u, ha = g * inverse, a * inverse
    i1 = values / (1 + momentum)
    i2, i3 = (u * u).sum(1) / n, 2 * (ha * u).sum(1)
    i4, i5 = (u * u * inverse).sum(1) / n, 2 * (ha * u * inverse).sum(1)
    shrink = lr * weight_decay / (1 + momentum)
    score = i1 - (i2 + i3) * (1 - shrink) / lr - (i4 + i5) * (weight_decay / 2) * (2 - shrink) / lr
    result: Floats = np.asarray(score.detach().cpu().numpy(), dtype=np.float64)
    return result
