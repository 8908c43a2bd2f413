"""How smooth the loss of a linear model is on given samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.arrays import Floats, Ints
from fedsim.models.nature import hooked
from fedsim.objective.layers import ordinary

_CURVATURE = {"logistic": 1 / 4, "cross_entropy": 1 / 2}
"""The largest second derivative of a loss by the outputs; that of ``mse`` over k outputs is 2 / k."""


def of_linear(
    module: nn.Module, loss: str, inputs: Tensor, rows: Sequence[Ints], weights: Floats
) -> tuple[Floats, float] | None:
    """L_i of the mean loss over each client's rows, ``[n]``, and L of their weighted sum; None where it is not linear.

    ``c eigmax(X'X) / n`` with c the loss's curvature by the outputs, and a column of ones in X for the bias. For one
    output it is exact where all outputs are 0, and for `mse` everywhere.
    """
    each, mean = np.zeros(len(rows)), np.zeros(())
    grams = _hessians(module, loss, inputs, rows)
    if grams is None:
        return None
    for i, gram in enumerate(grams):
        each[i] = np.linalg.eigvalsh(gram)[-1]
        mean = mean + weights[i] * gram
    return each, float(np.linalg.eigvalsh(mean)[-1])


def convexity_of_linear(module: nn.Module, loss: str, inputs: Tensor, rows: Sequence[Ints]) -> Floats | None:
    """mu_i of the mean loss over each client's rows, ``[n]``: above 0 for `mse` alone; None where it is not linear."""
    grams = _hessians(module, loss, inputs, rows)
    if grams is None:
        return None
    return np.array([max(np.linalg.eigvalsh(gram)[0], 0.0) if loss == "mse" else 0.0 for gram in grams])


def _hessians(module: nn.Module, loss: str, inputs: Tensor, rows: Sequence[Ints]) -> Iterator[Floats] | None:
    """``c X'X / n`` of every client, c the loss's curvature by the outputs; None where the model is not linear."""
    layers = [layer for layer in module.modules() if not isinstance(layer, (nn.Sequential, nn.Flatten))]
    frozen = any(not p.requires_grad for p in module.parameters())
    if frozen or hooked(module) or len(layers) != 1 or type(layers[0]) is not nn.Linear or not ordinary(layers[0]):
        return None
    linear = layers[0]
    curvature = 2 / len(linear.weight) if loss == "mse" else _CURVATURE.get(loss)
    return None if curvature is None else (_hessian(linear, curvature, inputs, own) for own in rows)


def _hessian(linear: nn.Linear, curvature: float, inputs: Tensor, own: Ints) -> Floats:
    x = inputs[torch.as_tensor(own, device=inputs.device)].flatten(1).double()
    if linear.bias is not None:
        x = torch.cat([x, x.new_ones((len(x), 1))], dim=1)
    return np.asarray(curvature * (x.T @ x).cpu().numpy() / max(len(own), 1))
