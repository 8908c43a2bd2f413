"""How smooth the loss of a linear model is on given samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.arrays import Floats, Ints

_CURVATURE = {"logistic": 1 / 4, "cross_entropy": 1 / 2}
"""The largest second derivative of a loss by the outputs; that of ``mse`` over k outputs is 2 / k."""


def of_linear(
    module: nn.Module, loss: str, inputs: Tensor, rows: Sequence[Ints], weights: Floats
) -> tuple[Floats, float] | None:
    """L_i of the mean loss over each client's rows, ``[n]``, and L of their weighted sum; None where it is not linear.

    ``c eigmax(X'X) / n`` with c the loss's curvature by the outputs, and a column of ones in X for the bias. For one
    output it is exact where all outputs are 0, and for `mse` everywhere.
    """
    layers = [layer for layer in module.modules() if not isinstance(layer, (nn.Sequential, nn.Flatten))]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        return None
    linear = layers[0]
    curvature = 2 / linear.out_features if loss == "mse" else _CURVATURE.get(loss)
    if curvature is None:
        return None
    each, mean = np.zeros(len(rows)), np.zeros(())
    for i, own in enumerate(rows):
        x = inputs[torch.as_tensor(own, device=inputs.device)].flatten(1).double()
        if linear.bias is not None:
            x = torch.cat([x, x.new_ones((len(x), 1))], dim=1)
        gram = curvature * (x.T @ x).cpu().numpy() / max(len(own), 1)
        each[i] = np.linalg.eigvalsh(gram)[-1]
        mean = mean + weights[i] * gram
    return each, float(np.linalg.eigvalsh(mean)[-1])
