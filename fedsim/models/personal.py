"""Which parameters and buffers of a module stay with each client, by patterns of their names.

FedPer (Arivazhagan et al., arXiv 1912.00818) has a personal head, LG-FedAvg (Liang et al., 2001.01523) a personal body,
FedBN (Li et al., 2102.07623) personal batch normalisation: weights, biases and running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from fedsim.core.errors import InputError, nearest
from fedsim.core.sharing import EVERYTHING, Sharing, Split
from fedsim.models.layout import Layout, levels, named_some, trainable
from fedsim.models.norms import norms


@dataclass(frozen=True)
class Personal:
    """What stays with clients.

    Parameters
    ----------
    patterns : of names of parameters, of buffers that training changes, or of sub-modules they are in, as in `freeze`.
    local_norms : whether all of batch normalisation stays, too.
    """

    patterns: tuple[str, ...] = ()
    local_norms: bool = False

    def of(self, module: nn.Module, params: Layout, buffers: Layout) -> Sharing:
        """What of a module is shared, where `params` and `buffers` say where they sit in their vectors.

        Raises
        ------
        InputError
            A pattern matches nothing that would travel, or nothing is left that does.
        """
        return _sharing(module, self.patterns, list(norms(module)) if self.local_norms else [], params, buffers)


def _sharing(
    module: nn.Module, patterns: Sequence[str], layers: Sequence[str], params: Layout, buffers: Layout
) -> Sharing:
    if not patterns and not layers:
        return EVERYTHING
    aliases = {name: [name] for name in params.names}
    for other, name in params.others:
        aliases[name].append(other)
    aliases |= {name: [name] for name in buffers.names}
    stays = {name: _in_layer(name, layers) for name in aliases}
    for i, pattern in enumerate(patterns):
        matched = [
            name
            for name, known in aliases.items()
            if any(fnmatchcase(part, pattern) for alias in known for part in levels(alias))
        ]
        if not matched:
            raise InputError(_unmatched(module, pattern, list(aliases)), key=f"personal.{i}")
        stays |= dict.fromkeys(matched, True)
    if all(stays[name] for name in params.names):
        found = ", ".join(patterns) if patterns else "local"
        raise InputError(
            f"found {found}, with which all parameters stay with clients, so that there is nothing to train together; "
            "allowed: patterns that leave one that is shared",
            key="personal" if patterns else "batch_norm",
        )
    return Sharing(_split(params, stays), _split(buffers, stays))


def _in_layer(name: str, layers: Sequence[str]) -> bool:
    return name.rpartition(".")[0] in layers


def _split(layout: Layout, stays: dict[str, bool]) -> Split:
    if not any(stays[name] for name in layout.names):
        return Split(layout.total, ((0, layout.total),) if layout.total else ())
    marks = [torch.full((size,), stays[name]) for name, size in zip(layout.names, layout.sizes, strict=True)]
    return Split.of(torch.cat(marks))


def _unmatched(module: nn.Module, pattern: str, names: list[str]) -> str:
    known = list(dict.fromkeys(part for name in names for part in reversed(levels(name))))
    frozen = set(dict(module.named_parameters(remove_duplicate=False))) - set(trainable(module))
    still = [name for name in frozen if any(fnmatchcase(part, pattern) for part in levels(name))]
    if still:
        found = (
            f"found '{pattern}', which matches parameters that do not train, and so never travel ({named_some(still)})"
        )
    else:
        found = f"found '{pattern}', which matches no parameter{nearest(pattern, known)}"
    return f"{found}; allowed: patterns of names: {named_some(names)}"
