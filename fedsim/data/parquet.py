"""Parquet files and sets of the hub, through ``datasets.load_dataset``: their columns, and the images in them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError, unknown
from fedsim.core.limits import MOST_PIXELS, check_room
from fedsim.data.cache import cached
from fedsim.data.files import find, parquet_files
from fedsim.data.labels import Classes, plain
from fedsim.data.splits import Split
from fedsim.data.tables import Wanted, table_split

if TYPE_CHECKING:
    import pyarrow
    from PIL import Image

_CACHE_VERSION = 2


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

    @cached_property
    def features(self) -> dict[str, Any]:
        try:
            return dict(self.data.features)
        except InputError:
            raise
        except Exception as error:  # as above: a file whose first rows cannot be read
            raise self._unreadable(error) from error

    @property
    def there(self) -> bool:
        """Whether the set has this split."""
        try:
            return self.data is not None
        except InputError as error:
            if error.problems[0].key == self.key and self.key is not None:
                return False
            raise

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Absolute path, size and time of each file: what the cache of decoded images goes by."""
        files = [Path(c["filename"]) for c in self.data.cache_files] if self.hub else self.files
        return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]

    def table(self, columns: Sequence[str]) -> pyarrow.Table:
        """The named columns, undecoded, all rows."""
        import pyarrow

        self._check_rows(len(columns))
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

    def _check_rows(self, columns: int) -> None:
        """A local file's own count of rows fits the memory."""
        from pyarrow.parquet import read_metadata

        try:
            rows = sum(read_metadata(f).num_rows for f in self.files)
        except Exception as error:  # as above
            raise self._unreadable(error) from error
        check_room(4 * rows * columns, f"{rows:,} rows of {columns} columns in {self.name}", "path", self.file)

    def require(self, column: str, key: str) -> str:
        """`column` if the split has it."""
        if column not in self.features:
            raise InputError(unknown(f"column of {self.name}", column, list(self.features)), key=key)
        return column

    def images(self) -> list[str]:
        """Names of the columns that hold encoded images."""
        return [name for name, feature in self.features.items() if type(feature).__name__ == "Image"]

    def classes(self, wanted: Wanted) -> Classes | None:
        """What the file says of its labels."""
        feature = self.features[wanted.targets[0]] if len(wanted.targets) == 1 else None
        count = getattr(feature, "num_classes", None)
        return None if not count else Classes.given(int(count), getattr(feature, "names", None))

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


def read_splits(found: Iterable[Source], wanted: Wanted, image: str | None = None) -> list[Split]:
    """Images or features of each split, the training split first.

    `image` is the image column; without it and without feature names it is the only one, else all columns but the
    target and the ids are features.
    """
    splits: list[Split] = []
    for source in found:
        for target in wanted.targets:
            source.require(target, wanted.keys[1])
        images = source.images()
        if image is None and wanted.features is None and images:
            if len(images) > 1:
                raise InputError(
                    f"{source.name} has several image columns ({', '.join(images)}); name one", key=wanted.keys[0]
                )
            image = images[0]
        splits.append(
            read_images(source, image, wanted) if image else _columns(source, wanted, splits[0] if splits else None)
        )
    return splits


def _columns(source: Source, wanted: Wanted, train: Split | None) -> Split:
    chosen = wanted.chosen(list(source.features), source.name)
    extra = [] if wanted.ids is None or wanted.ids in chosen else [wanted.ids]
    table = source.table([*chosen, *wanted.targets, *extra]).replace_schema_metadata()
    if len(chosen) == 1 and _is_list(table.schema.field(chosen[0]).type):
        x = _called(f"column {chosen[0]!r} of {source.name}", wanted.keys[0], table.column(chosen[0]))
        if x.ndim != 2 or not x.shape[1] or (x.dtype.kind == "f" and not np.isfinite(x).all()):
            raise InputError(f"column {chosen[0]!r} of {source.name} has rows that are no lists of finite numbers",
                             key=wanted.keys[0])  # fmt: skip
        y, ids = _labels(source, table, wanted)
        inputs = x.astype(np.int64) if x.dtype.kind in "iu" else x.astype(np.float32)
        return Split(inputs, y, labels=source.classes(wanted), ids=ids, target=tuple(wanted.targets))
    try:
        frame = table.to_pandas()
    except Exception as error:  # pyarrow raises its own types for values that pandas cannot hold
        raise source._unreadable(error) from error
    split = table_split(frame, wanted, source.name, train)
    return Split(
        split.x, split.y, labels=source.classes(wanted), ids=split.ids, columns=split.columns, target=split.target,
        notes=split.notes,
    )  # fmt: skip


def read_images(source: Source, image: str, wanted: Wanted) -> Split:
    """Decode an image column into uint8 ``[N, C, H, W]`` and read its labels; decoded arrays are cached.

    Measured on one core: 31 microseconds per MNIST PNG, 72 per CIFAR JPEG; a second thread makes it slower, as decoding
    such small images is mostly Python under its lock.
    """

    def decode() -> dict[str, Array]:
        source.require(image, wanted.keys[0])
        for target in wanted.targets:
            source.require(target, wanted.keys[1])
        if wanted.ids is not None:
            source.require(wanted.ids, "partition.partition_by")
        if image not in source.images():
            allowed = ", ".join(source.images()) or "none in this file"
            raise InputError(
                f"column {image!r} of {source.name} holds no images; image columns: {allowed}", key=wanted.keys[0]
            )
        known = source.classes(wanted)
        table = source.table(list(dict.fromkeys([image, *wanted.targets, *([wanted.ids] if wanted.ids else [])])))
        encoded = (row.as_py() for chunk in table.column(image).chunks for row in chunk.field("bytes"))
        labels, ids = _labels(source, table, wanted)
        made = {"x": decode_images(encoded, source.name, len(table)), "y": labels}
        if known is not None:
            made["classes"] = np.asarray(known.names, dtype=str)
        return made if ids is None else made | {"ids": ids}

    about = [_CACHE_VERSION, source.identity, source.split, image, wanted.targets, wanted.ids]
    arrays = cached(about, decode)
    names = arrays.get("classes")
    known = None if names is None else Classes.given(len(names), names.tolist())
    return Split(arrays["x"], arrays["y"], labels=known, ids=arrays.get("ids"), target=tuple(wanted.targets))


_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What images of data sets are written in. Others that Pillow reads hold pictures whose size shows only when they are
decoded (ICO), or run other programs (EPS)."""


def decode_images(
    encoded: Iterable[bytes | None], name: str, count: int, called: Callable[[int], str] = "row {}".format
) -> Array:
    """Bytes of `count` equal-sized images (PNG, ...) -> uint8 ``[N, C, H, W]``, C 1 (grey) or 3 as the first has.

    What an image says of its size is looked at before any of its pixels are decoded. `called` is what errors call the
    image of a row.
    """
    rows: list[Array] = []
    first: tuple[int, int, str] | None = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of what is refused here, or makes no difference
        for number, data in enumerate(encoded):
            if not data:
                raise InputError(
                    f"{name}: the image of {called(number)} is {'missing' if data is None else 'empty'}", key="path"
                )
            with _opened(data, name, called(number)) as picture:
                size = (picture.height, picture.width)
                if first is None:
                    first = (*size, "L" if picture.mode in ("1", "L", "LA") else "RGB")
                    what = f"{count:,} images of {picture.width} x {picture.height} pixels in {name}"
                    bytes_each = picture.width * picture.height * len(first[2])
                    check_room(4 * count * bytes_each, f"{what}, as 4-byte numbers,", "path")
                if size != first[:2]:
                    raise InputError(
                        f"{name}: image of {called(number)} has shape {size}, {called(0)} has {first[:2]}; "
                        "one size is needed",
                        key="path",
                    )
                rows.append(np.asarray(picture if picture.mode == first[2] else picture.convert(first[2])))
    if not rows:
        raise InputError(f"{name}: no images", key="path")
    stacked = np.stack(rows)
    return stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


@contextmanager
def _opened(data: bytes, name: str, place: str) -> Iterator[Image.Image]:
    """One image, of a size and depth that may be decoded; what goes wrong meanwhile is an InputError of `place`."""
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [f for f in _FORMATS if f in Image.OPEN]
    try:
        picture = Image.open(io.BytesIO(data), formats=formats)
        if picture.width * picture.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
        if picture.mode.startswith(("I", "F")):
            raise InputError(f"{name}: {place} has more than 8 bits per pixel; allowed: 8-bit images", key="path")
        yield picture
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: the image of {place} claims to be too large ({error}); allowed: {MOST_PIXELS:,} pixels",
            key="path",
        ) from error
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name}: cannot decode the image of {place}; allowed: {', '.join(formats)}", key="path"
        ) from error
    except Exception as error:  # each of PIL's formats fails in its own ways on damaged bytes
        raise InputError(f"{name}: cannot decode the image of {place} ({error})", key="path") from error


def _labels(source: Source, table: pyarrow.Table, wanted: Wanted) -> tuple[Array, Array | None]:
    """The target, and the ids where there are some."""
    parts = [_called(f"column {c!r} of {source.name}", wanted.keys[1], table.column(c)) for c in wanted.targets]
    if len(parts) > 1 and any(p.ndim > 1 for p in parts):
        raise InputError(f"the columns of {wanted.targets} hold lists; one such column is enough", key=wanted.keys[1])
    y = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    if wanted.ids is None:
        return y, None
    return y, _called(f"column {wanted.ids!r} of {source.name}", "partition.partition_by", table.column(wanted.ids))


def _called(name: str, key: str, column: pyarrow.ChunkedArray) -> Array:
    """A column without missing values as a plain array."""
    import pyarrow

    if column.null_count:
        row = next(i for i, v in enumerate(column) if not v.is_valid)
        raise InputError(f"{name} has {column.null_count} missing values (first: row {row}); allowed: none", key=key)
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    try:
        if pyarrow.types.is_decimal(kind):
            column = column.cast(pyarrow.float64())
        return plain(np.asarray(column.to_pylist()) if _is_list(kind) and _even(column) else column.to_numpy())
    except InputError as error:
        raise InputError(f"{name}: {error.problems[0].message}", key=key) from None
    except Exception as error:  # as above
        raise InputError(f"{name} cannot be used ({kind}: {error})", key=key) from error


def _even(column: pyarrow.ChunkedArray) -> bool:
    return len({len(v) for v in column}) == 1


def _is_list(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
