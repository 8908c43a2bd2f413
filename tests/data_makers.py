"""Small files of every format, made for the tests."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.fields import part_from


def load(base: Path, clients: int | None = None, seed: int = 0, **section: Any) -> Any:
    return part_from("dataset", "dataset", section).load(clients, seed, base)


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_images(file: Path, images: list[Any], labels: list[Any], image: str = "image", label: str = "label") -> None:
    """A parquet file as on the hub: images as structs of bytes and path, the feature types in the schema's metadata."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({image: datasets.Image(), label: datasets.Value("int64")})
    rows = {image: [{"bytes": b if isinstance(b, bytes) else png(b), "path": None} for b in images], label: labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))


def pictures(count: int, shape: tuple[int, ...] = (5, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def image_folder_in(parent: Path) -> Path:
    """``images``: 8 training and 3 test images of 5 x 4 pixels in hub format."""
    folder = parent / "images"
    folder.mkdir()
    write_images(folder / "train-00000.parquet", list(pictures(6)), [0, 1, 2, 0, 1, 2])
    write_images(folder / "train-00001.parquet", list(pictures(2, seed=1)), [9, 0])
    write_images(folder / "test.parquet", list(pictures(3, seed=2)), [0, 1, 2])
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_folder_in(parent: Path) -> Path:
    """``idx``: 6 training and 4 test images with gzipped labels."""
    folder = parent / "idx"
    folder.mkdir()
    for prefix, n in (("train", 6), ("t10k", 4)):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(pictures(n)))
        labels = gzip.compress(idx_bytes(np.arange(n) % 3))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(labels)
    return folder


def save_quadratic(folder: Path, **changed: Any) -> Path:
    arrays: dict[str, Any] = {
        "A": np.stack([np.eye(2), np.diag([1.0, 3.0]), np.eye(2)]),
        "b": np.ones((3, 2)),
    } | changed
    np.savez(folder / "q.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder
