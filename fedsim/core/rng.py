"""Random numbers as a pure function of a key: (seed, purpose, client, round, step, ...).

Nothing here has state. A draw depends on its key alone, so results do not depend on how clients are sharded, chunked or
ordered, nor on what was drawn before; resuming a run needs no generator to be restored. Keys are 64-bit and are mixed
with the SplitMix64 finalizer (Steele, Lea & Flood 2014), vectorised over numpy arrays.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.core.arrays import Floats, Ints

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 8
_AHEAD = 3000  # places outside of sets that are permuted with those inside: what two passes over few of them take
_SALTS = np.arange(3 * _FEISTEL_ROUNDS, dtype=np.uint64) * _GOLDEN
_SMALL = np.uint64(
    32
)  # below this size 8 rounds leave some orders of the set visibly rarer; three times as many do not


def _mix(z: Keys, spare: Keys | None = None) -> Keys:
    """SplitMix64's finalizer: a bijection of 64-bit words whose every output bit depends on every input bit.

    It overwrites `z` and, where there is one, the array `spare` of its form: memory that is new each time costs large
    draws more than the arithmetic.
    """
    for shift, factor in ((np.uint64(30), _M1), (np.uint64(27), _M2), (np.uint64(31), None)):
        z ^= z >> shift if spare is None else np.right_shift(z, shift, out=spare)
        if factor is not None:
            z *= factor
    return z


def key(seed: int, purpose: str, *parts: Any) -> Keys:
    """Keys for `purpose`, one per element of the broadcast `parts` (client, round, step, ...; integers or arrays).

    The order of the parts matters; ``key(s, p, a, b) == fold(key(s, p, a), b)``.

    Raises
    ------
    TypeError
        A part is no integer and no array of integers: words belong into `purpose`.
    """
    start = np.array([(seed % 2**64) ^ (zlib.crc32(purpose.encode()) << 20)], dtype=np.uint64)
    return fold(_mix(start + _GOLDEN), *parts)


def fold(keys: Keys, *parts: Any) -> Keys:
    """Derive further keys from `keys` by one or more integer parts (arrays broadcast)."""
    with np.errstate(over="ignore"):
        for part in parts:
            if isinstance(part, (str, bytes)) or part is None:
                raise TypeError(f"found the part {part!r} of a key, allowed: whole numbers; words go into the purpose")
            word = np.asarray(part).astype(np.int64).view(np.uint64) if np.ndim(part) else np.uint64(int(part) % 2**64)
            mixed = keys ^ word
            mixed *= _M2
            mixed += _GOLDEN
            keys = _mix(mixed)
    return keys


def uniform(keys: Keys) -> Floats:
    """One number in [0, 1) per key, 53 bits."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def symmetric(keys: Keys, count: int) -> npt.NDArray[np.int16]:
    """`count` whole numbers in [-32768, 32767] of each key, ``[..., count]``: four of each 64-bit word that it makes.

    With 0.5 added they are evenly spread around 0; where 16 bits are enough, that is a quarter of the work.
    """
    words = fold(keys[..., None], np.arange(-(-count // 4)))
    return words.astype("<u8", copy=False).view("<i2")[..., :count]


def normal(keys: Keys) -> Floats:
    """One standard normal number per key (Box-Muller)."""
    u = 1.0 - uniform(fold(keys, 1))
    return np.asarray(np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * uniform(fold(keys, 2))))


def integers(keys: Keys, high: Any) -> Ints:
    """One integer in [0, high) per key; `high` below 2**32 may be an array."""
    with np.errstate(over="ignore"):
        return (((keys >> np.uint64(32)) * np.asarray(high).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def permute(keys: Keys, positions: Ints, size: Any) -> Ints:
    """Where a keyed random permutation of ``range(size)`` sends `positions` (all arrays broadcast; positions < size).

    A generalised Feistel network over Z_a x Z_b with ``a * b >= size`` and cycle walking (Black & Rogaway 2002):
    shuffles and draws without replacement cost one evaluation per element drawn, whatever the size of the set, and need
    no memory.
    """
    size, start = np.asarray(size, dtype=np.uint64), np.asarray(positions).astype(np.uint64)
    a = np.maximum(np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64), np.uint64(1))
    b = np.maximum((size + a - np.uint64(1)) // a, np.uint64(1))
    shape = np.broadcast_shapes(np.shape(keys), start.shape, size.shape)
    sets, spare = np.broadcast_shapes(np.shape(keys), size.shape), int((a * b - size).max(initial=0))
    if sets and sets[-1] == 1 and math.prod(sets) * spare <= _AHEAD:
        return _with_spare(keys, start, a, b, size, shape, spare).astype(np.int64)
    value = _shuffle(keys, start, a, b, size, shape)
    outside = value >= size
    if outside.any():
        keys, size, a, b = (np.broadcast_to(v, shape) for v in (keys, size, a, b))
    while outside.any():  # cycle walking: apply again until back inside; each pass leaves only a small share
        own = value[outside]
        value[outside] = _shuffle(keys[outside], own, a[outside], b[outside], size[outside], own.shape)
        outside = value >= size
    return value.astype(np.int64)


def _with_spare(keys: Keys, start: Keys, a: Keys, b: Keys, size: Keys, shape: tuple[int, ...], spare: int) -> Keys:
    """The same where the last axis has positions of one set: where its at most `spare` places outside are sent is
    found in the same pass, for a pass over a few numbers takes as long as one over hundreds."""
    ends = np.minimum(size + np.arange(spare, dtype=np.uint64), a * b - np.uint64(1))
    both = np.concatenate([np.broadcast_to(start, shape), np.broadcast_to(ends, (*shape[:-1], spare))], axis=-1)
    value = _shuffle(keys, both, a, b, size, both.shape)
    value, sent = value[..., : shape[-1]], value[..., shape[-1] :]
    size = np.broadcast_to(size, shape)
    while spare and (outside := value >= size).any():
        at = outside.nonzero()
        value[at] = sent[(*at[:-1], value[at] - size[at])]
    return value


def _shuffle(keys: Keys, value: Keys, a: Keys, b: Keys, size: Keys, shape: tuple[int, ...]) -> Keys:
    """Once through the network; all but the result ``[*shape]`` may be of fewer axes, or of length 1 along some."""
    value = _feistel(keys, value, a, b, range(_FEISTEL_ROUNDS), shape)
    if (size < _SMALL).any():
        small = np.broadcast_to(size < _SMALL, shape)
        keys, a, b, own = *(np.broadcast_to(v, shape)[small] for v in (keys, a, b)), value[small]
        value[small] = _feistel(keys, own, a, b, range(_FEISTEL_ROUNDS, 3 * _FEISTEL_ROUNDS), own.shape)
    return value


def _feistel(keys: Keys, value: Keys, a: Keys, b: Keys, rounds: range, shape: tuple[int, ...]) -> Keys:
    left = value // b
    right = value - left * b
    left, right = (np.broadcast_to(v, shape).copy() for v in (left, right))
    word, spare = np.empty(shape, dtype=np.uint64), np.empty(shape, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for i in rounds:
            salt = keys + _SALTS[i]
            changed, other, high = (left, right, a) if i % 2 == 0 else (right, left, b)
            np.multiply(other, _M1, out=word)
            word ^= salt
            changed += _scale(_mix(word, spare), high)
            np.subtract(changed, high, out=spare)  # a remainder, without the slow division: below 0 is a large number
            np.minimum(changed, spare, out=changed)
        left *= b
        left += right
    return left


def _scale(words: Keys, high: Keys) -> Keys:
    """Words as numbers below `high`, in their own place."""
    words >>= np.uint64(32)
    words *= high
    words >>= np.uint64(32)
    return words


def generator(seed: int, purpose: str, *parts: int) -> np.random.Generator:
    """A numpy generator keyed the same way, for one-off draws with rich distributions (partitions, graphs, cohorts)."""
    words = key(seed, purpose, *parts)
    return np.random.Generator(np.random.Philox(key=int(words[0])))


_MASK = 2**64 - 1


def scalar_key(seed: int, purpose: str) -> int:
    """`key` of a purpose as a Python integer, for `scalar_uniform`."""
    return int(key(seed, purpose)[0])


def scalar_uniform(word: int, *parts: int) -> float:
    """``uniform(fold(key, *parts))`` for one element, in plain integers: much faster than arrays of length one."""
    for part in parts:
        word = ((word ^ (part & _MASK)) * 0x94D049BB133111EB + 0x9E3779B97F4A7C15) & _MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
        word ^= word >> 31
    return float(word >> 11) * 2.0**-53
