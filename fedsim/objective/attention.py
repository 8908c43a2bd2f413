"""Blocks of transformers of many clients at once, with their backward.

All clients' samples attend side by side: a head of a sample is one matrix of a batched product. What scales and shifts
a normalised input is multiplied into the weights of the layer after it, ``(s z + t) W^T = z (W s)^T + W t``, which has
fewer numbers than the tokens of a minibatch have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models import exported
from fedsim.objective.layers import Params, Rule, linear, linear_back, normalised, normalised_back, rows

_aten = torch.ops.aten


@dataclass(frozen=True)
class Form:
    """What a block is made of: its shape, and where its parameters are.

    `first` says that each part is normalised before and not after it: ``y = x + A(N(x)); y + F(N(y))``, or
    ``y = N(x + A(x)); N(y + F(y))``. `places` are those of the scales and shifts of both normalisations, and of weights
    and biases of the three inputs of attention, its output, the wide layer and the narrow one.
    """

    heads: int
    causal: bool
    first: bool
    activation: str
    eps: tuple[float, float]
    places: tuple[int, ...]


class Block(Rule):
    """A transformer's block, ``[m, b, t, width]`` to the same; to its last position alone, ``[m, b, width]``, where
    `last`: later layers ask for nothing else, and of the others only what is attended to is computed."""

    params = 12

    def __init__(self, form: Form, last: bool = False) -> None:
        self.form, self.last = form, last

    def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
        f = self.form
        s1, t1, s2, t2, Wa, ba, Wp, bp, Ww, bw, Wn, bn = (p[i] for i in f.places)
        h = rows(x)
        own = x[:, :, -1] if self.last else h  # what goes past attention
        if f.first:
            first = normalised(h, f.eps[0])
            attended = self._attend(first[0].view(x.shape), *_folded(Wa, ba, s1, t1))
            y = linear(attended[-1], Wp, bp).add_(own)
            second = normalised(y, f.eps[1])
            wide = linear(second[0], *_folded(Ww, bw, s2, t2))
            narrowed = self._active(wide)
            out = linear(narrowed, Wn, bn).add_(y)
            kept = (h, first, attended, y, second, wide, narrowed)
        else:
            attended = self._attend(x, Wa, ba)
            added = linear(attended[-1], Wp, bp).add_(own)
            first = normalised(added, f.eps[0])
            y = _scaled(first[0], s1, t1)
            wide = linear(y, Ww, bw)
            narrowed = self._active(wide)
            added_too = linear(narrowed, Wn, bn).add_(y)
            second = normalised(added_too, f.eps[1])
            out = _scaled(second[0], s2, t2)
            kept = (x, (added, first), attended, y, (added_too, second), wide, narrowed)  # type: ignore[assignment]
        return out.view(len(x), x.shape[1], -1) if self.last else out.view(x.shape), kept

    def backward(self, p: Params, g: Params, kept: Any, dy: Tensor, below: bool) -> Tensor | None:
        f = self.form
        s1, t1, s2, t2, Wa, _, Wp, _, Ww, _, Wn, _ = (p[i] for i in f.places)
        gs1, gt1, gs2, gt2, gWa, gba, gWp, gbp, gWw, gbw, gWn, gbn = (g[i] for i in f.places)
        x, first, attended, y, second, wide, narrowed = kept
        d = rows(dy)
        if f.first:
            dw = self._active_back(_known(linear_back(d, narrowed, Wn, gWn, gbn)), wide, narrowed)
            dn = _linear_folded_back(dw, second[0], Ww, s2, t2, gWw, gbw, gs2, gt2)
            d = normalised_back(dn, y, *second[1:]).add_(d)
            da = self._attend_back(_known(linear_back(d, attended[-1], Wp, gWp, gbp)), attended)
            shape = (len(x), dy.shape[1], -1, x.shape[-1])
            dn = self._inputs_back(da, first[0].view(shape), Wa, gWa, gba, (s1, t1, gs1, gt1))
            dx = normalised_back(dn, x, *first[1:])
            return self._past(dx.view(shape), d)
        added, normed = second
        d = normalised_back(_scaled_back(d, normed[0], s2, gs2, gt2), added, *normed[1:])
        dw = self._active_back(_known(linear_back(d, narrowed, Wn, gWn, gbn)), wide, narrowed)
        d = _known(linear_back(dw, y, Ww, gWw, gbw)).add_(d)
        added, normed = first
        d = normalised_back(_scaled_back(d, normed[0], s1, gs1, gt1), added, *normed[1:])
        da = self._attend_back(_known(linear_back(d, attended[-1], Wp, gWp, gbp)), attended)
        return self._past(self._inputs_back(da, x, Wa, gWa, gba, None).view(x.shape), d)

    def _past(self, dx: Tensor, d: Tensor) -> Tensor:
        """The inputs' gradient, with that of what went past attention."""
        if self.last:
            dx[:, :, -1] += d
            return dx
        return dx.add_(d.view(dx.shape))

    def _active(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.form.activation == "relu" else nn.functional.gelu(x)

    def _active_back(self, dy: Tensor, before: Tensor, after: Tensor) -> Tensor:
        relu = self.form.activation == "relu"
        result: Tensor = _aten.threshold_backward(dy, after, 0) if relu else _aten.gelu_backward(dy, before)
        return result

    def _attend(self, x: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x ``[m, b, t, width]`` -> of every head queries, keys, values, shares ``[m b heads, ...]``; what is seen,
        ``[m, n, width]``."""
        m, batch, t, width = x.shape
        heads, each = self.form.heads, width // self.form.heads
        if self.last:
            q = linear(x[:, :, -1], W[:, :width], b[:, :width]).view(-1, 1, each)
            k, v = _heads(linear(x.reshape(m, -1, width), W[:, width:], b[:, width:]), m * batch, t, 2, heads)
        else:
            q, k, v = _heads(linear(x.reshape(m, -1, width), W, b), m * batch, t, 3, heads)
        scale = 1 / math.sqrt(each)
        if self.form.causal and not self.last:
            later = torch.full((t, t), -math.inf, dtype=x.dtype, device=x.device).triu_(1)
            shares = torch.softmax(torch.baddbmm(later.expand(len(q), t, t), q, k.mT, alpha=scale), -1)
        else:
            shares = torch.softmax(torch.bmm(q, k.mT).mul_(scale), -1)
        seen = torch.bmm(shares, v)
        if not self.last:
            seen = seen.view(m * batch, heads, t, each).transpose(1, 2)
        return q, k, v, shares, seen.reshape(m, -1, width)

    def _attend_back(self, dy: Tensor, attended: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor]:
        """dy ``[m, n, width]`` of what is seen -> the gradients of queries ``[m, b, width]``, where `last`, and of
        keys and values, or of all three, ``[m, n, 3 width]``."""
        q, k, v, shares, _ = attended
        m, heads, (many, t, each) = len(dy), self.form.heads, k.shape
        if self.last:
            d = dy.reshape(many, 1, each)
        else:
            d = dy.view(-1, t, heads, each).transpose(1, 2).reshape(many, t, each)
        back = dy.new_empty(2 if self.last else 3, many, t, each)
        torch.bmm(shares.mT, d, out=back[-1])
        dscores = _aten._softmax_backward_data(torch.bmm(d, v.mT), shares, -1, shares.dtype)
        dscores.mul_(1 / math.sqrt(each))
        torch.bmm(dscores.mT, q, out=back[-2])
        dq = torch.bmm(dscores, k) if self.last else torch.bmm(dscores, k, out=back[0])
        joined = (
            back.view(len(back), -1, heads, t, each).permute(1, 3, 0, 2, 4).reshape(m, -1, len(back) * heads * each)
        )
        return (dq.view(m, -1, heads * each) if self.last else None), joined

    def _inputs_back(
        self, given: tuple[Tensor | None, Tensor], x: Tensor, W: Tensor, gW: Tensor, gb: Tensor,
        norm: tuple[Tensor, ...] | None,
    ) -> Tensor:  # fmt: skip
        """The gradient ``[m, n, width]`` of x ``[m, b, t, width]``, of which queries, keys and values are made."""
        dq, d = given
        width, h = x.shape[-1], x.reshape(len(x), -1, x.shape[-1])
        scaled = W if norm is None else W * norm[0].unsqueeze(1)
        rest = slice(0 if dq is None else width, None)
        torch.bmm(d.mT, h, out=gW[:, rest])
        torch.sum(d, 1, out=gb[:, rest])
        dx = torch.bmm(d, scaled[:, rest])
        if dq is not None:
            torch.bmm(dq.mT, x[:, :, -1], out=gW[:, :width])
            torch.sum(dq, 1, out=gb[:, :width])
            dx.view(x.shape)[:, :, -1] += torch.bmm(dq, scaled[:, :width])
        if norm is not None:
            _unfold(W, gW, gb, *norm)
        return dx


def _heads(x: Tensor, samples: int, t: int, kinds: int, heads: int) -> Tensor:
    """x ``[m, n, kinds width]`` as ``[kinds, samples heads, t, each]``."""
    parts = x.view(samples, t, kinds, heads, -1)
    return parts.permute(2, 0, 3, 1, 4).reshape(kinds, samples * heads, t, -1)


def _folded(W: Tensor, b: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that takes in ``z`` what ``W, b`` takes in ``s z + t``."""
    return W * s.unsqueeze(1), torch.baddbmm(b.unsqueeze(2), W, t.unsqueeze(2)).squeeze(2)


def _unfold(W: Tensor, gW: Tensor, gb: Tensor, s: Tensor, t: Tensor, gs: Tensor, gt: Tensor) -> None:
    """From the gradients `gW` and `gb` of what `_folded` gives to those of what it takes, in place."""
    torch.sum(gW * W, 1, out=gs)
    gt.copy_(torch.bmm(gb.unsqueeze(1), W).squeeze(1))
    gW.mul_(s.unsqueeze(1)).addcmul_(gb.unsqueeze(2), t.unsqueeze(1))


def _linear_folded_back(
    d: Tensor, z: Tensor, W: Tensor, s: Tensor, t: Tensor, gW: Tensor, gb: Tensor, gs: Tensor, gt: Tensor
) -> Tensor:
    dz = _known(linear_back(d, z, W * s.unsqueeze(1), gW, gb))
    _unfold(W, gW, gb, s, t, gs, gt)
    return dz


def _scaled(z: Tensor, s: Tensor, t: Tensor) -> Tensor:
    return torch.addcmul(t.unsqueeze(1), z, s.unsqueeze(1))


def _scaled_back(d: Tensor, z: Tensor, s: Tensor, gs: Tensor, gt: Tensor) -> Tensor:
    torch.sum(d * z, 1, out=gs)
    torch.sum(d, 1, out=gt)
    return d * s.unsqueeze(1)


def _known(v: Tensor | None) -> Tensor:
    assert v is not None
    return v


def block_rule(layer: nn.Module) -> Block | None:
    """The rule of a transformer's block without dropout, fedsim's causal one or PyTorch's; None where there is none."""
    if isinstance(layer, exported.Block) and type(layer) is exported.Block:
        if isinstance(layer.drop, nn.Dropout):
            return None
        eps = (layer.first.eps, layer.second.eps)
        return Block(Form(layer.heads, True, True, "gelu", eps, tuple(range(12))))
    if isinstance(layer, nn.TransformerEncoderLayer) and type(layer) is nn.TransformerEncoderLayer:
        attention = layer.self_attn
        plain = attention.batch_first and attention.in_proj_bias is not None and layer.norm1.bias is not None
        dropped = any(isinstance(part, nn.Dropout) and part.p > 0 for part in layer.modules()) or attention.dropout > 0
        known = {nn.functional.relu: "relu", nn.functional.gelu: "gelu"}.get(layer.activation)
        if not plain or dropped or known is None or attention.bias_k is not None or attention.add_zero_attn:
            return None
        eps = (layer.norm1.eps, layer.norm2.eps)
        return Block(Form(attention.num_heads, False, layer.norm_first, known, eps, (8, 9, 10, 11, *range(8))))
    return None
