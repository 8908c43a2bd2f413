"""Tables: which columns are features, target and ids, what counts as missing, and which cell cannot be used.

A table's features are float32 ``[N, columns]``: numbers as they are, categories by number, NaN where a value is
missing; `splits` fills, spreads and scales them once the test rows are held out.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError, unknown
from fedsim.data.labels import plain, shown
from fedsim.data.splits import Action, Column, Split, unknown_categories

if TYPE_CHECKING:
    import pandas

_NAMELESS = re.compile(r"Unnamed: \d+|__index_level_\d+__|")
_NUMBERED = re.compile(r"(.+)\.\d+")
_MOST_CATEGORIES = 10_000


class Missing(BaseModel):
    """What counts as missing and what is done about it.

    `values`: the texts that stand for a missing value, besides the empty cell (default: pandas' list: NA, NaN, null,
    None, n/a, ...). `action`: ``refuse`` the file, ``drop`` the rows, fill with the training rows' ``mean`` (of
    categories the most frequent one) or ``most_frequent`` value. A missing target is never filled.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    action: Action = "refuse"
    values: list[str] | None = None


REFUSE = Missing()


@dataclass(frozen=True)
class Wanted:
    """Which columns are what, and the scenario's keys that say so.

    Parameters
    ----------
    features
        None: all that are nothing else.
    target
        One column, or several: one-hot columns, or several targets of a regression.
    ids
        The column that says whose row it is.
    keys
        The scenario's keys of features and target, for the errors.
    known
        The values of categorical columns, where they do not follow from the training table: others are refused there.
    """

    features: Sequence[str] | None
    target: str | Sequence[str]
    keys: tuple[str, str] = ("features", "target")
    categorical: Sequence[str] = ()
    missing: Missing = REFUSE
    ids: str | None = None
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        return [self.target] if isinstance(self.target, str) else list(self.target)

    def chosen(self, columns: Sequence[str], name: str) -> list[str]:
        """The feature columns among `columns`, and that all others exist."""
        for target in self.targets:
            if target not in columns:
                raise InputError(unknown(f"column of {name}", target, columns), key=self.keys[1])
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError(f"found {self.targets}; allowed: one or several different columns", key=self.keys[1])
        if self.ids is not None and (self.ids not in columns or self.ids in self.targets):
            allowed = [c for c in columns if c not in self.targets]
            raise InputError(unknown(f"column of {name}", self.ids, allowed), key="partition.partition_by")
        rest = [c for c in columns if c not in self.targets]
        if self.features is None:
            chosen = [c for c in rest if c != self.ids]
            if nameless := [c for c in chosen if _NAMELESS.fullmatch(c)]:
                raise InputError(
                    f"column {nameless[0]!r} of {name} has no name of its own: it looks like row numbers that pandas "
                    f"wrote; write the file with index=False, or name the columns to use with '{self.keys[0]}:'",
                    key=self.keys[0],
                )
        else:
            chosen = list(self.features)
        for column in chosen:
            if column not in rest:
                raise InputError(unknown(f"feature column of {name}", column, rest), key=self.keys[0])
        if not chosen:
            raise InputError(f"{name} has no feature columns; at least 1 is needed", key=self.keys[0])
        for column in self.categorical:
            if column not in chosen:
                raise InputError(unknown(f"feature column of {name}", column, chosen), key="categorical")
        return chosen


def read_csv(
    path: Path, separator: str, encoding: str, names: Sequence[str] | None, texts: Sequence[str], missing: Missing
) -> pandas.DataFrame:
    """A CSV file; the columns `texts` are read as text."""
    import pandas

    def wrong(message: str, key: str = "path") -> InputError:
        return InputError(message, key=key, file=str(path))

    if separator != "whitespace" and len(separator) != 1:
        raise InputError(f"found {separator!r}; allowed: one character, or 'whitespace'", key="separator")
    values: dict[str, Any] = {}
    if missing.values is not None:
        values = {"keep_default_na": False, "na_values": ["", *missing.values]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame: pandas.DataFrame = pandas.read_csv(
                path,
                sep=r"\s+" if separator == "whitespace" else separator,
                encoding=encoding,
                header=0 if names is None else None,
                names=None if names is None else list(names),
                index_col=False,  # rows with more cells than names are refused; their first cells are no row names
                dtype=dict.fromkeys(texts, str),
                low_memory=False,  # in blocks, a column of a large file could be text here and numbers there
                **values,
            )
    except pandas.errors.ParserWarning:
        extra = "'names:' has too few names" if names is not None else "the header has fewer names than the rows cells"
        raise wrong(f"{extra} in {path}: are the first cells row names, which need a name, too?") from None
    except UnicodeDecodeError as error:
        raise wrong(
            f"cannot read {path} as {encoding} (byte {error.object[error.start]:#04x} at place {error.start}); name "
            "its encoding, e.g. latin-1 or cp1252",
            "encoding",
        ) from None
    except LookupError:
        raise InputError(
            f"found {encoding!r}; allowed: a name of Python's, e.g. utf-8, latin-1", key="encoding"
        ) from None
    except Exception as error:  # pandas and the decompressors behind it raise a dozen types
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise wrong(f"cannot read {path} as CSV with a header line ({first})") from error
    columns = [str(c) for c in frame.columns]
    if names is None and (twice := _twice(columns, path, separator, encoding)) is not None:
        raise wrong(f"two columns of {path} are called {twice!r}; allowed: different names")
    if names is not None and len(frame.columns) and bool(frame.iloc[:, -1].isna().all()):
        raise InputError(f"found {len(names)} names, but the last column has no value in any row", key="names")
    if len(columns) == 1:
        other = next((s for s in ";\t|," if s != separator and s in columns[0]), None)
        if other is not None:
            raise InputError(
                f"{path} has one column, {columns[0][:60]!r}; is its separator {other!r}?", key="separator"
            )
    return frame


def _twice(columns: Sequence[str], path: Path, separator: str, encoding: str) -> str | None:
    """A name that the header has twice; pandas calls the second ``NAME.1``, which other headers have by themselves."""
    if not any((m := _NUMBERED.fullmatch(c)) and m[1] in columns for c in columns):
        return None
    import pandas

    sep = r"\s+" if separator == "whitespace" else separator
    line = pandas.read_csv(path, sep=sep, encoding=encoding, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = line.iloc[0].tolist()
    return next((c for i, c in enumerate(names) if c and c in names[:i]), None)


def table_split(
    frame: pandas.DataFrame, wanted: Wanted, name: str, train: Split | None = None, lines: Lines | None = None
) -> Split:
    """The features, target and ids of a data frame.

    Parameters
    ----------
    train
        For a test table: the training table, whose categories count.
    lines
        Where rows are in a text file, for the errors.
    """
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    chosen = wanted.chosen(list(frame.columns), name)
    if len(set(frame.columns)) < len(frame.columns):
        twice = next(c for c in frame.columns if list(frame.columns).count(c) > 1)
        raise InputError(f"{name} has two columns {twice!r}; one name each is needed", key="path")
    if not len(frame):
        raise InputError(f"{name} has no rows")
    where = _Where(name, lines, np.arange(len(frame)))
    notes: list[str] = []
    if wanted.missing.action == "drop":
        keep = frame[[*chosen, *wanted.targets]].notna().all(axis=1).to_numpy()
        if not keep.all():
            notes.append(f"{int((~keep).sum())} of {len(keep)} rows of {Path(name).name} lack a value and are left out")
            frame, where = frame[keep].reset_index(drop=True), _Where(name, lines, np.flatnonzero(keep))
        if not len(frame):
            raise InputError(f"every row of {name} lacks a value; nothing is left", key="missing")
    arrays, columns = [], []
    known = dict(wanted.known) if train is None else {c.name: c.categories or () for c in train.columns}
    for column in chosen:
        if column in wanted.categorical:
            array, categories = _categories(
                frame[column], column, known.get(column), wanted, where, notes, train is None
            )
            columns.append(Column(column, categories))
        else:
            array = _numbers(frame[column], column, wanted, where)
            columns.append(Column(column))
        arrays.append(array)
    y = _target(frame, wanted, where)
    ids = None if wanted.ids is None else _ids(frame[wanted.ids], wanted.ids, where)
    return Split(
        np.stack(arrays, axis=1), y, ids=ids, columns=tuple(columns), target=tuple(wanted.targets), notes=tuple(notes)
    )


class Lines:
    """Where the records of a CSV file begin."""

    def __init__(self, path: Path, separator: str, encoding: str, header: bool) -> None:
        self.path, self.separator, self.encoding, self.header = path, separator, encoding, header

    def of(self, row: int) -> int | None:
        """The line, from 1, on which row `row` begins; None where that is not known."""
        if self.separator == "whitespace":
            return None
        try:
            with self.path.open(encoding=self.encoding, newline="") as file:
                reader, last, record = csv.reader(file, delimiter=self.separator), 0, -1 if self.header else 0
                for cells in reader:
                    if cells and record == row:
                        return last + 1
                    record, last = record + bool(cells), reader.line_num
        except (OSError, ValueError, LookupError, csv.Error):  # e.g. a compressed file
            return None
        return None


@dataclass(frozen=True)
class _Where:
    """Names a row of the file: `rows[i]` is the row that row i of the frame was."""

    name: str
    lines: Lines | None
    rows: Array

    def __call__(self, row: int, verb: str = "") -> str:
        original = int(self.rows[row])
        line = None if self.lines is None else self.lines.of(original)
        return f"row {original}{verb and ' '}{verb}" + ("" if line is None else f" (line {line})")


def _numbers(values: pandas.Series[Any], column: str, wanted: Wanted, where: _Where) -> Array:
    import pandas

    may_lack, key = wanted.missing.action != "refuse", wanted.keys[0]
    title = f"feature column {column!r} of {where.name}"
    lack = values.isna().to_numpy()
    kind = values.dtype.kind
    if kind == "O" and values.dtype == object and all(isinstance(v, bool | int | float) for v in values[~lack]):
        kind = "f"
    if kind not in "iufb" and not (lack.all() and len(lack)):
        if kind != "O":
            raise InputError(f"{title} is not numeric ({values.dtype}); choose columns with '{key}:'", key=key)
        numeric = pandas.to_numeric(values, errors="coerce").isna().to_numpy() & ~lack
        row = int(np.argmax(numeric)) if numeric.any() else int(np.argmax(~lack))
        cell = values.iloc[row]
        if not isinstance(cell, str) or numeric.sum() * 2 > (~lack).sum() or not numeric.any():
            first = values.iloc[int(np.argmax(~lack))]
            raise InputError(
                f"{title} is not numeric (first value {str(first)!r}); choose numeric columns with '{key}:', or make "
                f"it one-hot with 'categorical: [{column}]'",
                key=key,
            )
        raise InputError(
            f"{title}: found {cell!r} in {where(row)}; allowed: finite numbers. If it stands for a missing value: "
            f"'missing: {{values: [{cell!r}], action: drop}}' (or mean, most_frequent)",
            key=key,
        )
    with np.errstate(over="ignore"):
        array = np.array(values.to_numpy(dtype=np.float32, na_value=np.nan))
    bad = ~np.isfinite(array) & ~(lack & may_lack)
    if bad.any():
        row = int(np.argmax(bad))
        if lack[row]:
            help_ = "a value is missing there; 'missing: drop', mean or most_frequent says what to do"
            raise InputError(f"{title} has nan in {where(row)}: {help_}", key="missing")
        raise InputError(f"{title} has {values.iloc[row]} in {where(row)}; finite numbers only", key=key)
    return array


def _categories(
    values: pandas.Series[Any],
    column: str,
    known: Sequence[str] | None,
    wanted: Wanted,
    where: _Where,
    notes: list[str],
    training: bool,
) -> tuple[Array, tuple[str, ...]]:
    """Numbers of categories, sorted by their text: NaN missing, -1 not among the `known` ones."""
    lack = values.isna().to_numpy()
    if lack.any() and wanted.missing.action == "refuse":
        row = int(np.argmax(lack))
        raise InputError(
            f"categorical column {column!r} of {where.name} has no value in {where(row)}; 'missing: drop' or "
            "most_frequent says what to do, 'missing: {values: []}' makes texts like NA ordinary",
            key="missing",
        )
    texts = np.asarray([str(v) for v in values[~lack]], dtype=str)
    categories = tuple(np.unique(texts).tolist()) if known is None else tuple(known)
    if len(categories) > _MOST_CATEGORIES:
        raise InputError(
            f"column {column!r} of {where.name} has {len(categories):,} values; allowed: {_MOST_CATEGORIES:,}",
            key="categorical",
        )
    order = np.asarray(categories, dtype=str)
    place = np.searchsorted(order, texts).clip(0, max(len(order) - 1, 0))
    foreign = order[place] != texts if len(order) else np.ones(len(texts), dtype=bool)
    if foreign.any() and column in wanted.known and training:
        raise InputError(
            f"categorical column {column!r} of {where.name} has the value {str(texts[foreign][0])!r}; allowed: "
            f"{shown(categories)}",
            key="categorical",
        )
    if foreign.any():
        notes.append(unknown_categories(column, np.unique(texts[foreign]), int(foreign.sum())))
    codes = np.full(len(values), np.nan, dtype=np.float32)
    codes[~lack] = np.where(foreign, -1, place)
    return codes, categories


def _target(frame: pandas.DataFrame, wanted: Wanted, where: _Where) -> Array:
    values = frame[wanted.targets]
    lack = values.isna().to_numpy().any(axis=1)
    if lack.any():
        row = int(np.argmax(lack))
        found = next(v for v in values.iloc[row].tolist() if v is None or (np.ndim(v) == 0 and v != v))
        raise InputError(
            f"the target of {where(row, 'is nan' if found is None else f'is {found}')} of {where.name}; allowed: no "
            "missing values ('missing: drop' leaves such rows out)"
        )
    try:
        if len(wanted.targets) == 1:
            return plain(values.iloc[:, 0].to_numpy())
        return np.stack([plain(values[c].to_numpy()) for c in wanted.targets], axis=1)
    except InputError as error:
        raise InputError(f"target of {where.name}: {error.problems[0].message}", key=wanted.keys[1]) from None


def _ids(values: pandas.Series[Any], column: str, where: _Where) -> Array:
    lack = values.isna().to_numpy()
    if lack.any():
        row = int(np.argmax(lack))
        message = f"column {column!r} of {where.name} has no value in {where(row)}; allowed: a value in every row"
        raise InputError(
            f"{message}, since it says whose row it is ('missing' is about features and the target)",
            "partition.partition_by",
        )
    return plain(values.to_numpy())
