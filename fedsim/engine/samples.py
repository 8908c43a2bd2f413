"""States of a run that are samples, kept in its directory: a killed run loses none, and a resumed one repeats none.

While a run goes on they are rows of ``samples.bin``, each with its round and a checksum; they are on the disk before a
checkpoint says that their round is over. At the end of the run ``samples.safetensors`` takes their place.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.round import Sampling
from fedsim.core.arrays import Array
from fedsim.core.disk import cannot_write, replacing, settle
from fedsim.core.errors import RunError
from fedsim.core.oracle import Task
from fedsim.core.row_files import Place, RowStream, TensorFile, write_tensors
from fedsim.engine.assembly import Assembly
from fedsim.engine.watch import Watched, Watcher
from fedsim.scenario.sections import Scenario

LOG = logging.getLogger("fedsim")
FILE, ROWS = "samples.safetensors", "samples.bin"
_AT_ONCE = 2**25  # bytes of samples that are copied together
_HEAD = 16  # bytes before a sample: its round, and its checksum
_WAY_OUT = "put back the file as the run wrote it, or start from the beginning, without --resume"


class Samples(Watcher):
    """The samples of one run.

    Parameters
    ----------
    folder : the run directory.
    sampling : which rounds have one.
    form : a state: ``[chains, d]``, or ``[d]`` of one chain.
    metadata : of ``samples.safetensors``: the layout of the parameters.
    task : whose test data the samples are asked about.
    """

    def __init__(self, folder: Path, sampling: Sampling, form: Tensor, metadata: dict[str, str], task: Task) -> None:
        self.folder, self.sampling, self.metadata = folder, sampling, metadata
        self.shape = (1, *form.shape)[-2:]
        self.dtype = np.dtype(str(form.dtype).removeprefix("torch."))
        self.count = 0
        self._size = int(np.prod(self.shape)) * self.dtype.itemsize
        self._handle: int | None = None
        self._task = task
        self._counted, self._summed = 0, torch.zeros(())

    # --- what the loop tells ------------------------------------------------------------------------------------------

    def check(self, done: int) -> None:
        """Look at what a run that goes on after round `done` finds; nothing is written.

        Raises
        ------
        RunError
            A sample that a checkpoint of that round implies is missing or damaged.
        """
        wanted = self.sampling.count(done)
        if not wanted:
            return
        source = self.folder / (ROWS if (self.folder / ROWS).exists() else FILE)
        if not source.exists():
            raise RunError(
                f"{source} is missing, but the checkpoint of round {done} implies {wanted} samples; {_WAY_OUT}"
            )
        for number, (round, found, values) in enumerate(self._found(source, wanted), 1):
            implied = self.sampling.burn_in + number * self.sampling.thin
            if round != implied or found != _checksum(round, values):
                what = f"sample {number} of round {implied} is not as it was written"
                raise RunError(f"{source} is damaged: {what}; {_WAY_OUT}")

    def began(self, run: Watched) -> None:
        self._now, self.count = run.now, self.sampling.count(run.resumed_at)
        self.check(run.resumed_at)
        path = self.folder / ROWS
        try:
            if self.count and not path.exists():
                with replacing(path) as fresh, fresh.open("wb") as file:
                    for round, _, values in self._found(self.folder / FILE, self.count):
                        file.write(_head(round, values) + values.tobytes())
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._handle, self.count * (_HEAD + self._size))
            if run.resumed_at < run.scenario.run.rounds:
                (self.folder / FILE).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error

    def combined(self, number: int) -> None:
        if not self.sampling.keeps(number):
            return
        values = self._now().state("x").detach().cpu().contiguous().numpy()
        block, place = memoryview(_head(number, values) + values.tobytes()), self.count * (_HEAD + self._size)
        assert self._handle is not None
        try:
            while len(block):
                written = os.pwrite(self._handle, block, place)
                block, place = block[written:], place + written
        except OSError as error:
            raise cannot_write(self.folder / ROWS, error) from error
        self.count += 1

    def saving(self) -> None:
        assert self._handle is not None
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise cannot_write(self.folder / ROWS, error) from error

    def ended(self, run: Watched) -> None:
        """Write ``samples.safetensors``: `samples` ``[count, chains, d]``, `rounds` and `checksums` ``[count]``."""
        if not self.count:
            LOG.warning("no sample was kept: burn_in and thin leave none of the rounds up to the last one")
        rounds, sums = np.empty(self.count, dtype=np.int64), np.empty(self.count, dtype=np.int64)
        step = max(1, _AT_ONCE // self._size)

        def parts(_: Place) -> Iterator[tuple[Array, Array]]:
            for first in range(0, self.count, step):
                rows = np.arange(first, min(first + step, self.count))
                found = list(self._found(self.folder / ROWS, int(rows[-1]) + 1, first))
                rounds[rows], sums[rows] = [r for r, _, _ in found], [s for _, s, _ in found]
                yield rows, np.stack([values for _, _, values in found])

        dtype = getattr(torch, str(self.dtype))
        try:
            tensors: dict[str, Tensor | RowStream] = {
                "samples": RowStream((self.count, *self.shape), dtype, parts),
                "rounds": torch.from_numpy(rounds),
                "checksums": torch.from_numpy(sums),
            }
            with replacing(self.folder / FILE) as fresh:
                write_tensors(fresh, tensors, {"format": "fedsim samples 1", **self.metadata})
                settle(fresh)
            settle(self.folder)
            (self.folder / ROWS).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.folder / FILE, error) from error

    def closed(self, error: BaseException | None) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    # --- what measures see --------------------------------------------------------------------------------------------

    def predictive(self) -> tuple[Tensor, int]:
        """Mean over all samples so far of the classes' probabilities on the test data, and how many there are.

        They are summed one round after the other, so that a resumed run has the same sum.
        """
        for _, _, values in self._found(self.folder / ROWS, self.count, self._counted):
            models = torch.as_tensor(values, device=self._task.device)
            self._summed = self._summed.to(models.device) + self._task.probabilities(models).double().sum(0)
            self._counted += 1
        count = self._counted * self.shape[0]
        return self._summed / max(count, 1), count

    # --- files --------------------------------------------------------------------------------------------------------

    def _found(self, source: Path, end: int, first: int = 0) -> Iterator[tuple[int, int, Array]]:
        """Round, checksum and values of samples `first` to `end` of a file; those that it lacks are of round -1."""
        nothing = (-1, -1, np.zeros(self.shape, dtype=self.dtype))
        if source.name == FILE:
            yield from self._finished(source, end, nothing)
            return
        with source.open("rb") as file:
            file.seek(first * (_HEAD + self._size))
            for _ in range(first, end):
                head, values = file.read(_HEAD), file.read(self._size)
                if len(values) < self._size:
                    yield nothing
                    continue
                round, found = np.frombuffer(head, dtype="<i8").tolist()
                yield round, found, np.frombuffer(values, dtype=self.dtype).reshape(self.shape).copy()

    def _finished(self, source: Path, end: int, nothing: tuple[int, int, Array]) -> Iterator[tuple[int, int, Array]]:
        try:
            file = TensorFile(source.absolute())
            file.check()
            rounds, sums, place = file["rounds"].tolist(), file["checksums"].tolist(), file.place("samples")
        except Exception as error:  # whatever a damaged file makes of its reader
            raise RunError(f"{source} is damaged ({error}); {_WAY_OUT}") from None
        for i in range(end):
            if i >= len(rounds) or place.shape != self.shape:
                yield nothing
            else:
                yield rounds[i], sums[i], place.read(np.array([i]))[0].astype(self.dtype)


def samples_of(scenario: Scenario, assembly: Assembly, folder: Path) -> Samples | None:
    """The samples of a run in `folder`; None where its algorithm keeps none."""
    sampling = scenario.algorithm.sampling
    if sampling is None:
        return None
    form = scenario.algorithm.init(assembly.task.initial())["x"]
    return Samples(folder, sampling, form, dict(assembly.layout), assembly.task)


def _checksum(round: int, values: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(values).tobytes(), zlib.crc32(np.int64(round).tobytes()))


def _head(round: int, values: Array) -> bytes:
    return np.array([round, _checksum(round, values)], dtype="<i8").tobytes()
