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
    aliases = _aliases(params) | {name: [name] for name in buffers.names}
    stays = {name: name.rpartition(".")[0] in layers for name in aliases}
    for i, pattern in enumerate(patterns):
        matched = _matched(aliases, pattern)
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


def matching(params: Layout, patterns: Sequence[str]) -> torch.Tensor:
    """The parameters that patterns match, True in ``[d]``.

    Raises
    ------
    InputError
        A pattern matches none; the key is its number.
    """
    aliases = _aliases(params)
    found: set[str] = set()
    for i, pattern in enumerate(patterns):
        matched = _matched(aliases, pattern)
        if not matched:
            message = f"found '{pattern}', which matches no parameter that trains{_nearest(pattern, list(aliases))}"
            raise InputError(f"{message}; allowed: patterns of names: {named_some(list(aliases))}", key=str(i))
        found |= set(matched)
    return torch.cat([torch.full((n,), name in found) for name, n in zip(params.names, params.sizes, strict=True)])


def _aliases(params: Layout) -> dict[str, list[str]]:
    """All names of each parameter, by its first."""
    found = {name: [name] for name in params.names}
    for other, name in params.others:
        found[name].append(other)
    return found


def _matched(aliases: dict[str, list[str]], pattern: str) -> list[str]:
    """What a pattern matches, by its own names or by those of the sub-modules it is in."""
    return [
        name
        for name, known in aliases.items()
        if any(fnmatchcase(part, pattern) for alias in known for part in levels(alias))
    ]


def _nearest(pattern: str, names: list[str]) -> str:
    return nearest(pattern, list(dict.fromkeys(part for name in names for part in reversed(levels(name)))))


def _split(layout: Layout, stays: dict[str, bool]) -> Split:
    if not any(stays[name] for name in layout.names):
        return Split(layout.total, ((0, layout.total),) if layout.total else ())
    marks = [torch.full((size,), stays[name]) for name, size in zip(layout.names, layout.sizes, strict=True)]
    return Split.of(torch.cat(marks))


def _unmatched(module: nn.Module, pattern: str, names: list[str]) -> str:
    frozen = set(dict(module.named_parameters(remove_duplicate=False))) - set(trainable(module))
    still = [name for name in frozen if any(fnmatchcase(part, pattern) for part in levels(name))]
    if still:
        found = (
            f"found '{pattern}', which matches parameters that do not train, and so never travel ({named_some(still)})"
        )
    else:
        found = f"found '{pattern}', which matches no parameter{_nearest(pattern, names)}"
    return f"{found}; allowed: patterns of names: {named_some(names)}"
