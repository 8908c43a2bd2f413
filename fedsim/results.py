"""The run directory: what a run leaves behind, written so that an interrupted run loses nothing and can be resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsim.errors import InputError, RunError

_PACKAGES = ("fedsim", "torch", "numpy", "scipy", "networkx", "datasets", "flwr-datasets", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run.

    Attributes
    ----------
    dir : the run directory.
    finished : False where the run was interrupted.
    """

    dir: Path
    finished: bool = True

    @cached_property
    def metrics(self) -> Any:
        """``metrics.jsonl`` as a pandas DataFrame, one row per evaluation."""
        import pandas as pd

        return pd.DataFrame(read_jsonl(self.dir / "metrics.jsonl"))

    @cached_property
    def trace(self) -> list[dict[str, Any]]:
        """``trace.jsonl``, one mapping per round."""
        return read_jsonl(self.dir / "trace.jsonl")

    @cached_property
    def params(self) -> Tensor:
        """Final parameters: ``[d]`` for a server, ``[n, d]`` for gossip."""
        path = self.dir / "params.safetensors"
        if not path.exists():
            raise RunError(
                f"{self.dir} holds no final parameters: the run is not finished (fedsim run --resume continues it)"
            )
        return load_file(path)["params"]


class Recorder:
    """Appends to ``metrics.jsonl`` and ``trace.jsonl`` and keeps the checkpoint."""

    def __init__(self, folder: Path, trace: bool) -> None:
        self.folder = folder
        self._metrics: IO[str] = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._trace: IO[str] | None = (folder / "trace.jsonl").open("a", encoding="utf-8") if trace else None

    def metrics(self, row: Mapping[str, Any]) -> None:
        self._metrics.write(_json(row) + "\n")
        self.flush()

    def trace(self, row: Mapping[str, Any]) -> None:
        if self._trace is not None:
            self._trace.write(_json(row) + "\n")

    def flush(self) -> None:
        for file in (self._metrics, self._trace):
            if file is not None:
                file.flush()

    def close(self) -> None:
        for file in (self._metrics, self._trace):
            if file is not None:
                file.close()


def open_directory(folder: Path, scenario_yaml: str, resume: bool, trace: bool) -> dict[str, Any] | None:
    """Make `folder` ready for a run; with `resume`, return the checkpoint (None where there is none) and cut what was recorded after it.

    Raises
    ------
    InputError
        To be resumed, but it holds another scenario; or not to be resumed, but it holds an unfinished run's checkpoint of another scenario.
    """
    recorded = folder / "scenario.yaml"
    if resume and recorded.exists() and recorded.read_text(encoding="utf-8") != scenario_yaml:
        changed = _first_difference(recorded.read_text(encoding="utf-8"), scenario_yaml)
        raise InputError(
            f"--resume: {folder} holds a run of another scenario ({changed}); give another --out, or run without --resume"
        )
    checkpoint = load_checkpoint(folder) if resume else None
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    if checkpoint is None:
        for name in ("metrics.jsonl", "trace.jsonl", "params.safetensors", "topology.graphml", "report.html"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    else:
        for name in ("metrics.jsonl", "trace.jsonl"):
            _cut(folder / name, checkpoint["round"])
    _write_atomically(recorded, scenario_yaml)
    _write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    if not trace:
        (folder / "trace.jsonl").unlink(missing_ok=True)
    return checkpoint


def save_checkpoint(
    folder: Path, progress: Mapping[str, Any], state: Mapping[str, Tensor], clients: Mapping[str, Tensor]
) -> None:
    """Replace the checkpoint in one step: a crash at any time leaves the old one or the new one, never a mixture."""
    fresh, current, old = (folder / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, fresh / "state.safetensors")
    save_file({k: v.contiguous() for k, v in clients.items()}, fresh / "clients.safetensors")
    (fresh / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    for file in fresh.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    fresh.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint: progress with `state` and `clients` tensors; None where there is none."""
    for name in ("checkpoint", "checkpoint.old"):
        place = folder / name
        if (place / "progress.json").exists():
            try:
                progress: dict[str, Any] = json.loads((place / "progress.json").read_text(encoding="utf-8"))
                progress["state"] = load_file(place / "state.safetensors")
                progress["clients"] = load_file(place / "clients.safetensors")
            except Exception as error:  # a damaged file: say so instead of starting over silently
                raise RunError(f"{place} is damaged ({error}); delete it to start from the beginning") from error
            return progress
    return None


def save_params(folder: Path, params: Tensor, metadata: Mapping[str, str]) -> None:
    """``params.safetensors`` with the layout of the flat vector in its metadata."""
    temporary = folder / "params.safetensors.new"
    save_file({"params": params.detach().cpu().contiguous()}, temporary, metadata=dict(metadata))
    temporary.replace(folder / "params.safetensors")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that a crash cut short is left out."""
    if not path.exists():
        raise InputError("no such file", file=str(path))
    return [row for row, _ in _rows(path)]


def environment() -> dict[str, Any]:
    """What a run's numbers may depend on besides its scenario."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _json(row: Mapping[str, Any]) -> str:
    return json.dumps({k: _plain(v) for k, v in row.items()}, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON's types; a number that is not finite becomes null."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line), line
        except json.JSONDecodeError:
            return


def _cut(path: Path, last_round: int) -> None:
    """Drop rows after `last_round`: the resumed run records them again."""
    if path.exists():
        kept = [line for row, line in _rows(path) if row["round"] <= last_round]
        _write_atomically(path, "".join(line + "\n" for line in kept))


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _first_difference(old: str, new: str) -> str:
    for a, b in zip(old.splitlines(), new.splitlines(), strict=False):
        if a != b:
            return f"there '{a.strip()}', here '{b.strip()}'"
    return "one has more keys"
