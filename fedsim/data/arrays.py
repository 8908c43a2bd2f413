"""Readers of files of arrays: npz and IDX. What a header claims is checked before anything is read."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError, nearest, reason, unknown
from fedsim.core.limits import check_room
from fedsim.data.labels import plain
from fedsim.data.splits import Split

_DIVIDED = ("x_train", "y_train", "x_test", "y_test")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

Header = tuple[tuple[int, ...], np.dtype[Any]]


def npz_headers(path: Path, key: str = "path") -> dict[str, Header]:
    """Shape and type of every array of an npz file, without reading the arrays.

    Raises
    ------
    InputError
        It is no npz file, or a header claims another size than the file has, or more than the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as stream:
                    shape, dtype = _npy_header(stream)
                    if not dtype.hasobject:
                        claimed = math.prod(shape) * dtype.itemsize
                        check_room(claimed, f"array '{name}' of shape {list(shape)} in {path}", key, str(path))
                        if stream.tell() + claimed != info.file_size:
                            raise ValueError(
                                f"array '{name}' says it has shape {list(shape)} of {dtype}, {claimed} bytes; "
                                f"found {info.file_size - stream.tell()}"
                            )
                found[name] = (shape, dtype)
            return found
    except InputError:
        raise
    except Exception as error:  # damaged archives raise a dozen types: of zipfile, zlib, struct, tokenize, ...
        raise _unreadable(path, error, key) from error


def read_npz(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), key: str = "path", text: Sequence[str] = ()
) -> dict[str, Array]:
    """Named numeric arrays of an npz file, which must hold all `required` ones; those in `text` may be text."""
    headers = npz_headers(path, key)
    names = list(headers)
    for name in required:
        if name not in names:
            raise InputError(unknown(f"array of {path}", name, names), key=key, file=str(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single .npy array")
            arrays = {name: np.asarray(archive[name]) for name in [*required, *optional] if name in names}
    except Exception as error:  # as above
        raise _unreadable(path, error, key) from error
    for name, array in arrays.items():
        if array.dtype.kind not in ("iufbUS" if name in text else "iufb"):
            raise InputError(
                f"array '{name}' of {path} has type {array.dtype}; allowed: numbers", key=key, file=str(path)
            )
    return arrays


def read_arrays(file: Path, ids: str | None = None) -> list[Split]:
    """The train and test split (x_train, y_train, x_test, y_test) or the one split (x, y) of an npz file.

    `ids`: the array that says whose row it is; of divided data ``<ids>_train`` and ``<ids>_test``.
    """
    headers = npz_headers(file)
    divided = any(name.lower() == "x_train" for name in headers)
    wanted = [_DIVIDED[:2], _DIVIDED[2:]] if divided else [("x", "y")]
    if missing := [name for pair in wanted for name in pair if name not in headers]:
        raise InputError(_no_array(missing[0], headers, file), key="path")
    whose = [] if ids is None else [f"{ids}_train", f"{ids}_test"] if divided else [ids]
    for name in whose:
        if name not in headers:
            raise InputError(_no_array(name, headers, file, whose), key="partition.partition_by")
    for name in (*(n for pair in wanted for n in pair), *whose):
        if headers[name][1].hasobject:
            raise _unreadable(file, ValueError(f"array '{name}' holds Python objects"), "path")
    for x_name, y_name in wanted:
        x, y = headers[x_name][0], headers[y_name][0]
        if len(x) < 2 or len(y) not in (1, 2) or x[0] != y[0] or not math.prod(x):
            found = f"{x_name} has shape {list(x)} and {y_name} {list(y)} in {file}"
            raise InputError(f"{found}; allowed: x [N, ...] and y [N] or [N, k], N at least 1", key="path")
    for a, b in zip(*wanted, strict=True) if divided else ():
        if headers[a][0][1:] != headers[b][0][1:]:
            found = f"rows of {a} have shape {list(headers[a][0][1:])}, of {b} {list(headers[b][0][1:])} in {file}"
            raise InputError(f"{found}; allowed: equal shapes", key="path")
    for name, (x_name, _) in zip(whose, wanted, strict=False):
        if headers[name][0] != headers[x_name][0][:1]:
            found = f"{name} has shape {list(headers[name][0])} and {x_name} {list(headers[x_name][0])} in {file}"
            raise InputError(f"{found}; allowed: one id per row", key="partition.partition_by")
    ys = [y for _, y in wanted]
    arrays = read_npz(file, [name for pair in wanted for name in pair], whose, text=[*ys, *whose])
    for x_name, _ in wanted:
        if not np.isfinite(arrays[x_name]).all():
            at = [int(i) for i in np.argwhere(~np.isfinite(arrays[x_name]))[0]]
            raise InputError(
                f"{x_name} in {file} has values that are not finite (NaN or infinity); the first is at {at}", key="path"
            )
    splits = []
    for i, (x_name, y_name) in enumerate(wanted):
        owners = plain(arrays[whose[i]]) if whose else None
        splits.append(Split(_inputs(arrays[x_name]), arrays[y_name], ids=owners))
    return splits


def _inputs(x: Array) -> Array:
    """Integers stay integers, of one type; uint8 are images."""
    return x.astype(np.int64) if x.dtype.kind in "iu" and x.dtype != np.uint8 else x


def _no_array(name: str, headers: dict[str, Header], file: Path, wanted: Sequence[str] = ()) -> str:
    names = list(headers)
    found = ", ".join(f"{n} {list(shape)}" for n, (shape, _) in headers.items()) or "none"
    allowed = ", ".join(wanted) if wanted else "x_train, y_train, x_test, y_test, or x, y"
    return f"no array {name}{nearest(name, names)} in {file}; found: {found}; allowed: {allowed}"


def _npy_header(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return tuple(int(n) for n in shape), dtype


def _unreadable(path: Path, error: Exception, key: str) -> InputError:
    return InputError(f"cannot read {path} as npz of plain arrays ({reason(error)})", key=key, file=str(path))


def read_idx(folder: Path) -> dict[str, Split]:
    """The four IDX files of MNIST and its kin: ``train-images-idx3-ubyte``, ... (``t10k-``, ``test-``; .gz too).

    Images are bytes; labels may have any of the format's types.
    """
    splits = {}
    for split, prefixes in (("train", ("train",)), ("test", ("t10k", "test"))):
        x = _idx(_idx_file(folder, prefixes, "images"), (3,), (0x08,))
        y = _idx(_idx_file(folder, prefixes, "labels"), (1, 2), tuple(_IDX_TYPES))
        if len(x) != len(y):
            raise InputError(f"{folder} has {len(x)} {split} images but {len(y)} {split} labels", key="path")
        splits[split] = Split(x[:, None], y)
    return splits


def _idx_file(folder: Path, prefixes: Sequence[str], what: str) -> Path:
    for prefix in prefixes:
        pattern = re.compile(rf"{prefix}-{what}[.-]idx\d-(ubyte|byte|short|int|float|double)(\.gz)?")
        found = sorted(p for p in folder.glob(f"{prefix}-{what}*") if pattern.fullmatch(p.name))
        if found:
            return found[0]
    dims = 3 if what == "images" else 1
    wanted = " or ".join(f"{p}-{what}-idx{dims}-ubyte[.gz]" for p in prefixes)
    names = sorted(p.name for p in folder.iterdir())[:10] if folder.is_dir() else []
    raise InputError(f"no {wanted} in {folder}; found there: {', '.join(names) or 'nothing'}", key="path")


def _idx(path: Path, dims: Sequence[int], types: Sequence[int]) -> Array:
    """One IDX file: magic ``00 00 type dims``, the big-endian sizes, the values."""

    def wrong(message: str) -> InputError:
        return InputError(message, key="path", file=str(path))

    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in types or magic[3] not in dims:
                expected = bytes([0, 0, types[0], dims[0]]).hex()
                raise wrong(f"wrong IDX magic {magic.hex() or 'nothing'}; allowed: {expected}")
            head = 4 + 4 * magic[3]
            sizes = file.read(head - 4)
            if len(sizes) < head - 4:
                raise wrong(f"truncated or damaged IDX file: only {4 + len(sizes)} bytes")
            shape, dtype = struct.unpack(f">{magic[3]}I", sizes), np.dtype(_IDX_TYPES[magic[2]])
            needed = math.prod(shape) * dtype.itemsize
            check_room(needed, f"shape {shape}", "path", str(path))
            data = _read(cast(IO[bytes], file), needed + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(f"cannot read {path} ({reason(error)})") from error
    if len(data) != needed:
        found = f"{head + len(data)}" if len(data) < needed else "more"
        raise wrong(f"truncated or damaged IDX file: shape {shape} needs {head + needed} bytes, found {found}")
    if not needed:
        raise wrong(f"found shape {shape}; allowed: at least one row and one value")
    return np.frombuffer(data, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read(file: IO[bytes], most: int) -> bytes:
    """At most that many bytes, in blocks: a header that lies does not make the memory."""
    blocks = []
    while most > 0 and (block := file.read(min(most, 2**24))):
        blocks.append(block)
        most -= len(block)
    return b"".join(blocks)
