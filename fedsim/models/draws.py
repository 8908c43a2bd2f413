"""What a module draws while it computes, from keys instead of from torch's generator.

Dropout of any kind (``nn.Dropout`` and its siblings, ``torch.nn.functional``, inside attention and recurrent layers,
stochastic depth) ends in a few operators that draw. Inside `Keyed` they draw from a key and their place among the draws
of the forward pass, so that a mask is the same for a client alone, in a shard, after a resume and on any device.

Under ``vmap`` operations see all clients at once, whose axis comes first: each part of a draw is of its client's key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.rng import Keys

_aten = torch.ops.aten
_WORDS = 2.0**32


_GLOBAL = threading.RLock()


@contextmanager
def global_draws() -> Iterator[None]:
    """Draw from PyTorch's global generator of the CPU, which is as before afterwards; one thread at a time."""
    with _GLOBAL, torch.random.fork_rng(devices=[]):
        yield


class Keyed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, draws of tensors in this thread depend on a key and their order alone.

    Parameters
    ----------
    key : a number, or ``[m]`` of so many rows that ``vmap`` computes together (with ``randomness="different"``): a
        tensor's first axis is then theirs.

    Raises
    ------
    InputError
        An operator draws that is not known here, or from a generator of the module's own.
    """

    def __init__(self, key: int | Keys) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.draws = np.asarray([key] if isinstance(key, int) else key, dtype=np.uint64), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or _drops_nothing(func, args, named):
            return func(*args, **named)
        draw = _DRAWS.get(func)
        if draw is None or named.pop("generator", None) is not None:
            raise InputError(
                f"the module draws with {func}; allowed: dropout, and torch's bernoulli, rand, randn, normal_ and "
                "uniform_, without a generator of its own",
                key="name",
            )
        self.draws += 1
        return draw(rng.fold(self.keys, self.draws), *args, **named)


def _drops_nothing(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether an operator that could drop (attention, a recurrent layer in one) is told not to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            given = args[place] if place < len(args) else named.get(argument.name, argument.default_value)
            return not given
    return False


def _fill(out: Tensor, values: Any) -> Tensor:
    return out.copy_(torch.from_numpy(values).view(out.shape))


def _each(keys: Keys, out: Tensor, make: Callable[[np.random.Philox, int], Any], dtype: type) -> Any:
    """Numbers for `out` ``[k, ...]``, as many of each of the k keys: ``[k, numbers]``."""
    made: Any = np.empty((len(keys), out.numel() // len(keys)), dtype)
    for row, key in zip(made, keys.tolist(), strict=True):
        row[:] = make(np.random.Philox(key=key), row.size)
    return made


def _kept(keys: Keys, out: Tensor, p: float) -> Tensor:
    """1 with probability `p`, else 0: 32 bits a number."""
    if p >= 1:
        return out.fill_(1)
    words = _each(keys, out, lambda bits, n: bits.random_raw(-(-n // 2)).view(np.uint32)[:n], np.uint32)
    return _fill(out, words < round(p * _WORDS))


def _uniforms(keys: Keys, out: Tensor) -> Tensor:
    return _fill(out, _each(keys, out, lambda bits, n: np.random.Generator(bits).random(n), np.float64))


def _bernoulli_(keys: Keys, out: Tensor, p: float = 0.5) -> Tensor:
    return _kept(keys, out, p)


def _bernoulli_tensor_(keys: Keys, out: Tensor, p: Tensor) -> Tensor:
    return out.copy_(_uniforms(keys, torch.empty(out.shape, dtype=torch.float64, device=out.device)) < p)


def _bernoulli_p(keys: Keys, like: Tensor, p: float) -> Tensor:
    return _kept(keys, torch.empty_like(like), p)


def _bernoulli(keys: Keys, p: Tensor) -> Tensor:
    return _bernoulli_tensor_(keys, torch.empty_like(p), p)


def _native_dropout(keys: Keys, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    if train is False:
        return x.clone(), mask.fill_(True)
    _kept(keys, mask, 1 - p)
    return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask


def _rand(keys: Keys, size: Sequence[int], **how: Any) -> Tensor:
    return _uniforms(keys, torch.empty(size, **how))


def _rand_like(keys: Keys, like: Tensor, **how: Any) -> Tensor:
    return _uniforms(keys, torch.empty_like(like, **how))


def _randn(keys: Keys, size: Sequence[int], **how: Any) -> Tensor:
    return _normal_(keys, torch.empty(size, **how))


def _randn_like(keys: Keys, like: Tensor, **how: Any) -> Tensor:
    return _normal_(keys, torch.empty_like(like, **how))


def _uniform_(keys: Keys, out: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return _uniforms(keys, out).mul_(high - low).add_(low)


def _normal_(keys: Keys, out: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    drawn = _each(keys, out, lambda bits, n: np.random.Generator(bits).standard_normal(n), np.float64)
    return _fill(out, mean + std * drawn)


_DRAWS: dict[Any, Callable[..., Any]] = {
    _aten.bernoulli_.float: _bernoulli_,
    _aten.bernoulli_.Tensor: _bernoulli_tensor_,
    _aten.bernoulli.p: _bernoulli_p,
    _aten.bernoulli.default: _bernoulli,
    _aten.native_dropout.default: _native_dropout,
    _aten.rand.default: _rand,
    _aten.rand_like.default: _rand_like,
    _aten.randn.default: _randn,
    _aten.randn_like.default: _randn_like,
    _aten.uniform_.default: _uniform_,
    _aten.normal_.default: _normal_,
}
