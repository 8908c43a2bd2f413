"""Sequences of layers as batched products over the flat parameter rows: recurrent nets, transformers, and others.

A model that is a sequence of layers of which all have a rule (`layers`, `recurrent`, `attention`) is computed for all
clients at once, forward and backward, and gradients go straight into their places in the flat ``[m, d]`` result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.core import crew
from fedsim.core.tokens import IGNORED
from fedsim.models.layout import call, views
from fedsim.models.losses import CLOSED_GRADIENTS, Loss, cross_entropy, softmax
from fedsim.models.nature import alike, hooked
from fedsim.objective.attention import Block, block_rule
from fedsim.objective.general import RowKernel, VmapKernel
from fedsim.objective.layers import Last, Linear, Norm, Params, Pointwise, Rule, plain_rule
from fedsim.objective.recurrent import Recurrent, recurrent_rule

_PORTION = 16 * 2**20  # bytes of what a portion of rows keeps for its backward: work enough for a thread
_FEW = 4  # rows of which a recurrent net is computed one by one: a position has too little to do

_Tape = list[tuple[Rule, int, Any]]  # layers in their order: the rule, where its parameters begin, what it has kept


class SequenceKernel(VmapKernel):
    """A sequence of layers that have rules. Gradients of single samples and of inputs are taken under ``vmap``.

    Parameters
    ----------
    few : computes fewer rows of a recurrent net than there is a gain for; None: nothing else does.
    """

    words = "clients at once, as a sequence of layers"

    def __init__(self, module: nn.Module, loss: Loss, rules: list[Rule], few: RowKernel | None = None) -> None:
        super().__init__(module, loss)
        self.rules = rules
        self.few = few if any(isinstance(rule, Recurrent) for rule in rules) else None
        self._kept: dict[tuple[int, ...], int] = {}

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        if self.few is not None and len(x) < _FEW:
            return self.few.grad(x, inputs, targets, weights)
        result = torch.empty_like(x)

        def part(rows: slice) -> None:
            scale = weights[rows] if isinstance(weights, Tensor) else weights
            self._grad(x[rows], inputs[rows], targets[rows], scale, result[rows])

        crew.apart(part, self._portions(x, inputs))
        return result

    @torch.no_grad()
    def _grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, into: Tensor) -> None:
        params, grads = list(views(x, self.layout).values()), list(views(into, self.layout).values())
        tape: _Tape = []
        dy: Tensor | None = self._loss_grad(self._forward(params, inputs, tape), targets, weights)
        for number, (rule, at, kept) in enumerate(reversed(tape), 1):
            assert dy is not None
            place = slice(at, at + rule.params)
            dy = rule.backward(params[place], grads[place], kept, dy, number < len(tape))

    def _forward(self, params: Params, h: Tensor, tape: _Tape | None = None) -> Tensor:
        """Outputs; what the backward needs goes onto the `tape`, without which no layer's outlives the next layer."""
        at = 0
        for rule in self.rules:
            h, kept = rule.forward(params[at : at + rule.params], h)
            if tape is not None:
                tape.append((rule, at, kept))
            at += rule.params
        return h

    def _loss_grad(self, out: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        """The gradient by the outputs ``[m, b, ...]`` of the weighted sum of all losses."""
        many = out.shape[:2]
        scale = weights if isinstance(weights, Tensor) else out.new_full((1, 1), weights)
        if self.loss is cross_entropy:  # also of tokens, and where some of them do not count
            each, kept = softmax(out), targets != IGNORED
            share = kept * scale.view(*scale.shape, *[1] * (targets.dim() - 2))
            if targets.dim() > 2:
                share = share / kept.sum(-1, keepdim=True).clamp_min_(1)
            each.mul_(share.unsqueeze(-1))
            return each.scatter_add_(-1, targets.clamp_min(0).unsqueeze(-1), share.neg_().unsqueeze(-1))
        flat, wanted = out.flatten(0, 1), targets.flatten(0, 1)
        closed = CLOSED_GRADIENTS.get(self.loss)
        if closed is not None:
            found = closed(flat, wanted).view_as(out)
            return found.mul_(scale.view(*scale.shape, *[1] * (out.dim() - 2)))
        with torch.enable_grad():
            leaf = flat.detach().requires_grad_()
            losses = self.loss(leaf, wanted)
            return torch.autograd.grad(losses, leaf, scale.expand(many).flatten())[0].view_as(out)

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        module = self.own.get()
        return torch.stack([call(module, views(row, self.layout), self.layout, inputs) for row in x])

    @torch.no_grad()
    def own_outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self._forward(list(views(x, self.layout).values()), inputs)

    def agrees(self, x: Tensor, inputs: Tensor) -> bool:
        """Whether outputs of a row x ``[1, d]`` on inputs ``[1, b, ...]`` are those of the module."""
        try:
            return alike(self.own_outputs(x, inputs)[0], self.outputs(x, inputs[0])[0])
        except (IndexError, RuntimeError, ValueError):  # inputs of another form than the rules know
            return False

    def _portions(self, x: Tensor, inputs: Tensor) -> list[slice]:
        """Rows that are computed together: by sizes alone, so that numbers do not depend on who computes them."""
        if x.device.type != "cpu" or len(x) == 1:
            return [slice(0, len(x))]
        return crew.even(len(x), max(1, min(len(x), len(x) * self._row_bytes(x, inputs) // _PORTION)))

    def _row_bytes(self, x: Tensor, inputs: Tensor) -> int:
        """Bytes that a row keeps for its backward, its parameters and gradients with them."""
        form = tuple(inputs.shape[2:])
        if form not in self._kept:
            tape: _Tape = []
            with torch.no_grad():
                out = self._forward(list(views(x[:1], self.layout).values()), inputs[:1, :1], tape)
            self._kept[form] = sum(numbers(kept) for _, _, kept in tape) + out.numel()
        return x.element_size() * (2 * x.shape[1] + inputs.shape[1] * self._kept[form])


def numbers(kept: Any) -> int:
    """Numbers in tensors, and in tuples and lists of them."""
    if isinstance(kept, Tensor):
        return kept.numel()
    return sum(numbers(v) for v in kept) if isinstance(kept, list | tuple) else 0


def rules_of(module: nn.Module) -> list[Rule] | None:
    """The rules of a sequence of layers; None where one has none, is used twice or has hooks, or not all trains."""
    layers = _inside(module)
    if layers is None or len(set(map(id, layers))) < len(layers):
        return None
    every = [*module.parameters()]
    if hooked(module) or not all(p.requires_grad for p in every):
        return None
    rules = [rule_of(layer) for layer in layers]
    found = [rule for rule in rules if rule is not None]
    if len(found) < len(rules) or sum(rule.params for rule in found) != len(every):
        return None
    return _early(found)


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of one layer."""
    return plain_rule(layer) or recurrent_rule(layer) or block_rule(layer)


def _inside(module: nn.Module) -> list[nn.Module] | None:
    """The layers of sequences in sequences."""
    if type(module) is not nn.Sequential:
        return None
    layers: list[nn.Module] = []
    for layer in module:
        layers += (_inside(layer) or []) if type(layer) is nn.Sequential else [layer]
    return layers


def _early(rules: list[Rule]) -> list[Rule]:
    """The same with the last position taken as early as can be: what nobody asks for is not computed."""
    at = next((i for i, rule in enumerate(rules) if type(rule) is Last), None)
    while at and isinstance(rules[at - 1], Norm | Linear | Pointwise):
        rules[at - 1], rules[at], at = rules[at], rules[at - 1], at - 1
    if at and isinstance(before := rules[at - 1], Block | Recurrent):
        before.last = True
        del rules[at]
    return rules
