"""How large a model's work is: what durations and memory go by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.norms import evaluating
from fedsim.models.outputs import logits_of


def flops(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Floating-point operations of one sample's forward pass: two per multiply-add of Linear and convolution layers.

    An estimate: activations, normalisation, biases and operations outside such layers are not counted.
    """
    first = next(module.parameters())
    return 2 * multiply_adds(module, torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device))


@torch.no_grad()
def multiply_adds(module: nn.Module, sample: Tensor) -> int:
    """Those of Linear and convolution layers in the forward pass of one `sample` ``[1, ...]``."""
    total = 0

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += output.numel() * math.prod(layer.weight.shape[1:])

    counted = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, counted)]
    try:
        with evaluating(module):
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return total


@torch.no_grad()
def widest(module: nn.Module, sample: Tensor) -> int:
    """Numbers in the largest output of a layer with parameters, for one `sample` ``[1, ...]``: what memory goes by."""
    sizes = [1]
    layers = [layer for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None]
    hooks = [
        layer.register_forward_hook(
            lambda _layer, _inputs, out: sizes.append(out.numel() if torch.is_tensor(out) else 1)
        )
        for layer in layers
    ]
    try:
        with evaluating(module):
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def saved_bytes(module: nn.Module, sample: Tensor) -> int:
    """Bytes that a forward pass of one `sample` ``[1, ...]`` keeps for its backward, parameters and buffers apart."""
    own = {v.untyped_storage().data_ptr() for v in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with evaluating(module), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        out = logits_of(module(sample))  # alive until all is counted: else memory is used twice
    del out
    return sum(kept.values())
