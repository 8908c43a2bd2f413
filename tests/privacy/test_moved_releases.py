"""Jobs that outlast a checkpoint and are computed elsewhere: no noise stands over two values, and all is counted."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_runs import CASES, CHECKPOINT, KILLED, ROUNDS, rows, scenario

import fedsim
from fedsim.backends.base import BackendDefaults
from fedsim.core.job import Job
from fedsim.engine.records import Records
from fedsim.privacy.base import Bound, _Outgoing

LASTING = [name for name, (base, _) in CASES.items() if "mode" in base["participation"]]
HERE, THERE = "here", "there"
LIVES: dict[str, list[tuple[str, int | None]]] = {
    "resumed elsewhere": [(HERE, None), (HERE, None), (THERE, None)],
    "killed elsewhere": [(HERE, None), (THERE, None), (HERE, None)],
    "moved, then killed": [(HERE, None), (HERE, CHECKPOINT + 1), (HERE, None)],
    "moved before the checkpoint, then killed": [(HERE, CHECKPOINT - 1), (THERE, None), (HERE, None)],
    "moved after it was resumed": [(HERE, None), (HERE, None), (HERE, CHECKPOINT + 1)],
    "moved long after it was resumed": [(HERE, None), (HERE, None), (HERE, KILLED)],
    "killed twice elsewhere": [(HERE, None), (THERE, None), (THERE, None)],
}
"""Where each life of a run begins, and the round after which its clients move: the first ends with a checkpoint, the
second without one, and the third at the end."""


class Killed(Exception):
    pass


class World:
    """Two places whose last bits differ, and all that left clients in either."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, by_step: bool) -> None:
        self.start = self.place = HERE
        self.under: dict[tuple[Any, int, int], set[bytes]] = {}
        """What noise of these seeds, of a client in its round, was drawn for."""
        self.spent: Counter[int] = Counter()
        send, world = _Outgoing.send, self

        def sent(self: _Outgoing, message: Any, kept: Any, job: Job, run: Any) -> Any:
            if world.place == THERE:
                message = {k: v * (1 + 1e-6) for k, v in message.items()}
            values = np.concatenate([v.numpy() for v in message.values()], axis=1)
            for i, (client, number) in enumerate(zip(job.clients.tolist(), job.rounds.tolist(), strict=True)):
                before = world.under.setdefault((self.bound.seeds, client, number), set())
                if not before:
                    world.spent[client] += int(job.steps[i]) if by_step else 1
                before.add(values[i].tobytes())
            return send(self, message, kept, job, run)

        monkeypatch.setattr(_Outgoing, "send", sent)
        monkeypatch.setattr(Records, "place", property(lambda _: world.start))
        monkeypatch.setattr(BackendDefaults, "placed", lambda _: "" if world.place == world.start else world.place)

    def live(self, sections: dict[str, Any], folder: Path, moves: int | None, ends: int | None) -> fedsim.Run:
        """One life of a run, which stops after round `ends`; without a word where it is not the first one."""
        self.place, resume = self.start, (folder / "checkpoint").exists()

        def progress(number: int, _: object) -> None:
            if moves == number:
                self.place = THERE
            if number == ends and resume:
                raise Killed
            if number == ends:
                os.kill(os.getpid(), signal.SIGINT)

        return fedsim.run(sections, folder, resume=resume, progress=progress)


def counted(monkeypatch: pytest.MonkeyPatch) -> Mapping[int, int]:
    """What the last run's ledger says of every client's releases."""
    found: dict[int, int] = {}
    report = Bound.report

    def noted(self: Bound) -> Any:
        for own in self.ledger._own.values():
            found.update(enumerate(own.tolist()))
        return report(self)

    monkeypatch.setattr(Bound, "report", noted)
    return found


@pytest.mark.parametrize("kind", LIVES)
@pytest.mark.parametrize("name", LASTING)
def test_what_is_computed_elsewhere_gets_other_noise_and_counts(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, said = World(monkeypatch, name.startswith("dp_sgd")), counted(monkeypatch)
    sections = scenario(name)
    for (start, moves), ends in zip(LIVES[kind], (CHECKPOINT, KILLED, None), strict=True):
        world.start = start
        try:
            world.live(sections, tmp_path, moves, ends)
        except (KeyboardInterrupt, Killed):
            assert ends is not None
    assert [k for k, values in world.under.items() if len(values) > 1] == []
    assert all(said[client] >= count for client, count in world.spent.items())
    assert fedsim.Run(tmp_path).privacy["rows"] == len(rows(tmp_path))
    again = kind != "killed twice elsewhere"  # where the third life repeats what the second one did
    assert any("word" in row for row in rows(tmp_path)) == again


@pytest.mark.parametrize("name", LASTING)
def test_a_run_that_ended_with_its_checkpoint_goes_on_elsewhere_for_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, name.startswith("dp_sgd"))
    whole = world.live(scenario(name), tmp_path / "whole", None, None)
    world.start = HERE
    with pytest.raises(KeyboardInterrupt):
        world.live(scenario(name), tmp_path / "two", None, CHECKPOINT)
    world.start = THERE
    two = world.live(scenario(name), tmp_path / "two", None, None)
    assert two.privacy["epsilon"] == whole.privacy["epsilon"]
    assert not any("word" in row for row in rows(tmp_path / "two"))
    assert len(two.metrics) == len(whole.metrics)
    assert ROUNDS > KILLED > CHECKPOINT
