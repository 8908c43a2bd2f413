"""Clients that were left out since their work raised: each in ``failures.jsonl``, the first ones and sums in words."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

from fedsim.backends.base import Backend
from fedsim.backends.guard import Failed
from fedsim.core.disk import settle
from fedsim.core.repeated import Repeated
from fedsim.engine.recorder import RowFile
from fedsim.engine.rows import rows
from fedsim.engine.watch import Watched, Watcher

LOG = logging.getLogger("fedsim")
FILE = "failures.jsonl"
_MORE = 10  # times what was said last is worth saying again


class Failures(Watcher):
    """Has the `backend` tell whose work raised."""

    def __init__(self, folder: Path, backend: Backend, nodes: bool) -> None:
        self._path, self._backend = folder / FILE, backend
        self._who, self._what = ("node", "did not compute") if nodes else ("client", "left out of the cohort")
        self._file: RowFile | None = None
        self._times: Counter[int] = Counter()
        self._round = self._next = 0
        self._words = Repeated(LOG, str(self._path))

    def began(self, run: Watched) -> None:
        self._round = run.resumed_at
        if self._path.exists():
            self._times.update(row["client"] for row, _ in rows(self._path))

    def combined(self, number: int) -> None:
        self._round = number
        self.take()

    def take(self, durable: bool = False) -> None:
        """Note what the backend has to tell; `durable`: what was noted outlasts this process."""
        found = sorted(((self._round if f.round is None else f.round, f) for f in self._backend.failures()), key=_order)
        for number, failed in found:
            self._note(number, failed)
        if found:
            self._say_sum()
        if durable and self._file is not None:
            self._file.write(durable=True)

    @property
    def any(self) -> bool:
        """Whether somebody's work raised."""
        return bool(self._times)

    def summary(self) -> str | None:
        """How many failed how often; None where nobody did."""
        if not self._times:
            return None
        whose, total = len(self._times), sum(self._times.values())
        who = f"the local work of {whose:,} {self._who}{'s' if whose > 1 else ''} raised"
        often = f"{total:,} time{'s' if total > 1 else ''}"
        client, most = max(self._times.items(), key=lambda item: (item[1], -item[0]))
        worst = f" ({self._who} {client}: {most:,} times)" if whose > 1 and most > 1 else ""
        return f"{who} {often}{worst} and was left out; each is in {self._path}"

    def closed(self, error: BaseException | None) -> None:
        try:
            if error is not None and (said := self.summary()) is not None:
                LOG.warning("up to round %d %s", self._round, said)
        finally:
            if self._file is not None:
                self._file.close(quiet=error is not None)

    def _note(self, number: int, failed: Failed) -> None:
        if self._file is None:
            self._file = RowFile(self._path)
            settle(self._path.parent)
        self._file.add(json.dumps({"round": number, "client": failed.client, "why": failed.why}))
        self._times[failed.client] += 1
        self._words.say(f"round {number}: {self._who} {failed.client} {self._what}", failed.why)

    def _say_sum(self) -> None:
        """Now and then how many there are by now: a long run does not end soon."""
        total = sum(self._times.values())
        if total >= self._next:
            if self._next:
                LOG.warning("up to round %d %s", self._round, self.summary())
            self._next = max(total, _MORE) * _MORE


def _order(noted: tuple[int, Failed]) -> tuple[int, int]:
    return noted[0], noted[1].client


def kept_failures(folder: Path, done: int) -> list[str] | None:
    """Lines of ``failures.jsonl`` up to round `done`; None where there is no such file."""
    if not (folder / FILE).exists():
        return None
    return [line for row, line in rows(folder / FILE) if isinstance(row.get("round"), int) and row["round"] <= done]
