"""What goes together with parameters that stay with clients."""

from __future__ import annotations

from collections.abc import Iterator

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.needs import Needs
from fedsim.core.errors import Problem
from fedsim.core.registry import lookup, names
from fedsim.models.personal import Personal
from fedsim.scenario.sections import Scenario


def personal_problems(s: Scenario) -> Iterator[Problem]:
    """Rules about ``model.personal`` and ``model.batch_norm: local`` that need neither data nor model."""
    if s.model is None or s.model.stays == Personal():
        return
    key = "model.personal" if s.model.personal else "model.batch_norm"
    what = "found parameters that stay with clients" if s.model.personal else "found local, which stays with clients"
    if not s.algorithm.needs.personal:
        asked, setting = s.names["algorithm"], s.algorithm.setting
        message = f"{what}, but {_why_not(s.algorithm, asked)}"
        yield Problem(f"{message}; allowed: {', '.join(_taking(setting))}", key)
    if s.participation.asks_losses:
        message = f"{what}, and a selection asks what the server's own model loses; allowed: no selection"
        yield Problem(message, "participation.selection")
    if s.privacy is not None and not s.privacy.personal:
        message = (
            f"{what}: they follow a client's examples without noise, and '{s.names['privacy']}' protects examples; "
            "allowed: a mechanism that protects clients as a whole, such as dp_fedavg, dp_ftrl and local_dp"
        )
        yield Problem(message, key)


def _why_not(algorithm: Algorithm, name: str) -> str:
    """What of the algorithm takes a model of which a client has all, or the server has."""
    needs = algorithm.needs
    if needs.alone is not None:
        return f"with '{name}' {needs.alone}"
    if needs.own_models:
        return f"'{name}' trains a model of each client's own, which is a whole one, beside the common one"
    if algorithm.evaluates_on is not None:
        return f"'{name}' asks what the server's own models lose"
    return f"'{name}' keeps more about all parameters than the model itself"


def _taking(setting: str) -> list[str]:
    """The algorithms of this package under which parameters may stay with clients."""
    found = ((name, lookup("algorithm", name)) for name in names("algorithm"))
    return [
        name
        for name, part in found
        if part.setting == setting and isinstance(part.needs, Needs) and part.needs.personal
    ]
