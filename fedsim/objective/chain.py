"""Chains of Linear layers and pointwise activations as batched matrix products over the flat parameter rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedsim.core import crew
from fedsim.models.layout import views
from fedsim.models.losses import CLOSED_GRADIENTS, Loss
from fedsim.objective.compiled import CompiledChain
from fedsim.objective.kernel import Descent, Kernel, Walk
from fedsim.objective.layers import pointwise_back

_TURNED = 16  # samples in a minibatch: with fewer, both ways of a layer of few outputs take the same time
_CLOSED = (nn.ReLU, nn.Softplus, nn.Tanh, nn.Sigmoid)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer and, of a Linear one, its parameters as views of the rows, in the forms that products want.

    `at` is the index of its weight among the parameters, `bias` has an axis for the samples.
    """

    layer: nn.Module
    closed: bool
    at: int = -1
    weight: Tensor | None = None
    turned: Tensor | None = None
    bias: Tensor | None = None


_Take = Callable[[_Layer, Tensor, Tensor], None]


class ChainKernel(Kernel):
    """Flatten, Linear and pointwise layers in sequence, as batched matrix products.

    With `alone`, sizes decide whether one row after the other is computed instead (`objective.compiled`).
    """

    words = "as a chain of linear layers"

    def __init__(self, module: nn.Sequential, loss: Loss, alone: bool = True) -> None:
        super().__init__(module, loss)
        self.chain = [layer for layer in module if not isinstance(layer, nn.Flatten)]
        self.largest = max(layer.weight.numel() for layer in self.chain if isinstance(layer, nn.Linear))
        self.closed = CLOSED_GRADIENTS.get(loss)
        self.compiled = CompiledChain.of(self.chain, loss) if alone else None

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        return self._scaled_grad(x, inputs, targets, _scale(weights, len(x) == 1))

    def change(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> Tensor:
        # The backward is linear, so scaling what enters it by -lr scales all that comes out.
        return self._scaled_grad(x, inputs, targets, _scale(-lr * weights, len(x) == 1))

    def _scaled_grad(self, x: Tensor, inputs: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
        result = torch.empty_like(x)
        one = len(x) == 1  # plain matrix products have less overhead than batches of one
        grads = self._params(result)

        def write(own: _Layer, dy: Tensor, h: Tensor) -> None:
            if h.shape[-2] == 1:  # one sample: an outer product, 4 times as fast by broadcasting
                _rows(torch.mul, grads[own.at], dy.mT, h)
            elif one:
                _outputs(torch.mm, grads[own.at], dy.mT, h)
            else:
                _rows(torch.bmm, grads[own.at], dy.mT, h)
            if own.bias is not None:
                torch.sum(dy, -2, out=grads[own.at + 1])

        self._passes(self._layers(self._params(x)), one, inputs, targets, scale, write)
        return result

    def descend(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> None:
        self.descending(x, lr)(inputs, targets, weights)

    def products(self, sample: Tensor) -> int:
        return self.layout.total

    def shares(self, x: Tensor) -> bool:
        if len(x) > 1 or x.device.type != "cpu" or not crew.free():
            return False
        return self.largest * x.element_size() >= 2 * crew.PORTION

    def walks(self, x: Tensor, inputs: Tensor, samples: int) -> bool:
        compiled = self.compiled
        if compiled is None or self.shares(x):
            return False
        return compiled.takes(x, inputs) and compiled.walks(len(x), samples)

    def walk(self, x: Tensor, inputs: Tensor, walk: Walk, lr: Tensor, start: Tensor | None = None) -> None:
        if self.compiled is not None and self.compiled.follows(walk.rule):
            self.compiled.walk(x, inputs, walk, lr, start)
        else:
            super().walk(x, inputs, walk, lr, start)

    def descending(self, x: Tensor, lr: Tensor, start: Tensor | None = None) -> Descent:
        one, params, minus = len(x) == 1, self._params(x), -lr
        layers: list[_Layer] = []
        column = minus if one else minus.unsqueeze(-1)
        scales: dict[float, Tensor] = {}  # of whole minibatches, which all have the same

        def step(own: _Layer, dy: Tensor, h: Tensor) -> None:
            weight = params[own.at]
            if h.shape[-2] == 1:
                _rows(_add_outer, weight, dy.mT, h)
            elif one:
                _outputs(_add_product, weight, dy.mT, h)
            else:
                _rows(_add_product, weight, dy.mT, h)
            if own.bias is not None:
                params[own.at + 1].add_(dy.sum(-2))

        def leap(own: _Layer, dy: Tensor, h: Tensor) -> None:
            _rows(torch.addcmul, params[own.at], begun[own.at], dy.mT, h)
            if own.bias is not None:
                torch.add(begun[own.at + 1], dy.sum(-2), out=params[own.at + 1])

        begun = [] if start is None else self._params(start)

        def descend(inputs: Tensor, targets: Tensor, weights: Tensor | float) -> None:
            nonlocal start, layers
            first, start = start, None
            if self.compiled is not None and self.walks(x, inputs, inputs.shape[1]):  # the bits of a step in a walk
                each = weights.unsqueeze(1) if isinstance(weights, Tensor) else weights
                index = None if one else torch.arange(inputs.shape[1] * len(x)).view(len(x), 1, -1)
                self.compiled.walk(x, inputs.flatten(0, 1), Walk(index, targets.unsqueeze(1), each), lr, first)
                return
            # The backward is linear, so scaling what enters it by -lr scales every layer's step.
            if isinstance(weights, Tensor):
                scaled = _scale(minus * weights, one)
            else:
                if weights not in scales:
                    scales[weights] = column * weights
                scaled = scales[weights]
            if first is not None and inputs.shape[1] == 1 and not one:  # reads there and writes here: no copy before
                self._passes(self._layers(begun), one, inputs, targets, scaled, leap)
                return
            if first is not None:
                x.copy_(first)
            layers = layers or self._layers(params)
            self._passes(layers, one, inputs, targets, scaled, step)

        return descend

    def input_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            layers = self._layers(self._params(x))
            return self._passes(layers, len(x) == 1, inputs.detach(), targets, 1.0, None).view_as(inputs)

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

        def note(own: _Layer, dy: Tensor, h: Tensor) -> None:
            bias = own.bias is not None
            found.insert(0, (own.at, dy.view(m, -1, dy.shape[-1]), h.reshape(m, -1, h.shape[-1]), bias))

        if x.stride(0) == 0:  # all rows are one model: plain matrix products
            x, inputs, targets = x[:1], inputs.flatten(0, 1).unsqueeze(0), targets.flatten(0, 1).unsqueeze(0)
        self._passes(self._layers(self._params(x)), len(x) == 1, inputs, targets, 1.0, note)
        return found

    def _params(self, x: Tensor) -> list[Tensor]:
        """The parameters of rows ``[m, d]`` as views; of one row they have no axis for it."""
        return list(views(x[0] if len(x) == 1 else x, self.layout).values())

    def _layers(self, params: list[Tensor]) -> list[_Layer]:
        found, at = [], 0
        for layer in self.chain:
            if not isinstance(layer, nn.Linear):
                found.append(_Layer(layer, type(layer) in _CLOSED))
            else:
                bias = None if layer.bias is None else params[at + 1].unsqueeze(-2)
                found.append(_Layer(layer, True, at, params[at], params[at].mT, bias))
                at += 1 if layer.bias is None else 2
        return found

    def _passes(
        self,
        layers: list[_Layer],
        one: bool,
        inputs: Tensor,
        targets: Tensor,
        scale: Tensor | float,
        take: _Take | None,
    ) -> Tensor:
        """Forward and backward; each Linear layer hands ``(itself, dy, its inputs)`` to `take` once nothing below needs
        its weight any more, so that `take` may change it.

        `scale` is what each sample's loss counts: a number, or ``[m, b, 1]`` or of that form (of `one` row ``[b, 1]``).
        Without `take` it goes down to the gradient of the inputs, which is what comes back.
        """
        linear: Callable[..., Tensor] = _addmm if one else _baddbmm
        product: Callable[..., Tensor] = _mm if one else _bmm
        h, targets = (inputs[0].flatten(1), targets[0]) if one else (inputs.flatten(2), targets)
        tape = []
        for own in layers:
            if own.turned is not None:
                tape.append((h, h))
                h = product(h, own.turned) if own.bias is None else linear(own.bias, h, own.turned)
            else:
                before = h if own.closed else h.requires_grad_()
                after = own.layer(before)
                tape.append((before, after))
                h = after if own.closed else after.detach()
        dy = self._loss_grad(h, targets, scale)
        for i in range(len(layers) - 1, -1, -1):
            own, (before, after) = layers[i], tape[i]
            if own.weight is None:
                dy = pointwise_back(own.layer, dy, before, after)
            else:
                below = product(dy, own.weight) if i > 0 or take is None else dy  # few need the inputs' gradient
                if take is not None:
                    take(own, dy, before)
                dy = below
        return dy

    def _loss_grad(self, out: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
        flat = out.view(-1, out.shape[-1])
        targets = targets.reshape(len(flat), *targets.shape[out.dim() - 1 :])
        if self.closed is not None:
            return self.closed(flat, targets).view_as(out).mul_(scale)
        losses = self.loss(flat.requires_grad_(), targets)
        each = scale if isinstance(scale, Tensor) else flat.new_full((1, 1), scale)
        each = each.expand(*out.shape[:-1], 1).reshape(-1)
        return torch.autograd.grad(losses, flat, each)[0].view_as(out)

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


def _scale(weights: Tensor | float, one: bool) -> Tensor | float:
    """Weights ``[m, b]`` of samples as they scale what is of their outputs ``[m, b, k]``, of `one` row ``[b, k]``."""
    if not isinstance(weights, Tensor):
        return weights
    return (weights[0] if one else weights).unsqueeze(-1)


def _rows(operation: Callable[..., object], out: Tensor, *inputs: Tensor) -> Tensor:
    """An operation into `out` ``[m, ...]`` in which every row is by itself; on a CPU threads share large ones."""
    if out.dim() < 3 or out.device.type != "cpu":
        operation(*inputs, out=out)
        return out
    size = out.nbytes + sum(v.nbytes for v in inputs)
    parts = (crew.shares if operation in _SINGLY else crew.portions)(len(out), size)
    if len(parts) == 1:
        operation(*inputs, out=out)
    else:
        crew.apart(lambda part: operation(*(v[part] for v in inputs), out=out[part]), parts)
    return out


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _rows(torch.bmm, a.new_empty((len(a), a.shape[1], b.shape[2])), a, b)


def _baddbmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``bias + a @ b``; of more rows than columns as its transpose, for which matrix products have a faster kernel."""
    if a.shape[1] > b.shape[2] and a.shape[1] >= _TURNED:
        out = a.new_empty((len(a), b.shape[2], a.shape[1]))
        return _rows(torch.baddbmm, out, bias.mT, b.mT, a.mT).mT.contiguous()
    return _rows(torch.baddbmm, a.new_empty((len(a), a.shape[1], b.shape[2])), bias, a, b)


def _wide(weight: Tensor) -> list[slice]:
    """Portions of the rows of one model's weight ``[k, n]``; a single one unless it is large."""
    return crew.portions(len(weight), weight.nbytes) if weight.device.type == "cpu" else [slice(0, len(weight))]


def _outputs(operation: Callable[..., object], out: Tensor, turned: Tensor, h: Tensor) -> None:
    """An operation of ``[k, b]`` and ``[b, n]`` into one model's weight ``[k, n]``; threads share large ones."""
    crew.apart(lambda part: operation(turned[part], h, out=out[part]), _wide(out))


def _addmm(bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``bias + a @ b`` with b ``[n, k]`` of one model; threads share large ones."""

    def product(part: slice, out: Tensor | None = None) -> Tensor:
        columns = b[:, part]
        return torch.mm(a, columns, out=out) if bias is None else torch.addmm(bias[:, part], a, columns, out=out)

    parts = _wide(b.mT)
    if len(parts) == 1:
        return product(parts[0])
    made = a.new_empty((len(a), b.shape[1]))
    crew.apart(lambda part: product(part, made[:, part]), parts)
    return made


_mm = partial(_addmm, None)


def _add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    (out.addmm_ if out.dim() == 2 else out.baddbmm_)(a, b)


def _add_outer(a: Tensor, b: Tensor, out: Tensor) -> None:
    out.addcmul_(a, b)


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u.unsqueeze(-1) * v.unsqueeze(-2)


_SINGLY = (torch.mul, torch.addcmul, _add_outer)
"""Operations that make every number of their result by itself."""
