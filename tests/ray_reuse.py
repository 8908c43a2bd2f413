"""One local Ray cluster for all tests, whose actors are used again: starting them costs more than most tests."""

from __future__ import annotations

import random
from typing import Any

from fedsim.backends.ray.cluster import Cluster

_idle: list[Any] = []


class Reusing(Cluster):
    """A cluster that hands out actors which other runs left."""

    def __init__(self, *given: Any, **named: Any) -> None:
        before = random.getstate()
        super().__init__(*given, **named)
        self._once = False
        assert random.getstate() == before, "what Ray draws for itself is no part's draw"

    def start(
        self, count: int, cpus: float, gpus: float, threads: tuple[int, bool], seconds: float = 120.0
    ) -> list[Any]:
        self._once = gpus > 0 or threads[1]  # these compute in another way
        if self._once:
            return super().start(count, cpus, gpus, threads, seconds)
        hosts: list[Any] = []
        while _idle and len(hosts) < count:
            host = _idle.pop()
            try:
                self.ray.get(host.ready.remote(), timeout=30)
                hosts.append(host)
            except self.ray.exceptions.RayError:
                continue
        if len(hosts) < count:
            hosts += super().start(count - len(hosts), 0, 0, (1, False), seconds)
        return hosts

    def end(self, hosts: list[Any]) -> None:
        if self._once:
            super().end(hosts)
        else:
            _idle.extend(hosts)

    def close(self) -> None:
        """The cluster stays for the next test."""
