"""From texts to token ids: by characters, by bytes, by words, or by somebody's own function.

Ids are 0, 1, ... in the order of the tokens; after them come what stands for a token that is not among them, ``<unk>``,
and for no token, ``<pad>``, where a tokenizer has these.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedsim.core.arrays import Array, Ints
from fedsim.core.errors import InputError, unknown
from fedsim.core.registry import load_object
from fedsim.core.tokens import compact

UNKNOWN, PADDING = "<unk>", "<pad>"
WORDS = re.compile(r"\w+|[^\w\s]")
MOST_WORDS = 10_000
_BATCH = 50_000  # texts that are encoded at a time


@dataclass(frozen=True)
class Encoded:
    """Texts as ids: those of text i are ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: Array
    offsets: Ints

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)


class Tokenizer(ABC):
    """Makes ids of texts.

    Attributes
    ----------
    tokens
        What each id stands for, in their order; None: nobody says.
    size
        How many ids there are, ``<unk>`` and ``<pad>`` among them.
    padding, unknown
        Their ids; None: there is no such id.
    found
        Whether the tokens are those of the training texts, which other texts may not repeat.
    """

    name: ClassVar[str]

    tokens: tuple[str, ...] | None = None
    size: int
    padding: int | None = None
    unknown: int | None = None
    found: bool = False

    @abstractmethod
    def numbers(self, texts: Sequence[str], first: int) -> Iterable[Array]:
        """The ids of each text; text 0 is row `first` of the data, for the errors."""

    def encoded(self, texts: Sequence[str]) -> Encoded:
        """All texts as ids."""
        parts: list[Array] = []
        lengths: list[int] = []
        kind = compact(np.array([0, self.size - 1])).dtype
        for start in range(0, len(texts), _BATCH):
            rows = list(self.numbers(texts[start : start + _BATCH], start))
            lengths += [len(r) for r in rows]
            parts.append(np.concatenate(rows).astype(kind))
        ids = np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
        return Encoded(ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def record(self) -> dict[str, Any]:
        """JSON."""
        tokens = None if self.tokens is None else list(self.tokens)
        return {
            "name": self.name, "tokens": tokens, "padding": self.padding, "unknown": self.unknown, "found": self.found,
        }  # fmt: skip

    def _listed(self, tokens: Sequence[str]) -> None:
        """These tokens, then the two others."""
        self.tokens = (*tokens, UNKNOWN, PADDING)
        self.size, self.unknown, self.padding = len(self.tokens), len(tokens), len(tokens) + 1


class Characters(Tokenizer):
    """One id for each character of `known`, or of the training texts."""

    name = "char"

    def __init__(self, texts: Iterable[str], known: Sequence[str] | None) -> None:
        self.found = known is None
        self._listed(sorted(set().union(*map(set, texts))) if known is None else known)
        codes = [ord(c) for c in (self.tokens or ())[:-2]]
        self._table = np.full(max(codes, default=0) + 2, self.unknown, dtype=np.int64)
        self._table[codes] = np.arange(len(codes))

    def numbers(self, texts: Sequence[str], first: int) -> Iterable[Array]:
        flat = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._table[np.minimum(flat, len(self._table) - 1)]
        return np.split(ids, np.cumsum([len(t) for t in texts])[:-1])


class Bytes(Tokenizer):
    """The bytes of UTF-8."""

    name = "byte"

    def __init__(self) -> None:
        self.size, self.padding = 257, 256
        self.tokens = (*map(str, range(256)), PADDING)

    def numbers(self, texts: Sequence[str], first: int) -> Iterable[Array]:
        return (np.frombuffer(t.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) for t in texts)


class Words(Tokenizer):
    """Words and punctuation marks in lower case: the `most` frequent of the training texts, or those in `known`."""

    name = "word"

    def __init__(self, texts: Iterable[str], known: Sequence[str] | None, most: int) -> None:
        self.found = known is None
        if known is None:
            counts = Counter(word for text in texts for word in WORDS.findall(text.lower()))
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            known = [word for word, _ in ranked[: max(most - 2, 0)]]
        self._listed(known)
        self._place = {word: i for i, word in enumerate(known)}

    def numbers(self, texts: Sequence[str], first: int) -> Iterable[Array]:
        place, unknown_id = self._place, self.unknown
        for text in texts:
            yield np.array([place.get(word, unknown_id) for word in WORDS.findall(text.lower())], dtype=np.int64)


class OwnTokens(Tokenizer):
    """What somebody's own function of a text gives: a sequence of ids below `size`."""

    name = "own"

    def __init__(self, name: str, function: Callable[[str], Sequence[int]], size: int, padding: int | None) -> None:
        self.title, self.function, self.size, self.padding = name, function, size, padding

    def numbers(self, texts: Sequence[str], first: int) -> Iterable[Array]:
        for row, text in enumerate(texts, first):
            try:
                ids = np.asarray(list(self.function(text)))
            except Exception as error:  # somebody's own code may fail in any way
                message = f"'{self.title}' failed on row {row}: {type(error).__name__}: {error}"
                raise InputError(message, key="tokenizer") from error
            if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
                raise InputError(f"'{self.title}' gave {ids.dtype} for row {row}; allowed: whole numbers", "tokenizer")
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.size:
                wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
                message = f"'{self.title}' gave the id {wrong} for row {row}; allowed: 0 to {self.size - 1}"
                raise InputError(message, key="vocabulary")
            yield ids.astype(np.int64)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "name": self.title}


def _listed(known: str | Sequence[str], name: str) -> list[str]:
    """Tokens that somebody lists, which are such as the tokenizer makes."""
    if name == "word" and isinstance(known, str):
        raise InputError(f"found the text {known[:40]!r}; allowed: a list of words", key="tokens")
    listed = list(known)
    if not listed:
        raise InputError("found none; allowed: one or more", key="tokens")
    for i, token in enumerate(listed):
        if token in (UNKNOWN, PADDING):
            raise InputError(f"found {token!r}; allowed: other tokens, it comes by itself", key="tokens")
        if name == "char" and len(token) != 1:
            raise InputError(f"found {token!r}; allowed: single characters", key="tokens")
        if name == "word" and WORDS.findall(token.lower()) != [token]:
            message = f"found {token!r}, which no text is divided into; allowed: a word in lower case, or a mark"
            raise InputError(message, key="tokens")
        if token in listed[:i]:
            raise InputError(f"found {token!r} twice; allowed: different ones", key="tokens")
    return listed


def make_tokenizer(
    name: str, texts: Sequence[str], known: str | Sequence[str] | None, most: int | None, padding: int | None
) -> Tokenizer:
    """The tokenizer `name`: ``char``, ``byte``, ``word`` or ``pkg.mod:function``.

    Parameters
    ----------
    texts
        Those of the training file, for tokens that are found.
    known
        The tokens in the order of their ids; None: those found.
    most
        Of words, the most frequent ones that are kept, ``<unk>`` and ``<pad>`` among them; of a function, how many ids
        it has.
    padding
        Of a function, the id that stands for no token.

    Raises
    ------
    InputError
        There is no such tokenizer, or it has no such key.
    """
    own = ":" in name
    if not own and name not in ("char", "byte", "word"):
        raise InputError(unknown("tokenizer", name, ["char", "byte", "word"]) + ", pkg.mod:function", key="tokenizer")
    for key, value, which in (
        ("tokens", known, ("char", "word")), ("vocabulary", most, ("word", "own")), ("padding", padding, ("own",)),
    ):  # fmt: skip
        if value is not None and ("own" if own else name) not in which:
            kinds = " and ".join("a function" if k == "own" else k for k in which)
            raise InputError(f"found {value!r} with the tokenizer '{name}'; allowed: with {kinds}", key=key)
    if known is not None:
        known = _listed(known, name)
    if name == "char":
        return Characters(texts, known)
    if name == "byte":
        return Bytes()
    if name == "word":
        return Words(texts, known, most or MOST_WORDS)
    if most is None:
        raise InputError(f"missing; allowed: how many ids '{name}' has", key="vocabulary")
    if padding is not None and not 0 <= padding < most:
        raise InputError(f"found {padding}; allowed: 0 to {most - 1}", key="padding")
    try:
        function = load_object(name)
    except InputError as error:
        raise error.under("tokenizer") from None
    if not callable(function):
        raise InputError(f"'{name}' is no function of a text", key="tokenizer")
    return OwnTokens(name, function, most, padding)
