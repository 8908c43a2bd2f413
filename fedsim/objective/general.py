"""Any model, for many clients: one after the other, or under ``torch.func.vmap`` with one ordinary backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from fedsim.core import crew
from fedsim.models.layout import Layout, call, trained, views
from fedsim.models.losses import Loss
from fedsim.models.outputs import logits_of
from fedsim.objective.kernel import Descent, Kernel, Precision

_TOKEN_NUMBERS = 8  # that an id stands for in an embedding, at least
_ROW_NUMBERS = 2**13  # in a row's minibatch, from which on threads share the rows


class RowKernel(Kernel):
    """One row after the other through the ordinary forward and backward."""

    words = "one client after the other"
    alone = True

    def __init__(
        self, module: nn.Module, loss: Loss, precision: Precision = "full", channels_last: bool = False
    ) -> None:
        super().__init__(module, loss, precision)
        self.channels_last = channels_last

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        result = torch.empty_like(x)

        def one(i: int) -> None:
            self._scatter(result[i], self._row(i, x, inputs, targets, weights))

        self._rows(one, inputs)
        return result

    def descend(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> None:
        self.descending(x, lr)(inputs, targets, weights)

    def descending(self, x: Tensor, lr: Tensor, start: Tensor | None = None) -> Descent:
        if start is not None:
            x.copy_(start)
        models, rates = [list(views(row, self.layout).values()) for row in x], lr[:, 0].unbind()

        def descend(inputs: Tensor, targets: Tensor, weights: Tensor | float) -> None:
            def one(i: int) -> None:
                grads = self._grads(self._with(models[i]), i, x.dtype, inputs, targets, weights)
                for parameter, g in zip(models[i], grads, strict=True):
                    parameter.addcmul_(g, rates[i], value=-1.0)  # a parameter may be a single number

            self._rows(one, inputs)

        return descend

    def pieces(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Sequence[Tensor]:
        return self._row(0, x, inputs, targets, weights)

    def _rows(self, one: Callable[[int], None], inputs: Tensor) -> None:
        """Do `one` to every row, by all threads where a row's minibatch makes work enough."""
        each = 1 if inputs.is_floating_point() else _TOKEN_NUMBERS
        if inputs.device.type == "cpu" and inputs[:1].numel() * each >= _ROW_NUMBERS:
            crew.each([partial(one, i) for i in range(len(inputs))])
            return
        for i in range(len(inputs)):
            one(i)

    def _row(self, i: int, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> tuple[Tensor, ...]:
        return self._grads(self._at(x[i]), i, x.dtype, inputs, targets, weights)

    def _grads(
        self, module: nn.Module, i: int, dtype: torch.dtype, inputs: Tensor, targets: Tensor, weights: Tensor | float
    ) -> tuple[Tensor, ...]:
        """The gradient of row i, whose model the module is."""
        batch = channels_last(inputs[i]) if self.channels_last else inputs[i]
        with self._casting(inputs):
            out = logits_of(module(batch))
        losses = self.loss(out.to(dtype), targets[i])
        scale = weights[i] if isinstance(weights, Tensor) else torch.full_like(losses, weights)
        return torch.autograd.grad(losses, trained(module), scale, materialize_grads=True)

    def input_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        result = torch.empty_like(inputs)

        def one(i: int) -> None:
            module = self._at(x[i])
            leaf = inputs[i].detach()
            if self.channels_last:
                leaf = channels_last(leaf)
            with torch.enable_grad(), self._casting(x):
                out = logits_of(module(leaf.requires_grad_()))
                result[i] = torch.autograd.grad(self.loss(out.to(x.dtype), targets[i]).sum(), leaf)[0]

        self._rows(one, inputs)
        return result

    def _at(self, row: Tensor) -> nn.Module:
        """The module with the parameters of a row: a functional call would cost a small model 5 %."""
        return self._with(list(views(row, self.layout).values()))

    def _with(self, parameters: Sequence[Tensor]) -> nn.Module:
        module = self.own.get()
        for own, parameter in zip(trained(module), parameters, strict=True):
            own.data = parameter
        return module

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        module, inputs = self.own.get(), channels_last(inputs) if self.channels_last else inputs
        found = torch.stack([call(module, views(row, self.layout), self.layout, inputs) for row in x])
        return found.to(x.dtype)


class VmapKernel(Kernel):
    """``vmap`` over the forward, then one ordinary backward of the summed losses: clients are independent, so that is
    each client's own gradient."""

    words = "clients at once, under torch.func.vmap"
    randomness = "error"
    """What ``vmap`` makes of draws."""

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        leaves = self._leaves(x)
        with self._casting(x):
            out = self.forward(leaves, inputs)
        out = out.to(x.dtype)
        result = torch.empty_like(x)
        total = self._total(out, targets, weights)
        self._scatter(result, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True))
        return result

    def differentiates(self, x: Tensor, inputs: Tensor, alike: bool = True) -> None:
        """Go forward and backward once with equal rows ``[2, d]`` and inputs ``[2, b, ...]``.

        Raises
        ------
        RuntimeError, ValueError
            ``vmap`` cannot take the model, or gives equal rows different gradients where these should be `alike`.
        """
        leaves = self._leaves(x)
        with torch.enable_grad():
            out = self.forward(leaves, inputs).square().sum()
            grads = torch.autograd.grad(out, list(leaves.values()), allow_unused=True)
        for name, g in zip(leaves, grads, strict=True):
            if alike and g is not None and not _close(g[0], g[1]):
                raise RuntimeError(f"equal clients get different gradients of '{name}'")

    def input_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        leaf, params = inputs.detach(), {name: v.detach() for name, v in views(x, self.layout).items()}
        with torch.enable_grad(), self._casting(x):
            out = self.forward(params, leaf.requires_grad_())
            return torch.autograd.grad(self._total(out.to(x.dtype), targets, 1.0), leaf)[0]

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self.forward(views(x, self.layout), inputs, shared=True).to(x.dtype)

    @torch.no_grad()
    def own_outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self.forward(views(x, self.layout), inputs).to(x.dtype)

    def forward(self, params: dict[str, Tensor], inputs: Tensor, shared: bool = False) -> Tensor:
        """Outputs ``[m, b, k]`` on inputs ``[m, b, ...]``, or `shared` ones ``[b, ...]``."""
        module = self.own.get()
        one = partial(_call, module, self.layout)
        result: Tensor = vmap(one, in_dims=(0, None if shared else 0), randomness=self.randomness)(params, inputs)
        return result


def channels_last(images: Tensor) -> Tensor:
    """Images ``[b, c, h, w]`` with the channels of a place side by side in memory, which says how layers compute.

    Raises
    ------
    RuntimeError
        They have not four axes.
    """
    if images.dim() == 4 and images.shape[1] == 1:  # they lie the same either way, and only the strides can say it
        _, _, height, width = images.shape
        return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
    return images.contiguous(memory_format=torch.channels_last)


def _call(module: nn.Module, places: Layout, params: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return call(module, params, places, inputs)


def _close(one: Tensor, other: Tensor) -> bool:
    far = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().max())
    return torch.allclose(one, other, rtol=0, atol=far, equal_nan=True)
