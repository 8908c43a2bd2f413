"""Gradients of many models at once: parameters ``[m, d]``, one minibatch per row, gradients ``[m, d]``.

Four ways, chosen by what the model is made of (never by timing, so that a run's numbers do
not depend on the machine's mood):

* a plain chain of Linear layers and pointwise activations runs as batched matrix products whose backward writes
  each weight gradient straight into its place in the flat ``[m, d]`` result (`ChainKernel`);
* so do sequences of other layers whose forward and backward are known for many clients at once: embeddings, LSTM,
  blocks of transformers, layer normalisation (`SequenceKernel`);
* other models run under ``torch.func.vmap`` with one ordinary backward of the summed losses (`VmapKernel`);
* convolutions on a CPU, and models that vmap cannot take, run row by row (`RowKernel`): grouped convolutions
  are slower there.

``run.kernel`` overrides the choice between the stacked ways and rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.models.layout import call, flatten, layout, trained, views
from fedsim.models.losses import Loss
from fedsim.models.nature import hooked
from fedsim.objective.chain import ChainKernel
from fedsim.objective.general import RowKernel, VmapKernel, channels_last
from fedsim.objective.kernel import ROWS_ON_CPU, Kernel, Precision
from fedsim.objective.layers import POINTWISE, ordinary
from fedsim.objective.sequence import SequenceKernel, rules_of

_SMALL_CONVOLUTIONS = 2**18  # weights of a model's convolutions
_HIDDEN = 48  # units of a recurrent layer that a CPU computes for many clients at once, at most

Way = Literal["auto", "stacked", "rows"]


def build_kernel(
    module: nn.Module,
    loss: Loss,
    device: torch.device,
    sample: Tensor,
    precision: Precision = "full",
    way: Way = "auto",
    others: Tensor | None = None,
) -> Kernel:
    """The kernel for `module` on `device`; one input `sample` ``[...]`` shows whether vmap can take the model, and
    `others` ``[b, ...]`` whether it then computes what it should.

    Raises
    ------
    InputError
        `way` is ``stacked`` and vmap cannot take the model.
    """
    few = sample.unsqueeze(0) if others is None else others
    if way != "rows" and precision == "full" and _is_chain(module, sample.dim()):
        assert isinstance(module, nn.Sequential)
        return ChainKernel(module, loss, alone=way == "auto")
    rows_only = RowKernel(module, loss, precision, _channels_last(module, device, few))
    if way == "rows":
        return rows_only
    rules = rules_of(module) if precision == "full" else None
    if rules is not None and (way == "stacked" or device.type != "cpu" or not _large(module)):
        sequence = SequenceKernel(module, loss, rules, rows_only if way == "auto" and device.type == "cpu" else None)
        if sequence.agrees(flatten(module).unsqueeze(0), sample[None, None] if others is None else others.unsqueeze(0)):
            return sequence
    if way == "auto" and device.type == "cpu" and any(isinstance(layer, ROWS_ON_CPU) for layer in module.modules()):
        return rows_only
    kernel = VmapKernel(module, loss, precision)
    rows = flatten(module).expand(2, -1)
    try:
        kernel.outputs(rows, sample.unsqueeze(0))
        kernel.differentiates(rows, torch.stack([few, few]))
    except (
        RuntimeError,
        ValueError,
    ) as error:  # data-dependent control flow, in-place tricks, operators without a batching rule
        if way == "stacked":
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"found 'stacked', but torch.func.vmap cannot take this model ({reason}); allowed: auto, rows", "kernel"
            ) from error
        return rows_only
    return kernel


def _large(module: nn.Module) -> bool:
    """Whether a CPU computes a recurrent layer as fast for one client after the other: the larger its products are, the
    less is gained by many at once, and PyTorch's own arranges its weights for them."""
    return any(isinstance(layer, nn.LSTM) and layer.hidden_size > _HIDDEN for layer in module.modules())


def _channels_last(module: nn.Module, device: torch.device, inputs: Tensor) -> bool:
    """Whether images go in as channels-last, tried on some `inputs` ``[b, ...]``.

    A GPU's convolutions prefer it, and on a CPU pooling and whatever is pointwise beside small ones; those of many
    weights take longer there. Not with group normalisation: on a GPU PyTorch's hands back the ordinary layout, which
    every layer would convert. A model that asks for a ``view`` of what comes out of a convolution cannot take it.
    """
    layers = list(module.modules())
    weights = sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Conv2d))
    if not weights or any(isinstance(layer, nn.GroupNorm) for layer in layers):
        return False
    if device.type == "cpu" and weights > _SMALL_CONVOLUTIONS:
        return False
    places = layout(module)
    leaves = {k: v.requires_grad_() for k, v in views(flatten(module).to(inputs.dtype), places).items()}
    try:
        with torch.enable_grad():
            out = call(module, leaves, places, channels_last(inputs))
            torch.autograd.grad(out.square().sum(), list(leaves.values()), allow_unused=True)
    except (RuntimeError, ValueError, TypeError):
        return False
    return True


def _is_chain(module: nn.Module, input_dims: int) -> bool:
    """Only (leading Flatten), Linear and pointwise layers, at least one Linear; none twice, shared, frozen, hooked, or
    with parameters of other forms or in another order."""
    if type(module) is not nn.Sequential or (input_dims > 1 and not isinstance(module[0], nn.Flatten)):
        return False
    layers = list(module)
    inside = [
        layer for layer in layers if not (isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1))
    ]
    flatten_first = all(isinstance(layer, nn.Flatten) for layer in layers[: len(layers) - len(inside)])
    linears = [layer for layer in inside if type(layer) is nn.Linear]
    plain = all(type(layer) is nn.Linear or (type(layer) in POINTWISE and not _in_place(layer)) for layer in inside)
    several = len(set(map(id, linears))) == len(linears) > 0 and all(map(ordinary, linears))
    numbers = sum(1 if layer.bias is None else 2 for layer in linears)
    return flatten_first and plain and several and not hooked(module) and len(trained(module)) == numbers


def _in_place(layer: nn.Module) -> bool:
    """Whether the layer overwrites what its own gradient needs (that of ReLU only needs the result)."""
    return bool(getattr(layer, "inplace", False)) and not isinstance(layer, nn.ReLU)
