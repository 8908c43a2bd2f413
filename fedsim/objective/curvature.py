"""Second derivatives of a model's loss by its parameters, and what its outputs say of classes: for posteriors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from fedsim.core.errors import InputError
from fedsim.models.layout import call, views
from fedsim.objective.kernel import Kernel

_FLOATS = 2**23  # of Jacobians, or of outputs, that are made at a time


def outputs_of(kernel: Kernel, x: Tensor, inputs: Tensor) -> int:
    """How many numbers the model `x` ``[d]`` makes of a sample."""
    return kernel.outputs(x.unsqueeze(0), inputs[:1]).shape[-1]


def gauss_newton(kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, diagonal: bool) -> Tensor:
    """``sum_j J_j' H_j J_j`` at the model `x` ``[d]``, ``[d, d]``, or its diagonal ``[d]``.

    J_j is the Jacobian ``[k, d]`` of sample j's outputs and H_j ``[k, k]`` the Hessian of its loss by them.
    """
    module, k = kernel.own.get(), outputs_of(kernel, x, inputs)

    def model(flat: Tensor, sample: Tensor) -> Tensor:
        return call(module, views(flat, kernel.layout), kernel.layout, sample.unsqueeze(0))[0]

    total = x.new_zeros(len(x) if diagonal else (len(x), len(x)))
    step = max(1, _FLOATS // (k * len(x)))
    for sample, target in zip(torch.split(inputs, step), torch.split(targets, step), strict=True):
        jacobian = vmap(jacrev(model), in_dims=(None, 0))(x, sample).detach()  # [b, k, d]
        product = _by_outputs(kernel, kernel.outputs(x.unsqueeze(0), sample)[0], target) @ jacobian
        if diagonal:
            total += (jacobian * product).sum((0, 1))
        else:
            total += jacobian.flatten(0, 1).T @ product.flatten(0, 1)
    return total


def _by_outputs(kernel: Kernel, outputs: Tensor, targets: Tensor) -> Tensor:
    """Hessians ``[b, k, k]`` of each sample's loss by its outputs ``[b, k]``."""
    with torch.enable_grad():
        outputs = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(kernel.loss(outputs, targets).sum(), outputs, create_graph=True)
        if not slope.requires_grad:  # of a loss that is piecewise linear
            return outputs.new_zeros(*outputs.shape, outputs.shape[-1])
        columns = [
            torch.autograd.grad(slope[:, k].sum(), outputs, retain_graph=True)[0] for k in range(outputs.shape[-1])
        ]
    return torch.stack(columns, 1)


def class_probabilities(kernel: Kernel, loss_name: str, params: Tensor, inputs: Tensor) -> Tensor:
    """Of the models ``[m, d]`` on the inputs ``[N, ...]``: ``[m, N, classes]``.

    Raises
    ------
    InputError
        The loss is of no probabilities.
    """
    if loss_name not in ("cross_entropy", "logistic"):
        message = f"is of probabilities, found the loss '{loss_name}'; allowed: cross_entropy, logistic"
        raise InputError(message, key="name")
    return probabilities_of(loss_name, kernel.outputs(params, inputs))


def probabilities_of(loss_name: str, outputs: Tensor) -> Tensor:
    """What outputs ``[..., k]`` say of the classes, under a loss that is of probabilities."""
    if loss_name == "cross_entropy":
        return torch.softmax(outputs, -1)
    positive = torch.sigmoid(outputs)
    return torch.cat([1 - positive, positive], -1)
