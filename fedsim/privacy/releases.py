"""``releases.jsonl``: every release of a run, on the disk before it happens, and what a resumed run makes of it.

A run that was killed has released more than its last checkpoint knows. Resumed, it reads these rows: all of them count.
As long as it makes the very same releases again (the same jobs from the same models, the same sums under the noise),
they tell nothing new and cost nothing. With the first one that differs (another machine's rounding, a client that lost
its state) the noise used so far would be used a second time, and the difference of the two would be free of it: from
there on noise is drawn from other keys, and every release counts by itself. So does what is under way at that moment,
and what was under way at a checkpoint whose work another machine or other actors may have done since: its messages have
other last bits now, so that they get new noise and are charged once more.

Rows have ``job`` (a digest of who works on what) and ``charged``, what they cost; or ``round`` and ``sum``, a keyed
digest of what a server's noise was added to; ``word`` names the keys where they are not the scenario's. Where jobs
outlast rounds, ``place`` is a digest of where they are computed; a row may have nothing else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.core.append_file import AppendFile
from fedsim.core.arrays import Ints
from fedsim.core.errors import RunError
from fedsim.core.types import Message
from fedsim.privacy.accounting import Release
from fedsim.privacy.ledger import Claim, Entry, PrivacyLedger

FILE = "releases.jsonl"
Row = Mapping[str, Any]
Jobs = Mapping[tuple[int, int], int]
"""The steps of jobs by client and the client's round."""
NO_JOBS: Jobs = {}


class Releases:
    """The file of one run, and which of its rows a resumed run may still make again.

    Parameters
    ----------
    folder : the run directory.
    durable : have every row outlast the machine's end before its release; else that is done before anything else is
        recorded that depends on it (`settle`), since the releases of a simulation leave its process in no other way.
    outlast : jobs may be under way at a checkpoint, and this process makes their noise.
    left : those that were under way at the checkpoint that the run goes on from.
    """

    def __init__(self, folder: Path, durable: bool = False, outlast: bool = False, left: Jobs = NO_JOBS) -> None:
        self.file, self.durable, self.outlast = AppendFile(folder / FILE), durable, outlast
        self.rows = 0
        self.again: dict[tuple[int, int], int] = {}
        """What is under way and may have been computed before, by the run that was killed."""
        self._left, self._place = left, ""
        self._silent = True  # no row since the last checkpoint says where work is done
        self._jobs: Counter[str] = Counter()
        self._sums: dict[int, str] = {}

    def resume(self, known: int, ledger: PrivacyLedger, word: int | None) -> bool:
        """Take note of what was released after the checkpoint, which knows the first `known` rows and drew noise from
        `word`: it counts. Whether it may be made again: nobody did it elsewhere, or in another way already.

        Raises
        ------
        RunError
            Rows are damaged or missing.
        """
        rows = self.file.unread()
        if len(rows) < known:
            raise RunError(
                f"{self.file.path} has {len(rows)} rows, but the checkpoint was written after {known}: releases are "
                "missing; what was spent is no longer known"
            )
        self.rows = len(rows)
        words, places = set[int | None](), set[str]()
        for row in rows[known:]:
            try:
                for entry in entries(row):
                    ledger.add(entry)
                if "job" in row:
                    self._jobs[row["job"]] += 1
                elif "sum" in row or "place" not in row:
                    self._sums[row["round"]] = row["sum"]
                words.add(row.get("word"))
                places |= {row["place"]} if "place" in row else set()
            except (KeyError, TypeError, ValueError):
                raise RunError(f"{self.file.path} is damaged: found the row {row}") from None
        self._silent = self._place not in places
        if self.outlast and rows[known:]:
            self.again = dict(self._left)
        return words <= {word} and places <= {self._place}

    def at(self, place: str) -> None:
        """From here on work is done there."""
        self._place, self._silent = hashlib.sha256(place.encode()).hexdigest()[:12], True

    def computing(self, word: int | None) -> None:
        """What is under way is about to be computed here: a row says so, where none since the checkpoint does."""
        if self.outlast and self._silent:
            self._write({}, word)

    def checkpointed(self) -> int:
        """What is under way is in a checkpoint now, which knows that many rows."""
        self._silent = True
        return self.rows

    def delivered(self, clients: Ints, rounds: Ints) -> None:
        """These jobs are over."""
        if self.again:
            for job in zip(clients.tolist(), rounds.tolist(), strict=True):
                self.again.pop(job, None)

    def is_repeat(self, job: str, clients: Ints, rounds: Ints, steps: Ints) -> bool:
        """Whether this release was made before and is made once more; it must not be counted again."""
        if self._jobs[job] == 0:
            return False
        self._jobs[job] -= 1
        if self.outlast:
            self.again |= under_way_of(clients, rounds, steps)
        return True

    @property
    def open(self) -> bool:
        """Whether releases were made before that have not been made again."""
        return self._jobs.total() > 0

    def forget(self) -> Jobs:
        """Nothing that was made before is made again, and this of what is under way is made anew."""
        self._jobs.clear()
        self._sums.clear()
        again, self.again = self.again, {}
        return again

    def differs(self, number: int, found: str) -> bool:
        """Whether the server's noise of round `number` was added to something else before."""
        return self._sums.get(number, found) != found

    def has_sum(self, number: int) -> bool:
        """Whether what is under the noise of round `number` is written down."""
        return number in self._sums

    def enter(self, job: str, charged: Sequence[Entry], word: int | None) -> None:
        """Write down what is about to be released."""
        self._write({"job": job, "charged": [_plain(entry) for entry in charged]}, word)

    def enter_sum(self, number: int, found: str, charged: Sequence[Entry], word: int | None) -> None:
        """Write down what the server's noise of round `number` is about to be added to."""
        self._sums = {k: v for k, v in self._sums.items() if k > number} | {number: found}
        self._write({"round": number, "sum": found, "charged": [_plain(entry) for entry in charged]}, word)

    def settle(self) -> None:
        """Have all rows outlast the machine's end."""
        self.file.settle()

    def fresh_word(self, seeds: tuple[int, int]) -> int:
        """Keys that no release so far was drawn from: there are more rows now than at any time before."""
        return int.from_bytes(hashlib.sha256(f"releases {seeds} {self.rows}".encode()).digest()[:8], "big")

    def _write(self, row: dict[str, Any], word: int | None) -> None:
        if self.outlast and "sum" not in row:
            row, self._silent = {**row, "place": self._place}, False
        self.file.append(row if word is None else {**row, "word": word}, self.durable)
        self.rows += 1


def recounted(report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run's ``privacy.json`` with all that ``releases.jsonl`` says: a killed run had no time to update it."""
    rows = AppendFile(folder / FILE).unread(mend=False)
    if len(rows) <= report.get("rows", len(rows)):
        return dict(report)
    claim = Claim(*(report[key] for key in ("unit", "adjacency", "trust", "against", "sampling")))
    ledger = PrivacyLedger(claim, report["delta"], report["clients"], report["budget"])
    for row in rows:
        for entry in entries(row):
            ledger.add(entry)
    return {**report, **ledger.report(), "not_covered": report["not_covered"], "rows": len(rows)}


def entries(row: Row) -> list[Entry]:
    """What a row cost."""
    found = []
    for one in row.get("charged", ()):
        clients, count = one.get("clients"), one["count"]
        count = count if isinstance(count, int) else np.array(count, dtype=np.int64)
        who = None if clients is None else np.array(clients, dtype=np.int64)
        found.append((Release(one["kind"], one["z"], one["q"]), count, who))
    return found


def under_way_of(clients: Ints, rounds: Ints, steps: Ints) -> Jobs:
    """The jobs of arrays ``[m]``."""
    return dict(zip(zip(clients.tolist(), rounds.tolist(), strict=True), steps.tolist(), strict=True))


def job_digest(clients: Ints, rounds: Ints, steps: Ints, received: Message, place: str) -> str:
    """A digest of who starts to work, how much, from what, and on which kind of machine."""
    made = hashlib.sha256(place.encode())
    for array in (clients, rounds, steps):
        made.update(np.ascontiguousarray(array, dtype=np.int64).data)
        made.update(b"|")
    for name in sorted(received):
        made.update(f"|{name}|{tuple(received[name].shape)}|".encode())
        made.update(_bytes(received[name]))
    return made.hexdigest()[:32]


def sum_digest(seeds: tuple[int, int], clean: Tensor) -> str:
    """A digest of what noise is added to, keyed so that nobody without the seeds can try values out."""
    return hashlib.blake2b(_bytes(clean), key=repr(seeds).encode()[:64], digest_size=16).hexdigest()


def _bytes(values: Tensor) -> memoryview:
    return np.ascontiguousarray(values.detach().cpu().numpy()).reshape(-1).view(np.uint8).data


def _plain(entry: Entry) -> dict[str, Any]:
    release, count, clients = entry
    row: dict[str, Any] = {"kind": release.kind, "z": release.z, "q": release.q}
    row["count"] = count if isinstance(count, int) else np.asarray(count).tolist()
    return row if clients is None else {**row, "clients": clients.tolist()}
