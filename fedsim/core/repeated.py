"""Warnings that many clients cause: the first of a kind in full, then counted, so that they bury nothing else."""

from __future__ import annotations

import logging
import re
from collections import Counter

_FULL = 3  # of a kind
_KINDS = 10
"""More kinds than that are no kinds: every one has words of its own."""


class Repeated:
    """Says warnings; those like earlier ones, but for their numbers, are counted.

    Parameters
    ----------
    log : where they are said.
    where : the file that has every one of them.
    """

    def __init__(self, log: logging.Logger, where: str) -> None:
        self._log, self._where = log, where
        self._kinds: Counter[str] = Counter()
        self._silent = False

    def say(self, about: str, why: str) -> None:
        """Say ``ABOUT: WHY``, unless so much was said of this `why` already; `about` tells whom it is about."""
        kind = re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", why)
        if kind not in self._kinds and len(self._kinds) == _KINDS:
            if not self._silent:
                self._silent = True
                self._log.warning("%s: %s; what else fails otherwise is only in %s", about, why, self._where)
            return
        self._kinds[kind] += 1
        if self._kinds[kind] < _FULL:
            self._log.warning("%s: %s", about, why)
        elif self._kinds[kind] == _FULL:
            self._log.warning("%s: %s; all that fails like this from here on is only in %s", about, why, self._where)
