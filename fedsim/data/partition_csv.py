"""``partition.csv``: who holds how many samples of which label, written by a run and read by its report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.core.arrays import Array, Ints
from fedsim.core.errors import InputError, Problem

FILE = "partition.csv"
_BLOCK = 10_000


@dataclass(frozen=True)
class PartitionTable:
    """Samples ``[clients]`` and counts ``[clients, labels]`` (None without labels), and what they are called.

    `names` are the clients' own names, where a column of the data gave them.
    """

    samples: Ints
    counts: Ints | None
    labels: list[str]
    names: list[str] | None


def write_partition(
    folder: Path, counts: Array | None, sizes: Array, labels: Sequence[str] = (), names: Sequence[str] = ()
) -> None:
    """Write ``folder/partition.csv``: client, its name if it has one, samples, and one column per label.

    Parameters
    ----------
    folder : the run directory.
    counts : ``[clients, labels]``, or None where the data has no labels (regression).
    sizes : ``[clients]``, used without `counts`. Where no client holds more than one sample (a quadratic problem: one
        function each) nothing was divided; no file is written, and one of an earlier run is removed.
    labels, names : names of the labels (default: their numbers) and of the clients (default: none).
    """
    if counts is None and sizes.max(initial=0) <= 1 and not names:
        (folder / FILE).unlink(missing_ok=True)
        return
    if counts is not None and not labels:
        labels = [str(label) for label in range(counts.shape[1])]
    head = ["client", *(["name"] if names else []), "samples", *(labels if counts is not None else [])]
    with (folder / FILE).open("w", encoding="utf-8", newline="") as file:
        file.write(_cells(head) + "\n")
        for start in range(0, len(sizes), _BLOCK):  # a million clients as Python's numbers would fill the memory
            part = slice(start, start + _BLOCK)
            samples = sizes[part] if counts is None else counts[part].sum(axis=1)
            held = samples[:, None] if counts is None else np.column_stack([samples, counts[part]])
            if names:
                for i, row in enumerate(held.astype(np.int64).tolist(), start):
                    file.write(f"{i},{_cells([names[i]])},{','.join(map(str, row))}\n")
            else:  # a list's own text is that of its numbers, and a fifth of the time
                numbered = np.column_stack([np.arange(start, start + len(held)), held]).astype(np.int64)
                file.write(str(numbered.tolist())[2:-2].replace("], [", "\n").replace(", ", ",") + "\n")


def read_partition(path: Path) -> tuple[Ints, Ints | None]:
    """Samples ``[clients]`` and counts ``[clients, labels]`` (None without labels) of a ``partition.csv``.

    Raises
    ------
    InputError
        The file is missing or is not such a table; names the line.
    """
    table = read_table(path)
    return table.samples, table.counts


def read_table(path: Path) -> PartitionTable:
    """The whole table; errors as :func:`read_partition`."""
    plain = _plain(path)
    if plain is not None:
        return plain
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader]
    except FileNotFoundError:
        raise InputError("no such file", file=str(path)) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as UTF-8 text: {error}", file=str(path)) from None
    header = lines[0][1] if lines else []
    named = header[:3] == ["client", "name", "samples"]
    if not (named or header[:2] == ["client", "samples"]) or len(lines) < 2:
        found = repr(",".join(header)[:60]) if lines else "an empty file"
        raise InputError(
            [Problem(f"found {found}, allowed: client,samples,... and a line per client", None, str(path), 1)]
        )
    first = 2 if named else 1
    rows = np.empty((len(lines) - 1, len(header) - first), dtype=np.int64)
    for number, (line, cells) in enumerate(lines[1:]):
        try:
            if len(cells) != len(header) or int(cells[0]) < 0:
                raise ValueError
            rows[number, :] = [int(cell) for cell in cells[first:]]
        except (ValueError, OverflowError, IndexError):
            message = f"found {','.join(cells)[:60]!r}, allowed: {len(header)} whole numbers"
            message += ", the second one a name" if named else ""
            raise InputError([Problem(message, None, str(path), line)]) from None
    names = [cells[1] for _, cells in lines[1:]] if named else None
    counts = rows[:, 1:] if rows.shape[1] > 1 else None
    return PartitionTable(rows[:, 0], counts, header[first + 1 :], names)


def _plain(path: Path) -> PartitionTable | None:
    """The table where nothing but numbers follows the header, in a tenth of the time and memory; None where not."""
    try:
        with path.open("rb") as file:
            head, numbers = file.readline().decode("utf-8"), file.read()
        (header,) = csv.reader([head])
    except (OSError, ValueError, csv.Error):
        return None
    if header[:2] != ["client", "samples"] or not numbers.strip() or numbers.translate(None, b"0123456789,\n"):
        return None
    try:
        rows = np.loadtxt(io.BytesIO(numbers), dtype=np.int64, delimiter=",", ndmin=2, comments=None)
    except (ValueError, OverflowError):
        return None
    if rows.shape != (numbers.count(b"\n") + (not numbers.endswith(b"\n")), len(header)):
        return None
    held = np.ascontiguousarray(rows[:, 1:])
    return PartitionTable(held[:, 0], held[:, 1:] if held.shape[1] > 1 else None, header[2:], None)


def _cells(values: Sequence[str]) -> str:
    """Cells of a line, in quotes where they need it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # what is in it decides which cells are quoted
    return text.getvalue().removesuffix("\r\n")
