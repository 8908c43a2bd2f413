"""Chains of Linear layers and pointwise activations as batched matrix products over the flat parameter rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.core import crew
from fedsim.models.layout import views
from fedsim.models.losses import CLOSED_GRADIENTS, Loss
from fedsim.objective.kernel import Kernel
from fedsim.objective.layers import pointwise_back

_Take = Callable[[int, Tensor, Tensor, bool], None]
_CLOSED = (nn.ReLU, nn.Softplus, nn.Tanh, nn.Sigmoid)


class ChainKernel(Kernel):
    """Flatten, Linear and pointwise layers in sequence, as batched matrix products."""

    words = "clients at once, as a chain of linear layers"

    def __init__(self, module: nn.Sequential, loss: Loss) -> None:
        super().__init__(module, loss)
        self.chain = [layer for layer in module if not isinstance(layer, nn.Flatten)]

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        result = torch.empty_like(x)
        one = len(x) == 1  # plain matrix products have less overhead than batches of one
        grads = list(views(result[0] if one else result, self.layout).values())

        def write(at: int, dy: Tensor, h: Tensor, bias: bool) -> None:
            if h.shape[-2] == 1:  # one sample: an outer product, 4 times as fast by broadcasting
                _rows(torch.mul, grads[at], dy.mT, h)
            elif one:
                torch.mm(dy.mT, h, out=grads[at])
            else:
                _rows(torch.bmm, grads[at], dy.mT, h)
            if bias:
                torch.sum(dy, -2, out=grads[at + 1])

        self._passes(x, inputs, targets, weights, write)
        return result

    def descend(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> None:
        params = list(views(x[0] if len(x) == 1 else x, self.layout).values())

        def step(at: int, dy: Tensor, h: Tensor, bias: bool) -> None:
            if h.shape[-2] == 1:
                _rows(_add_outer, params[at], dy.mT, h)
            elif len(x) == 1:
                params[at].addmm_(dy.mT, h)
            else:
                _rows(_add_product, params[at], dy.mT, h)
            if bias:
                params[at + 1].add_(dy.sum(-2))

        # The backward is linear, so scaling what enters it by -lr scales every layer's step.
        scaled = -lr * weights if isinstance(weights, Tensor) else (-lr * weights).expand(-1, inputs.shape[1])
        self._passes(x, inputs, targets, scaled, step)

    def input_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            return self._passes(x, inputs.detach(), targets, 1.0, None).view_as(inputs)

    def clipped_sum(
        self, x: Tensor, inputs: Tensor, targets: Tensor, valid: Tensor | None, bound: Tensor, minus: Tensor | None
    ) -> Tensor:
        """Without making every sample's gradient, where its norm follows from those of its factors.

        A sample's gradient of a layer is ``dy h^T``, of norm ``|dy| |h|``; all samples' clipped sum is one product. A
        difference is ``ddy h^T`` in the first layer, whose inputs are the same at both points; in the others it is
        made, ``ddy h^T + dy' dh^T``, and the very vector that is added up is the one that is measured.
        """
        layers = self._factors(x, inputs, targets)
        if minus is None:
            terms = [_Outer(at, dy, h, None, bias) for at, dy, h, bias in layers]
        else:
            terms = []
            for (at, dy, h, bias), (_, other, before, _) in zip(
                layers, self._factors(minus, inputs, targets), strict=True
            ):
                change = dy - other
                made = None if at == 0 else _outer(change, h) + _outer(other, h - before)
                terms.append(_Outer(at, change, h, made, bias))
        length = torch.stack([term.squares() for term in terms]).sum(0).sqrt_()  # [m, b]
        scale = (bound / length.clamp_min_(1e-12)).clamp_(max=1.0)
        if valid is not None:
            scale = scale * valid
        result = torch.empty(len(x), self.layout.total, dtype=x.dtype, device=x.device)
        grads = list(views(result, self.layout).values())
        for term in terms:
            term.add_up(scale, grads)
        return result

    def floats_per_sample(self, difference: bool) -> int:
        widths = [layer.in_features + 3 * layer.out_features for layer in self.chain if isinstance(layer, nn.Linear)]
        made = [layer.weight.numel() for layer in self.chain if isinstance(layer, nn.Linear)][1:]
        return 2 * sum(widths) + 2 * sum(made) if difference else sum(widths)

    def _factors(self, x: Tensor, inputs: Tensor, targets: Tensor) -> list[tuple[int, Tensor, Tensor, bool]]:
        """Of each Linear layer the index of its weight, dy ``[m, b, k]``, its inputs ``[m, b, n]``, has it a bias."""
        found: list[tuple[int, Tensor, Tensor, bool]] = []
        m = len(x)

        def note(at: int, dy: Tensor, h: Tensor, bias: bool) -> None:
            found.insert(0, (at, dy.view(m, -1, dy.shape[-1]), h.reshape(m, -1, h.shape[-1]), bias))

        if x.stride(0) == 0:  # all rows are one model: plain matrix products
            x, inputs, targets = x[:1], inputs.flatten(0, 1).unsqueeze(0), targets.flatten(0, 1).unsqueeze(0)
        self._passes(x, inputs, targets, 1.0, note)
        return found

    def _passes(
        self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, take: _Take | None
    ) -> Tensor:
        """Forward and backward; each Linear layer hands ``(index of its weight, dy, its inputs, has it a bias)`` to
        `take` once nothing below needs its weight any more, so that `take` may change it.

        Without `take` it goes down to the gradient of the inputs, which is what comes back.
        """
        if len(x) == 1:
            x, h, targets = x[0], inputs[0].flatten(1), targets[0]
            weights = weights[0] if isinstance(weights, Tensor) else weights
        else:
            h = inputs.flatten(2)
        params = list(views(x, self.layout).values())
        linear, product = (torch.addmm, torch.mm) if x.dim() == 1 else (_baddbmm, _bmm)
        tape, at = [], 0
        for layer in self.chain:
            if isinstance(layer, nn.Linear):
                tape.append((h, h))
                if layer.bias is None:
                    h, at = product(h, params[at].mT), at + 1
                else:
                    h, at = linear(params[at + 1].unsqueeze(-2), h, params[at].mT), at + 2
            else:
                before = h if type(layer) in _CLOSED else h.requires_grad_()
                after = layer(before)
                tape.append((before, after))
                h = after.detach()
        dy = self._loss_grad(h, targets, weights)
        for i in range(len(self.chain) - 1, -1, -1):
            layer, (before, after) = self.chain[i], tape[i]
            if not isinstance(layer, nn.Linear):
                dy = pointwise_back(layer, dy, before, after)
            else:
                at -= 1 if layer.bias is None else 2
                below = product(dy, params[at]) if i > 0 or take is None else dy  # few need the inputs' gradient
                if take is not None:
                    take(at, dy, before.detach(), layer.bias is not None)
                dy = below
        return dy

    def _loss_grad(self, out: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        flat = out.view(-1, out.shape[-1])
        targets = targets.reshape(len(flat), *targets.shape[out.dim() - 1 :])
        closed = CLOSED_GRADIENTS.get(self.loss)
        if closed is not None:
            scale = weights.reshape(-1, 1) if isinstance(weights, Tensor) else weights
            return closed(flat, targets).mul_(scale).view_as(out)
        losses = self.loss(flat.requires_grad_(), targets)
        scale = weights.flatten() if isinstance(weights, Tensor) else torch.full_like(losses, weights)
        return torch.autograd.grad(losses, flat, scale)[0].view_as(out)

    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self._forward(x, inputs.flatten(1).unsqueeze(0), shared=True)

    def own_outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self._forward(x, inputs.flatten(2), shared=False)

    @torch.no_grad()
    def _forward(self, x: Tensor, h: Tensor, shared: bool) -> Tensor:
        """Of inputs ``[m, b, n]``, or `shared` ones ``[1, b, n]`` for all until the first Linear layer."""
        params = iter(views(x, self.layout).values())
        for layer in self.chain:
            if isinstance(layer, nn.Linear):
                weight = next(params)
                m, k, width = weight.shape
                if shared and len(h) == 1:  # the inputs are shared, so all models' outputs are one matrix product
                    z = (h[0] @ weight.reshape(m * k, width).T).view(-1, m, k).transpose(0, 1)
                else:
                    z = torch.bmm(h, weight.transpose(1, 2))
                h = z + next(params).unsqueeze(1) if layer.bias is not None else z
            else:
                h = layer(h)
        return h


@dataclass(frozen=True)
class _Outer:
    """Every sample's gradient of one Linear layer, ``dy h^T`` unless it has been `made`, and of its bias, dy."""

    at: int
    dy: Tensor
    h: Tensor
    made: Tensor | None
    bias: bool

    def squares(self) -> Tensor:
        """Squared norms ``[m, b]``."""
        dy = self.dy.square().sum(-1)
        weight = dy * self.h.square().sum(-1) if self.made is None else self.made.square().sum((-2, -1))
        return weight + dy if self.bias else weight

    def add_up(self, scale: Tensor, into: list[Tensor]) -> None:
        """``sum_j scale_j g_j`` into the layer's gradients."""
        dy = self.dy * scale.unsqueeze(-1)
        if self.made is None:
            torch.bmm(dy.mT, self.h, out=into[self.at])
        else:
            into[self.at].copy_(torch.einsum("mb,mbkn->mkn", scale, self.made))
        if self.bias:
            torch.sum(dy, -2, out=into[self.at + 1])


def _rows(operation: Callable[..., object], out: Tensor, *inputs: Tensor) -> Tensor:
    """An operation into `out` ``[m, ...]`` in which every row is by itself; on a CPU threads share large ones."""
    if out.dim() < 3 or out.device.type != "cpu":
        operation(*inputs, out=out)
        return out
    size = sum(v.numel() * v.element_size() for v in (out, *inputs))
    divided = crew.shares if operation in _SINGLY else crew.portions
    crew.apart(lambda part: operation(*(v[part] for v in inputs), out=out[part]), divided(len(out), size))
    return out


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _rows(torch.bmm, a.new_empty((len(a), a.shape[1], b.shape[2])), a, b)


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _rows(torch.baddbmm, a.new_empty((len(a), a.shape[1], b.shape[2])), bias, a, b)


def _add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    out.baddbmm_(a, b)


def _add_outer(a: Tensor, b: Tensor, out: Tensor) -> None:
    out.addcmul_(a, b)


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u.unsqueeze(-1) * v.unsqueeze(-2)


_SINGLY = (torch.mul, _add_outer)
"""Operations that make every number of their result by itself."""
