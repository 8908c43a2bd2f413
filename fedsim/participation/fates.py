"""What becomes of a job: when its result arrives, or from when on the server no longer waits for it."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.devices.system import Durations
from fedsim.participation.schedule import Fate, Jobs, Steady


def jobs_of(durations: Durations, steps: Callable[[int, int], int], timeout: int | None = None) -> Jobs:
    """The jobs of a run: `Steady` where every one of them arrives, for schedules are made faster of these."""
    if timeout is None and not durations.section.unreliable:
        return Steady(
            lambda client, index: durations.of(client, index, steps(client, index)),
            lambda clients, indices: durations.many(clients, indices, steps),
        )
    return Fates(durations, steps, timeout)


class Fates:
    """The fate of every job under a system model: a function of (client, job, the tick it starts at).

    A job is lost where the download or the upload is, where its client leaves before its end, where with
    ``availability.policy: void`` the device is off at its end, and where it takes longer than the timeout. The server
    gives a lost job up at its timeout, or without one at the tick at which the result would have arrived.

    Parameters
    ----------
    durations : the system model of the run.
    steps : local steps of a client's job number 0, 1, ...
    timeout : ticks after which the server gives a job up (None: it waits as long as the job would take).
    """

    def __init__(self, durations: Durations, steps: Callable[[int, int], int], timeout: int | None = None) -> None:
        self.durations, self.steps, self.timeout = durations, steps, timeout
        availability = durations.section.availability
        self._pauses = availability is not None and availability.policy == "pause"
        self.ready = durations.ready

    def fate(self, client: int, index: int, tick: int) -> Fate:
        """What becomes of the client's job number `index` (0, 1, ...) if it starts at `tick`."""
        made, length = self.durations, self.durations.of(client, index, self.steps(client, index))
        due: int | None = tick + length
        if self._pauses:
            assert made.presence is not None
            due = made.presence.finish(client, tick, length)
        heard = tick + length if due is None else due
        no_download, no_upload = made.lost(client, index)
        stops = [heard] if self.timeout is None else [heard, tick + self.timeout]
        if made.leaves is not None:
            stops.append(made.leaves[client])
        end = tick if no_download else max(min(stops), tick)
        done = due is not None and end == due
        if done and made.presence is not None and not self._pauses:  # on until the very end
            done = made.presence.stretch(client, due - 1)[0]  # type: ignore[operator]
        if done and not no_upload:
            return Fate(end, end, True)
        return Fate(end, heard if self.timeout is None else tick + self.timeout, False, sent=done)
