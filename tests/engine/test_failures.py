"""Failing clients bury nothing: the first of a kind are said, then sums, and each is in the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fedsim.backends.guard import Failed
from fedsim.core.repeated import Repeated
from fedsim.engine.failures import FILE, Failures, kept_failures

LOG = logging.getLogger("fedsim")


class Failing:
    """As much of a backend as is asked here: all of `clients` fail whenever they are asked."""

    def __init__(self, clients: int) -> None:
        self.clients = clients

    def failures(self) -> list[Failed]:
        return [Failed(c, f"ValueError: sample {c}.5 is bad", 1) for c in reversed(range(self.clients))]


@pytest.mark.parametrize("nodes", [False, True])
def test_a_thousand_failing_clients(nodes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures: Any = Failures(tmp_path, Failing(1000), nodes)  # type: ignore[arg-type]
    for number in range(1, 101):
        failures.combined(number)
    failures.closed(None)
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(r["round"], r["client"]) for r in rows] == [(n, c) for n in range(1, 101) for c in range(1000)]
    assert rows[-1]["why"] == "ValueError: sample 999.5 is bad"
    assert len(caplog.messages) == 5  # three in full; after 10 and after 100 rounds, how many
    assert "ValueError: sample 2.5 is bad; all that fails like this from here on is only in" in caplog.messages[2]
    who = "nodes" if nodes else "clients"
    assert f"up to round 10 the local work of 1,000 {who} raised 10,000 times" in caplog.messages[3]
    assert f"up to round 100 the local work of 1,000 {who} raised 100,000 times" in caplog.messages[4]
    assert str(tmp_path / FILE) in failures.summary()
    assert kept_failures(tmp_path, 0) == []
    assert len(kept_failures(tmp_path, 7) or []) == 7000


def test_what_ends_a_run_early_does_not_hide_the_sum(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(tmp_path, Failing(2), False)  # type: ignore[arg-type]
    failures.combined(1)
    failures.closed(KeyboardInterrupt())
    assert caplog.messages[-1].startswith("up to round 1 the local work of 2 clients raised 2 times and was left out")


def test_nobody_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(tmp_path, Failing(0), False)  # type: ignore[arg-type]
    failures.combined(1)
    failures.take(durable=True)
    failures.closed(KeyboardInterrupt())
    assert (list(tmp_path.iterdir()), caplog.messages, failures.summary()) == ([], [], None)


def test_other_kinds_are_said_too_but_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    words = Repeated(LOG, "the file")
    for i in range(1000):
        words.say(f"client {i}", f"{'x' * (1 + i % 100)}Error: number {i}")
    assert len(caplog.messages) == 31
    assert (
        caplog.messages[10] == f"client 10: {'x' * 11}Error: number 10; what else fails otherwise is only in the file"
    )
    assert "client 103: xxxxError: number 103" in caplog.messages
