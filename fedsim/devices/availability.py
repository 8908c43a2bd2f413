"""Devices that are on and off: laws of their on and off times, and what becomes of work meanwhile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import count, pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Discriminator, Field, field_validator

from fedsim.core import rng
from fedsim.core.clock import LONGEST, TICKS_PER_SECOND, bounded, exact, ticks
from fedsim.core.errors import InputError
from fedsim.core.one_of import OneOf
from fedsim.core.types import Seconds
from fedsim.devices.laws import AnyLaw, Law, Linear, Section, Table, Trace
from fedsim.devices.traces import read_devices, rows_of_clients

_SHORTEST = TICKS_PER_SECOND // 1000
"""On and off times are at least a millisecond, so that work that pauses ends after a bounded number of them."""

_MOST_CYCLES = 1_000_000
"""Times that a device whose times are drawn anew goes on and off within one job, or between two questions about it."""

_UNBOUNDED = 1e290
"""Seconds of the longest time that a mean can be made of."""

_BELOW_ONE = 1.0 - 2.0**-53
"""The largest level that quantile functions know."""

_Moment = Annotated[float, Field(ge=0, le=LONGEST)]

_REMEMBERED = 64
"""Moments of coming on and going off that are kept per client; even, so that the first is one of coming on."""


class Presence(ABC):
    """When each client's device is on, in ticks."""

    @abstractmethod
    def stretch(self, client: int, tick: int) -> tuple[bool, int | None]:
        """Whether the device is on at `tick`, and the tick at which that changes (None: never again)."""

    def cycle(self, client: int) -> tuple[int, int] | None:
        """Ticks after which the pattern repeats and the ticks on among them, where it repeats."""
        return None

    def wake(self, client: int, tick: int) -> int | None:
        """The first tick from `tick` on at which the device is on (None: never again)."""
        on, until = self.stretch(client, tick)
        while not on and until is not None:
            tick = until
            on, until = self.stretch(client, tick)
        return tick if on else None

    def time_on(self, client: int, start: int, end: int) -> int:
        """Ticks from `start` to `end` during which the device is on."""
        total, cycle = 0, self.cycle(client)
        if cycle is not None and end > start:
            whole = (end - start) // cycle[0]
            total, start = whole * cycle[1], start + whole * cycle[0]
        while start < end:
            on, until = self.stretch(client, start)
            stop = end if until is None else min(until, end)
            total += (stop - start) if on else 0
            start = stop
        return total

    def finish(self, client: int, tick: int, work: int) -> int | None:
        """The tick at which the device has been on for `work` ticks since `tick` (None: it never will have been).

        Raises
        ------
        InputError
            Until then it goes on and off without a pattern more often than can be followed.
        """
        cycle = self.cycle(client)
        if cycle is not None and cycle[1] > 0:
            whole = (work - 1) // cycle[1]
            tick, work = tick + whole * cycle[0], work - whole * cycle[1]
        for turn in count():
            on, until = self.stretch(client, tick)
            if on and (until is None or until - tick >= work):
                return tick + work
            if until is None:
                return None
            if cycle is None and turn == 2 * _MOST_CYCLES:
                break
            work -= (until - tick) if on else 0
            tick = until
        raise _too_often(client, work)


def _too_often(client: int, span: float) -> InputError:
    return InputError(
        f"client {client}'s device would go on and off more than {_MOST_CYCLES:,} times within "
        f"{span / TICKS_PER_SECOND:.3g} virtual seconds; allowed: shorter jobs, longer times on and off, "
        "or redraw: false",
        key="system.availability",
    )


class _Cyclic(Presence):
    """On for the first `on` ticks of every `period`; time 0 falls `phase` ticks into one."""

    def __init__(self, period: Sequence[int], on: Sequence[int], phase: Sequence[int]) -> None:
        self.period, self.on, self.phase = period, on, phase

    def cycle(self, client: int) -> tuple[int, int]:
        return self.period[client], min(self.on[client], self.period[client])

    def stretch(self, client: int, tick: int) -> tuple[bool, int | None]:
        period, on = self.period[client], self.on[client]
        if on >= period:
            return True, None
        at = (tick + self.phase[client]) % period
        return (True, tick + on - at) if at < on else (False, tick + period - at)


class _Listed(Presence):
    """Intervals ``[start, end)`` per device, again after `repeat` ticks (None: off for good after the last)."""

    def __init__(self, moments: list[list[int]], repeat: Sequence[int | None], device: Sequence[int]) -> None:
        self.moments, self.repeat, self.device = moments, repeat, device

    def cycle(self, client: int) -> tuple[int, int] | None:
        row = self.device[client]
        repeat, moments = self.repeat[row], self.moments[row]
        return None if repeat is None else (repeat, sum(moments[1::2]) - sum(moments[::2]))

    def stretch(self, client: int, tick: int) -> tuple[bool, int | None]:
        row = self.device[client]
        moments, repeat = self.moments[row], self.repeat[row]
        if not moments:
            return False, None
        base = 0 if repeat is None else tick // repeat * repeat
        k = bisect_right(moments, tick - base)
        if k < len(moments):
            return k % 2 == 1, base + moments[k]
        return False, None if repeat is None else base + repeat + moments[0]


class _Drawn(Presence):
    """On and off times drawn anew for every cycle; of each client the last ones asked for are remembered.

    Devices have been going on and off for long when a run begins: of two stretches, time 0 rather falls into the longer
    one. So it falls into a time on with probability ``E on / (E on + E off)``, that time is drawn by its length (its
    density times its length), and time 0 lies anywhere in it; the other time of the first cycle is as any other
    (S. Ross, Stochastic Processes, 1996, section 3.4 and 3.7).
    """

    def __init__(self, on: Law, off: Law, seed: int) -> None:
        self.laws = (on, off)
        self.keys = rng.scalar_key(seed, "on_time"), rng.scalar_key(seed, "off_time")
        self.phase, self.first = rng.scalar_key(seed, "availability_phase"), rng.scalar_key(seed, "on_at_time_0")
        self.by_length = _ByLength(on), _ByLength(off)
        self.share = self.by_length[0].mean / (self.by_length[0].mean + self.by_length[1].mean)
        self.known: dict[int, tuple[int, list[int]]] = {}

    def stretch(self, client: int, tick: int) -> tuple[bool, int | None]:
        number, moments = self.known.get(client, (0, [0]))  # the next cycle to draw; when devices came on and went off
        if number == 0 or tick < moments[0]:
            on, off, begin = self._first_cycle(client)
            number, moments = 1, [begin, begin + on, begin + on + off]
        self._check(client, tick - moments[-1])
        last = number + 2 * _MOST_CYCLES  # where a few long times make the mean, others may be many
        while tick >= moments[-1]:
            if number == last:
                raise _too_often(client, tick - moments[0])
            on, off = self._times(client, number)
            moments += [moments[-1] + on, moments[-1] + on + off]
            number += 1
        if len(moments) > 2 * _REMEMBERED:
            del moments[: len(moments) - 1 - _REMEMBERED]
        self.known[client] = number, moments
        k = bisect_right(moments, tick)
        return k % 2 == 1, moments[k]

    def finish(self, client: int, tick: int, work: int) -> int | None:
        self._check(client, work)
        return super().finish(client, tick, work)

    def _check(self, client: int, span: int) -> None:
        """Refuse to go through so long a time cycle by cycle."""
        if span > _MOST_CYCLES * sum(law.mean for law in self.by_length):
            raise _too_often(client, span)

    def _first_cycle(self, client: int) -> tuple[int, int, int]:
        """Ticks on and off in the cycle that time 0 falls into, and the tick at which it began."""
        is_on = rng.scalar_uniform(self.first, client) < self.share
        u, v = (rng.scalar_uniform(key, client, 0) for key in self.keys)
        on_by_length, off_by_length = self.by_length
        on = _ticks_of(self.laws[0], on_by_length.level(u) if is_on else u)
        off = _ticks_of(self.laws[1], v if is_on else off_by_length.level(v))
        place = rng.scalar_uniform(self.phase, client)
        return on, off, -int(place * on) if is_on else -on - int(place * off)

    def _times(self, client: int, number: int) -> tuple[int, int]:
        """Ticks on and off in the client's cycle `number` (1, 2, ...)."""
        on, off = (
            _ticks_of(law, rng.scalar_uniform(key, client, number))
            for law, key in zip(self.laws, self.keys, strict=True)
        )
        return on, off


class _ByLength:
    """A law of times weighed by their length, from its quantile function.

    `mean` ticks of the law itself, by the midpoint rule on cells of levels that get smaller towards 1, where times may
    be long.
    """

    def __init__(self, law: Law) -> None:
        tail = 1.0 - 2.0 ** -np.arange(1, 50, 1 / 16)
        self.edges = np.unique(np.concatenate([np.linspace(0.0, 1.0, 4097), tail]))
        middles = (self.edges[1:] + self.edges[:-1]) / 2
        mass = np.diff(self.edges) * [_ticks_of(law, u, most=_UNBOUNDED) for u in middles.tolist()]
        self.mean = float(mass.sum())
        self.below = np.concatenate([[0.0], np.cumsum(mass) / self.mean])

    def level(self, u: float) -> float:
        """The level of the law below which a share `u` of its total length lies."""
        cell = min(max(int(np.searchsorted(self.below, u, side="right")) - 1, 0), len(self.edges) - 2)
        part = (u - self.below[cell]) / (self.below[cell + 1] - self.below[cell])
        return float(min(self.edges[cell] + part * (self.edges[cell + 1] - self.edges[cell]), _BELOW_ONE))


def _ticks_of(law: Law, u: float, most: float | None = None) -> int:
    """The law's time at level `u`; `most`: longer ones are made that long, not refused."""
    drawn = law.quantile(u)
    time = bounded(drawn, "a time on or off", "system.availability") if most is None else min(drawn, most)
    return max(int(time * TICKS_PER_SECOND), _SHORTEST)


class _Availability(Section):
    """`policy`: ``pause``, work stops while the device is off and goes on afterwards (FLASH); ``void``, it goes on, but
    a job at whose end the device is off is lost (FedScale)."""

    policy: Literal["pause", "void"] = "pause"

    @abstractmethod
    def presence(self, n: int, seed: int) -> Presence:
        """When each of `n` devices is on."""


class OnOff(_Availability):
    """On and off times in turns, by two laws in seconds; they have been going on for long when the run begins.

    `redraw`: every time anew; otherwise each client keeps its two times for good, and time 0 falls anywhere in them.
    """

    model: Literal["on_off"]
    on: AnyLaw
    off: AnyLaw
    redraw: bool = True

    def presence(self, n: int, seed: int) -> Presence:
        for name, law in (("on", self.on), ("off", self.off)):
            if isinstance(law, Trace):
                raise InputError("found a trace, allowed: another law, or availability: {model: trace, ...}", key=name)
            if self.redraw and isinstance(law, (Linear, Table)):
                raise InputError(
                    f"found {law.model}, which cannot be drawn anew every time; allowed: with redraw: false", key=name
                )
        if self.redraw:
            return _Drawn(self.on, self.off, seed)
        on, off = (
            [max(ticks(v), _SHORTEST) for v in law.per_client(n, seed, purpose)]
            for law, purpose in ((self.on, "on_time"), (self.off, "off_time"))
        )
        period = [a + b for a, b in zip(on, off, strict=True)]
        return _Cyclic(period, on, _phases(n, seed, period))


class Periodic(_Availability):
    """On for the share `duty` of every `period` seconds: day and night.

    `spread`: clients' days begin anywhere in that share of a period (1: around the globe; 0: all at time 0).
    """

    model: Literal["periodic"]
    period: Seconds = 86_400.0
    duty: Annotated[float, Field(gt=0, le=1)] = 0.5
    spread: Annotated[float, Field(ge=0, le=1)] = 1.0

    def presence(self, n: int, seed: int) -> Presence:
        period = max(ticks(self.period), 1)
        on = max(ticks(exact(self.duty) * exact(self.period)), 1)
        phase = [-p for p in _phases(n, seed, [int(period * self.spread)] * n)]
        return _Cyclic([period] * n, [on] * n, phase)


class Intervals(_Availability):
    """`active`, a list of [start, end] in seconds per client; again after `repeat` seconds, or off for good."""

    model: Literal["table"]
    active: Annotated[list[list[Annotated[list[_Moment], Field(min_length=2, max_length=2)]]], Field(min_length=1)]
    repeat: Seconds | None = None

    @field_validator("active")
    @classmethod
    def _ascending(cls, active: list[list[list[float]]]) -> list[list[list[float]]]:
        for client, intervals in enumerate(active):
            moments = [t for pair in intervals for t in pair]
            if any(a >= b for a, b in zip(moments[::2], moments[1::2], strict=True)) or sorted(moments) != moments:
                raise ValueError(f"client {client}: found {intervals}, allowed: [start, end] that ascend")
        return active

    def presence(self, n: int, seed: int) -> Presence:
        if len(self.active) != n:
            raise InputError(f"found {len(self.active)} lists, allowed: {n} (one per client)", key="active")
        last = max((pair[1] for intervals in self.active for pair in intervals), default=0.0)
        if self.repeat is not None and last > self.repeat:
            raise InputError(f"found {self.repeat}, allowed: at least {last:g}, the last end", key="repeat")
        moments = [_merged([ticks(t) for pair in intervals for t in pair]) for intervals in self.active]
        return _Listed(moments, [None if self.repeat is None else ticks(self.repeat)] * n, range(n))


class Traced(_Availability):
    """`active`, `inactive` and `finish_time` of a trace file's devices (see `device_traces`)."""

    model: Literal["trace"]
    file: str
    shuffle: bool = True

    def presence(self, n: int, seed: int) -> Presence:
        devices = read_devices(self.file, ("finish_time", "active", "inactive"))
        moments = [
            _merged([ticks(float(t)) for pair in zip(d["active"], d["inactive"], strict=True) for t in pair])
            for d in devices
        ]
        repeat = [ticks(float(d["finish_time"])) for d in devices]
        return _Listed(moments, repeat, rows_of_clients(n, len(devices), seed, self.shuffle))


Availability = Annotated[
    OnOff | Periodic | Intervals | Traced,
    Discriminator("model"),
    OneOf(allowed="allowed: {model: ..., ...} with one of on_off, periodic, table, trace", what="availability"),
]


def _phases(n: int, seed: int, period: Sequence[int]) -> list[int]:
    """For every client a uniform number of ticks below its `period`."""
    uniform = rng.uniform(rng.key(seed, "availability_phase", np.arange(n))).tolist()
    return [int(u * p) for u, p in zip(uniform, period, strict=True)]


def _merged(moments: list[int]) -> list[int]:
    """Intervals without those of no length, and with those that touch made one."""
    kept: list[int] = []
    for start, end in zip(moments[::2], moments[1::2], strict=True):
        if start == end:
            continue
        if kept and kept[-1] == start:
            kept[-1] = end
        else:
            kept += [start, end]
    assert all(a < b for a, b in pairwise(kept))
    return kept
