"""Whether a run may do as its run config says of clients that are there and of those that are not."""

from __future__ import annotations

from fedsim.core.errors import InputError
from fedsim.deployment.run_config import RunConfig
from fedsim.engine.assembly import Assembly
from fedsim.scenario.sections import Scenario


def check_population(config: RunConfig, scenario: Scenario, assembly: Assembly) -> None:
    """Raise InputError where more clients are wanted than there are, or cohorts cannot be those of connected ones."""
    most = assembly.task.num_clients
    for key, wanted in (("min-clients", config.min_clients), ("min-available", config.min_available)):
        if wanted > most:
            raise InputError(f"run config: found {wanted}, allowed: at most data.clients = {most}", key=key)
    why = None if config.population == "scenario" else _why_not(scenario, assembly)
    if why is not None:
        raise InputError(f"run config: found connected, but {why}; allowed: scenario", key="population")


def _why_not(scenario: Scenario, assembly: Assembly) -> str | None:
    """Why cohorts cannot be drawn among connected clients, or None."""
    durations, mode = assembly.durations, scenario.names["participation"]
    if not scenario.participation.asks_connected:
        return f"with participation.mode {mode} every client is in every round"
    if scenario.algorithm.tokens is not None:
        return f"the models of {scenario.names['algorithm']} walk to clients that are drawn among all"
    if assembly.privacy.claims:
        return "epsilon is stated for cohorts that are drawn among all clients"
    if durations is not None and (durations.presence is not None or durations.leaves is not None):
        return "the scenario says itself who is there (system.availability, system.departure)"
    return None
