"""Models of token ids ``[positions]``: LEAF's character LSTM, a convolutional net for texts, a causal transformer.

Where the data have one target per row, they answer from what they know at the last position; where there is a target at
every position, at each from what stands before it. They are made of the layers in `exported`, which travel in an
export.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.tokens import Tokens
from fedsim.core.types import Count
from fedsim.models import exported
from fedsim.models.build import Model


@dataclass(frozen=True, kw_only=True)
class TokenModel(Model):
    """Base class of models that take token ids.

    `vocabulary`: how many tokens it knows; None: as many as the data have.
    """

    vocabulary_key: ClassVar[str] = "vocabulary"

    vocabulary: Count | None = None

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        return self.module(input_shape, num_outputs, Tokens(self.vocabulary))

    def module(self, input_shape: tuple[int, ...], num_outputs: int, tokens: Tokens) -> nn.Module:
        known = self.vocabulary or tokens.vocabulary
        if tokens.vocabulary is None or known is None or len(input_shape) != 1:
            found = f"inputs of shape {list(input_shape)}" + (" that are numbers" if tokens.vocabulary is None else "")
            raise InputError(f"takes token ids [positions], found {found}; allowed: data of tokens", key="name")
        return self.made(known, input_shape[0], num_outputs, tokens.positions is not None)

    @abstractmethod
    def made(self, vocabulary: int, positions: int, num_outputs: int, every: bool) -> nn.Module:
        """From ids ``[b, positions]`` to ``[b, num_outputs]``, or with `every` ``[b, positions, num_outputs]``."""


@register.model("char_lstm")
@dataclass(frozen=True)
class CharLSTM(TokenModel):
    """LEAF's for Shakespeare (arXiv 1812.01097): an embedding, `layers` of LSTM of `hidden` units, a dense layer."""

    embedding: Count = 8
    layers: Count = 2
    hidden: Count = 256

    def made(self, vocabulary: int, positions: int, num_outputs: int, every: bool) -> nn.Module:
        return nn.Sequential(
            nn.Embedding(vocabulary, self.embedding),
            Recurrent(self.embedding, self.hidden, self.layers),
            *_at(every),
            nn.Linear(self.hidden, num_outputs),
        )


@register.model("text_cnn")
@dataclass(frozen=True)
class TextCNN(TokenModel):
    """Convolutions over words, each with its largest value (Kim, arXiv 1408.5882), for one answer per text."""

    embedding: Count = 64
    channels: Count = 100
    kernels: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [3, 4, 5])

    def made(self, vocabulary: int, positions: int, num_outputs: int, every: bool) -> nn.Module:
        if every:
            raise InputError(
                "gives one answer per text, but the data have a target at every position; allowed: char_lstm, "
                "transformer",
                key="name",
            )
        if max(self.kernels) > positions:
            raise InputError(f"found {max(self.kernels)}, texts have {positions} tokens; allowed: fewer", key="kernels")
        return nn.Sequential(
            nn.Embedding(vocabulary, self.embedding),
            exported.Filters(self.embedding, self.channels, self.kernels),
            nn.Linear(self.channels * len(self.kernels), num_outputs),
        )


@register.model("transformer")
@dataclass(frozen=True)
class Transformer(TokenModel):
    """A causal transformer as GPT-2 has it: learned positions, and normalisation before attention and feed-forward.

    `context`: positions that it knows; None: as many as the data have. `feedforward`: units of the GELU layer; None:
    four times `width`.
    """

    layers: Count = 2
    heads: Count = 4
    width: Count = 64
    feedforward: Count | None = None
    context: Count | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def made(self, vocabulary: int, positions: int, num_outputs: int, every: bool) -> nn.Module:
        if self.width % self.heads:
            message = f"found {self.heads}, which do not divide a width of {self.width}; allowed: a divisor"
            raise InputError(message, key="heads")
        context = self.context or positions
        if context < positions:
            raise InputError(f"found {context}, the data have {positions} positions; allowed: at least that", "context")
        blocks = (
            exported.Block(self.width, self.heads, self.feedforward or 4 * self.width, self.dropout)
            for _ in range(self.layers)
        )
        return nn.Sequential(
            exported.Places(vocabulary, context, self.width), *blocks, nn.LayerNorm(self.width), *_at(every),
            nn.Linear(self.width, num_outputs),
        )  # fmt: skip


class Recurrent(exported.Recurrent):
    """The same under ``torch.func``, which has no rule for PyTorch's own kernel: many clients' cells at once.

    The cell is ``c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c)``, with i, f, g and o the four parts of
    ``W x + U h + b``.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        inside: Any = torch._C._functorch.is_functorch_wrapped_tensor
        if not inside(x) and not inside(self.weight_ih_l0):
            return super().forward(x)
        for layer in range(self.num_layers):
            x = self._layer(x, *(getattr(self, f"{kind}_l{layer}") for kind in _KINDS))
        return x

    def _layer(self, x: Tensor, W: Tensor, U: Tensor, b: Tensor, b2: Tensor) -> Tensor:
        entering, turned = torch.nn.functional.linear(x, W, b + b2), U.mT
        h = c = torch.zeros((), dtype=x.dtype, device=x.device)
        states: list[Tensor] = []
        for t in range(x.shape[1]):
            gates = entering[:, t] + (h @ turned if states else 0.0)
            i, f, g, o = gates.chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, 1)


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _at(every: bool) -> tuple[nn.Module, ...]:
    return () if every else (exported.Last(),)
