"""Checkpoints: the state of a run, written so that a crash at any moment leaves the last one whole."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.core.disk import cannot_write, settle
from fedsim.core.errors import RunError
from fedsim.core.row_files import RowStream, TensorFile, write_tensors
from fedsim.engine.totals import Totals

SCENARIO = "scenario.yaml"
SUMS = "checksums.json"
_FORMAT = 2
"""Of checkpoints with checksums; earlier ones do not say."""
_PART = 2**20
_PLACES = ("checkpoint", "checkpoint.old")
"""Where the newest one is, and where it is while a newer one takes its place."""


def save_checkpoint(
    folder: Path,
    progress: Mapping[str, Any],
    state: Mapping[str, Tensor | RowStream],
    clients: Mapping[str, Tensor | RowStream],
) -> Checkpoint:
    """Replace the checkpoint in one step: a crash at any time leaves the old one or the new one, never a mixture.

    Raises
    ------
    RunError
        The disk takes no more; the checkpoint before is as it was.
    """
    fresh, current, old = (folder / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        write_tensors(fresh / "state.safetensors", state)
        write_tensors(fresh / "clients.safetensors", clients)
        (fresh / "progress.json").write_text(json.dumps({**progress, "format": _FORMAT}), encoding="utf-8")
        if (folder / SCENARIO).exists():
            shutil.copyfile(folder / SCENARIO, fresh / SCENARIO)
        sums = {file.name: checksum(file) for file in sorted(fresh.iterdir())}
        (fresh / SUMS).write_text(json.dumps(sums), encoding="utf-8")
        for file in (*fresh.iterdir(), fresh):
            settle(file)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise cannot_write(fresh, error) from error
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    fresh.rename(current)
    settle(folder)
    shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(current.absolute(), progress)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one, damaged or not."""
    return any((folder / name / "progress.json").exists() for name in _PLACES)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None where there is none.

    Raises
    ------
    RunError
        It is damaged.
    """
    for name in _PLACES:
        place = folder / name
        if (place / "progress.json").exists():
            try:
                found = Checkpoint(place.absolute(), _progress(place))
                found.state.check()
                found.clients.check()
            except Exception as error:  # a damaged file: say so instead of starting over silently
                raise RunError(f"{place} is damaged ({error}); delete it to start from the beginning") from error
            return found
    return None


def checksum(file: Path) -> int:
    """CRC-32 of a file: it finds what a disk or a copy has changed, not what somebody has."""
    found = 0
    with file.open("rb") as handle:
        while part := handle.read(_PART):
            found = zlib.crc32(part, found)
    return found


def _progress(place: Path) -> dict[str, Any]:
    """``progress.json``, after every file was compared with its checksum: earlier versions wrote none."""
    progress = json.loads((place / "progress.json").read_text(encoding="utf-8"))
    if not isinstance(progress, dict):
        raise ValueError(f"progress.json: found {type(progress).__name__}, expected an object")
    if "format" in progress or (place / SUMS).exists():
        sums = json.loads((place / SUMS).read_text(encoding="utf-8"))
        if not {"state.safetensors", "clients.safetensors", "progress.json"} <= set(sums):
            raise ValueError(f"{SUMS} lacks files")
        for name, recorded in sums.items():
            if checksum(place / name) != recorded:
                raise ValueError(f"{name} is not as it was written: its checksum differs")
    if type(progress.get("round")) is not int or progress["round"] < 0:
        raise ValueError(f"progress.json: found round {progress.get('round')!r}, expected a whole number")
    for key in ("totals", "privacy"):
        if not isinstance(progress.get(key, {}), dict):
            raise ValueError(f"progress.json: found {key} {progress[key]!r}, expected an object")
    totals = progress["totals"]
    for total in fields(Totals):
        if type(totals.get(total.name, 0)) not in (int, float):
            raise ValueError(f"progress.json: found {total.name} {totals[total.name]!r}, expected a number")
    Totals(**totals)
    return progress


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in the folder `place`: the tensors are read when they are asked for."""

    place: Path
    progress: Mapping[str, Any]

    @cached_property
    def state(self) -> TensorFile:
        """The algorithm's state: of a server, or ``[n, d]`` of a graph's nodes."""
        return TensorFile(self.place / "state.safetensors")

    @cached_property
    def clients(self) -> TensorFile:
        """What the backend's `save` gave."""
        return TensorFile(self.place / "clients.safetensors")
