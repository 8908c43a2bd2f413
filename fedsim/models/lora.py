"""Low-rank adaptation (LoRA; Hu et al., arXiv 2106.09685): frozen layers, each with a small product beside it.

A targeted layer with weight W ``[out, in]`` computes ``W x + (alpha / rank) B A x`` with A ``[rank, in]`` and B
``[out, rank]``. W stays, once on a device; A and B alone train, travel and are kept per client. First values are those
of the library PEFT: A uniform (Kaiming's with a = sqrt(5)) and B zero, of an embedding A zero and B standard normal. So
the first outputs are those of the base, bit for bit.

An adapter is a forward hook and two parameters of its layer, ``NAME.lora_A`` and ``NAME.lora_B``. The layer's class,
names and weights stay what they are.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.errors import InputError, nearest
from fedsim.core.limits import check_room
from fedsim.core.tokens import widened
from fedsim.core.types import Count, Positive
from fedsim.models.checks import takes
from fedsim.models.layout import fixed_row, levels, named_some
from fedsim.models.nature import trained_output

A, B, DROP = "lora_A", "lora_B", "lora_dropout"


class Lora(BaseModel):
    """Adapters instead of weights.

    `targets`: patterns of the names of layers that get one, or of sub-modules that have such layers. `rank` r and
    `alpha`: what is added is ``alpha / rank * B A x``. `dropout`: of what enters A, while it trains. `train`: patterns
    of names of parameters that train as they are (a new head); their layers get no adapter.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    targets: Annotated[list[str], Field(min_length=1)]
    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    train: list[str] = []


@dataclass(frozen=True)
class Adapter:
    """The forward hook of an adapted layer: ``output + scale * B A input``.

    `kind` is the layer's: ``linear``, ``transposed`` (the Conv1D of GPT-2, a linear layer whose weight is ``[in,
    out]``), ``embedding`` or ``convolution``.
    """

    kind: str
    scale: float

    def __call__(self, layer: Any, given: tuple[Tensor, ...], named: Mapping[str, Tensor], output: Tensor) -> Tensor:
        (x,) = (*given, *named.values())
        return output + self.scale * self.added(layer, x)

    def added(self, layer: Any, x: Tensor) -> Tensor:
        """``B A x`` of the layer's input."""
        down, up = getattr(layer, A), getattr(layer, B)
        if self.kind == "embedding":
            table = down.mT if layer.padding_idx is None else fixed_row(down.mT, layer.padding_idx)
            rows = functional.embedding(x, table)
            added: Tensor = rows @ up.mT
            return added
        dropped = getattr(layer, DROP, None)
        x = x if dropped is None else dropped(x)
        if self.kind == "convolution":
            low: Tensor = layer._conv_forward(x, down, None)
            return functional.conv2d(low, up)
        return functional.linear(functional.linear(x, down), up)

    def shapes(self, layer: Any, rank: int) -> tuple[list[int], list[int]]:
        """Shapes of A and B."""
        if self.kind == "embedding":
            return [rank, layer.num_embeddings], [layer.embedding_dim, rank]
        if self.kind == "convolution":
            return [rank, *layer.weight.shape[1:]], [layer.out_channels, rank, 1, 1]
        wide = list(layer.weight.shape) if self.kind == "linear" else list(layer.weight.shape)[::-1]
        return [rank, wide[1]], [wide[0], rank]

    def first(self, layer: Any, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """First values of A and B, drawn in float32."""
        low, high = self.shapes(layer, rank)
        if self.kind == "embedding":
            return torch.zeros(low), torch.randn(high, generator=generator)
        bound = 1 / math.sqrt(math.prod(low[1:]))  # sqrt(6 / ((1 + a^2) fan_in)) with a^2 = 5
        return (2 * torch.rand(low, generator=generator) - 1) * bound, torch.zeros(high)

    def product(self, layer: Any) -> Tensor:
        """``scale * B A`` in the shape of the layer's weight."""
        down, up = getattr(layer, A), getattr(layer, B)
        whole: Tensor = up.flatten(1) @ down.flatten(1)
        if self.kind in ("embedding", "transposed"):
            whole = whole.mT
        return self.scale * whole.reshape(layer.weight.shape)


def adapt(module: nn.Module, lora: Lora, seed: int) -> None:
    """Freeze `module`, and give the layers that `lora` names their adapters.

    An adapter's first values depend on `seed` and its layer's name alone.

    Raises
    ------
    InputError
        A pattern matches nothing, or a layer that cannot have an adapter.
    """
    kept = _kept(module, lora.train)
    found = _targets(module, lora.targets, kept)
    for p in module.parameters():
        p.requires_grad_(id(p) in kept)
    for name, (layer, kind) in found.items():
        needed = sum(math.prod(s) for s in Adapter(kind, 1.0).shapes(layer, lora.rank)) * 4
        check_room(needed, f"an adapter of rank {lora.rank:,} of '{name}'", "lora.rank")
        hook = Adapter(kind, lora.alpha / lora.rank)
        generator = torch.Generator().manual_seed(int(rng.key(seed, "lora", zlib.crc32(name.encode()))[0]))
        for key, value in zip((A, B), hook.first(layer, lora.rank, generator), strict=True):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            layer.register_parameter(key, nn.Parameter(value.to(weight)))
        if lora.dropout and kind != "embedding":
            layer.add_module(DROP, nn.Dropout(lora.dropout))
        layer.register_forward_hook(hook, prepend=True, with_kwargs=True)  # before others: it is a part of the layer


def adapters(module: nn.Module) -> dict[str, tuple[nn.Module, Adapter]]:
    """The adapted layers by name, each with its hook."""
    return {
        name: (layer, hook)
        for name, layer in module.named_modules()
        for hook in layer._forward_hooks.values()
        if isinstance(hook, Adapter)
    }


@torch.no_grad()
def merge(module: nn.Module) -> nn.Module:
    """The module in its base's form again: ``W + scale * B A`` in the place of W, and no adapters."""
    for layer, hook in adapters(module).values():
        layer.weight += hook.product(layer)  # type: ignore[operator]
        for number, found in list(layer._forward_hooks.items()):
            if found is hook:
                del layer._forward_hooks[number]
        for key in (A, B, DROP):
            if hasattr(layer, key):
                delattr(layer, key)
    return module


@torch.no_grad()
def check_used(module: nn.Module, rows: Tensor) -> None:
    """Refuse adapters that change nothing, since whatever is around their layer takes its weight and does not call it.

    Raises
    ------
    InputError
        It names the layer.
    """
    called: list[set[int]] = [set(), set()]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: called[module.training].add(id(layer)))
        for layer, _ in adapters(module).values()
    ]
    x, both = widened(rows), False
    if x.is_floating_point() or not takes(module, x):
        x = x.to(next(module.parameters()).dtype)
    try:
        computed = takes(module, x)  # a module that cannot take them at all is refused for that
        with suppress(Exception):
            trained_output(module, torch.cat([x, x]))
            both = True
    finally:
        for hook in hooks:
            hook.remove()
    for name, (layer, _) in adapters(module).items() if computed else ():
        if id(layer) not in called[False] or (both and id(layer) not in called[True]):
            message = f"'{name}' is not called in a forward pass: what is around it uses its weight by itself"
            raise InputError(f"{message}; allowed: other layers", key="lora.targets")


def _kept(module: nn.Module, patterns: Sequence[str]) -> set[int]:
    """The parameters that train as they are, by identity."""
    named = dict(module.named_parameters(remove_duplicate=False))
    kept: set[int] = set()
    for i, pattern in enumerate(patterns):
        found = [p for name, p in named.items() if any(fnmatchcase(part, pattern) for part in levels(name))]
        if not found:
            known = list(dict.fromkeys(part for name in named for part in reversed(levels(name))))
            message = f"found '{pattern}', which matches no parameter{nearest(pattern, known)}"
            raise InputError(f"{message}; allowed: patterns of names: {named_some(list(named))}", key=f"lora.train.{i}")
        kept |= {id(p) for p in found}
    return kept


def _targets(module: nn.Module, patterns: Sequence[str], kept: set[int]) -> Mapping[str, tuple[nn.Module, str]]:
    """The layers that patterns name, each with its kind.

    A pattern is matched with a layer's name, those of the sub-modules that it is in, and (as PEFT has it) the last part
    of these. Layers of other kinds inside a sub-module are passed over.
    """
    owners = Counter(id(p) for layer in module.modules() for p in layer.parameters(recurse=False))
    able = {
        name: (layer, kind)
        for name, layer in module.named_modules()
        if (kind := _kind(layer)) is not None
        and not any(hasattr(layer, key) for key in (A, B, DROP))
        and owners[id(layer.weight)] == 1  # a merged adapter would change the others that share it
        and not any(id(p) in kept for p in layer.parameters(recurse=False))
    }
    names = [name for name, _ in module.named_modules() if name]
    chosen: dict[str, tuple[nn.Module, str]] = {}
    for i, pattern in enumerate(patterns):

        def matches(name: str, pattern: str = pattern) -> bool:
            return any(
                fnmatchcase(part, pattern) or fnmatchcase(part.rpartition(".")[2], pattern) for part in levels(name)
            )

        found = {name: layer for name, layer in able.items() if matches(name)}
        if not found:
            exact = next((name for name in names if matches(name)), None)
            what = "which matches no layer"
            if exact is not None:
                what = f"but '{exact}' ({type(module.get_submodule(exact)).__name__}) is none that can have an adapter"
            raise InputError(
                f"found '{pattern}', {what}{nearest(pattern, list(able)) if exact is None else ''}; allowed: patterns "
                "of names of Linear, Embedding, Conv2d without groups, Conv1D, with weights of their own that 'train' "
                f"does not name: {named_some(list(able))}",
                key=f"lora.targets.{i}",
            )
        chosen |= found
    return {name: chosen[name] for name in able if name in chosen}


def _kind(layer: nn.Module) -> str | None:
    """What an adapter has to know of a layer; None where it can have none."""
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        return "linear"
    if type(layer) is nn.Embedding:
        return "embedding"
    if type(layer) is nn.Conv2d and layer.groups == 1:
        return "convolution"
    if type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers."):
        return "transposed"
    return None
