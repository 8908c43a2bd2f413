"""Checkpoints: the state of a run, written so that a crash at any moment leaves the last one whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.core.errors import RunError
from fedsim.core.row_files import RowStream, TensorFile, write_tensors


def save_checkpoint(
    folder: Path,
    progress: Mapping[str, Any],
    state: Mapping[str, Tensor | RowStream],
    clients: Mapping[str, Tensor | RowStream],
) -> Checkpoint:
    """Replace the checkpoint in one step: a crash at any time leaves the old one or the new one, never a mixture."""
    fresh, current, old = (folder / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write_tensors(fresh / "state.safetensors", state)
    write_tensors(fresh / "clients.safetensors", clients)
    (fresh / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    for file in fresh.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    fresh.rename(current)
    shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(current.absolute(), progress)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None where there is none.

    Raises
    ------
    RunError
        It is damaged.
    """
    for name in ("checkpoint", "checkpoint.old"):
        place = folder / name
        if (place / "progress.json").exists():
            try:
                found = Checkpoint(place.absolute(), json.loads((place / "progress.json").read_text(encoding="utf-8")))
                found.state.check()
                found.clients.check()
            except Exception as error:  # a damaged file: say so instead of starting over silently
                raise RunError(f"{place} is damaged ({error}); delete it to start from the beginning") from error
            return found
    return None


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
