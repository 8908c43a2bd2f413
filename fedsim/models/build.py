"""Models by name, and the flat parameter vector ``[d]`` that the rest of the package computes with.

Batches ``[b, *input_shape]`` go to outputs ``[b, k]``. Models are functions of their parameters and of
one sample alone: no batch statistics, no dropout.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from fedsim.core import rng
from fedsim.core.errors import InputError, Problem, unknown
from fedsim.core.fields import keys_of, make_part
from fedsim.core.limits import check_room
from fedsim.core.registry import Part, register
from fedsim.core.tokens import Tokens, widened
from fedsim.core.types import Count
from fedsim.models import vision
from fedsim.models.checks import refuse_batch_statistics as refuse_batch_statistics
from fedsim.models.checks import refuse_foreign_ids, try_out
from fedsim.models.draws import global_draws
from fedsim.models.exported import converted
from fedsim.models.layout import flatten as flatten
from fedsim.models.layout import freeze
from fedsim.models.layout import layout as layout
from fedsim.models.layout import load_flat as load_flat
from fedsim.models.layout import views as views
from fedsim.models.lora import Lora, adapt, check_used
from fedsim.models.losses import loss_and_outputs, loss_function
from fedsim.models.losses import predictions as predictions
from fedsim.models.norms import prepare, training
from fedsim.models.personal import Personal
from fedsim.models.size import flops as flops
from fedsim.models.size import widest as widest
from fedsim.models.start import Start, Weights, start_from

NO_TOKENS = Tokens()

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


@dataclass(frozen=True, kw_only=True)
class Common(Part):
    """Keys of every model, somebody's own among them.

    `loss`: name of the loss; None takes the model's own, or cross_entropy (classification) or mse (regression).
    `freeze`: patterns of the names of parameters that do not train (see `fedsim.models.layout.freeze`).
    `batch_norm`: what becomes of batch normalisation (see `fedsim.models.norms`).
    `init`: ``zeros`` starts models that are linear in their parameters at 0; the name of a file starts from weights
    (see `fedsim.models.start.Start`).
    `lora`: adapters train instead of weights (see `fedsim.models.lora.Lora`).
    `personal`: patterns of the names of parameters that stay with clients (see `fedsim.models.personal`).
    """

    loss: str | None = None
    freeze: list[str] | None = None
    batch_norm: Literal["average", "local", "group", "frozen"] | None = None
    init: str | Start = "default"
    lora: Lora | None = None
    personal: list[str] | None = None

    def __post_init__(self) -> None:
        if self.loss is not None:
            loss_function(self.loss)
        if isinstance(self.init, str) and self.init not in ("default", "zeros"):
            object.__setattr__(self, "init", start_from(self.init))


@dataclass(frozen=True, kw_only=True)
class Model(Common, ABC):
    """Base class of models: subclass it as a frozen dataclass whose further fields are the model's YAML keys."""

    default_loss: ClassVar[str | None] = None
    linear_in_parameters: ClassVar[bool] = False
    vocabulary_key: ClassVar[str] = "name"
    """The key that is wrong where an embedding knows fewer tokens than the data have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init == "zeros" and not self.linear_in_parameters:
            raise InputError(
                "found zeros, allowed: default; with all weights zero every hidden unit gets the same gradient, so "
                "this model cannot learn (zeros is for linear and svm)",
                key="init",
            )

    @classmethod
    def from_function(cls, name: str, function: Any, keys: Mapping[str, Any]) -> Model:
        """The model that somebody's own function makes; InputError where it cannot be called with these keys."""
        if not callable(function):
            raise InputError(f"'{name}' is {type(function).__name__}, not a callable that returns an nn.Module")
        own = {key: value for key, value in keys.items() if key not in COMMON}
        _refuse_shared(name, function, keys)
        common = make_part(Common, {key: value for key, value in keys.items() if key in COMMON})
        offered = _check_signature(name, function, own)
        return OwnModel(function=function, keys=own, offered=offered, **{k: getattr(common, k) for k in COMMON})

    def recorded(self, base: Path) -> Self:
        return replace(self, init=self.init.located(base)) if isinstance(self.init, Start) else self

    @property
    def stays(self) -> Personal:
        """What of it stays with each client."""
        return Personal(tuple(self.personal or ()), self.batch_norm == "local")

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        """A module that takes ``[b, *input_shape]`` to ``[b, num_outputs]``; InputError for a wrong shape."""

    def module(self, input_shape: tuple[int, ...], num_outputs: int, tokens: Tokens) -> nn.Module:
        """What `build` makes, for data whose integers are `tokens`.

        Raises
        ------
        InputError
            As `build`; or the data have a class at every position, and this model gives one answer per sample.
        """
        if tokens.positions is not None and _built_in(self):
            raise InputError(
                f"gives one answer per sample, but the data have targets at {tokens.positions} positions; allowed: "
                "char_lstm, transformer, or your own that gives [b, positions, classes]",
                key="name",
            )
        return self.build(input_shape, num_outputs)


COMMON = tuple(keys_of(Common))
"""Keys of a model's section that are no arguments of somebody's own function."""
ELSEWHERE = ("init", "lora")
"""Keys that say nothing of how a trained model is made again."""


@register.model("linear")
@dataclass(frozen=True)
class LinearModel(Model):
    """Softmax (or, by its loss, logistic or least-squares) regression on the flattened input."""

    linear_in_parameters: ClassVar[bool] = True

    bias: bool = True

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        layer = nn.Linear(math.prod(input_shape), num_outputs, bias=self.bias)
        if self.init == "zeros":
            for p in layer.parameters():
                nn.init.zeros_(p)
        return nn.Sequential(nn.Flatten(), layer)


@register.model("svm")
@dataclass(frozen=True)
class SupportVectorMachine(LinearModel):
    """Multi-class linear support vector machine: the linear model with the hinge loss multi_margin."""

    default_loss: ClassVar[str | None] = "multi_margin"


@register.model("mlp")
@dataclass(frozen=True)
class MLP(Model):
    """Fully connected network; `hidden` are the widths of its hidden layers."""

    hidden: list[Count] = field(default_factory=lambda: [200])
    activation: Literal["relu", "tanh", "sigmoid", "gelu", "elu", "silu", "softplus"] = "relu"

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), _ACTIVATIONS[self.activation]()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, num_outputs))


@register.model("cnn")
@dataclass(frozen=True)
class CNN(Model):
    """CNN of LeNet's size: convolutions of `channels`, each followed by 2x2 pooling, and `hidden` units."""

    channels: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [16, 32])
    hidden: Count = 128
    kernel: Literal[3, 5] = 5

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        return vision.cnn(input_shape, num_outputs, self.channels, self.hidden, self.kernel)


@register.model("vgg11")
@dataclass(frozen=True)
class VGG11(Model):
    """VGG-11 without batch normalisation for images from 32x32; `hidden` are its fully connected layers."""

    hidden: list[Count] = field(default_factory=lambda: [512, 512])

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        return vision.vgg11(input_shape, num_outputs, self.hidden)


@register.model("resnet18")
@dataclass(frozen=True)
class ResNet18(Model):
    """ResNet-18 with `groups` of group normalisation; `stem` is the 3x3 one for small images or ImageNet's 7x7."""

    groups: Count = 2
    stem: Literal["cifar", "imagenet"] = "cifar"

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        return vision.resnet18(input_shape, num_outputs, self.groups, self.stem)


@dataclass(frozen=True, kw_only=True)
class OwnModel(Model):
    """What somebody's own `function` makes: any callable that returns an ``nn.Module``.

    It is called with the keys of the scenario (those of `Common` apart), and with `input_shape`, `num_outputs` and
    `vocabulary` (how many token ids the data have; None: none) if its signature names them.
    """

    function: Callable[..., Any]
    keys: Mapping[str, Any]
    offered: tuple[str, ...]

    @property
    def given_keys(self) -> dict[str, Any]:
        """The keys as the scenario has them."""
        common = {f.name: getattr(self, f.name) for f in fields(Common) if getattr(self, f.name) != f.default}
        forms = {k: v.model_dump(mode="json", exclude_none=True) for k, v in common.items() if isinstance(v, BaseModel)}
        return {**self.keys, **common, **forms}

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        return self.module(input_shape, num_outputs, Tokens())

    def module(self, input_shape: tuple[int, ...], num_outputs: int, tokens: Tokens) -> nn.Module:
        known = {"input_shape": input_shape, "num_outputs": num_outputs, "vocabulary": tokens.vocabulary}
        made: nn.Module = self.function(**{**{key: known[key] for key in self.offered}, **self.keys})
        return made


def build_model(
    model: Model,
    input_shape: Sequence[int],
    num_classes: int | None,
    seed: int,
    dtype: torch.dtype,
    num_targets: int = 1,
    name: str | None = None,
    rows: Tensor | None = None,
    tokens: Tokens = NO_TOKENS,
    splits: Mapping[str, Tensor] | None = None,
    weights: Weights | None = None,
) -> tuple[nn.Module, str]:
    """The module that `model` stands for on some data, and the name of its loss.

    Parameters
    ----------
    input_shape
        Shape of one sample.
    num_classes
        Number of classes, or None for regression on `num_targets` numbers per sample.
    seed, dtype
        Parameters depend on `seed` alone: they are drawn in float32 and converted, and no global generator moves.
    name
        What the scenario calls the model.
    rows
        Some rows of the data, in their type, that somebody's own module is tried on; None: normal random numbers.
    tokens
        What the data's integers are.
    splits
        All inputs, by what to call them, where ids that the module does not know are looked for.
    weights
        What to start from, where ``model.init`` says so.

    Raises
    ------
    InputError
        A loss, model and data that do not go together, somebody's own function that fails, or a module that is not a
        function of its parameters and one sample (`refuse_batch_statistics`).
    """
    name = name or type(model).__name__
    module, loss_name, num_outputs = new_module(
        model, input_shape, num_classes, seed, dtype, num_targets, name, tokens, weights
    )
    if rows is not None and not rows.is_floating_point() and splits:
        refuse_foreign_ids(module, rows, splits, model.vocabulary_key)
    if rows is None:
        rows = torch.randn(4, *input_shape, generator=torch.Generator().manual_seed(0))
    if model.lora is not None:
        check_used(module, rows)
    if not _built_in(model):
        with global_draws():
            try_out(name, module, widened(rows), num_outputs, tokens.positions)
    return module, loss_name


def new_module(
    model: Model,
    input_shape: Sequence[int],
    num_classes: int | None,
    seed: int,
    dtype: torch.dtype,
    num_targets: int,
    name: str,
    tokens: Tokens = NO_TOKENS,
    weights: Weights | None = None,
) -> tuple[nn.Module, str, int]:
    """The module that nobody has tried yet, the name of its loss, and how many outputs it has; see `build_model`."""
    shape = tuple(int(n) for n in input_shape)
    loss_name, num_outputs = loss_and_outputs(model.loss, model.default_loss, num_classes, num_targets, tokens)
    make = partial(_made, name, partial(model.module, shape, num_outputs, tokens))
    with global_draws():
        if _built_in(model):  # its size before the memory
            with torch.device("meta"):
                count = sum(p.numel() for p in make().parameters())
            check_room(count * dtype.itemsize, f"a model of {count:,} parameters", "name")
        # Not torch.manual_seed: that would also reseed the generators of other devices.
        torch.default_generator.manual_seed(int(rng.key(seed, "model")[0]))
        module = make()
        refuse_batch_statistics(module, adapted=model.lora is not None)
        before = list(module.state_dict())
        module = converted(prepare(module, model.batch_norm), dtype)
        if weights is not None:
            weights.put(module, before)
        if model.lora is not None:
            adapt(module, model.lora, seed)
        freeze(module, model.freeze or ())
        training(module, True)
        return module, loss_name, num_outputs


def _built_in(model: Model) -> bool:
    return type(model).__module__.startswith("fedsim.") and not isinstance(model, OwnModel)


def _refuse_shared(name: str, function: Any, keys: Mapping[str, Any]) -> None:
    """Raise InputError where a key could be meant for the model or for the function that makes it."""
    with suppress(TypeError, ValueError):  # some built-in callables have no signature
        named = inspect.signature(function).parameters
        if both := [key for key in keys if key in ("init", "lora") and key in named]:
            message = f"is a key of every model, and an argument of '{name}'; allowed: another name for the argument"
            raise InputError([Problem(message, key) for key in both])


def _check_signature(name: str, function: Any, keys: Mapping[str, Any]) -> tuple[str, ...]:
    """What `function` wants to know of the data; InputError for keys that its signature lacks, or has and needs."""
    try:
        named = inspect.signature(function).parameters
    except ValueError:  # some built-in callables have no signature
        return ()
    if not any(p.kind is p.VAR_KEYWORD for p in named.values()):
        problems = [Problem(unknown(f"key of '{name}'", key, list(named)), key) for key in keys if key not in named]
        if problems:
            raise InputError(problems)
    offered = tuple(key for key in ("input_shape", "num_outputs", "vocabulary") if key in named)
    needed = [
        key for key, p in named.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing := [key for key in needed if key not in keys and key not in offered]:
        raise InputError(
            [Problem(f"missing; '{name}' needs this key, an argument without a default", key) for key in missing]
        )
    return offered


def _made(name: str, make: Callable[[], Any]) -> nn.Module:
    try:
        module = make()
    except InputError:
        raise
    except Exception as error:  # somebody's own code may fail in any way
        raise InputError(f"'{name}' failed: {type(error).__name__}: {error}", key="name") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"'{name}' must return a torch.nn.Module, found {type(module).__name__}", key="name")
    return module
