"""Texts as data: columns of CSV and parquet files or of the hub, tokenised, and Shakespeare as LEAF divides him."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError, unknown
from fedsim.core.registry import register
from fedsim.core.tokens import IGNORED, Tokens
from fedsim.core.types import Count
from fedsim.data import files
from fedsim.data.cache import cached
from fedsim.data.labels import Classes, Value, number_labels, plain
from fedsim.data.parquet import Source, sources
from fedsim.data.rows import Rows
from fedsim.data.sets import Categories, Columned
from fedsim.data.splits import Split
from fedsim.data.tables import Missing, read_csv
from fedsim.data.tokenizers import UNKNOWN, Tokenizer, make_tokenizer
from fedsim.data.windows import Predict, windows

_VERSION = 2
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")  # a number as it is written, of 64 bits
_AS_THEY_ARE = Missing(values=[])

LEAF = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The 80 characters of LEAF's Shakespeare, in the order of their ids."""


@dataclass(frozen=True)
class _Texts:
    """Columns of one split as lists of texts; `name` is for the errors, `classes` what the file says of its labels."""

    name: str
    columns: dict[str, list[str]]
    classes: list[str] | None = None


@register.dataset("text")
@dataclass(frozen=True, kw_only=True)
class Text(Columned):
    """Texts in a column of a CSV or parquet file, or of a set of the hub, as token ids.

    `path`: a .csv file, a parquet file or a folder of train*.parquet and test*.parquet; `hub`: a set of the hub
    instead. `text`: the column. `target`: the column with labels, or with the next token. `predict`: ``every``, the
    next token at every position; ``next``, the token after `context` ones; ``label``, the class in `target`; None:
    ``label`` where there is a `target`, else ``every``. `tokenizer`: ``char``, ``byte``, ``word``, or a
    ``pkg.mod:function`` from a text to ids. `tokens`: those of ``char`` and ``word`` in the order of their ids; None:
    those of the training texts. `vocabulary`: how many ``word`` keeps (10,000), or how many ids a function has;
    `padding`: the id that a function has for no token. `context`: tokens of a row. `stride`: tokens from one row of a
    text to the next; None: `context`.
    """

    path: str | None = None
    hub: str | None = None
    subset: str | None = None
    test_path: str | None = None
    text: str = "text"
    target: str | None = None
    predict: Predict | None = None
    tokenizer: str = "char"
    tokens: str | list[str] | None = None
    vocabulary: Annotated[int, Field(ge=3)] | None = None
    padding: Annotated[int, Field(ge=0)] | None = None
    context: Count = 80
    stride: Count | None = None
    classes: list[Value] | None = None
    separator: str = ","
    encoding: str = "utf-8"
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    limit: Count | None = None

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        if (self.path is None) == (self.hub is None):
            raise InputError("allowed: one of 'path' and 'hub'", key="path")
        predict: Predict = self.predict or ("every" if self.target is None else "label")
        if predict == "label" and self.target is None:
            raise InputError("missing; allowed: the column with the labels", key="target")
        if predict == "every" and self.target is not None:
            raise InputError(f"found {self.target!r}, but every next token is in the text; leave it out", key="target")
        if predict != "label" and self.classes is not None:
            raise InputError("found classes, but tokens are predicted; allowed: with predict label", key="classes")
        if self.stride is not None and (predict == "label" or (predict == "next" and self.target is not None)):
            raise InputError(f"found {self.stride}, but a text is one row; leave it out", key="stride")
        wanted = [("text", self.text)]
        wanted += [] if self.target is None else [("target", self.target)]
        wanted += [] if ids is None else [("partition.partition_by", ids)]
        found = self._sources(base)
        settings = {
            k: v for k, v in vars(self).items() if k not in ("path", "hub", "test_path", "limit", "test_fraction")
        }

        def make() -> dict[str, Array]:
            return _rows([_read(f, wanted, self.separator, self.encoding) for f in found], self, predict, None, ids)

        key = [_VERSION, "text", [_identity(f) for f in found], {**settings, "predict": predict}, ids]
        arrays = make() if ":" in self.tokenizer else cached(key, make)
        name = self.hub or Path(self.path or "").stem
        return _found(name, arrays, self.test_fraction, self.limit)

    def _sources(self, base: Path) -> list[Source | Path]:
        """What to read, training first."""
        if self.hub is not None:
            if self.test_path is not None:
                raise InputError("found test_path with hub; allowed: with a .csv file", key="test_path")
            every = sources(None, base, self.hub, self.subset, ("train", "test"))
            splits: list[Source | Path] = [every["train"]]
            if self.test_fraction is None and every["test"].there:
                splits.append(every["test"])
            return splits
        assert self.path is not None
        found = _local(self.path, base, "path")
        if self.test_path is not None:
            found += _local(self.test_path, base, "test_path")
        if len(found) > 1 and self.test_fraction is not None:
            message = "found test_fraction, but the data have a test split; allowed: one of the two"
            raise InputError(message, key="test_fraction")
        return found


@register.dataset("shakespeare")
@dataclass(frozen=True, kw_only=True)
class Shakespeare(Columned):
    """LEAF's Shakespeare (hub name flwrlabs/shakespeare): 80 characters of a role, and the next one.

    `path`: a folder with train*.parquet (and test*.parquet), or the hub's shakespeare.csv. A role is a client where the
    scenario does not say otherwise. `predict`: ``next``, the character after 80; ``every``, the next one at each of the
    80 positions. Characters are LEAF's 80; others become ``<unk>``.
    """

    natural: ClassVar[str | None] = "character_id"

    path: str | None = None
    predict: Annotated[str, Field(pattern="^(next|every)$")] = "next"
    limit: Count | None = None

    def rows(self, base: Path, ids: str | None = None, categories: Categories | None = None) -> Rows:
        hub, predict = "flwrlabs/shakespeare", self.predict
        found: list[Source | Path] = list(sources(None, base, hub, None, ("train",)).values())
        if self.path is not None:
            found = _local(self.path, base, "path")
        wanted = [("path", "x"), ("path", "y"), *([("partition.partition_by", ids)] if ids is not None else [])]

        def make() -> dict[str, Array]:
            texts = [_read(f, wanted, ",", "utf-8") for f in found]
            if predict == "every":  # the next token of all, the last one's among them
                for split in texts:
                    split.columns["x"] = [a + b for a, b in zip(split.columns["x"], split.columns["y"], strict=True)]
            form = Text(path="", text="x", target=None if predict == "every" else "y", context=80, limit=self.limit)
            return _rows(texts, form, "every" if predict == "every" else "next", LEAF, ids)

        arrays = cached([_VERSION, "shakespeare", [_identity(f) for f in found], predict, ids], make)
        return _found("shakespeare", arrays, None, self.limit)


def _local(path: str, base: Path, key: str) -> list[Source | Path]:
    """A CSV file, or the splits of parquet files, training first."""
    found = files.find(path, base, key)
    if found.is_file() and found.suffix in (".csv", ".tsv", ".txt"):
        return [found]
    names = ("train", "test") if key == "path" else ("test",)
    return [Source(split, None, paths) for split, paths in files.parquet_files(found, names).items()]


def _identity(source: Source | Path) -> list[object]:
    if isinstance(source, Source):
        return list(source.identity)
    return [str(source), source.stat().st_size, source.stat().st_mtime_ns]


def _read(source: Source | Path, wanted: Sequence[tuple[str, str]], separator: str, encoding: str) -> _Texts:
    """Columns of texts; `wanted` has them with the keys that name them, the texts themselves first."""
    names = list(dict.fromkeys(column for _, column in wanted))
    if isinstance(source, Path):
        frame = read_csv(source, separator, encoding, None, names, _AS_THEY_ARE)
        have, title = [str(c) for c in frame.columns], str(source)
        for key, column in wanted:
            if column not in have:
                raise InputError(unknown(f"column of {source}", column, have), key=key)
        texts = wanted[0][1]  # of which an empty cell is one, too, as in a parquet file
        frame[texts] = frame[texts].fillna("")
        return _Texts(title, {c: _checked(frame[c].tolist(), c, title) for c in names})
    for key, column in wanted:
        source.require(column, key)
    known = {c: getattr(source.features[c], "names", None) for c in names}
    table = source.table(names)
    columns = {}
    for column in names:
        values, labels = table.column(column).to_pylist(), known[column]
        if labels:  # the hub's ClassLabel
            values = [labels[v] if isinstance(v, int) and 0 <= v < len(labels) else v for v in values]
        columns[column] = _checked(values, column, source.name, text=column == wanted[0][1])
    return _Texts(source.name, columns, next((known[c] for key, c in wanted if key == "target"), None))


def _checked(values: Sequence[object], column: str, name: str, text: bool = False) -> list[str]:
    """Texts without missing ones; of ids and labels also numbers, as they are written."""
    for row, value in enumerate(values):
        if value is None or value != value:
            raise InputError(f"column {column!r} of {name} has no value in row {row}; allowed: texts", key="text")
        if text and not isinstance(value, str):
            kind = type(value).__name__
            raise InputError(f"column {column!r} of {name} holds {kind} in row {row}; allowed: texts", key="text")
    return [str(v) for v in values]


def _rows(splits: list[_Texts], form: Text, predict: Predict, tokens: str | None, ids: str | None) -> dict[str, Array]:
    """What is kept in the cache: rows, targets and ids of each split, and how texts were tokenised, as JSON."""
    texts = [s.columns[form.text] for s in splits]
    tokenizer = make_tokenizer(form.tokenizer, texts[0], tokens or form.tokens, form.vocabulary, form.padding)
    arrays: dict[str, Array] = {}
    notes: list[str] = []
    ys: list[Array] = []
    for split, part in zip(splits, ("", "test_"), strict=False):
        encoded = tokenizer.encoded(split.columns[form.text])
        alone = predict == "next" and form.target is not None
        cut = windows(encoded, "label" if alone else predict, form.context, form.stride or form.context,
                      tokenizer.padding)  # fmt: skip
        if cut.short is not None and tokenizer.padding is None:
            row = int(cut.text[cut.short])
            message = f"the text of row {row} of {split.name} is shorter than the context of {form.context}"
            raise InputError(f"{message}; allowed: the id that pads it, or a smaller context", key="padding")
        if not len(cut.x):
            raise InputError(f"no text of {split.name} has two tokens, so that nothing can be predicted", key="text")
        left_out = len(encoded.lengths) - len(np.unique(cut.text))
        if left_out:
            notes.append(f"{left_out} texts of {Path(split.name).name} have fewer than two tokens and are left out")
        if predict == "label" and (empty := int((encoded.lengths == 0).sum())):
            notes.append(
                f"{empty} texts of {Path(split.name).name} have no token, so that their rows are padding alone"
            )
        if tokenizer.unknown is not None and (many := int((encoded.ids == tokenizer.unknown).sum())):
            notes.append(f"{many:,} of {len(encoded.ids):,} tokens of {Path(split.name).name} are {UNKNOWN}")
        arrays[f"{part}x"] = cut.x
        if alone:
            assert form.target is not None
            ys.append(_single(tokenizer, split, form.target))
        else:
            ys.append(_label(split, form) if cut.y is None else cut.y)
        if ids is not None:
            arrays[f"{part}ids"] = plain(np.asarray(split.columns[ids]))[cut.text]
    labels = {}
    if predict == "label":
        ys, made_classes = _numbered(ys, form, splits[0].classes)
        labels = {"values": list(made_classes.values), "names": list(made_classes.names), "found": made_classes.found}
    for y, part in zip(ys, ("", "test_"), strict=False):
        arrays[f"{part}y"] = y
    about = {
        "predict": predict, "size": tokenizer.size, "tokenizer": {**tokenizer.record(), "context": form.context},
        "labels": labels, "notes": notes, "target": form.target,
    }  # fmt: skip
    return {**arrays, "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}


def _label(split: _Texts, form: Text) -> Array:
    assert form.target is not None
    return np.asarray(split.columns[form.target])


def _numbered(ys: list[Array], form: Text, known: Sequence[str] | None) -> tuple[list[Array], Classes]:
    """Labels as numbers; whole numbers are sorted as such, and the classes of a file keep its order."""
    if known is None and all(_WHOLE.fullmatch(v) for y in ys for v in np.unique(y).tolist()):
        ys = [y.astype(np.int64) for y in ys]
    try:
        numbers, classes = number_labels(ys, order=form.classes or known)
    except InputError as error:
        raise error if error.problems[0].key else InputError(error.problems[0].message, key="target") from None
    return list(numbers), classes


def _single(tokenizer: Tokenizer, split: _Texts, target: str) -> Array:
    """The one token of each text in a column."""
    found = tokenizer.encoded(split.columns[target])
    if (found.lengths != 1).any():
        row = int(np.argmax(found.lengths != 1))
        text = split.columns[target][row]
        message = f"found {text!r} in row {row} of {split.name}, which is {found.lengths[row]} tokens"
        raise InputError(f"{message}; allowed: the next token alone", key="target")
    return found.ids.astype(np.int64)


def _found(name: str, arrays: dict[str, Array], fraction: float | None, limit: int | None) -> Rows:
    """The rows of one split or of two, whose targets are numbers."""
    about = json.loads(arrays["about"].tobytes())
    size, predict, how = about["size"], about["predict"], about["tokenizer"]
    language = predict != "label"
    if language:
        names = how["tokens"] or [str(i) for i in range(size)]
        labels = Classes(tuple(names), tuple(n if n.strip() else repr(n) for n in names), found=how["found"])
    else:
        labels = Classes(tuple(about["labels"]["values"]), tuple(about["labels"]["names"]), about["labels"]["found"])
    every = [arrays[f"{p}y"] for p in ("", "test_") if f"{p}y" in arrays]
    positions = every[0].shape[1] if every[0].ndim > 1 else None
    ragged = any(bool((y == IGNORED).any()) for y in every)
    tokens = Tokens(size, language, positions, ragged)
    splits = [
        Split(arrays[f"{p}x"], arrays[f"{p}y"].astype(np.int64), len(labels), labels, arrays.get(f"{p}ids"),
              target=(about["target"],) if about["target"] else (), notes=tuple(about["notes"]), tokens=tokens)
        for p in ("", "test_")
        if f"{p}x" in arrays
    ]  # fmt: skip
    return Rows(
        name=name, train=splits[0], test=splits[1] if len(splits) > 1 else None, limit=limit, ready=True,
        fraction=fraction, about_input={"vocabulary": size, "tokenizer": {**how, "predict": predict}},
    )  # fmt: skip
