"""Readers of data files: hub sets and parquet, IDX, CSV, npz.

Every reader returns numpy arrays: images as uint8 ``[N, C, H, W]``, features as float32 ``[N, k]``, labels as they are
in the file. What is wrong with a file raises :class:`fedsim.core.errors.InputError` that names the file.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError, nearest, unknown
from fedsim.data.cache import cached
from fedsim.data.splits import Split

if TYPE_CHECKING:
    import pandas
    import pyarrow

_CACHE_VERSION = 1


def find(path: str, base: Path, key: str = "path") -> Path:
    """`path` relative to `base`, which must exist.

    Raises
    ------
    InputError
        Nothing is there; the message names the nearest existing parent's similar entries.
    """
    full = (base / Path(path).expanduser()).resolve()
    if full.exists():
        return full
    siblings = [p.name for p in full.parent.iterdir()] if full.parent.is_dir() else []
    where = "" if full.parent.is_dir() else f"; not even the folder {full.parent} exists"
    raise InputError(f"no file or folder {full}{nearest(full.name, siblings)}{where}", key=key)


def parquet_files(path: Path, names: Sequence[str] = ("train", "test")) -> dict[str, list[Path]]:
    """Each split's files of a folder in hub format (``train*.parquet``, ``test*.parquet``), or of one file."""
    if path.is_file():
        return {names[0]: [path]}
    found = {split: sorted(path.glob(f"{split}*.parquet")) for split in names}
    if not found[names[0]]:
        present = sorted(p.name for p in path.iterdir())[:10]
        raise InputError(
            f"no {names[0]}*.parquet in {path}; found there: {', '.join(present) or 'nothing'}", key="path"
        )
    return {split: files for split, files in found.items() if files}


class Source:
    """One split of local parquet files or of a hub set, through ``datasets.load_dataset``; opened on first use.

    Parameters
    ----------
    split, key
        The split's name, and the scenario's key that holds it (None where it has none).
    files
        Local parquet files (streamed, so that no second copy of the set is written to disk).
    hub, subset
        Otherwise the set's name on the hub and its configuration.
    """

    def __init__(
        self,
        split: str,
        key: str | None = None,
        files: Sequence[Path] = (),
        hub: str | None = None,
        subset: str | None = None,
    ) -> None:
        self.split, self.key, self.files, self.hub, self.subset = split, key, list(files), hub, subset
        self.name = hub or ", ".join(str(f) for f in files)
        self.file = None if hub else str(files[0])

    @cached_property
    def data(self) -> Any:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import datasets

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs as an error is raised, too
        try:
            if self.hub:
                every: Mapping[str, Any] = datasets.load_dataset(self.hub, self.subset)
            else:
                paths = {self.split: [str(f) for f in self.files]}
                every = datasets.load_dataset("parquet", data_files=paths, streaming=True)
        except Exception as error:  # the hub's client and the parquet reader have dozens of error types
            raise self._unreadable(error) from error
        if self.split not in every:
            raise InputError(unknown(f"split of {self.name}", self.split, sorted(every)), key=self.key)
        return every[self.split]

    @property
    def features(self) -> dict[str, Any]:
        return dict(self.data.features)

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Absolute path, size and time of each file: what the cache of decoded images goes by."""
        files = [Path(c["filename"]) for c in self.data.cache_files] if self.hub else self.files
        return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]

    def table(self, columns: Sequence[str]) -> pyarrow.Table:
        """The named columns, undecoded, all rows."""
        import pyarrow

        try:
            data = self.data.select_columns(list(columns)).with_format("arrow")
            batches = list(data.iter(batch_size=10_000))
        except InputError:
            raise
        except Exception as error:  # as above
            raise self._unreadable(error) from error
        if not batches:
            raise InputError(f"no rows in split '{self.split}' of {self.name}", file=self.file)
        return pyarrow.concat_tables(batches)

    def require(self, column: str, key: str) -> str:
        """`column` if the split has it."""
        if column not in self.features:
            raise InputError(unknown(f"column of {self.name}", column, list(self.features)), key=key)
        return column

    def images(self) -> list[str]:
        """Names of the columns that hold encoded images."""
        return [name for name, feature in self.features.items() if type(feature).__name__ == "Image"]

    def _unreadable(self, error: Exception) -> InputError:
        what = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if self.hub:
            help_ = "give 'path:' a folder with its train*.parquet and test*.parquet, or a hub name that can be reached"
            return InputError(f"cannot load '{self.hub}' from the hub ({what}); {help_}", key="path")
        return InputError(f"cannot read {self.name} as parquet ({what})", key="path", file=self.file)


def sources(
    path: str | None, base: Path, hub: str | None, subset: str | None, names: tuple[str, ...]
) -> dict[str, Source]:
    """A source per split: of local files where there is a `path`, else of the hub. A local test split may be absent."""
    keys = dict(zip(names, ("train_split", "test_split"), strict=False))
    if path is None:
        return {n: Source(n, keys[n], hub=hub, subset=subset) for n in names}
    found = parquet_files(find(path, base), names)
    return {n: Source(n, keys[n], files=paths) for n, paths in found.items()}


def read_columns(source: Source, x: str | list[str] | None, y: str, keys: tuple[str, str]) -> Split:
    """Images or features of one split, whichever `x` names (None: its image column, else all columns but `y`)."""
    source.require(y, keys[1])
    images = source.images()
    if x is None and images:
        if len(images) > 1:
            raise InputError(f"{source.name} has several image columns ({', '.join(images)}); name one", key=keys[0])
        x = images[0]
    if isinstance(x, str) and (x in images or keys[0] == "image"):
        return read_images(source, x, y, keys)
    chosen = [x] if isinstance(x, str) else x if x is not None else [c for c in source.features if c != y]
    for column in chosen:
        source.require(column, keys[0])
    split = read_table(source.table(list(dict.fromkeys([*chosen, y]))).to_pandas(), chosen, y, source.name, keys)
    return Split(split.x, split.y, getattr(source.features[y], "num_classes", None))


def read_images(source: Source, image: str, label: str, keys: tuple[str, str] = ("x_column", "y_column")) -> Split:
    """Decode an image column into uint8 ``[N, C, H, W]`` and read its labels; decoded arrays are cached.

    Measured on one core: 31 microseconds per MNIST PNG, 72 per CIFAR JPEG; a second thread makes it slower, as decoding
    such small images is mostly Python under its lock. `keys`: the scenario's keys of the two columns, for the errors.
    """

    def decode() -> dict[str, Array]:
        source.require(image, keys[0])
        classes = getattr(source.features[source.require(label, keys[1])], "num_classes", None)
        if image not in source.images():
            allowed = ", ".join(source.images()) or "none in this file"
            raise InputError(
                f"column {image!r} of {source.name} holds no images; image columns: {allowed}", key=keys[0]
            )
        table = source.table([image, label])
        encoded = (row.as_py() for chunk in table.column(image).chunks for row in chunk.field("bytes"))
        labels = column_values(table.column(label), label)
        return {"x": decode_images(encoded, source.name), "y": labels, "classes": np.array(classes or 0)}

    arrays = cached([_CACHE_VERSION, source.identity, source.split, image, label], decode)
    return Split(arrays["x"], arrays["y"], int(arrays["classes"]) or None)


def decode_images(encoded: Iterable[bytes | None], name: str) -> Array:
    """PNG, JPEG, ... bytes of equal-sized images -> uint8 ``[N, C, H, W]``, C 1 (grey) or 3, as the first image is."""
    from PIL import Image

    rows: list[Array] = []
    mode = ""
    for number, data in enumerate(encoded):
        if not data:
            raise InputError(f"{name}: image of row {number} is missing", key="path")
        try:
            picture = Image.open(io.BytesIO(data))
            if picture.mode.startswith(("I", "F")):
                raise InputError(
                    f"{name}: row {number} has more than 8 bits per pixel; allowed: 8-bit images", key="path"
                )
            mode = mode or ("L" if picture.mode in ("1", "L", "LA") else "RGB")
            rows.append(np.asarray(picture if picture.mode == mode else picture.convert(mode)))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{name}: cannot decode the image of row {number} ({error})", key="path") from error
        if rows[-1].shape != rows[0].shape:
            found, first = rows[-1].shape, rows[0].shape
            raise InputError(
                f"{name}: image of row {number} has shape {found}, row 0 has {first}; one size is needed", key="path"
            )
    if not rows:
        raise InputError(f"{name}: no images", key="path")
    stacked = np.stack(rows)
    return stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def read_table(
    frame: pandas.DataFrame,
    features: Sequence[str] | None,
    target: str,
    name: str,
    keys: tuple[str, str] = ("features", "target"),
) -> Split:
    """Feature columns (default: all but `target`) as float32 ``[N, k]`` and the target column of a data frame.

    `keys`: the scenario's keys of the two, for the errors.
    """
    columns = [str(c) for c in frame.columns]
    if target not in columns:
        raise InputError(unknown(f"column of {name}", target, columns), key=keys[1])
    chosen = list(features) if features is not None else [c for c in columns if c != target]
    for column in chosen:
        if column not in columns or column == target:
            allowed = [c for c in columns if c != target]
            raise InputError(unknown(f"feature column of {name}", column, allowed), key=keys[0])
    if not chosen:
        raise InputError(f"{name} has no feature columns; at least 1 is needed", key=keys[0])
    if not len(frame):
        raise InputError(f"{name} has no rows")
    arrays = []
    for column in chosen:
        values = frame[column]
        if values.dtype.kind not in "iufb":
            bad = f"{column!r} of {name} is not numeric (first value {values.iloc[0]!r})"
            raise InputError(f"feature column {bad}; name the numeric columns with '{keys[0]}:'", key=keys[0])
        array = values.to_numpy(dtype=np.float32)
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise InputError(
                f"feature column {column!r} of {name} has {values.iloc[row]} in row {row}; finite numbers only",
                key=keys[0],
            )
        arrays.append(array)
    return Split(np.stack(arrays, axis=1), frame[target].to_numpy())


def column_values(column: pyarrow.ChunkedArray, name: str) -> Array:
    """A column without missing values as a numpy array."""
    if column.null_count:
        raise InputError(f"column {name!r} has {column.null_count} missing values; allowed: none")
    return np.asarray(column.to_numpy())


def read_csv(path: Path) -> pandas.DataFrame:
    import pandas

    try:
        return pandas.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"cannot read {path} as CSV with a header line ({first})", key="path", file=str(path)
        ) from error


def read_idx(folder: Path) -> dict[str, Split]:
    """The four IDX files of MNIST and its kin: ``train-images-idx3-ubyte``, ... (``t10k-``, ``test-``; .gz too)."""
    splits = {}
    for split, prefixes in (("train", ("train",)), ("test", ("t10k", "test"))):
        x, y = (_idx(_idx_file(folder, prefixes, what), dims) for what, dims in (("images", 3), ("labels", 1)))
        if len(x) != len(y):
            raise InputError(f"{folder} has {len(x)} {split} images but {len(y)} {split} labels", key="path")
        splits[split] = Split(x[:, None], y)
    return splits


def read_npz(path: Path, required: Sequence[str], optional: Sequence[str] = (), key: str = "path") -> dict[str, Array]:
    """Named numeric arrays of an npz file, which must hold all `required` ones."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single .npy array")
            names = list(archive.files)
            for name in required:
                if name not in names:
                    raise InputError(unknown(f"array of {path}", name, names), key=key, file=str(path))
            arrays = {name: np.asarray(archive[name]) for name in [*required, *optional] if name in names}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path} as npz of plain arrays ({error})", key=key, file=str(path)) from error
    for name, array in arrays.items():
        if array.dtype.kind not in "iufb":
            raise InputError(
                f"array '{name}' of {path} has type {array.dtype}; allowed: numbers", key=key, file=str(path)
            )
    return arrays


def read_arrays(file: Path) -> list[Split]:
    """The train and test split (x_train, y_train, x_test, y_test) or the one split (x, y) of an npz file."""
    divided = ("x_train", "y_train", "x_test", "y_test")
    arrays = read_npz(file, (), (*divided, "x", "y"))
    wanted = [divided[:2], divided[2:]] if "x_train" in arrays else [("x", "y")]
    if missing := [name for pair in wanted for name in pair if name not in arrays]:
        found = f"no array {missing[0]} among {', '.join(arrays) or 'none'} in {file}"
        raise InputError(f"{found}; allowed: x_train, y_train, x_test, y_test, or x, y", key="path")
    for x_name, y_name in wanted:
        x, y = arrays[x_name], arrays[y_name]
        if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y) or not x.size:
            found = f"{x_name} has shape {list(x.shape)} and {y_name} {list(y.shape)} in {file}"
            raise InputError(f"{found}; allowed: x [N, ...] and y [N] or [N, k], N at least 1", key="path")
        if not np.isfinite(x).all():
            raise InputError(f"{x_name} in {file} has values that are not finite (NaN or infinity)", key="path")
    for a, b in zip(*wanted, strict=True) if len(wanted) > 1 else ():
        if arrays[a].shape[1:] != arrays[b].shape[1:]:
            found = f"rows of {a} have shape {list(arrays[a].shape[1:])}, of {b} {list(arrays[b].shape[1:])} in {file}"
            raise InputError(f"{found}; allowed: equal shapes", key="path")
    return [Split(arrays[x], arrays[y]) for x, y in wanted]


def _idx_file(folder: Path, prefixes: Sequence[str], what: str) -> Path:
    for prefix in prefixes:
        pattern = re.compile(rf"{prefix}-{what}[.-]idx\d-ubyte(\.gz)?")
        found = sorted(p for p in folder.glob(f"{prefix}-{what}*") if pattern.fullmatch(p.name))
        if found:
            return found[0]
    dims = 3 if what == "images" else 1
    wanted = " or ".join(f"{p}-{what}-idx{dims}-ubyte[.gz]" for p in prefixes)
    names = sorted(p.name for p in folder.iterdir())[:10] if folder.is_dir() else []
    raise InputError(f"no {wanted} in {folder}; found there: {', '.join(names) or 'nothing'}", key="path")


def _idx(path: Path, dims: int) -> Array:
    """One IDX file of unsigned bytes: magic ``00 00 08 dims``, the big-endian sizes, the bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error})", key="path", file=str(path)) from error
    magic, expected = data[:4], bytes([0, 0, 8, dims])
    if magic != expected:
        raise InputError(
            f"wrong IDX magic {magic.hex() or 'nothing'}; allowed: {expected.hex()}", key="path", file=str(path)
        )
    head = 4 + 4 * dims
    shape = struct.unpack(f">{dims}I", data[4:head]) if len(data) >= head else ()
    size = head + int(np.prod(shape, dtype=np.int64))
    if not shape or len(data) != size:
        found = f"shape {shape} needs {size} bytes, found {len(data)}" if shape else f"only {len(data)} bytes"
        raise InputError(f"truncated or damaged IDX file: {found}", key="path", file=str(path))
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)
