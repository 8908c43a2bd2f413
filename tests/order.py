"""In which order tests run, and which of them one worker of ``pytest -n`` runs.

What takes longest comes first, so that all workers end together. All tests with Ray are one worker's: they share its
cluster, and no two clusters are on the machine at a time. They are known by the word "ray" in their file's or their own
name; a test without it starts a cluster in another worker, which only takes longer.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

LONG = (
    "ray", "tests/test_docs.py", "tests/test_described.py", "tests/deployment/test_flower_processes.py",
    "tests/algorithms/", "tests/engine/", "tests/privacy/", "tests/cli/", "tests/reports/", "tests/contract/",
    "tests/deployment/", "tests/scenario/", "tests/sweeps/", "tests/audit/", "tests/clients/", "tests/reference/",
    "tests/participation/",
)  # fmt: skip


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scope(nodeid: str) -> str:
    """What of the tests stays together: those with Ray in their name, and otherwise a file."""
    return "ray" if "ray" in re.split(r"[^a-z0-9]+", nodeid.lower()) else nodeid.partition("::")[0]


def arrange(items: list[pytest.Item]) -> None:
    """Put first what takes long; the order within a file stays."""

    def rank(item: pytest.Item) -> int:
        of = scope(item.nodeid)
        return next((i for i, start in enumerate(LONG) if of.startswith(start)), len(LONG))

    items.sort(key=rank)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist's own of ``--dist loadfile``, with the tests with Ray as one file."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

        def remove_node(self, node: Any) -> str | None:
            """Of a worker that died, hand on what it has not run, and not the files it is through with.

            xdist hands these on, too; who gets such an empty one is never heard of again, and the tests never end.
            """
            work = self.assigned_work.get(node, {})
            for done in [name for name, tests in work.items() if all(tests.values())]:
                del work[done]
            crashed: str | None = super().remove_node(node)
            return crashed

        def _reschedule(self, node: Any) -> None:
            """Give a worker two tests, or tell it that there are no more.

            A worker runs its last test only when it knows what comes next. xdist gives the worker in place of one that
            died a single file; if that has one test, both wait for ever.
            """
            super()._reschedule(node)
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                super()._reschedule(node)

    return Scheduling(config, log)
