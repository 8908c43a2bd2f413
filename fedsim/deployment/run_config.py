"""What a run of a deployment is told by who starts it: ``flwr run ... -c 'key=value'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError
from fedsim.deployment.evaluation import WHO
from fedsim.deployment.flower.policy import Policy
from fedsim.deployment.node_config import settings_of
from fedsim.participation.base import Participation
from fedsim.scenario.sections import Scenario

RUN_KEYS: Mapping[str, Any] = {
    "settings": "", "out": "", "resume": False, "min-clients": 0, "wait-seconds": 600.0, "timeout": 600.0,
    "away-seconds": 0.0, "on-failure": "retry", "attempts": 3, "poll": 0.2, "max-samples": 1_000_000,
    "client-keys": "", "eval": "auto",
    "checkpoint": "round", "population": "scenario", "min-available": 0, "min-samples": 1,
}  # fmt: skip
"""The keys of ``[tool.flwr.app.config]`` and what they are where nothing is said."""

_FAILURES = ("retry", "drop", "stop")
_CHECKPOINTS = ("round", "seconds")
_POPULATIONS = ("scenario", "connected")
RUN = "{run}"
"""What stands for the number that Flower gives a run, in `out`."""


@dataclass(frozen=True)
class RunConfig:
    """A deployment's run config.

    Parameters
    ----------
    settings : overrides of the scenario, ``key.path=value`` separated by blanks, for server and clients.
    out : the run directory, in which ``{run}`` stands for Flower's number of the run; empty:
        ``runs/<name>-<hash>/{run}`` in the ServerApp's working directory.
    resume : continue from the run directory's checkpoint.
    min_clients : clients to wait for before the first round (0: all), for at most `wait_seconds`.
    policy : what happens to jobs that fail.
    max_samples : the most samples that a client with data of its own may say it has, since weights follow from them.
    min_samples : the fewest that it may say it has: where noise is made for each example, few samples need much of it.
    client_keys : folder with the public key of every client's SuperNode; empty: any SuperNode may be any client.
    evaluates : who evaluates clients one by one (see `fedsim.deployment.evaluation`).
    population : cohorts are the ``scenario``'s, or drawn among the clients that are ``connected`` when a round begins.
    min_available : clients that have to be connected when a round begins, for which `wait_seconds` are waited.
    checkpoint : after every ``round``, or as often as the scenario's ``run.checkpoint_seconds`` says (``seconds``).
    """

    settings: list[str]
    out: str
    resume: bool
    min_clients: int
    wait_seconds: float
    policy: Policy
    max_samples: int = RUN_KEYS["max-samples"]
    client_keys: str = ""
    evaluates: str = "auto"
    checkpoint: str = "round"
    population: str = "scenario"
    min_available: int = 0
    min_samples: int = RUN_KEYS["min-samples"]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> RunConfig:
        """From Flower's run config; missing keys have their default.

        Raises
        ------
        InputError
            A value is of another kind.
        """
        values = {k: config.get(k, default) for k, default in RUN_KEYS.items()}
        for key, default in RUN_KEYS.items():
            wanted = type(default)
            found = float(values[key]) if wanted is float and type(values[key]) is int else values[key]
            if type(found) is not wanted or (wanted in (int, float) and found < 0):
                words = {str: "text", bool: "true or false", int: "a whole number >= 0", float: "a number >= 0"}[wanted]
                raise InputError(f"run config: found {values[key]!r}, allowed: {words}", key=key)
            values[key] = found
        for key, allowed in (
            ("on-failure", _FAILURES),
            ("eval", WHO),
            ("checkpoint", _CHECKPOINTS),
            ("population", _POPULATIONS),
        ):
            if values[key] not in allowed:
                raise InputError(f"run config: found {values[key]!r}, allowed: {', '.join(allowed)}", key=key)
        for key in ("timeout", "poll", "attempts", "max-samples", "min-samples"):
            if values[key] == 0:
                words = "a number" if type(RUN_KEYS[key]) is float else "a whole number"
                raise InputError(f"run config: found {values[key]}, allowed: {words} above 0", key=key)
        if values["min-samples"] > values["max-samples"]:
            found = f"found {values['min-samples']}, allowed: at most max-samples = {values['max-samples']}"
            raise InputError(f"run config: {found}", key="min-samples")
        policy = Policy(
            values["timeout"], values["on-failure"], values["attempts"], values["poll"], values["away-seconds"]
        )
        return cls(
            settings_of(values["settings"]), values["out"], values["resume"], values["min-clients"],
            values["wait-seconds"], policy, values["max-samples"], values["client-keys"], values["eval"],
            values["checkpoint"], values["population"], values["min-available"], values["min-samples"],
        )  # fmt: skip

    def among_connected(self, participation: Participation) -> bool:
        """Whether cohorts are drawn among connected clients; modes without rounds ask those that are there anyway."""
        return self.population == "connected" and not participation.clocked

    def folder(self, scenario: Scenario, run: str) -> Path:
        """The run directory of Flower's run `run`."""
        named = self.out or f"runs/{scenario.name}-{scenario.hash()}/{RUN}"
        return Path(named.replace(RUN, run)).expanduser()
