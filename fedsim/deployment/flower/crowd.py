"""The clients of a deployment as the participation mode sees them: who can be asked, and whether they are enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.core.errors import RunError
from fedsim.deployment.flower.roster import LOG, Roster


@dataclass(frozen=True)
class Crowd:
    """A `fedsim.participation.population.Population`.

    Parameters
    ----------
    roster : which node is which client.
    look : looks who is there, and what has come.
    least : clients that have to be connected when a round begins, whether they rest after a silence or not.
    drawn : cohorts are drawn among those that can be asked, so that somebody has to be.
    patience, poll : for how many seconds they are waited for, and seconds between two looks.
    """

    roster: Roster
    look: Callable[[], None]
    least: int
    patience: float
    poll: float
    drawn: bool = False

    def here(self, client: int) -> bool:
        """Whether `client` can be asked now."""
        return self.roster.here(client)

    def node(self, client: int) -> int | None:
        """The SuperNode that is `client`."""
        return self.roster.node_of(client)

    def connected(self) -> Ints | None:
        """Those that can be asked now, ascending; None: everybody can."""
        here = self._here()
        return None if len(here) == self.roster.clients else np.array(here, dtype=np.int64)

    def enough(self, least: int = 0) -> None:
        """Wait until as many clients are connected as a round needs, and at least `least` can be asked.

        Raises
        ------
        RunError
            They were not there after `patience` seconds.
        """
        asked = max(least, int(self.drawn))
        wanted = max(self.least, asked)
        if wanted == 0:
            return
        end, told = time.monotonic() + self.patience, False
        self.look()
        while (count := self._connected()) < wanted or len(self._here()) < asked:
            silent = f", {count - len(self._here())} of them silent" if count >= wanted else ""
            if time.monotonic() > end:
                found = f"{count} of the {wanted} clients that a round needs (min-available) were connected{silent}"
                raise RunError(f"{found} after {self.patience:g} s (wait-seconds); {self.roster.standing()}")
            if not told:
                standing = self.roster.standing()
                LOG.warning(
                    "%d clients are connected%s; a round needs %d: waiting; %s", count, silent, wanted, standing
                )
                told = True
            time.sleep(self.poll)
            self.look()

    def _connected(self) -> int:
        return sum(self.roster.node_of(c) is not None for c in range(self.roster.clients))

    def _here(self) -> list[int]:
        return [c for c in range(self.roster.clients) if self.roster.here(c)]
