"""The system model of a scenario: how fast devices and links are, when devices are on, what gets lost.

Every law is a quantile function of one uniform number, keyed by (seed, client) for what a client keeps for good and by
(seed, client, job) for what varies from job to job, so that schedules can be made in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.clock import TICKS_PER_SECOND, bounded, in_bounds, ticks
from fedsim.core.errors import InputError
from fedsim.devices.availability import Availability, Presence
from fedsim.devices.laws import AnyLaw, Fixed, Law, Linear, Section, Table, Trace

_Share = Annotated[float, Field(ge=0, lt=1)]


class Loss(Section):
    """Probabilities that a message to or from a client is lost."""

    download: _Share = 0.0
    upload: _Share = 0.0


def _both_ways(value: Any) -> Any:
    return {"download": value, "upload": value} if isinstance(value, (int, float)) and value is not True else value


class Network(Section):
    """A client's link to the server; each client keeps its draws.

    `latency` seconds each way; `bandwidth` bytes per second (both ways alike), none: transfers take no time; `loss`
    probability that a message is lost, or ``{download, upload}``. ``{model: trace, file}`` is short for a `bandwidth`
    from a trace file.
    """

    latency: AnyLaw = Fixed(value=0.0)
    bandwidth: AnyLaw | None = None
    loss: Annotated[Loss, BeforeValidator(_both_ways, json_schema_input_type=_Share | Loss)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _traced(cls, value: Any) -> Any:
        if isinstance(value, dict) and "model" in value:
            if value["model"] != "trace":
                raise ValueError(f"found model {value['model']!r}, allowed: trace, or latency, bandwidth and loss")
            rest = {k: v for k, v in value.items() if k in ("latency", "loss", "bandwidth")}
            if "bandwidth" in rest:
                raise ValueError("found both model: trace and bandwidth, allowed: one of the two")
            return {**rest, "bandwidth": {k: v for k, v in value.items() if k not in rest}}
        return value


class SystemSection(Section):
    """The system model of a scenario.

    `compute` seconds of local work, for a whole round's work or, with ``per: step``, for each local step; `jitter`
    seconds added to each job, drawn anew; `network` latency, bandwidth and loss of the link to the server;
    `availability` when devices are on; `departure` seconds after which a client leaves for good.
    """

    compute: AnyLaw = Fixed(value=1.0)
    per: Literal["round", "step"] = "round"
    jitter: AnyLaw | None = None
    network: Network | None = None
    availability: Availability | None = None
    departure: AnyLaw | None = None

    @field_validator("jitter")
    @classmethod
    def _varies(cls, jitter: AnyLaw | None) -> AnyLaw | None:
        if isinstance(jitter, (Linear, Table, Trace)):
            raise ValueError(f"found model {jitter.model}, allowed: a law that can be drawn anew for every job")
        return jitter

    @property
    def unreliable(self) -> list[str]:
        """The keys because of which a job may pause or never arrive."""
        loss = self.network is not None and self.network.loss is not None
        given = {"network.loss": loss, "availability": self.availability, "departure": self.departure}
        return [f"system.{key}" for key, value in given.items() if value]


class Durations:
    """How many ticks each job takes: download, local work, upload.

    Parameters
    ----------
    section : the scenario's system model.
    n : number of clients.
    down, up : bytes a client receives and sends per job.
    samples : samples per local step of each client ``[n]``, for a trace's seconds per sample (default: one).
    """

    def __init__(
        self,
        section: SystemSection,
        n: int,
        seed: int,
        down: int = 0,
        up: int = 0,
        samples: Ints | None = None,
    ) -> None:
        self.section, self.n, self.up = section, n, up
        compute = _draws(section.compute, n, seed, "compute_speed", "compute")
        self._per_step = section.per == "step" or isinstance(section.compute, Trace)
        if isinstance(section.compute, Trace) and samples is not None:
            compute = [float(c) * k for c, k in zip(compute, samples.tolist(), strict=True)]
        self._compute = _ticks(compute, "compute")
        self._link = [0] * n
        if section.network is not None:
            latency = _draws(section.network.latency, n, seed, "latency", "network.latency")
            seconds = _each(lambda v: 2 * v, latency)
            if section.network.bandwidth is not None:
                rates = _draws(section.network.bandwidth, n, seed, "bandwidth", "network.bandwidth")
                if min(rates) <= 0:
                    raise InputError(
                        "found a bandwidth of 0, allowed: above 0 bytes per second", key="network.bandwidth"
                    )
                seconds = _each(lambda s, r: s + (down + up) / r, seconds, rates)
            self._link = _ticks(seconds, "network")
        self.links: list[Ints] = []
        """For gossip: ticks of one message over each link, per graph of the topology."""
        self._jitter = rng.scalar_key(seed, "jitter")
        self.presence: Presence | None = None
        """When devices are on (None: always)."""
        if section.availability is not None:
            try:
                self.presence = section.availability.presence(n, seed)
            except InputError as error:
                raise error.under("availability") from None
        self.leaves: list[int] | None = None
        """Tick at which each client leaves for good (None: nobody does)."""
        if section.departure is not None:
            self.leaves = _ticks(_draws(section.departure, n, seed, "departure", "departure"), "departure")
        loss = section.network.loss if section.network is not None else None
        self.loss = (0.0, 0.0) if loss is None else (loss.download, loss.upload)
        """Probabilities that a download and that an upload is lost."""
        self._lost = rng.scalar_key(seed, "lost_download"), rng.scalar_key(seed, "lost_upload")

    def longest(self, clients: Ints, job: int, steps: Ints) -> int:
        """Ticks until the last of `clients` has done its job; `steps` ``[n]`` are those of all clients."""
        return max(
            (self.of(c, job, k) for c, k in zip(clients.tolist(), steps[clients].tolist(), strict=True)), default=0
        )

    @property
    def constant(self) -> bool:
        """Whether all jobs of a client with equal work take equally long."""
        return self.section.jitter is None

    def of(self, client: int, job: int, steps: int) -> int:
        """Ticks that job number `job` (0, 1, ...) of `client` takes while its device is on, at least one."""
        work = self._compute[client] * steps if self._per_step else self._compute[client]
        total = work + self._link[client]
        if self.section.jitter is not None:
            drawn = self.section.jitter.quantile(rng.scalar_uniform(self._jitter, client, job))
            total += int(bounded(drawn, f"a jitter of client {client}", "system.jitter") * TICKS_PER_SECOND)
        return max(total, 1)

    def many(self, clients: Ints, jobs: Ints, steps: Callable[[int, int], int]) -> list[int]:
        """The same of jobs of many clients, ``[m]`` each, with ``steps(client, job)`` local steps."""
        own = clients.tolist()
        compute, link = self._compute, self._link
        if self._per_step:
            work = [steps(c, k) for c, k in zip(own, jobs.tolist(), strict=True)]
            found = [compute[c] * k + link[c] for c, k in zip(own, work, strict=True)]
        else:
            found = [compute[c] + link[c] for c in own]
        if self.section.jitter is not None:
            uniform = rng.uniform(rng.fold(np.array(self._jitter, dtype=np.uint64), clients, jobs)).tolist()
            drawn = list(map(self.section.jitter.quantile, uniform))
            if not in_bounds(max(drawn)):
                return [self.of(c, k, 1) for c, k in zip(own, jobs.tolist(), strict=True)]  # says which one
            found = [ticks + int(seconds * TICKS_PER_SECOND) for ticks, seconds in zip(found, drawn, strict=True)]
        return [max(ticks, 1) for ticks in found]

    def lost(self, client: int, job: int) -> tuple[bool, bool]:
        """Whether the download of this job is lost, and whether its upload is."""
        down, up = (
            rng.scalar_uniform(key, client, job) < p if p > 0 else False
            for key, p in zip(self._lost, self.loss, strict=True)
        )
        return down, up

    def ready(self, client: int, tick: int) -> int | None:
        """The first tick from `tick` on at which the client can start (None: never again)."""
        wake = tick if self.presence is None else self.presence.wake(client, tick)
        return None if wake is None or (self.leaves is not None and wake >= self.leaves[client]) else wake

    def time_on(self, client: int, start: int, end: int) -> int:
        """Ticks from `start` to `end` during which the client is there and its device is on."""
        if self.leaves is not None:
            end = min(end, self.leaves[client])
        if self.presence is None:
            return max(end - start, 0)
        return self.presence.time_on(client, start, end)

    def times_off(self, client: int, end: int) -> Iterator[tuple[int, int]]:
        """Stretches of ticks before `end` in which the client's device is off or the client is gone."""
        gone = end if self.leaves is None else min(end, self.leaves[client])
        tick = 0
        while self.presence is not None and tick < gone:
            on, until = self.presence.stretch(client, tick)
            stop = gone if until is None else min(until, gone)
            if not on:
                yield tick, stop
            tick = stop
        if gone < end:
            yield gone, end


def _draws(law: Law, n: int, seed: int, purpose: str, key: str) -> list[Fraction | float]:
    try:
        return law.per_client(n, seed, purpose)
    except InputError as error:
        raise error.under(key) from None


def _each(f: Callable[..., Fraction | float], *values: list[Fraction | float]) -> list[Fraction | float]:
    """`f` of every client's values.

    Where all clients have the same it is one object, and so is the result: fractions are slow, clients may be millions.
    """
    known: dict[tuple[int, ...], Fraction | float] = {}
    made = []
    for client in zip(*values, strict=True):
        key = tuple(map(id, client))
        if key not in known:
            known[key] = f(*client)
        made.append(known[key])
    return made


def _ticks(values: list[Fraction | float], key: str) -> list[int]:
    known: dict[int, int] = {}
    for client, value in enumerate(values):
        if id(value) not in known:
            if not in_bounds(value):
                bounded(value, f"a time of client {client}", key)
            known[id(value)] = ticks(value) if isinstance(value, Fraction) else int(value * TICKS_PER_SECOND + 0.5)
    return [known[number] for number in map(id, values)]
