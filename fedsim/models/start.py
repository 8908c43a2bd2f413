"""Weights to start from: a file of somebody's, put into a module name by name.

What does not fit is never left out in silence: it is refused, or, where a scenario asks for a partial load, told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fedsim.core.errors import InputError, reason

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
RUN = "params.safetensors"
"""The file of a run directory that its digest is of."""
_KINDS = f"'default' or 'zeros', a file that ends in {', '.join(SUFFIXES)}, or a finished run's directory"
_NAMED = 8  # names that a message has
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WRAPPED = ("state_dict", "model_state_dict")  # where checkpoints keep the weights beside other things


class Start(BaseModel):
    """Where a model's first weights come from.

    `file`: a ``state_dict`` (``.pt``, ``.pth``, ``.bin``), a ``.safetensors`` file, or a run directory, from the
    scenario's folder. `partial`: names that only the model or only the file has, and tensors of another shape, are
    left as they are. `digest`: SHA-256 of the file, which a run records; another file is then refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    file: Annotated[str, Field(min_length=1)]
    partial: bool = False
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    def located(self, base: Path) -> Start:
        """The same with an absolute path, and with the digest of the file where there is one."""
        path = (base / Path(self.file).expanduser()).resolve()
        found = self.digest
        if found is None and (source := _source(path)).is_file():
            found = _digest(source)
        return self.model_copy(update={"file": str(path), "digest": found})

    def checked(self) -> Path:
        """The file or run directory, which is the one that is meant.

        Raises
        ------
        InputError
            It is not there, of another kind, or has changed since its digest was taken.
        """
        path = Path(self.file)
        if not path.exists():
            raise InputError(f"no such file: {path}; allowed: {_KINDS}", key="init")
        source = _source(path)
        if not source.is_file() or (path.is_file() and path.suffix not in SUFFIXES):
            raise InputError(f"found {path}; allowed: {_KINDS}", key="init")
        now = _digest(source)
        if self.digest is not None and now != self.digest:
            message = f"{source} has changed: its SHA-256 is {now}, expected {self.digest}"
            raise InputError(f"{message}; allowed: the same file, or no key digest", key="init.digest")
        return path


def start_from(text: str) -> Start:
    """The start from a file or run directory of this name; InputError for a word that looks like neither."""
    if not text or not set(text) & set("./\\"):
        raise InputError(f"found {text!r}, allowed: {_KINDS} (./{text or 'NAME'})", key="init")
    return Start(file=text)


@dataclass(frozen=True)
class Loaded:
    """How tensors went into a module, by their names."""

    loaded: Sequence[str]
    missing: Sequence[str] = ()
    """Names of the module that the file has not."""
    left: Sequence[str] = ()
    """Names of the file that the module has not."""
    differing: Mapping[str, str] = field(default_factory=dict)
    """Names that both have, and the two shapes."""

    @property
    def whole(self) -> bool:
        return not (self.missing or self.left or self.differing)

    def words(self, most: int | None = None) -> str:
        """What did not fit, with at most so many names of each kind."""
        parts = [
            f"{what}: {_some([f'{n} {shapes[n]}' if n in shapes else n for n in names], most)}"
            for what, names, shapes in (
                ("missing in the file", self.missing, {}),
                ("left over in the file", self.left, {}),
                ("of another shape", list(self.differing), self.differing),
            )
            if names
        ]
        return "; ".join(parts)


@dataclass(frozen=True)
class Weights:
    """What `file` has for a model, which may be a part of it or more; `notes` then says, once it was put, what."""

    file: str
    tensors: Mapping[str, Tensor]
    partial: bool = False
    notes: list[str] = field(default_factory=list)

    def put(self, module: nn.Module, needless: Sequence[str] = ()) -> None:
        """Copy them into `module`; see the function `put`."""
        found = put(module, self.tensors, self.partial, needless)
        if not found.whole:
            names = _some(found.loaded, None)
            self.notes.append(
                f"the model starts from {len(found.loaded)} tensors of {self.file}: {names}; {found.words()}"
            )


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is run.

    Raises
    ------
    InputError
        It cannot be read, or has no tensors by name.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors have dozens of error types
        more = isinstance(error, UnpicklingError)  # whose own text tells how to run what is in the file
        why = "it has more than tensors, such as a whole module, or is damaged" if more else reason(error)
        message = f"cannot be read as weights alone ({type(error).__name__}: {why})"
        raise InputError(f"{message}; allowed: torch.save(module.state_dict(), ...), .safetensors", "init") from error
    for key in _WRAPPED:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not all(isinstance(v, Tensor) for v in saved.values()):
        odd = next((k for k, v in saved.items() if not isinstance(v, Tensor)), None) if _mapping(saved) else None
        found = type(saved).__name__ if odd is None else f"'{odd}', which is {type(saved[odd]).__name__}"
        raise InputError(f"{file} has {found}; allowed: a state_dict, tensors by name", key="init")
    return {str(name): v for name, v in saved.items()}


@torch.no_grad()
def put(module: nn.Module, weights: Mapping[str, Tensor], partial: bool, needless: Sequence[str] = ()) -> Loaded:
    """Copy `weights` into the parameters and buffers of `module`, in their types.

    Of a parameter with several names (shared by sub-modules) one is enough.

    Parameters
    ----------
    needless : names that may be in `weights` and are of no use.

    Raises
    ------
    InputError
        A name is missing or left over, or a shape differs, and the load is not `partial`; nothing fits; a number is
        not finite; or two names of one parameter have different numbers.
    """
    own: dict[str, Tensor] = dict(module.state_dict(keep_vars=True))
    own |= {n: b for n, b in module.named_buffers() if n in weights}  # also what a state_dict leaves out
    for n in own:
        if n in weights and weights[n].is_nested:  # which has no shape to compare
            raise InputError(f"'{n}' is a nested tensor; allowed: dense tensors of numbers", key="init")
    fits = [n for n, v in own.items() if n in weights and weights[n].shape == v.shape]
    given = {id(own[n]) for n in fits}
    differing = {
        n: f"{list(weights[n].shape)} instead of {list(v.shape)}"
        for n, v in own.items()
        if n in weights and weights[n].shape != v.shape
    }
    missing = [n for n, v in own.items() if n not in weights and id(v) not in given]
    found = Loaded(fits, missing, [n for n in weights if n not in own and n not in needless], differing)
    if not fits:
        some = _some(list(weights), _NAMED)
        raise InputError(f"no tensor of it fits this model; it has {some}; allowed: {_some(list(own), _NAMED)}", "init")
    if not (found.whole or partial):
        message = f"does not fit this model: {found.words(_NAMED)}"
        raise InputError(f"{message}; allowed: its names and shapes, or {{file: ..., partial: true}}", key="init")
    done: dict[int, str] = {}
    for name in fits:
        value, place = weights[name], own[name]
        if (why := _unfit(value, place)) is not None:
            raise InputError(f"'{name}' {why}", key="init")
        first = done.setdefault(id(place), name)
        if first != name and not torch.equal(weights[first], value):
            message = f"'{first}' and '{name}' differ, which are one parameter of the model"
            raise InputError(f"{message}; allowed: the same numbers", key="init")
        place.copy_(value)
    return found


def _unfit(value: Tensor, place: Tensor) -> str | None:
    """Why a tensor of a file is none for this place of a module; None where it is."""
    kind = str(value.dtype).removeprefix("torch.")
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        what = "meta" if value.is_meta else kind if value.is_quantized else str(value.layout).removeprefix("torch.")
        return f"is a tensor of another form ({what}); allowed: dense tensors of numbers"
    if value.is_complex() != place.is_complex() or (place.is_floating_point() and not value.is_floating_point()):
        own = str(place.dtype).removeprefix("torch.")
        return f"is {kind} in the file, and {own} in the model; allowed: floating-point numbers, not quantised ones"
    read = value if value.dtype in _FLOATS or not value.is_floating_point() else value.float()  # float8 has no sums
    if not read.isfinite().all():
        return "has numbers that are not real and finite; allowed: finite ones"
    if not read.to(place.dtype).isfinite().all():
        own = str(place.dtype).removeprefix("torch.")
        return f"has numbers that {own} cannot hold (up to {float(read.abs().max()):.3g}); allowed: finite ones"
    if not place.is_floating_point() and not place.is_complex():
        if read.is_floating_point() and (read.frac() != 0).any():
            return "has numbers that are not whole; allowed: whole ones, as the model has them there"
        if (read.to(place.dtype).to(read.dtype) != read).any():
            own = str(place.dtype).removeprefix("torch.")
            return f"has numbers that {own} cannot hold (from {read.min():g} to {read.max():g}); allowed: those it can"
    return None


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _source(path: Path) -> Path:
    """The file that stands for a path: of a run directory that of its parameters."""
    return path / RUN if path.is_dir() else path


def _digest(file: Path) -> str:
    about = file.stat()
    return _digest_of(file, (about.st_size, about.st_mtime_ns))


@cache
def _digest_of(file: Path, _state: tuple[int, int]) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _some(names: Sequence[str], most: int | None) -> str:
    more = 0 if most is None else len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
