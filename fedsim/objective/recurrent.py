"""Long short-term memory of many clients at once, with its backward.

The cell is ``c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c)``, with i, f, g and o the four parts of
``W x + b + U h + b2``. Positions follow one another, clients and samples are computed together. Of one position
``[h, x, 1]`` is one matrix, and so are the weights ``[U, W, b + b2]``: that is one product of a position in the forward
pass and one in the backward, and one product of all positions for the gradients of all weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models import language
from fedsim.objective.layers import Params, Rule


class Recurrent(Rule):
    """Layers of LSTM, ``[m, b, t, width]`` to the last layer's states ``[m, b, t, hidden]``; to its last one alone,
    ``[m, b, hidden]``, where `last`."""

    def __init__(self, layer: nn.LSTM, last: bool = False) -> None:
        self.layers, self.bias, self.last = layer.num_layers, layer.bias, last
        self.each = 4 if layer.bias else 2
        self.params = self.each * self.layers

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        kept = []
        h = x.permute(2, 0, 1, 3)
        for layer in range(self.layers):
            kept.append(_cells(h, p[layer * self.each : (layer + 1) * self.each]))
            h = kept[-1][0][1:, ..., : p[layer * self.each + 1].shape[-1]]
        return (h[-1] if self.last else h.permute(1, 2, 0, 3)), kept

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        d = dy if self.last else dy.permute(2, 0, 1, 3)
        for layer in range(self.layers - 1, -1, -1):
            place = slice(layer * self.each, (layer + 1) * self.each)
            d = _cells_back(p[place], g[place], kept[layer], d)
        return d.permute(1, 2, 0, 3) if below else None


def _cells(x: Tensor, p: Params) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x ``[t, m, b, width]`` -> ``[h, x, 1]`` with a further position for the last state ``[t + 1, m, b, n]``, gates
    ``[t, m, b, 4 h]``, cells and tanh of the cells ``[t, m, b, h]``."""
    positions, m, batch, width = x.shape
    k = p[1].shape[-1]
    weights = _weights(p)
    weights[:, 2 * k : 3 * k] *= 2  # tanh(z) = 2 sigmoid(2 z) - 1, which costs a quarter of the time
    turned, n, less = weights.mT.contiguous(), weights.shape[-1], x.new_full((), -1.0)
    given = x.new_empty(m, positions + 1, batch, n).transpose(0, 1)  # as one product of all positions wants it
    given[0, ..., :k] = 0
    given[:-1, ..., k : k + width] = x
    given[:-1, ..., k + width :] = 1
    gates = x.new_empty(positions, m, batch, 4 * k)
    c, squashed = x.new_empty(positions, m, batch, k), x.new_empty(positions, m, batch, k)
    inputs, cells, states = given.unbind(0), c.unbind(0), given[1:, ..., :k].unbind(0)
    parts = zip(*(part.unbind(0) for part in gates.chunk(4, -1)), strict=True)
    for t, (now, bounded, (i, f, g, o)) in enumerate(zip(gates.unbind(0), squashed.unbind(0), parts, strict=True)):
        cell = cells[t]
        torch.bmm(inputs[t], turned, out=now).sigmoid_()
        torch.add(less, g, alpha=2, out=g)
        torch.mul(i, g, out=cell)
        if t > 0:
            cell.addcmul_(f, cells[t - 1])
        torch.mul(cell, 2, out=bounded).sigmoid_()
        torch.add(less, bounded, alpha=2, out=bounded)
        torch.mul(o, bounded, out=states[t])
    return given, gates, c, squashed


def _cells_back(p: Params, into: Params, kept: Any, dy: Tensor) -> Tensor:
    """dy ``[t, m, b, h]``, or ``[m, b, h]`` of the last position alone -> the gradient of x ``[t, m, b, width]``."""
    given, gates, c, squashed = kept
    weights = _weights(p)
    positions, m, batch, k = c.shape
    width = p[0].shape[-1]
    i, f, g, o = gates.chunk(4, -1)
    # What the gates' inputs get for a gradient of 1 of the cell, and of the state.
    d = gates.new_empty(m, positions, batch, 4 * k).transpose(0, 1)
    di, df, dg, do = d.chunk(4, -1)
    torch.addcmul(gates, gates, gates, value=-1, out=d)  # of each gate s: s (1 - s); four parts would take longer
    di.mul_(g)
    df[1:].mul_(c[:-1])
    df[0] = 0
    torch.addcmul(i, i * g, g, value=-1, out=dg)
    do.mul_(squashed)
    through = torch.addcmul(o, o * squashed, squashed, value=-1)  # of the cell by the state
    every = dy.dim() == 4
    back = given.new_empty(positions, m, batch, given.shape[-1])
    backs, states, throughs, kept_cells = (v.unbind(0) for v in (back, back[..., :k], through, f))
    scaled, own, every_part = d.unbind(0), do.unbind(0), [part.unbind(0) for part in (di, df, dg)]
    dh = dy[-1] if every else dy
    dc = throughs[-1] * dh
    for t in range(positions - 1, -1, -1):
        if t < positions - 1:
            dh = states[t + 1] + dy[t] if every else states[t + 1]
            dc.mul_(kept_cells[t + 1]).addcmul_(dh, throughs[t])
        for part in every_part:
            part[t].mul_(dc)
        own[t].mul_(dh)
        torch.bmm(scaled[t], weights, out=backs[t])
    flat, seen = d.transpose(0, 1).reshape(m, -1, 4 * k), given[:-1].transpose(0, 1).reshape(m, positions * batch, -1)
    grads = torch.bmm(flat.mT, seen)
    into[0].copy_(grads[..., k : k + width])
    into[1].copy_(grads[..., :k])
    for bias in into[2:]:
        bias.copy_(grads[..., -1])
    entered: Tensor = back[..., k : k + width]
    return entered


def _weights(p: Params) -> Tensor:
    """``[U, W, b + b2]``, of what is multiplied with ``[h, x, 1]``."""
    bias = [(p[2] + p[3]).unsqueeze(-1)] if len(p) > 2 else []
    return torch.cat([p[1], p[0], *bias], -1)


def recurrent_rule(layer: nn.Module) -> Recurrent | None:
    """The rule of fedsim's LSTM, which gives its states alone; None where there is none."""
    return Recurrent(layer) if type(layer) is language.Recurrent else None
