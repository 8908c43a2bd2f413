"""What of a module trains, and where it sits in the flat vector ``[d]`` that the rest of the package computes with.

The vector has the parameters that require a gradient alone, each once: one that is shared by two sub-modules has one
place. What does not train (parameters that are frozen, buffers) stays in the module, of which a device has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.core.errors import InputError, nearest
from fedsim.models.outputs import logits_of

_NAMED = 8  # parameters that a message names


@dataclass(frozen=True)
class Layout:
    """Where each parameter that trains sits in the flat vector ``[d]``, in ``named_parameters`` order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    total: int
    others: tuple[tuple[str, str], ...] = ()
    """Further names of shared parameters, in other sub-modules, each with the name in `names`."""
    padded: tuple[tuple[str, int], ...] = ()
    """Tables of embeddings, by name, whose gradient leaves out a row: that of the id for padding."""


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; a shared one once, under the first of its names."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The same without their names."""
    return [p for p in module.parameters() if p.requires_grad]


def layout(module: nn.Module) -> Layout:
    """The layout of the parameters of `module` that train."""
    named = trainable(module)
    first = {id(p): name for name, p in named.items()}
    others = [
        (f"{prefix}.{key}" if prefix else key, first[id(p)])
        for prefix, sub in module.named_modules()
        for key, p in sub.named_parameters(recurse=False)
        if id(p) in first
    ]
    padded = [
        (f"{prefix}.weight" if prefix else "weight", sub.padding_idx)
        for prefix, sub in module.named_modules()
        if isinstance(sub, nn.Embedding) and sub.padding_idx is not None and id(sub.weight) in first
    ]
    return replace(placed(named, tuple(o for o in others if o[0] != o[1])), padded=tuple(padded))


def placed(named: Mapping[str, Tensor], others: tuple[tuple[str, str], ...] = ()) -> Layout:
    """The layout of any tensors, one after the other."""
    sizes = [v.numel() for v in named.values()]
    offsets = tuple(sum(sizes[:i]) for i in range(len(sizes)))
    shapes = tuple(tuple(v.shape) for v in named.values())
    return Layout(tuple(named), shapes, tuple(sizes), offsets, sum(sizes), others)


def flatten(module: nn.Module) -> Tensor:
    """A copy of the parameters that train as one vector ``[d]``."""
    return torch.cat([p.detach().reshape(-1) for p in trained(module)])


def views(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Parameters by name as views (no copies) of ``[..., d]``: each ``[..., *shape]``. ValueError for a wrong `d`."""
    if flat.shape[-1] != layout.total:
        raise ValueError(f"found {flat.shape[-1]} parameters, the model has {layout.total}")
    lead = flat.shape[:-1]
    return {
        name: flat.narrow(-1, offset, size).view((*lead, *shape))
        for name, shape, size, offset in zip(layout.names, layout.shapes, layout.sizes, layout.offsets, strict=True)
    }


def call(
    module: nn.Module,
    params: Mapping[str, Tensor],
    layout: Layout,
    inputs: Tensor,
    buffers: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The module's outputs ``[b, k]`` with these parameters (`views`) in the place of its own; works under ``vmap``.

    With `buffers`, by name, in the place of its own, too: what it makes of them is written into them.

    ``functional_call`` can tie weights itself, but leaves a module changed in which a layer is used twice. ``vmap``
    leaves an embedding's row for padding out of the first client's gradient alone (PyTorch 2.13).
    """
    everywhere = {**params, **{other: params[name] for other, name in layout.others}, **(buffers or {})}
    if torch.is_grad_enabled():
        everywhere |= {name: fixed_row(everywhere[name], row) for name, row in layout.padded}
    out: Tensor = logits_of(functional_call(module, everywhere, (inputs,), tie_weights=False))
    for name, b in (buffers or {}).items():
        if everywhere[name] is not b:  # the module has put another one into its place
            b.copy_(everywhere[name].detach())
    return out


def fixed_row(table: Tensor, row: int) -> Tensor:
    """The same ``[n, width]`` with a row of which no gradient is taken."""
    here = torch.arange(len(table), device=table.device).unsqueeze(-1) == row
    return torch.where(here, table.detach(), table)


@torch.no_grad()
def load_flat(module: nn.Module, flat: Tensor) -> None:
    """Copy ``[d]`` into the parameters that train, converting type and device. ValueError for a wrong `d`."""
    for p, value in zip(trained(module), views(flat, layout(module)).values(), strict=True):
        p.copy_(value)


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Have the parameters not train that a pattern matches, by their own name or by that of a sub-module they are in.

    Patterns are those of a shell (`fnmatch`), whose ``*`` also matches dots: ``body``, ``layer?.*``, ``*.bias``. Of a
    shared parameter any of its names will do.

    Raises
    ------
    InputError
        A pattern matches nothing, or everything is frozen.
    """
    named = dict(module.named_parameters(remove_duplicate=False))
    for i, pattern in enumerate(patterns):
        found = [p for name, p in named.items() if any(fnmatchcase(part, pattern) for part in levels(name))]
        if not found:
            known = list(dict.fromkeys(part for name in named for part in reversed(levels(name))))
            raise InputError(
                f"found '{pattern}', which matches no parameter{nearest(pattern, known)}; allowed: patterns of names: "
                + named_some(list(named)),
                key=f"freeze.{i}",
            )
        for p in found:
            p.requires_grad_(False)
    if patterns and not trained(module):
        raise InputError("every parameter is frozen; allowed: patterns that leave one that trains", key="freeze")


def stays(module: nn.Module) -> Mapping[str, int]:
    """Of a module what does not train: how many ``parameters``, and the ``bytes`` of these and of the buffers."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    size = sum(v.numel() * v.element_size() for v in (*frozen, *module.buffers()))
    return {"parameters": sum(p.numel() for p in frozen), "bytes": size}


def levels(name: str) -> list[str]:
    """A parameter's name and those of the sub-modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1)]


def named_some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
