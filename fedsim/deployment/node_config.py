"""What a SuperNode and a run are told by their users: ``--node-config``, and the settings of a run config.

Read in every message's process, so it imports nothing that takes time.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError, nearest
from fedsim.deployment.flower.records import BadRecord

_TEXTS = ("data-path", "own-data", "state-dir", "model-init")
_KEYS = (
    "partition-id",
    "num-partitions",
    *_TEXTS,
    "delay",
    "lost-state",
    "idle-seconds",
    "keep-runs",
    "budget",
    "test-fraction",
)

_SHORTEST = 5  # seconds: a worker must not end before who has started it has given it a job


@dataclass(frozen=True)
class NodeConfig:
    """What a SuperNode's ``--node-config`` says.

    Parameters
    ----------
    client, clients : its ``partition-id`` of ``num-partitions``: which client of the scenario it is.
    data_path : where this machine has the scenario's data (``data-path``), of which the client takes its share.
    own_data : a folder or file all of whose training rows are this client's (``own-data``).
    state_dir : folder for the client's state (``state-dir``; default ``~/.local/state/fedsim``).
    delay : seconds that are waited before every answer (``delay``), to try slow devices on one machine.
    lost_state : ``refuse`` jobs that build on state that is not on the disk, or start ``fresh`` (``lost-state``).
    idle_seconds : how long the client's worker waits for its next job before it ends (``idle-seconds``); 0: no worker.
    keep_runs : how many earlier runs' folders of this client are kept when a new run begins (``keep-runs``).
    test_fraction : share of the rows of `own_data` that are not trained on (``test-fraction``), where the data have no
        test rows; the client is tested on them where clients are.
    model_init : where this machine has the weights that the scenario's model starts from (``model-init``).
    budget : with ``trust: local``, the epsilon that this client spends at most in a run (``budget``).
    """

    client: int
    clients: int
    data_path: str | None = None
    own_data: str | None = None
    state_dir: Path = Path("~/.local/state/fedsim")
    delay: float = 0.0
    lost_state: str = "refuse"
    idle_seconds: float = 600.0
    keep_runs: int = 5
    budget: float | None = None
    model_init: str | None = None
    test_fraction: float | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> NodeConfig:
        """From a Flower node config.

        Raises
        ------
        InputError
            A key is missing or has a value of another kind.
        """
        for key in config:  # a SuperNode may serve other apps with keys of their own: only slips are answered
            if key not in _KEYS and (hint := nearest(key, _KEYS)):
                raise InputError(f"--node-config: unknown key{hint}; allowed: {', '.join(_KEYS)}", key=key)
        for key in ("partition-id", "num-partitions"):
            if type(config.get(key)) is not int:
                raise _wrong(key, config.get(key, "nothing"), "a whole number")
        for key in _TEXTS:
            if not isinstance(config.get(key, ""), str):
                raise _wrong(key, config[key], f'text in quotes, {key}="..."')
        delay, idle = config.get("delay", 0.0), config.get("idle-seconds", 600.0)
        if type(delay) not in (int, float) or not 0 <= delay < float("inf"):
            raise _wrong("delay", delay, "seconds >= 0")
        if type(idle) not in (int, float) or not (idle == 0 or _SHORTEST <= idle < float("inf")):
            raise _wrong("idle-seconds", idle, f"0 (no worker) or at least {_SHORTEST} seconds")
        lost, keep = config.get("lost-state", "refuse"), config.get("keep-runs", 5)
        if lost not in ("refuse", "fresh"):
            raise _wrong("lost-state", lost, "refuse, fresh")
        if type(keep) is not int or keep < 0:
            raise _wrong("keep-runs", keep, "a whole number >= 0")
        budget = config.get("budget")
        if budget is not None and (type(budget) not in (int, float) or not 0 < budget < float("inf")):
            raise _wrong("budget", budget, "an epsilon > 0")
        fraction = config.get("test-fraction")
        if fraction is not None and (type(fraction) not in (int, float) or not 0 <= fraction < 1):
            raise _wrong("test-fraction", fraction, "a share of the rows, at least 0 and below 1")
        if fraction is not None and "own-data" not in config:
            raise InputError("--node-config: found test-fraction, allowed: with own-data", key="test-fraction")
        if "data-path" in config and "own-data" in config:
            raise InputError(
                "--node-config: found both data-path and own-data, allowed: one of the two", key="own-data"
            )
        return cls(
            config["partition-id"], config["num-partitions"], config.get("data-path"), config.get("own-data"),
            Path(str(config.get("state-dir", cls.state_dir))).expanduser(), float(delay), lost,
            float(idle), keep, None if budget is None else float(budget), config.get("model-init"),
            None if fraction is None else float(fraction),
        )  # fmt: skip

    def folder(self, run: str) -> Path:
        """What this client keeps of a run."""
        if not run.replace("-", "").isalnum():
            raise BadRecord(f"'{run}' is no name of a run")
        return self.state_dir / run / f"client-{self.client}"


def settings_of(text: str) -> list[str]:
    """A run config's ``settings``, parted at blanks as a shell does it.

    Raises
    ------
    InputError
        A quotation mark is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError:
        raise InputError(
            f"run config: found {text!r}, in which a quotation mark is not closed; "
            "allowed: key.path=value separated by blanks, in quotes where a value has blanks itself",
            key="settings",
        ) from None


def _wrong(key: str, found: object, allowed: str) -> InputError:
    return InputError(f"--node-config: found {found!r}, allowed: {allowed}", key=key)
