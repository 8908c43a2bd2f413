"""Gradients of many models at once: parameters ``[m, d]``, one minibatch per row, gradients ``[m, d]``.

Three ways, chosen by what the model is made of (never by timing, so that a run's numbers do
not depend on the machine's mood):

* a plain chain of Linear layers and pointwise activations runs as batched matrix products whose backward writes
  each weight gradient straight into its place in the flat ``[m, d]`` result (`ChainKernel`);
* other models run under ``torch.func.vmap`` with one ordinary backward of the summed losses (`VmapKernel`);
* convolutions on a CPU, and models that vmap cannot take, run row by row (`RowKernel`): grouped convolutions
  are slower there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.losses import CLOSED_GRADIENTS, Loss
from fedsim.models import Layout, layout, views

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

        x ``[m, d]``, inputs ``[m, b, ...]``, targets ``[m, b, ...]``, weights ``[m, b]`` or one number for all
        -> ``[m, d]``.
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
        result: Tensor = vmap(per_sample)(x, inputs, targets)
        return result

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
    """``vmap`` over the forward, then one ordinary backward of the summed losses: clients are independent, so that is
    each client's own gradient."""

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        leaves = self._leaves(x)
        out = self.forward(leaves, inputs)
        result = torch.empty_like(x)
        self._scatter(result, torch.autograd.grad(self._total(out, targets, weights), list(leaves.values())))
        return result

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self.forward(views(x, self.layout), inputs, shared=True)

    def forward(self, params: dict[str, Tensor], inputs: Tensor, shared: bool = False) -> Tensor:
        """Outputs ``[m, b, k]`` on inputs ``[m, b, ...]``, or `shared` ones ``[b, ...]``."""
        call = vmap(lambda p, batch: functional_call(self.module, p, (batch,)), in_dims=(0, None if shared else 0))
        result: Tensor = call(params, inputs)
        return result


class ChainKernel(Kernel):
    """Flatten, Linear and pointwise layers in sequence, as batched matrix products."""

    def __init__(self, module: nn.Sequential, loss: Loss) -> None:
        super().__init__(module, loss)
        self.chain = [layer for layer in module if not isinstance(layer, nn.Flatten)]

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        result = torch.empty_like(x)
        if len(x) == 1:  # plain matrix products have less overhead than batches of one
            weights = weights[0] if isinstance(weights, Tensor) else weights
            self._grad(x[0], inputs[0].flatten(1), targets[0], weights, result[0])
        else:
            self._grad(x, inputs.flatten(2), targets, weights, result)
        return result

    def _grad(self, x: Tensor, h: Tensor, targets: Tensor, weights: Tensor | float, result: Tensor) -> None:
        """Forward, then backward into `result`, for x ``[m, d]`` and h ``[m, b, k]``, or without the leading axis."""
        params, grads = list(views(x, self.layout).values()), list(views(result, self.layout).values())
        linear, product = (torch.addmm, torch.mm) if x.dim() == 1 else (torch.baddbmm, torch.bmm)
        tape, at = [], 0
        for layer in self.chain:
            if isinstance(layer, nn.Linear):
                tape.append((h, h))
                if layer.bias is None:
                    h, at = product(h, params[at].mT), at + 1
                else:
                    h, at = linear(params[at + 1].unsqueeze(-2), h, params[at].mT), at + 2
            else:
                before = h if isinstance(layer, nn.ReLU) else h.requires_grad_()
                after = layer(before)
                tape.append((before, after))
                h = after.detach()
        dh = self._loss_grad(h, targets, weights)
        for i in range(len(self.chain) - 1, -1, -1):
            layer, (before, after) = self.chain[i], tape[i]
            if isinstance(layer, nn.ReLU):
                dh = dh * (after > 0)
                continue
            if not isinstance(layer, nn.Linear):
                (dh,) = torch.autograd.grad(after, before, dh)
                continue
            if layer.bias is not None:
                at -= 1
                torch.sum(dh, -2, out=grads[at])
            at -= 1
            # Weight gradients go straight into their place in the flat result.
            if h.shape[-2] == 1:  # one sample: an outer product, 4 times as fast by broadcasting
                torch.mul(dh.mT, before.detach(), out=grads[at])
            else:
                product(dh.mT, before.detach(), out=grads[at])
            if i > 0:  # nobody needs the gradient of the inputs
                dh = product(dh, params[at])

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


def build_kernel(module: nn.Module, loss: Loss, device: torch.device, sample: Tensor) -> Kernel:
    """The kernel for `module` on `device`; one input `sample` ``[...]`` shows whether vmap can take the model."""
    if _is_chain(module, sample.dim()):
        assert isinstance(module, nn.Sequential)
        return ChainKernel(module, loss)
    if device.type == "cpu" and any(isinstance(layer, _CONVOLUTIONS) for layer in module.modules()):
        return RowKernel(module, loss)
    kernel = VmapKernel(module, loss)
    rows = torch.cat([p.detach().flatten() for p in module.parameters()]).expand(2, -1)
    try:
        kernel.outputs(rows, sample.unsqueeze(0))
        kernel.forward(views(rows, kernel.layout), torch.stack([sample, sample]).unsqueeze(1))
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
    inside = [
        layer for layer in layers if not (isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1))
    ]
    flatten_first = all(isinstance(layer, nn.Flatten) for layer in layers[: len(layers) - len(inside)])
    linears = [layer for layer in inside if type(layer) is nn.Linear]
    plain = all(type(layer) is nn.Linear or (type(layer) in _POINTWISE and not _in_place(layer)) for layer in inside)
    return flatten_first and plain and len(set(map(id, linears))) == len(linears) > 0


def _in_place(layer: nn.Module) -> bool:
    """Whether the layer overwrites what its own gradient needs (that of ReLU only needs the result)."""
    return bool(getattr(layer, "inplace", False)) and not isinstance(layer, nn.ReLU)
