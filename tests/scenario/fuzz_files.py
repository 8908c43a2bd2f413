"""Small data, graph and trace files that work, each with the scenario that reads it, and files whose headers lie."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_makers import idx_bytes, pictures, png, write_images
from fuzz_makers import DATA, RUN
from PIL import Image

LEARNING = {"model": {"name": "linear"}, "algorithm": {"name": "fedavg", "lr": 0.01}, "run": RUN}
NUMBERS = np.random.default_rng(0)


def reading(dataset: str, **section: Any) -> dict[str, Any]:
    """The scenario of a data file."""
    return {"data": {"dataset": dataset, "clients": 2, **section}, **LEARNING}


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def table(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def _images() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "d.parquet", list(pictures(12)), [0, 1, 2] * 4)
        return (Path(folder) / "d.parquet").read_bytes()


_X, _Y = NUMBERS.standard_normal((20, 3)).round(2), np.arange(20) % 2
_CSV = "a,b,y\n" + "".join(f"{a:.2f},{b:.2f},{'no' if y else 'yes'}\n" for (a, b, _), y in zip(_X, _Y, strict=True))

DATA_FILES: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {
    "csv": (reading("csv", path="d.csv", target="y"), {"d.csv": _CSV.encode()}),
    "csv of people": (
        reading("csv", path="d.csv", target="y", categorical=["c"], missing="most_frequent"),
        {"d.csv": ("c,x,y\n" + "red,1.5,0\nblue,,1\n,2.5,0\ngreen,3,1\n" * 4).encode()},
    ),
    "npz": (reading("npz", path="d.npz"), {"d.npz": npz(x=_X, y=_Y)}),
    "divided npz": (
        reading("npz", path="d.npz"),
        {"d.npz": npz(x_train=_X[:12], y_train=_Y[:12], x_test=_X[12:], y_test=_Y[12:])},
    ),
    "quadratic": (
        {"data": {"dataset": "quadratic", "file": "q.npz"}, **{k: v for k, v in LEARNING.items() if k != "model"}},
        {"q.npz": npz(A=np.full((3, 2), 0.5), b=np.ones((3, 2)), x0=np.zeros(2), p=np.ones(3))},
    ),
    "parquet": (
        reading("parquet", path="d.parquet", target="y"),
        {"d.parquet": table(a=_X[:, 0], b=list(range(20)), y=_Y)},
    ),
    "images": (reading("parquet", path="d.parquet", target="label", image="image"), {"d.parquet": _images()}),
    "image_folder": (
        reading("image_folder", path="zoo"),
        {f"zoo/{kind}/{i}.png": png(image) for kind in ("bear", "crow") for i, image in enumerate(pictures(6))},
    ),
    "idx": (
        reading("idx", path="."),
        {
            **{f"{s}-images-idx3-ubyte": idx_bytes(pictures(8)) for s in ("train", "t10k")},
            **{f"{s}-labels-idx1-ubyte": idx_bytes(np.arange(8) % 2) for s in ("train", "t10k")},
        },
    ),
}  # fmt: skip


def _written(write: Callable[[Any, Any], Any]) -> bytes:
    graph = nx.cycle_graph(4)
    nx.set_edge_attributes(graph, 2.5, "latency_ms")
    file = io.BytesIO()
    write(graph, file)
    return file.getvalue()


GRAPH_FILES: dict[str, bytes] = {
    "g.graphml": _written(nx.write_graphml),
    "g.gml": _written(nx.write_gml),
    "g.gexf": _written(nx.write_gexf),
    "g.net": _written(nx.write_pajek),
    "g.json": json.dumps(nx.node_link_data(nx.cycle_graph(4), edges="links")).encode(),
    "a.json": json.dumps(nx.adjacency_data(nx.cycle_graph(4))).encode(),
    "g.g6": nx.to_graph6_bytes(nx.cycle_graph(4)),
    "g.s6": nx.to_sparse6_bytes(nx.cycle_graph(4)),
    "g.csv": b"source,target,latency_ms\na,b,1\nb,c,2.5\nc,d,3\nd,a,0\n",
    "g.edges": b"4\n0 1\n1 2\n2 3\n3 0\n",
    "g.edgelist": b"0 1 {'latency_ms': 2}\n1 2 {'latency_ms': 3}\n2 3 {'latency_ms': 0}\n3 0 {'latency_ms': 1}\n",
    "g.adjlist": b"0 1 3\n1 2\n2 3\n3\n",
    "g.csv.gz": gzip.compress(b"source,target\na,b\nb,c\nc,d\nd,a\n", mtime=0),
}


def on_graph(path: str) -> dict[str, Any]:
    return {
        "data": DATA, "model": {"name": "linear"}, "algorithm": {"name": "dspodfl", "lr": 0.1},
        "topology": {"graph": "file", "path": path}, "run": RUN,
    }  # fmt: skip


DEVICES = [
    {"computation": 10.0 + k, "communication": 1000.0, "active": [0, 30], "inactive": [20, 50], "finish_time": 60}
    for k in range(3)
]
_KEYS = "computation,communication,active,inactive,finish_time"
TRACES: dict[str, bytes] = {
    "t.json": json.dumps(DEVICES).encode(),
    "named.json": json.dumps({f"phone {k}": d for k, d in enumerate(DEVICES)}).encode(),
    "t.csv": (_KEYS + "\n" + "10.5,1000,0;30,20;50,60\n11,500,0;10,5;40,60\n").encode(),
}


def on_trace(path: str) -> dict[str, Any]:
    return {
        "data": DATA, **LEARNING,
        "system": {
            "compute": {"model": "trace", "file": path},
            "availability": {"model": "trace", "file": path},
            "network": {"bandwidth": {"model": "trace", "file": path}},
        },
    }  # fmt: skip


def claims(shape: str, dtype: str = "<f8", name: str = "x", body: bytes = b"\0" * 64) -> bytes:
    """An npz file of arrays x and y; one of them says that it has this shape and type, and has `body`."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body)
        other = io.BytesIO()
        np.save(other, np.arange(8) % 2)
        archive.writestr(f"{'y' if name == 'x' else 'x'}.npy", other.getvalue())
    return file.getvalue()


def _png(width: int, height: int, packed: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", width % 2**32, height % 2**32, 8, 0, 0, 0, 0)
    text = chunk(b"zTXt", b"about\0\0" + packed)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + text + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _tiff(width: int, height: int, packed: bytes) -> bytes:
    sizes = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, height)]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, v % 2**32) for tag, v in [*sizes, (279, len(packed))])
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(sizes) + 1) + tags + b"\0" * 4


def _with_size(form: str, marker: bytes, order: str, width: int, height: int, packed: bytes) -> bytes:
    """A picture that Pillow writes, whose size is written over after `marker`."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, form)
    data, at = bytearray(file.getvalue()), file.getvalue().index(marker) + len(marker)
    length = struct.calcsize(order)
    data[at : at + length] = struct.pack(order, *(v % 2 ** (4 * length) for v in (width, height)))
    return bytes(data) + packed[:1000]


PICTURES: dict[str, Callable[[int, int, bytes], bytes]] = {
    "png": _png,
    "tiff": _tiff,
    "gif": partial(_with_size, "GIF", b"GIF87a", "<2H"),
    "gif, its first frame": partial(_with_size, "GIF", b",\0\0\0\0", "<2H"),
    "jpeg": lambda w, h, packed: _with_size("JPEG", b"\xff\xc0\0\x0b\x08", ">2H", h, w, packed),
    "bmp": partial(_with_size, "BMP", b"(\0\0\0", "<2I"),
    "ico": lambda w, h, packed: struct.pack("<3H4B2H2I", 0, 1, 1, 8, 8, 0, 0, 1, 8, len(_png(w, h, packed)), 22)
    + _png(w, h, packed),
    "ppm": lambda w, h, packed: f"P5 {w} {h} 255\n".encode() + packed,
    "eps": lambda w, h, _: f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 {w} {h}\n%%EndComments\n".encode(),
}  # fmt: skip
"""Makers of pictures that claim a size, and hold `packed` data."""


def shown_in(pictures: list[bytes]) -> bytes:
    """A parquet file of these pictures, with labels 0 and 1."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "d.parquet", list(pictures), [i % 2 for i in range(len(pictures))])
        return (Path(folder) / "d.parquet").read_bytes()


def put(files: dict[str, bytes]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
