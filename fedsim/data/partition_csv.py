"""``partition.csv``: who holds how many samples of which label, written by a run and read by its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.core.arrays import Array, Ints
from fedsim.core.errors import InputError, Problem

FILE = "partition.csv"
_BLOCK = 10_000


def write_partition(folder: Path, counts: Array | None, sizes: Array) -> None:
    """Write ``folder/partition.csv``: client, samples, and one column per label.

    Parameters
    ----------
    folder : the run directory.
    counts : ``[clients, labels]``, or None where the data has no labels (regression).
    sizes : ``[clients]``, used without `counts`. Where no client holds more than one sample (a quadratic problem: one
        function each) nothing was divided; no file is written, and one of an earlier run is removed.
    """
    if counts is None and sizes.max(initial=0) <= 1:
        (folder / FILE).unlink(missing_ok=True)
        return
    labels = 0 if counts is None else counts.shape[1]
    with (folder / FILE).open("w", encoding="utf-8") as file:
        file.write(",".join(["client", "samples", *map(str, range(labels))]) + "\n")
        for start in range(0, len(sizes), _BLOCK):  # a million clients as Python's numbers would fill the memory
            part = slice(start, start + _BLOCK)
            samples = sizes[part] if counts is None else counts[part].sum(axis=1)
            held = samples[:, None] if counts is None else np.column_stack([samples, counts[part]])
            file.writelines(
                f"{start + i},{','.join(map(str, row))}\n" for i, row in enumerate(held.astype(np.int64).tolist())
            )


def read_partition(path: Path) -> tuple[Ints, Ints | None]:
    """Samples ``[clients]`` and counts ``[clients, labels]`` (None without labels) of a ``partition.csv``.

    Raises
    ------
    InputError
        The file is missing or is not such a table; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError("no such file", file=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as UTF-8 text: {error}", file=str(path)) from None
    header = lines[0].split(",") if lines else []
    if header[:2] != ["client", "samples"] or len(lines) < 2:
        found = repr(lines[0][:60]) if lines else "an empty file"
        raise InputError(
            [Problem(f"found {found}, allowed: client,samples,... and a line per client", None, str(path), 1)]
        )
    rows = np.empty((len(lines) - 1, len(header)), dtype=np.int64)
    for number, line in enumerate(lines[1:]):
        try:
            rows[number, :] = np.array([int(cell) for cell in line.split(",")], dtype=np.int64).reshape(len(header))
        except (ValueError, OverflowError):
            message = f"found {line[:60]!r}, allowed: {len(header)} whole numbers"
            raise InputError([Problem(message, None, str(path), number + 2)]) from None
    return rows[:, 1], rows[:, 2:] if len(header) > 2 else None
