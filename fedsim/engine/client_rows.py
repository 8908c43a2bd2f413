"""``clients.parquet`` of a run: one row per evaluation and client.

A parquet file cannot be appended to. Rows wait in memory and are written with the next checkpoint: the old row groups
are copied as they are, the new ones follow, and the new file takes the old one's place in one step. So the file is
whole at any moment, and holds at least the rows that the checkpoint implies; what came after is cut off on a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.arrays import Floats
from fedsim.core.client_metrics import ClientTable
from fedsim.core.disk import cannot_write, replacing, settle
from fedsim.core.errors import InputError, RunError
from fedsim.engine.rows import shown_rounds
from fedsim.engine.watch import Watched, Watcher
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "clients.parquet"
_WAY_OUT = "start from the beginning, without --resume"
_NUMBERS = ["round", "client", "train_samples", "test_samples"]
_LARGEST = 2**53
_MOST_ROWS = 10**6
"""That wait; more are written before a checkpoint is due."""


class ClientRows(Watcher):
    """Writes the rows of the clients that were evaluated; `names` are the clients' names, where they have some."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = np.array(list(names), dtype=object)
        self._waiting: list[ClientTable] = []
        self._path: Path | None = None

    def began(self, run: Watched) -> None:
        self._path = run.dir / FILE

    def clients(self, table: ClientTable) -> None:
        self._waiting.append(table)
        if sum(len(t.clients) for t in self._waiting) > _MOST_ROWS:
            self.saving()

    def saving(self) -> None:
        if self._waiting and self._path is not None:
            _append(self._path, [self._made(table) for table in self._waiting])
            self._waiting.clear()

    def closed(self, error: BaseException | None) -> None:
        try:
            self.saving()
        except RunError:
            if error is None:  # else what ended the run is told, not what the disk says now
                raise

    def _made(self, table: ClientTable) -> pa.Table:
        import pyarrow as pa

        columns: dict[str, Any] = {
            "round": pa.array(np.full(len(table.clients), table.round, dtype=np.int64)),
            "client": pa.array(table.clients),
            **({"name": pa.array(self._names[table.clients], pa.string())} if len(self._names) else {}),
            "train_samples": pa.array(table.train_samples),
            "test_samples": pa.array(table.test_samples),
            **{name: pa.array(values, pa.float64()) for name, values in table.values.items()},
            **{name: _whole(values) for name, values in table.choices.items()},
        }
        return pa.table(columns)


def check_rows(
    folder: Path, rounds: Sequence[int], done: int, values: Sequence[str], choices: Sequence[str], alike: bool
) -> None:
    """Raise RunError where the clients' rows are not those that the checkpoint of round `done` implies.

    `values` are the metrics that every row has, `choices` what clients chose, which earlier versions did not write, and
    `alike` says whether all rounds have as many clients.
    """
    path = folder / FILE
    implied = f"the checkpoint of round {done} implies {shown_rounds(rounds)}"
    if not path.exists():
        raise RunError(f"{path} is missing, but {implied}; {_WAY_OUT}")
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        parts = [pa.table({k: pa.array([], pa.int64()) for k in _NUMBERS[:2]})]
        for part in _parts(path):  # all columns, so that none is found damaged when it is copied
            _check_columns(path, part.schema, values, [k for k in choices if k in part.schema.names])
            parts.append(part.select(_NUMBERS[:2]))
        found = pa.concat_tables(parts)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {str(error).splitlines()[0]}, but {implied}; {_WAY_OUT}") from None
    if found["round"].null_count or found["client"].null_count:
        raise RunError(f"{path} has rows without a round or a client; {_WAY_OUT}")
    found = found.filter(pc.is_in(found["round"], value_set=_int64(rounds)))
    there = sorted(pc.unique(found["round"]).to_pylist())
    if there != list(rounds):
        raise RunError(f"{path} has {shown_rounds(there)}, but {implied}; {_WAY_OUT}")
    if found.group_by(["round", "client"]).aggregate([]).num_rows != found.num_rows:
        raise RunError(f"{path} has clients twice in a round; {_WAY_OUT}")
    counts = {c["counts"].as_py(): c["values"].as_py() for c in reversed(pc.value_counts(found["round"]))}
    if alike and len(counts) > 1:
        fewer, more = min(counts), max(counts)
        said = f"{fewer} clients in round {counts[fewer]}, and {more} in round {counts[more]}"
        raise RunError(f"{path} has {said}; {_WAY_OUT}")


def _check_columns(path: Path, schema: pa.Schema, values: Sequence[str], choices: Sequence[str]) -> None:
    import pyarrow as pa

    name = [("name", pa.string())] if "name" in schema.names else []
    wanted = [*((k, pa.int64()) for k in (*_NUMBERS, *choices)), *name, *((k, pa.float64()) for k in values)]
    if sorted((field.name, str(field.type)) for field in schema) != sorted((k, str(t)) for k, t in wanted):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        allowed = ", ".join(f"{k} ({t})" for k, t in wanted)
        raise RunError(f"{path} has the columns {found}, but the run writes {allowed}; {_WAY_OUT}")


def keep_rows(folder: Path, rounds: Sequence[int]) -> None:
    """Cut off the rows of other rounds than these."""
    import pyarrow.compute as pc

    path, wanted = folder / FILE, _int64(rounds)
    with _writing(path):
        parts = (part.filter(pc.is_in(part["round"], value_set=wanted)) for part in _parts(path))
        _write(path, (part for part in parts if part.num_rows))


def read_clients(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows.

    Raises
    ------
    InputError
        There are none, or the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / FILE
    if not path.exists():
        raise InputError(
            "no such file: the run evaluates no clients (data.local_test, run.eval_clients)", file=str(path)
        )
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", file=str(path)) from None


def names_of(about: Any) -> Sequence[str]:
    """The clients' names, from what is known of the data."""
    names: Sequence[str] = ((about or {}).get("clients") or {}).get("names", ())
    return names


def evaluated_rounds(scenario: Scenario, done: int) -> list[int]:
    """The rounds up to `done` after which clients were evaluated."""
    return [n for n in range(done + 1) if scenario.run.evaluates(n)]


def _append(path: Path, tables: list[pa.Table]) -> None:
    import pyarrow as pa

    with _writing(path):
        _write(path, (*_parts(path), pa.concat_tables(tables)))


def _parts(path: Path) -> Iterator[pa.Table]:
    """The row groups of a file."""
    import pyarrow.parquet as pq

    if path.exists():
        with pq.ParquetFile(path) as file:
            for i in range(file.num_row_groups):
                yield file.read_row_group(i)


def _write(path: Path, parts: Iterator[pa.Table] | Sequence[pa.Table]) -> None:
    import pyarrow.parquet as pq

    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as fresh:
        with pq.ParquetWriter(fresh, first.schema) as writer:
            for part in chain([first], parts):
                writer.write_table(part.select(first.schema.names))
        settle(fresh)


class _writing:
    """Says what the disk refuses in a sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, OSError):
            raise cannot_write(self.path, error) from error


def _whole(values: Floats) -> pa.Array:
    """Whole numbers, null where there is none; a client of a deployment may say anything."""
    import pyarrow as pa

    return pa.array([int(v) if abs(v) < _LARGEST and v == int(v) else None for v in values.tolist()], pa.int64())


def _int64(values: Sequence[int]) -> pa.Array:
    import pyarrow as pa

    return pa.array(list(values), pa.int64())
