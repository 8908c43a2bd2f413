"""Somebody's own generator of examples, as an attack with a generative prior needs it: made, tried and cut into layers.

A generator is an ``nn.Sequential`` or ``nn.ModuleList`` of layers that take a code ``[b, *latent]``, layer by layer, to
examples ``[b, *shape]`` whose values are 0..1 from the smallest to the largest value of the data. What lies between
two layers are the features that are searched. A layer that takes two arguments gets the labels ``[b]`` as the second.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fedsim.core import rng
from fedsim.core.errors import InputError, reason
from fedsim.core.registry import load_object
from fedsim.core.returned import said
from fedsim.models.draws import global_draws

_TOLERANCE = 1e-3
"""By how much an example may leave 0..1, and differ from itself when it is made again."""


def find_factory(name: str, key: str) -> Callable[..., Any]:
    """The callable that ``pkg.mod:factory`` names.

    Raises
    ------
    InputError
        There is none.
    """
    if ":" not in name:
        raise InputError(f"found {name!r}, allowed: 'pkg.mod:factory', which returns a module", key)
    try:
        found = load_object(name)
    except InputError as error:
        raise error.under(key) from None
    if not callable(found):
        raise InputError(f"'{name}' is {type(found).__name__}, allowed: a callable that returns a module", key)
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Generator:
    """A generator's layers, from the code to the example, and the shape of a code."""

    layers: tuple[nn.Module, ...]
    latent: tuple[int, ...]

    def layer(self, k: int, h: Tensor, labels: Tensor | None) -> Tensor:
        """What layer k makes of its input."""
        layer = self.layers[k]
        made: Tensor = layer(h, labels) if _takes_labels(layer) else layer(h)
        return made

    def __call__(self, h: Tensor, labels: Tensor | None, start: int = 0) -> Tensor:
        """Examples ``[b, *shape]`` in 0..1 from the input of layer `start`."""
        for k in range(start, len(self.layers)):
            h = self.layer(k, h, labels)
        return h


@dataclass(frozen=True)
class Maker:
    """Makes and tries the generator that a scenario's key names.

    Parameters
    ----------
    name, factory : what the scenario has, and what it names.
    key : the whole key, for errors.
    """

    name: str
    factory: Callable[..., Any]
    key: str

    def make(self, shape: Sequence[int], num_classes: int | None, labels: Tensor) -> Generator:
        """The generator of examples of `shape`, in float64, in eval mode.

        The factory gets ``shape`` and ``num_classes`` (None for regression) where its signature names them. `labels`
        ``[n]`` are some that examples of the data have; it is tried with them, on their device.

        Raises
        ------
        InputError
            It fails, or is no generator of such examples; the message says what was found and what is allowed.
        """
        known = {"shape": tuple(shape), "num_classes": num_classes}
        with global_draws():
            torch.default_generator.manual_seed(int(rng.key(0, "generator")[0]))  # of a factory that draws weights
            try:
                module = self.factory(**{k: v for k, v in known.items() if k in _named(self.factory)})
            except InputError:
                raise
            except Exception as error:  # somebody's own code may fail in any way
                self._refuse(f"failed: {type(error).__name__}: {reason(error)}")
            made = self._cut(module, labels.device)
            self._try(made, list(shape), labels)
        return made

    def _cut(self, module: Any, device: torch.device) -> Generator:
        if not isinstance(module, nn.Sequential | nn.ModuleList) or len(module) == 0:
            what = type(module).__name__ if not isinstance(module, nn.Sequential | nn.ModuleList) else "no layers"
            self._refuse(f"returned {what}, allowed: a torch.nn.Sequential or ModuleList of layers")
        latent = getattr(module, "latent", None)
        sizes = (latent,) if isinstance(latent, int) else latent
        if not isinstance(sizes, Iterable) or not (whole := tuple(sizes)) or not all(_is_count(n) for n in whole):
            found = "no attribute 'latent'" if latent is None else f"latent {latent!r}"
            self._refuse(f"has {found}, allowed: the shape of a code without the batch, such as (16,)")
        return Generator(tuple(module.to(device).double().eval().requires_grad_(False)), whole)

    def _try(self, made: Generator, shape: list[int], labels: Tensor) -> None:
        """Make some examples of random codes, together and each alone."""
        labels = labels if len(labels) > 1 else torch.cat([labels, labels])
        n = len(labels)
        z = torch.randn(n, *made.latent, dtype=torch.float64).to(labels.device).requires_grad_()
        h: Any = z
        features = []
        for k in range(len(made.layers)):
            try:
                h = made.layer(k, h, labels)
            except Exception as error:
                name = f"layer {k} ({type(made.layers[k]).__name__})"
                self._refuse(f"cannot take {list(h.shape)} at {name}: {type(error).__name__}: {reason(error)}")
            name = f"layer {k} ({type(made.layers[k]).__name__})"
            if not isinstance(h, Tensor) or not h.is_floating_point() or h.dim() < 1 or len(h) != n:
                self._refuse(f"made {said(h)} at {name} of {n} codes, allowed: torch.float64 [{n}, ...]")
            if not bool(h.isfinite().all()):
                self._refuse(f"made numbers at {name} that are not finite, allowed: finite ones")
            features.append(h)
        if list(h.shape[1:]) != shape:
            self._refuse(f"makes examples {list(h.shape[1:])}, allowed: {shape}, the shape of the data's")
        low, high = float(h.detach().min()), float(h.detach().max())
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            text = (
                f"makes values from {low:.3g} to {high:.3g}, allowed: 0 to 1, the smallest to the largest of the data"
            )
            self._refuse(text)
        slopes = (None,) if not h.requires_grad else torch.autograd.grad(h.sum(), [z], allow_unused=True)
        if slopes[0] is None:
            self._refuse("makes examples that cannot be differentiated by their codes, allowed: no detach, no no_grad")
        if not bool(slopes[0].isfinite().all()):
            self._refuse("has slopes that are not finite, allowed: finite ones")
        with torch.no_grad():
            alone = torch.cat([made(z[i : i + 1], labels[i : i + 1]) for i in range(n)])
        if not torch.allclose(alone, h.detach(), rtol=0, atol=_TOLERANCE):
            self._refuse(
                "makes another example of the same code (noise, or mixed examples), allowed: one example a code"
            )

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"'{self.name}' {what}", self.key)


def _named(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some built-in callables have no signature
        return {}


def _takes_labels(layer: nn.Module) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [p for p in _named(layer.forward).values() if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(given) == 2


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n > 0
