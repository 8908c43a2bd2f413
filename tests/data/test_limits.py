"""Small files and short numbers that claim to be huge: refused before anything is allocated."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import idx_folder_in, load, write_images
from PIL import Image

from fedsim.core import limits
from fedsim.core.errors import InputError
from fedsim.scenario.load import parse


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is refused takes less than 100 MB on the way."""
    monkeypatch.setenv("FEDSIM_CACHE", "off")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = resident("VmRSS") if forget_peak() else None
    yield
    if before is not None:
        assert resident("VmHWM") - before < 100e6


def forget_peak() -> bool:
    """Begin the kernel's peak of this process anew, where the kernel can (Linux).

    Not `tracemalloc`: stopping it while another thread allocates ends the process (CPython 3.11).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident(which: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM)."""
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) * 1024


@pytest.fixture(autouse=True, scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What readers import takes memory once; it is not what a file takes."""
    folder = tmp_path_factory.mktemp("readers")
    write_images(folder / "train.parquet", [made("PNG", (8, 8))] * 20, [0, 1] * 10)
    load(folder, dataset="parquet", path=".", target="label")


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize("shape", [(10**13, 4), (10**6, 4), (2**62, 8)])
def test_npz_headers_that_lie(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, b"\0" * 64))
        archive.writestr("y.npy", npy((2,), b"\0" * 16))
    with pytest.raises(InputError, match=r"allowed: this machine's memory|says it has shape .* bytes; found 64"):
        load(tmp_path, dataset="npz", path="d.npz")


def test_npz_whose_directory_lies(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((100, 3)), y=np.arange(100) % 2)
    raw = bytearray((tmp_path / "d.npz").read_bytes())
    for at in range(len(raw) - 16, 0, -1):  # every directory entry claims other sizes
        if raw[at : at + 4] == b"PK\x01\x02":
            raw[at + 24 : at + 28] = struct.pack("<I", 2**31)
    (tmp_path / "d.npz").write_bytes(raw)
    with pytest.raises(InputError, match=r"cannot read .* as npz"):
        load(tmp_path, dataset="npz", path="d.npz")


def test_idx_headers_that_lie(tmp_path: Path) -> None:
    folder = idx_folder_in(tmp_path)
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**15, 2**15) + b"\0" * 100)
    with pytest.raises(InputError, match=r"shape \(2147483648, 32768, 32768\) needs .*TiB; allowed: this machine's"):
        load(tmp_path, dataset="idx", path="idx")
    images.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 6, 5, 4) + b"\0" * 120)
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 6) + b"\0" * 2**25))
    with pytest.raises(InputError, match="found more"):
        load(tmp_path, dataset="idx", path="idx")


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_decompression_bombs(tmp_path: Path, side: int) -> None:
    write_images(tmp_path / "train.parquet", [png_header(side, side)] * 2, [0, 1])
    with pytest.raises(InputError, match=r"image of row 0 claims to be too large .* allowed: 67,108,864 pixels"):
        load(tmp_path, dataset="parquet", path=".", target="label")


def made(form: str, size: tuple[int, int], **keys: Any) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, form, **keys)
    return file.getvalue()


def claiming(form: str, marker: bytes, order: str) -> bytes:
    """A picture that says after `marker` that it is 65,000 x 65,000 pixels."""
    data = bytearray(made(form, (8, 8)))
    at = data.index(marker) + len(marker)
    data[at : at + 4] = struct.pack(order, 65_000, 65_000)
    return bytes(data)


@pytest.mark.parametrize(
    "picture, says",
    [
        (claiming("GIF", b"GIF87a", "<2H"), "claims to be too large"),
        (claiming("GIF", b",\0\0\0\0", "<2H"), "claims to be too large"),
        (claiming("JPEG", b"\xff\xc0\0\x0b\x08", ">2H"), "claims to be too large"),
        (b"P5 60000 60000 255\n", "claims to be too large"),
        (made("ICO", (32, 32)), "allowed: PNG, JPEG, GIF"),
        (made("EPS", (8, 8)), "allowed: PNG, JPEG, GIF"),
    ],
    ids=["gif", "frame", "jpeg", "ppm", "ico", "eps"],
)
def test_pictures_of_other_formats(picture: bytes, says: str, tmp_path: Path) -> None:
    write_images(tmp_path / "train.parquet", [picture] * 2, [0, 1])
    with pytest.raises(InputError, match=f"image of row 0.* {says}"):
        load(tmp_path, dataset="parquet", path=".", target="label")


def test_a_later_picture_is_looked_at_before_it_is_decoded(tmp_path: Path) -> None:
    write_images(tmp_path / "train.parquet", [made("PNG", (8, 8)), png_header(8000, 8000)], [0, 1])
    with pytest.raises(InputError, match=r"image of row 1 has shape \(8000, 8000\), row 0 has \(8, 8\)"):
        load(tmp_path, dataset="parquet", path=".", target="label")


def test_many_images_of_a_size_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "train.parquet", [png_header(8000, 8000)] * 20, [0, 1] * 10)
    monkeypatch.setattr(limits, "memory", lambda: 2**32)
    with pytest.raises(InputError, match=r"20 images of 8000 x 8000 pixels .* needs 4.8 GiB; allowed"):
        load(tmp_path, dataset="parquet", path=".", target="label")


def scenario(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 4},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 1},
        **sections,
    }


@pytest.mark.parametrize(
    "sections, key, message",
    [
        ({"model": {"name": "mlp", "hidden": [10**9, 10**9]}}, "model.name", "a model of .* parameters needs .*TiB"),
        ({"model": {"name": "cnn", "hidden": 10**12}}, "model.name", "a model of .* parameters needs .*TiB"),
        (
            {"data": {"dataset": "synthetic", "iid": True, "clients": 2, "num_classes": 10**8}},
            "data.num_classes",
            "found 100000000",
        ),
        (
            {"data": {"dataset": "synthetic", "iid": True, "clients": 10**10}},
            "data.clients",
            "10,000,000,000 clients .* needs",
        ),
        (
            {"data": {"dataset": "synthetic", "iid": True, "clients": 2, "num_classes": 10**6, "dimension": 10**6}},
            "data.dimension",
            "needs .*TiB",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_numbers_that_are_too_large(sections: dict[str, Any], key: str, message: str) -> None:
    from fedsim.engine.assembly import assemble

    with pytest.raises(InputError, match=message) as caught:
        assemble(parse(scenario(**sections)))
    assert caught.value.problems[0].key == key


@pytest.mark.parametrize("dataset", ["npz", "idx", "csv"])
def test_classes_are_bounded(tmp_path: Path, dataset: str) -> None:
    section = {"dataset": dataset, "path": "x", **({"target": "y"} if dataset == "csv" else {})}
    with pytest.raises(InputError, match="found 100000000, allowed") as caught:
        load(tmp_path, **section, num_classes=10**8)
    assert caught.value.problems[0].key == "num_classes"


def test_sizes_in_words() -> None:
    assert [limits.size(n) for n in (5, 2048, 3 * 2**30, 2**60)] == ["5 bytes", "2.0 KiB", "3.0 GiB", "1,048,576.0 TiB"]
    assert limits.memory() > 2**28
