"""Privacy in a deployment: every machine draws its noise from a secret of its own, not from the scenario's seed.

A simulation's noise can be repeated by whoever knows ``privacy.noise_seed``; a deployment's must not be. With ``trust:
central`` the server's secret counts, with ``trust: local`` each client's. A secret is made once per run and kept in a
file that only its owner can read, so that a job done again sends the same numbers again and releases nothing new.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from fedsim.core.errors import InputError
from fedsim.messages.compressor import Compressor
from fedsim.messages.compressors import Whole
from fedsim.privacy.base import Bound
from fedsim.scenario.message_checks import attack_by, changes_messages
from fedsim.scenario.sections import Scenario


def check_trust(scenario: Scenario) -> None:
    """Raise InputError where the scenario relies on something that a deployment does not do."""
    _check_wire(scenario)
    if changes_messages(scenario.attack):
        why = "clients of a deployment send what they send"
        message, key = attack_by(scenario, why, "poisoned data alone (label_flip, backdoor), or none")
        raise InputError(message, key=key)
    if getattr(scenario.topology, "spells", None) is not None:
        message = "nodes of a deployment are there when their machines are; allowed: no such key"
        raise InputError(message, key="topology.spells")
    if scenario.participation.asks_losses:
        message = "clients of a deployment are not asked what they lose before a round; allowed: no selection"
        raise InputError(message, key="participation.selection")
    if scenario.privacy is None:
        return
    if scenario.privacy.shares_noise:
        raise InputError(
            "found noise that neighbours draw together, for which a deployment would have to agree on secrets between "
            "every two of them; allowed: mechanisms whose clients draw their own, such as muffliato",
            key="privacy.mechanism",
        )
    if scenario.privacy.trust == "secagg":
        raise InputError(
            "found secagg: a deployment has no secure aggregation, so the server would see each client's message with "
            "only its share of the noise; allowed: central, local",
            key="privacy.trust",
        )


def _check_wire(scenario: Scenario) -> None:
    """Raise InputError where compressed messages would not be what travels."""
    part, name = scenario.compression, scenario.names["algorithm"]
    scenario.algorithm.check_deployed()
    if part is None or isinstance(part, Whole):
        return
    if scenario.algorithm.setting == "gossip":
        message = f"a deployment's server mixes for the nodes of a graph and is sent whole models by '{name}'"
        raise InputError(f"{message}; allowed: remove the section", key="compression")
    if not (isinstance(part, Compressor) and part.packs):
        message = f"'{scenario.names['compression']}' does not say how what it makes travels"
        raise InputError(f"{message}; allowed: a compressor with pack and unpack, or no section", key="compression")
    if part.feedback == "ef21":
        message = "found 'ef21', for which a server would have to remember every client's last message"
        raise InputError(f"{message}; allowed: none, ef14, or the algorithm ef21", key="compression.feedback")


def sampling_secret(privacy: Bound) -> int | None:
    """What decides who takes part in a round where epsilon counts on nobody's knowing it, or None.

    Drawn from the scenario's seed, which is in every client's app, anybody could compute who takes part. Where there is
    no noise, nothing is private, and the cohorts are those of the simulation.
    """
    if not privacy.claims or privacy.ledger.claim.unit != "client":
        return None
    counts = any(release.q < 1 and release.z > 0 for release in privacy.ledger.planned)
    return privacy.seeds[0] if counts else None


def with_own_noise(scenario: Scenario, file: Path, fresh: bool = False) -> Scenario:
    """The scenario with this machine's noise, from the secret in `file`, which is made where there is none.

    The result is for computing only: its hash and its YAML would tell the secret.
    """
    if scenario.privacy is None:
        return scenario
    if fresh or not file.exists():
        noisy = with_new_noise(scenario)
        keep_noise(noisy, file)
        return noisy
    return replace(scenario, privacy=replace(scenario.privacy, noise_seed=int(file.read_text(encoding="utf-8"))))


def with_new_noise(scenario: Scenario) -> Scenario:
    """As `with_own_noise`, from a new secret, which is nowhere else until `keep_noise`."""
    if scenario.privacy is None:
        return scenario
    return replace(scenario, privacy=replace(scenario.privacy, noise_seed=secrets.randbits(63)))


def keep_noise(noisy: Scenario, file: Path) -> None:
    """Write the secret of `with_new_noise` in the place of any earlier one."""
    if noisy.privacy is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(str(noisy.privacy.noise_seed), encoding="utf-8")
