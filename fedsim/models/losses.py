"""Losses by name: outputs ``[N, k]`` and targets ``[N]`` to one number per sample ``[N]``, in the outputs' type.

Of classes at every position, outputs are ``[N, positions, k]`` and targets ``[N, positions]``.

They are differentiable, work under ``torch.func.vmap`` and ``grad``, and take zero rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names, register
from fedsim.core.tokens import IGNORED, Tokens

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs [N, k], targets [N]) -> [N]``."""

_MANY_CLASSES = 16  # from which on PyTorch's own softmax is as fast as a CPU can be


@register.loss("cross_entropy")
def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(outputs)[target]; outputs ``[N, k]``, int64 targets ``[N]`` in 0..k-1 -> ``[N]``.

    Of outputs ``[N, positions, k]`` and targets ``[N, positions]`` the mean over the positions whose target is not
    -100; 0 where there is none.
    """
    if targets.dim() == 1:
        return F.cross_entropy(outputs, targets, reduction="none", ignore_index=IGNORED)
    each = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return each.view(targets.shape).sum(-1) / (targets != IGNORED).sum(-1).clamp_min(1)


@register.loss("multi_margin")
def multi_margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """Multi-class hinge ``1/k sum_{j != y} max(0, 1 - z_y + z_j)``, torch.nn.MultiMarginLoss with p = 1, margin 1.

    Outputs ``[N, k]``, int64 targets ``[N]`` in 0..k-1 -> ``[N]``.
    """
    own = targets.unsqueeze(-1)
    margins = torch.relu(1 - outputs.gather(-1, own) + outputs)
    return margins.masked_fill(torch.arange(outputs.shape[-1], device=outputs.device) == own, 0).mean(-1)


@register.loss("logistic")
def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary ``log(1 + exp(-s z))`` with s = 2 target - 1; outputs ``[N, 1]``, targets ``[N]`` in {0, 1} -> ``[N]``."""
    return -F.logsigmoid((2 * targets - 1).to(outputs.dtype) * outputs.squeeze(-1))


@register.loss("mse")
def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, mean over the k outputs: torch's convention, no factor 1/2.

    Outputs ``[N, k]``, targets ``[N, k]`` (or ``[N]`` for k = 1) -> ``[N]``.
    """
    return (outputs - targets.reshape(outputs.shape).to(outputs.dtype)).square().mean(-1)


def softmax(outputs: Tensor) -> Tensor:
    """``torch.softmax(outputs, -1)`` to rounding: of few classes it uses no vector instructions, and four steps do.

    It has no gradient.
    """
    if outputs.device.type != "cpu" or outputs.shape[-1] >= _MANY_CLASSES:
        return torch.softmax(outputs, -1)
    found = torch.sub(outputs, outputs.amax(-1, keepdim=True)).exp_()
    return found.div_(found.sum(-1, keepdim=True))


def _cross_entropy_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """softmax(outputs) - onehot(target)"""
    return softmax(outputs).scatter_(-1, targets.unsqueeze(-1), -1.0, reduce="add")


def _multi_margin_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/k for every class inside the margin, minus their sum at the target."""
    own = targets.unsqueeze(-1)
    inside = (outputs > outputs.gather(-1, own) - 1).to(outputs.dtype).scatter_(-1, own, 0.0)
    return inside.scatter_(-1, own, -inside.sum(-1, keepdim=True)).div_(outputs.shape[-1])


def _logistic_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """-s sigmoid(-s z), by the same kernels that autograd would call."""
    sign, aten = (2 * targets - 1).to(outputs.dtype), torch.ops.aten
    margin = sign * outputs.squeeze(-1)
    _, buffer = aten.log_sigmoid_forward(margin)
    found: Tensor = aten.log_sigmoid_backward(sign.neg_(), margin, buffer)
    return found.unsqueeze(-1)


def _mse_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """2 (output - target) / k"""
    return torch.sub(outputs, targets.reshape(outputs.shape).to(outputs.dtype)).mul_(2.0 / outputs.shape[-1])


CLOSED_GRADIENTS: dict[Loss, Loss] = {
    cross_entropy: _cross_entropy_gradient,
    multi_margin: _multi_margin_gradient,
    logistic: _logistic_gradient,
    mse: _mse_gradient,
}
"""Gradients ``[N, k]`` of per-sample losses by the outputs, for the losses used most: a call of autograd costs a small
model as much as its matrix products. Other losses go through autograd."""


def loss_function(name: str) -> Loss:
    """The loss called `name` (registered, or ``pkg.mod:function``); InputError with key ``loss`` if none is."""
    try:
        found = lookup("loss", name)
    except InputError as error:
        raise error.under("loss") from None
    if isinstance(found, type):
        raise InputError(
            f"'{name}' is a class; allowed: a function of (outputs [N, k], targets [N]) that gives one loss per sample "
            "[N], e.g. your own 'pkg.mod:function' around torch.nn.functional's with reduction='none', or "
            f"{', '.join(names('loss'))}",
            key="loss",
        )
    if not callable(found):
        raise InputError(f"'{name}' is {type(found).__name__}, not a function of (outputs, targets)", key="loss")
    loss: Loss = found
    return loss


def predictions(outputs: Tensor, loss_name: str) -> Tensor:
    """Class indices for outputs ``[..., k] -> [...]``: the sign for one output (logistic), else the largest output."""
    if loss_name == "mse":
        raise ValueError("mse is a regression loss: its outputs are not classes")
    if loss_name == "logistic" or outputs.shape[-1] == 1:
        return (outputs.squeeze(-1) > 0).long()
    return outputs.argmax(-1)


def loss_and_outputs(
    chosen: str | None, default: str | None, num_classes: int | None, num_targets: int, tokens: Tokens
) -> tuple[str, int]:
    """The loss's name and how many outputs the model needs for it, or why it does not suit the data."""
    name = chosen or default or ("mse" if num_classes is None else "cross_entropy")
    key = "loss" if chosen or not default else "name"
    loss = loss_function(name)
    if num_classes is None:
        if name in ("cross_entropy", "multi_margin", "logistic"):
            raise InputError(f"loss {name} needs classes, but the data are for regression; use mse", key=key)
        outputs, targets = num_targets, torch.zeros(3) if num_targets == 1 else torch.zeros(3, num_targets)
    else:
        if num_classes < 2:
            raise InputError(f"the data have {num_classes} class; classification needs at least 2", key=key)
        if name == "mse":
            raise InputError("loss mse is for regression, but the data have classes; use cross_entropy", key=key)
        if name == "logistic" and num_classes != 2:
            raise InputError(f"loss logistic needs 2 classes, found {num_classes}; use cross_entropy", key=key)
        if not tokens.single and name in ("multi_margin", "logistic"):
            raise InputError(f"loss {name} is of one class per sample, found token targets; use cross_entropy", key=key)
        outputs = 1 if name == "logistic" else num_classes
        targets = torch.zeros((3,) if tokens.positions is None else (3, tokens.positions), dtype=torch.int64)
    if ":" in name:
        try:
            values = loss(torch.zeros(*targets.shape[: targets.dim() if num_classes else 1], outputs), targets)
        except Exception as error:  # somebody's own loss may fail in any way
            raise InputError(f"'{name}' failed: {type(error).__name__}: {error}", key="loss") from error
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if found != (3,):
            raise InputError(f"'{name}' must return one loss per sample, [3] for 3 samples; found {found}", key="loss")
    return name, outputs
