"""Batch normalisation by choice, and modules that train and that are evaluated.

``frozen`` and ``group`` make a module a function of its parameters and of one sample: the former normalises with the
statistics that the module came with, the latter has group normalisation in their place. ``average`` and ``local``
differ in what travels alone (`fedsim.models.personal`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fedsim.core.errors import InputError
from fedsim.models.exported import grouped

_EVALUATES = "_fedsim_evaluates"  # an attribute of layers that compute as in an evaluation while others train


def norms(module: nn.Module) -> dict[str, _NormBase]:
    """The layers that normalise with statistics of a batch, or keep them, by name."""
    return {
        name: sub
        for name, sub in module.named_modules()
        if isinstance(sub, _NormBase) and (isinstance(sub, _BatchNorm) or sub.track_running_stats)
    }


def prepare(module: nn.Module, choice: str | None) -> nn.Module:
    """The module with its batch normalisation as a scenario's ``model.batch_norm`` says.

    Raises
    ------
    InputError
        It has none, or the choice needs running statistics that a layer does not keep.
    """
    layers = norms(module)
    if choice is not None and not layers:
        raise InputError(
            f"found {choice}, but no layer of {type(module).__name__} normalises with statistics of a batch; allowed: "
            "no such key",
            key="batch_norm",
        )
    if choice == "group":
        return grouped(module)
    for name, layer in layers.items():
        if layer.running_mean is None:
            where = f"sub-module '{name}' ({type(layer).__name__})" if name else f"the module ({type(layer).__name__})"
            found = f"found {choice}, but" if choice else "missing, so statistics would be averaged, but"
            message = f"{found} {where} keeps no running statistics to evaluate with"
            raise InputError(f"{message}; allowed: group", key="batch_norm")
        if choice == "frozen":
            setattr(layer, _EVALUATES, True)
    return module


def training(module: nn.Module, on: bool) -> None:
    """Set all layers to train or to evaluate, as a module's own ``train`` does it, but for those that are frozen."""
    module.train(on)
    for sub in module.modules():
        if getattr(sub, _EVALUATES, False):
            sub.training = False


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module computes as in an evaluation; afterwards as before."""
    before = module.training
    training(module, False)
    try:
        yield
    finally:
        training(module, before)
