"""What one client has answered in a private run, on its own disk, so that noise is never used twice.

Two answers with the same noise to two models differ by what the noise was to hide. So every job with other inputs is
another release: it gets a serial number, noise and samples of its own, and is charged to the client's own ledger, which
refuses it where its budget does not allow it, whatever the server says. The same job asked again is the same release:
it gets the same serial number, and its answer has to come out bit for bit; where it does not (another number of
threads, another version of torch), the difference of the two would tell, and it is a release of its own.

``answers.jsonl`` has two rows per release: one before it is computed (`serial`, `job`, `round`, `steps`), one before it
leaves (`serial`, `answer`). A release without the second row has not left this machine and is done again for free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedsim.core.append_file import AppendFile
from fedsim.core.errors import RunError
from fedsim.deployment.flower.records import Arrays, Order
from fedsim.privacy.accounting import epsilon
from fedsim.privacy.base import Bound

FILE = "answers.jsonl"


class Answers:
    """The releases of a client in one run.

    Parameters
    ----------
    file : where they are written down.
    privacy : the mechanism as this client has bound it; its ledger is charged where `trust` is ``local``.
    secret : the client's, of this run.
    budget : the epsilon the client spends at most (None: that of the scenario or, where the noise is given, what the
        scenario states for the whole run).
    """

    def __init__(self, file: Path, privacy: Bound, secret: int, budget: float | None = None) -> None:
        self.file, self.privacy, self.secret = AppendFile(file), privacy, secret
        self.charged = privacy.ledger.claim.trust == "local"
        self._serials: dict[str, int] = {}
        self._left: dict[int, str] = {}
        ledger = privacy.ledger
        self.budget = ledger.budget if budget is None else budget
        if budget is not None:
            ledger.allowed = {}  # what was planned may be more than the client wants to spend
        elif self.budget is None and self.charged:
            self.budget = epsilon(ledger.planned, ledger.delta)

    def begin(self, client: int, order: Order, job: str) -> int:
        """The serial number of the release that answers `job`, written down; noise and samples follow from it.

        Raises
        ------
        BudgetExceeded
            It is a new one, and the client's budget does not allow it; nothing was released.
        """
        self._read(client)
        serial = self._serials.get(job)
        if serial is None:
            serial = 1 + max(self._serials.values(), default=0)
            self._charge(client, order.round, order.steps, self.budget)
            self.file.append({"serial": serial, "job": job, "round": order.round, "steps": order.steps})
            self._serials[job] = serial
        self.privacy.draw_from(_word(self.secret, serial, job))
        return serial

    def leave(self, serial: int, job: str, answer: Arrays) -> bool:
        """Whether `answer` may leave: it is the first of this release, or the same once more.

        Otherwise the release is closed, and `begin` makes another one of the job.
        """
        found = digest({}, answer)
        before = self._left.get(serial)
        if before is None:
            self.file.append({"serial": serial, "answer": found})
            self._left[serial] = found
        elif before != found:
            del self._serials[job]
            self._serials[f"{job} {serial}"] = serial
            return False
        return True

    def _read(self, client: int) -> None:
        """Rows of earlier processes, and of others that Flower's simulation runtime gave this client's jobs."""
        for row in self.file.unread():
            try:
                if "answer" in row:
                    self._left[row["serial"]] = row["answer"]
                    continue
                serial, job = row["serial"], row["job"]
                if job in self._serials:
                    self._serials[f"{job} {self._serials[job]}"] = self._serials[job]
                self._serials[job] = serial
                self._charge(client, row["round"], row["steps"], None)
            except (KeyError, TypeError):
                raise RunError(f"{self.file.path} is damaged: found the row {row}") from None

    def _charge(self, client: int, round: int, steps: int, budget: float | None) -> None:
        if self.charged:
            self.privacy.ledger.budget = budget
            self.privacy.charge(np.array([client]), np.array([round]), np.array([steps]))


def digest(facts: Mapping[str, object], arrays: Arrays) -> str:
    """A digest of public facts and of arrays: names, types, shapes and every bit."""
    made = hashlib.sha256(repr(sorted(facts.items())).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        made.update(f"|{name}|{array.dtype.str}|{arrays[name].shape}|".encode())
        made.update(array.data)
    return made.hexdigest()


def _word(secret: int, serial: int, job: str) -> int:
    """A seed of 64 bits for one release, from the secret, its number and what it answers."""
    return int.from_bytes(hashlib.sha256(f"{secret} {serial} {job}".encode()).digest()[:8], "big")
