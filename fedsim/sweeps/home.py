"""Run directories on their way home: from machines that do not see a sweep's folder to the one that started it."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from fedsim.core.lock import owned


class Home:
    """An actor on the machine where a sweep was started, which puts what others send into the sweep's folder."""

    def __init__(self, places: Sequence[str]) -> None:
        self.places = [Path(place) for place in places]

    def receive(self, number: int, packed: bytes) -> None:
        """Replace the directory of a run."""
        with owned(self.places[number]):
            unpack(packed, self.places[number])


def pack(folder: Path) -> bytes:
    """A directory as one compressed archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def unpack(packed: bytes, place: Path) -> None:
    """What `pack` gave as the directory `place`, in the place of what was there."""
    incoming = place.with_name(f".{place.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        archive.extractall(incoming, filter="data")
    shutil.rmtree(place, ignore_errors=True)
    incoming.rename(place)
