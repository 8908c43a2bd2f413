"""Layers of many clients at once: their forward and their backward as batched products, gradients in their places.

A `Rule` computes one layer for `m` clients, whose parameters are views ``[m, *shape]`` into flat rows. Autograd takes
no part: it costs a small layer more than the arithmetic. Rules of recurrent layers and of attention are in `recurrent`
and `attention`; `sequence` puts rules together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models import exported

_aten = torch.ops.aten
Params = Sequence[Tensor]


class Rule(ABC):
    """How one layer is computed for `m` clients."""

    params: int = 0
    """Parameters that the layer has, in the order of ``named_parameters``."""

    @abstractmethod
    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        """What the layer makes of x ``[m, b, ...]``, and what `backward` needs of it."""

    @abstractmethod
    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        """Put the parameters' gradients into `g`, views like `p`; the inputs' gradient, where `below` needs it."""


class Linear(Rule):
    """``y = x W^T + b`` on the last axis."""

    def __init__(self, layer: nn.Linear) -> None:
        self.bias = layer.bias is not None
        self.params = 2 if self.bias else 1

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        h = rows(x)
        return linear(h, p[0], p[1] if self.bias else None).view(*x.shape[:-1], -1), h

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        d = rows(dy)
        dx = linear_back(d, kept, p[0], g[0], g[1] if self.bias else None, below)
        return None if dx is None else dx.view(*dy.shape[:-1], -1)


class Norm(Rule):
    """Layer normalisation of the last axis."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        self.eps, self.affine, self.bias = layer.eps, layer.weight is not None, layer.bias is not None
        self.params = int(self.affine) + int(self.bias)

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        h = rows(x)
        normed, mean, scale = normalised(h, self.eps)
        y = normed
        if self.affine:
            y = normed * p[0].unsqueeze(1)
            if self.bias:
                y += p[1].unsqueeze(1)
        return y.view(x.shape), (h, normed, mean, scale)

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        h, normed, mean, scale = kept
        d = rows(dy)
        if self.affine:
            torch.sum(d * normed, 1, out=g[0])
            if self.bias:
                torch.sum(d, 1, out=g[1])
            d = d * p[0].unsqueeze(1)
        return normalised_back(d, h, mean, scale).view(dy.shape) if below else None


class Embedding(Rule):
    """Rows of a table by token ids."""

    params = 1

    def __init__(self, layer: nn.Embedding) -> None:
        self.padding = layer.padding_idx

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        return looked_up(p[0], x), x

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> None:
        looked_up_back(g[0], kept, dy)
        if self.padding is not None:
            g[0][:, self.padding] = 0


class Places(Rule):
    """Embeddings of tokens and of their positions, added up."""

    params = 2

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        return looked_up(p[0], x).add_(p[1][:, : x.shape[-1]].unsqueeze(1)), x

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> None:
        looked_up_back(g[0], kept, dy)
        positions = dy.shape[2]
        torch.sum(dy, 1, out=g[1][:, :positions])
        g[1][:, positions:] = 0


class Last(Rule):
    """What there is at the last position."""

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        return x[:, :, -1], x.shape

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        dx = dy.new_zeros(kept)
        dx[:, :, -1] = dy
        return dx


class Flat(Rule):
    """All of a sample in one axis."""

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        return x.flatten(2), x.shape

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        return dy.reshape(kept)


class Pointwise(Rule):
    """A function of every number by itself."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        y = self.layer(x)
        return y, (x, y)

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        return pointwise_back(self.layer, dy, *kept) if below else None


def pointwise_back(layer: nn.Module, dy: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The gradient of a pointwise layer's inputs; a call of autograd costs a small model more than the arithmetic."""
    result: Tensor
    if type(layer) is nn.ReLU:
        result = _aten.threshold_backward(dy, after, 0)
    elif type(layer) is nn.Softplus:
        result = _aten.softplus_backward(dy, before, layer.beta, layer.threshold)
    elif type(layer) is nn.Tanh:
        result = _aten.tanh_backward(dy, after)
    elif type(layer) is nn.Sigmoid:
        result = _aten.sigmoid_backward(dy, after)
    elif after.requires_grad:
        (result,) = torch.autograd.grad(after, before, dy)
    else:
        with torch.enable_grad():
            leaf = before.detach().requires_grad_()
            (result,) = torch.autograd.grad(layer(leaf), leaf, dy)
    return result


def ordinary(layer: nn.Linear) -> bool:
    """Whether it has a weight ``[k, n]``, then a bias ``[k]`` or none: people put others in their places."""
    weight, bias = layer.weight, layer.bias
    ends = bias is None or bias.shape == weight.shape[:1]
    own = [weight] if bias is None else [weight, bias]
    return weight.dim() == 2 and ends and list(map(id, layer.parameters(recurse=False))) == list(map(id, own))


def rows(x: Tensor) -> Tensor:
    """x ``[m, ..., k]`` as ``[m, n, k]``, a copy only where it has to be one."""
    return x.reshape(len(x), -1, x.shape[-1])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x ``[m, n, k]``, weight ``[m, o, k]``, bias ``[m, o]`` -> ``[m, n, o]``."""
    if bias is None:
        return torch.bmm(x, weight.mT)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def linear_back(
    dy: Tensor, x: Tensor, weight: Tensor, into: Tensor, bias: Tensor | None, below: bool = True
) -> Tensor | None:
    """The backward of `linear`: the gradient of the weight goes `into`, the bias's to `bias`."""
    torch.bmm(dy.mT, x, out=into)
    if bias is not None:
        torch.sum(dy, 1, out=bias)
    return torch.bmm(dy, weight) if below else None


def normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x ``[m, n, k]`` with mean 0 and variance 1 along the last axis, its means, and what it was scaled with."""
    found: tuple[Tensor, Tensor, Tensor] = _aten.native_layer_norm(x, x.shape[-1:], None, None, eps)
    return found


def normalised_back(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """The backward of `normalised`."""
    found: Tensor = _aten.native_layer_norm_backward(
        dy, x, x.shape[-1:], mean, scale, None, None, [True, False, False]
    )[0]
    return found


def looked_up(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of table ``[m, n, k]`` by ids ``[m, ...]`` -> ``[m, ..., k]``."""
    return nn.functional.embedding(_numbered(ids, table.shape[1]), table.reshape(-1, table.shape[2]))


def looked_up_back(into: Tensor, ids: Tensor, dy: Tensor) -> None:
    """Put the gradient of `looked_up` by its table `into` ``[m, n, k]``."""
    m, n, k = into.shape
    found = _aten.embedding_dense_backward(dy.reshape(-1, k), _numbered(ids, n).flatten(), m * n, -1, False)
    into.copy_(found.view(m, n, k))


def _numbered(ids: Tensor, each: int) -> Tensor:
    """Ids ``[m, ...]`` of `m` tables of `each` rows as ids of one table."""
    first = torch.arange(0, len(ids) * each, each, device=ids.device)
    return ids + first.view(-1, *[1] * (ids.dim() - 1))


POINTWISE = (
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.ELU,
    nn.SiLU,
    nn.Softplus,
    nn.LeakyReLU,
    nn.Identity,
    nn.Hardtanh,
)


def plain_rule(layer: nn.Module) -> Rule | None:
    """The rule of a layer that is neither recurrent nor one of attention; None where there is none."""
    kind = type(layer)
    if isinstance(layer, nn.Linear) and kind is nn.Linear:
        return Linear(layer) if ordinary(layer) else None
    if isinstance(layer, nn.LayerNorm) and kind is nn.LayerNorm:
        return Norm(layer) if len(layer.normalized_shape) == 1 else None
    if isinstance(layer, nn.Embedding) and kind is nn.Embedding:
        plain = layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
        return Embedding(layer) if plain else None
    if kind is exported.Places:
        return Places()
    if kind is exported.Last:
        return Last()
    if isinstance(layer, nn.Flatten):
        return Flat() if (layer.start_dim, layer.end_dim) == (1, -1) else None
    if isinstance(layer, nn.Dropout):
        return Pointwise(nn.Identity()) if layer.p == 0 else None
    return Pointwise(layer) if kind in POINTWISE and not getattr(layer, "inplace", False) else None
