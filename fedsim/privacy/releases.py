"""``releases.jsonl``: every release of a run, on the disk before it happens, and what a resumed run makes of it.

A run that was killed has released more than its last checkpoint knows. Resumed, it reads these rows: all of them count.
As long as it makes the very same releases again (the same jobs from the same models, the same sums under the noise),
they tell nothing new and cost nothing. With the first one that differs (another machine's rounding, a client that lost
its state) the noise used so far would be used a second time, and the difference of the two would be free of it: from
there on noise is drawn from other keys, and every release counts by itself.

Rows have ``job`` (a digest of who works on what) and ``charged``, what they cost; or ``round`` and ``sum``, a keyed
digest of what a server's noise was added to; ``word`` names the keys where they are not the scenario's.
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


class Releases:
    """The file of one run, and which of its rows a resumed run may still make again.

    Parameters
    ----------
    folder : the run directory.
    durable : have every row outlast the machine's end before its release; else that is done before anything else is
        recorded that depends on it (`settle`), since the releases of a simulation leave its process in no other way.
    """

    def __init__(self, folder: Path, durable: bool = False) -> None:
        self.file, self.durable = AppendFile(folder / FILE), durable
        self.rows = 0
        self._jobs: Counter[str] = Counter()
        self._sums: dict[int, str] = {}
        self._words: set[int | None] = set()

    def resume(self, known: int, ledger: PrivacyLedger, word: int | None) -> bool:
        """Take note of what was released after the checkpoint, which knows the first `known` rows and drew noise from
        `word`: it counts. Whether it may be made again, and is not of several attempts already.

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
        for row in rows[known:]:
            try:
                for entry in entries(row):
                    ledger.add(entry)
                if "job" in row:
                    self._jobs[row["job"]] += 1
                else:
                    self._sums[row["round"]] = row["sum"]
                self._words.add(row.get("word"))
            except (KeyError, TypeError, ValueError):
                raise RunError(f"{self.file.path} is damaged: found the row {row}") from None
        return self._words <= {word}

    def is_repeat(self, job: str) -> bool:
        """Whether this release was made before and is made once more; it must not be counted again."""
        if self._jobs[job] == 0:
            return False
        self._jobs[job] -= 1
        return True

    @property
    def open(self) -> bool:
        """Whether releases were made before that have not been made again."""
        return self._jobs.total() > 0

    def forget(self) -> None:
        """Nothing that was made before is made again."""
        self._jobs.clear()
        self._sums.clear()

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
