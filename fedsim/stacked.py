"""Gradients of many models at once: parameters ``[m, d]``, one minibatch per row, gradients ``[m, d]``.

Three ways, chosen by what the model is made of (never by timing, so that a run's numbers do not depend on the machine's mood):

* a plain chain of Linear layers and pointwise activations runs as batched matrix products whose backward writes each weight
  gradient straight into its place in the flat ``[m, d]`` result (`ChainKernel`);
* other models run under ``torch.func.vmap`` with one ordinary backward of the summed losses (`VmapKernel`);
* convolutions on a CPU, and models that vmap cannot take, run row by row (`RowKernel`): grouped convolutions are slower there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.models import Layout, layout, views

Loss = Callable[[Tensor, Tensor], Tensor]

_POINTWISE = (
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
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Kernel(ABC):
    """How one model family is evaluated for `m` parameter rows at once."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self.module = module
        self.loss = loss
        self.layout: Layout = layout(module)

    @abstractmethod
    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        """Gradient of ``sum_j weights[i, j] * loss(model(x_i; inputs[i, j]), targets[i, j])`` for every row i.

        x ``[m, d]``, inputs ``[m, b, ...]``, targets ``[m, b, ...]``, weights ``[m, b]`` or one number for all -> ``[m, d]``.
        """

    @abstractmethod
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of `m` models on the same inputs: x ``[m, d]``, inputs ``[N, ...]`` -> ``[m, N, k]``, no gradient."""

    def per_sample_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each sample's own gradient: x ``[m, d]``, inputs ``[m, b, ...]`` -> ``[m, b, d]``."""

        def one(flat: Tensor, sample: Tensor, target: Tensor) -> Tensor:
            out = functional_call(self.module, views(flat, self.layout), (sample.unsqueeze(0),))
            return self.loss(out, target.unsqueeze(0)).sum()

        per_sample = vmap(torch.func.grad(one), in_dims=(None, 0, 0))
        return vmap(per_sample)(x, inputs, targets)

    def _leaves(self, x: Tensor) -> dict[str, Tensor]:
        return {name: v.detach().requires_grad_() for name, v in views(x, self.layout).items()}

    def _total(self, out: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        losses = self.loss(out.flatten(0, 1), targets.flatten(0, 1))
        return (losses * weights.flatten()).sum() if isinstance(weights, Tensor) else losses.sum() * weights

    def _scatter(self, into: Tensor, grads: tuple[Tensor, ...]) -> None:
        torch._foreach_copy_(list(views(into, self.layout).values()), list(grads))


class RowKernel(Kernel):
    """One row after the other through the ordinary forward and backward."""

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        result = torch.empty_like(x)
        for i in range(len(x)):
            leaves = self._leaves(x[i])
            losses = self.loss(functional_call(self.module, leaves, (inputs[i],)), targets[i])
            total = (losses * (weights[i] if isinstance(weights, Tensor) else weights)).sum()
            self._scatter(result[i], torch.autograd.grad(total, list(leaves.values())))
        return result

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return torch.stack([functional_call(self.module, views(row, self.layout), (inputs,)) for row in x])


class VmapKernel(Kernel):
    """``vmap`` over the forward, then one ordinary backward of the summed losses: clients are independent, so that is each
    client's own gradient."""

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        leaves = self._leaves(x)
        out = vmap(lambda p, batch: functional_call(self.module, p, (batch,)))(leaves, inputs)
        result = torch.empty_like(x)
        self._scatter(result, torch.autograd.grad(self._total(out, targets, weights), list(leaves.values())))
        return result

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        call = vmap(lambda p, batch: functional_call(self.module, p, (batch,)), in_dims=(0, None))
        result: Tensor = call(views(x, self.layout), inputs)
        return result


class ChainKernel(Kernel):
    """Flatten, Linear and pointwise layers in sequence, as batched matrix products."""

    def __init__(self, module: nn.Sequential, loss: Loss) -> None:
        super().__init__(module, loss)
        self.chain = [layer for layer in module if not isinstance(layer, nn.Flatten)]

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        result = torch.empty_like(x)
        params, grads = iter(views(x, self.layout).values()), iter(views(result, self.layout).values())
        # Autograd only has to know that there is something to differentiate: weight gradients go into `result` directly.
        wanted = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
        h = inputs.flatten(2)
        for layer in self.chain:
            if isinstance(layer, nn.Linear):
                bias = layer.bias is not None
                weight, d_weight = next(params), next(grads)
                h = _StackedLinear.apply(
                    h, weight, next(params) if bias else None, d_weight, next(grads) if bias else None, wanted
                )
            else:
                h = layer(h)
        self._total(h, targets, weights).backward()  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        params = iter(views(x, self.layout).values())
        h = inputs.flatten(1).unsqueeze(0)  # one row serves all models until the first Linear layer
        for layer in self.chain:
            if isinstance(layer, nn.Linear):
                weight = next(params)
                m, k, width = weight.shape
                if len(h) == 1:  # the inputs are shared, so all models' outputs are one matrix product
                    z = (h[0] @ weight.reshape(m * k, width).T).view(-1, m, k).transpose(0, 1)
                else:
                    z = torch.bmm(h, weight.transpose(1, 2))
                h = z + next(params).unsqueeze(1) if layer.bias is not None else z
            else:
                h = layer(h)
        return h


class _StackedLinear(torch.autograd.Function):
    """``y_i = h_i W_i^T + b_i`` for every row i; the backward writes dW and db into the tensors it was given."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        d_weight: Tensor,
        d_bias: Tensor | None,
        _wanted: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.into = (d_weight, d_bias)
        if bias is None:
            return torch.bmm(h, weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        h, weight = ctx.saved_tensors
        d_weight, d_bias = ctx.into
        if h.shape[1] == 1:  # one sample: an outer product, 4 times as fast by broadcasting as by a matrix product
            torch.mul(dy.transpose(1, 2), h, out=d_weight)
        else:
            torch.bmm(dy.transpose(1, 2), h, out=d_weight)
        if d_bias is not None:
            torch.sum(dy, 1, out=d_bias)
        return (torch.bmm(dy, weight) if ctx.needs_input_grad[0] else None), None, None, None, None, None


def build_kernel(module: nn.Module, loss: Loss, device: torch.device, sample: Tensor) -> Kernel:
    """The kernel for `module` on `device`; `sample` is one input ``[...]``, used to find out whether vmap can take the model."""
    if _is_chain(module, sample.dim()):
        assert isinstance(module, nn.Sequential)
        return ChainKernel(module, loss)
    if device.type == "cpu" and any(isinstance(layer, _CONVOLUTIONS) for layer in module.modules()):
        return RowKernel(module, loss)
    kernel = VmapKernel(module, loss)
    rows = torch.cat([p.detach().flatten() for p in module.parameters()]).expand(2, -1)
    try:
        kernel.outputs(rows, sample.unsqueeze(0))
    except (
        RuntimeError,
        ValueError,
    ):  # data-dependent control flow, in-place tricks, operators without a batching rule
        return RowKernel(module, loss)
    return kernel


def _is_chain(module: nn.Module, input_dims: int) -> bool:
    """Only (leading Flatten), Linear and pointwise layers, at least one Linear, no layer used twice."""
    if type(module) is not nn.Sequential or (input_dims > 1 and not isinstance(module[0], nn.Flatten)):
        return False
    layers = list(module)
    inside = [layer for layer in layers if not (isinstance(layer, nn.Flatten) and layer.start_dim == 1)]
    flatten_first = all(isinstance(layer, nn.Flatten) for layer in layers[: len(layers) - len(inside)])
    linears = [layer for layer in inside if type(layer) is nn.Linear]
    plain = all(type(layer) is nn.Linear or type(layer) in _POINTWISE for layer in inside)
    return flatten_first and plain and len(set(map(id, linears))) == len(linears) > 0
