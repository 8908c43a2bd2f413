"""What compression and attackers go together with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from fedsim.core.errors import Problem
from fedsim.messages.attack import Attack
from fedsim.messages.attackers import Attackers
from fedsim.messages.base import MessageTransform
from fedsim.participation.synchronous import Synchronous
from fedsim.scenario.compressor_checks import own_compressor_problems
from fedsim.scenario.sections import Scenario


def message_problems(s: Scenario) -> Iterator[Problem]:
    """Rules about the sections ``compression`` and ``attack`` that need neither data nor graph."""
    attack = s.attack if changes_messages(s.attack) else None
    name = s.names["algorithm"]
    yield from own_compressor_problems(s)
    if attack is not None and s.algorithm.needs.compression is not None:
        why = f"with '{name}' every message changes what others know of its sender for good"
        yield _refused(s, "attack", why, "another algorithm, or attackers that change data alone")
    for section, part in (("compression", s.compression), ("attack", attack)):
        if part is None or s.algorithm.needs.compression is not None or s.algorithm.needs.alone is not None:
            continue  # `chain_problems` says why not where a message stands alone
        if s.algorithm.setting == "gossip" and type(part).edges is MessageTransform.edges and section == "compression":
            message = f"nodes send models to each other, and with '{name}' it compresses them without memory"
            yield Problem(f"{message}; allowed on a graph: choco, beer, deepsqueeze", section)
        elif s.algorithm.setting == "gossip" and type(part).edges is MessageTransform.edges:
            message = "it acts on what clients send to a server, and here nodes send models to each other"
            yield Problem(f"{message}; allowed on a graph: remove the section", section)
        elif s.algorithm.setting == "server" and s.algorithm.evaluates_on is not None:
            if section == "attack" and not s.algorithm.needs.through_aggregate:
                why = f"'{name}' weighs clients by losses that they report, about which attackers may lie"
                yield _refused(s, section, why, "an algorithm that weighs them by their data, such as fedavg")
        elif s.algorithm.setting == "server" and not s.algorithm.needs.through_aggregate:
            why = f"'{name}' moves client and server along the same messages, which this would make differ"
            such = "an algorithm that moves its state through the aggregator alone, such as fedavg, fedprox or fedadam"
            yield _refused(s, section, why, such)
        if part.everyone is not None and s.participation.clocked:
            yield Problem(f"{part.everyone}; allowed: mode synchronous with all clients", "participation.mode")
        if part.everyone is not None and s.backend.client_errors == "drop":
            yield Problem(f"found 'drop', but {part.everyone}; allowed: fail", "backend.client_errors")
    if s.compression is not None and s.algorithm.needs.everyone is not None and s.algorithm.needs.alone is None:
        yield Problem(f"'{name}' adds up what all clients send, which compression would change", "compression")
    if s.privacy is not None and s.privacy.counts_on_messages:
        for section, part, why in (
            (
                "compression",
                s.own_compressor or s.compression or s.sized,
                "noise and sensitivity are made for messages as they are clipped",
            ),
            ("attack", attack, "noise is made for the sum of clipped messages, which attackers do not keep to"),
        ):
            if part is not None:
                found = "found it" if section in s.given else f"'{name}' compresses what is sent"
                at = section if section in s.given else "algorithm.name"
                yield _refused(s, at, f"{found} beside '{s.names['privacy']}': {why}", "dp_sgd, local_dp")
    if s.privacy is not None and s.algorithm.evaluates_on is not None:
        found = f"'{name}' sends what clients lose on their own data, which no mechanism makes noise for"
        yield Problem(
            f"{found}; allowed: no privacy, or an algorithm without losses, such as fedavg", "privacy.mechanism"
        )
    if s.privacy is not None and s.participation.asks_losses:
        found = "found clients that are chosen by what they lose, which no mechanism makes noise for, and whose cohorts"
        yield Problem(f"{found} amplify no privacy; allowed beside privacy: no selection", "participation.selection")
    if s.algorithm.tokens is not None and s.participation.asks_losses:
        message = f"found it, but models of '{name}' walk to clients that are drawn; allowed: no selection"
        yield Problem(message, "participation.selection")
    if s.attack is not None and s.audits:
        yield Problem("an audit asks what an honest run gives away; allowed: one of the two sections", "attack")
    if isinstance(s.attack, Attack):
        yield from _attack(s, s.attack)


def changes_messages(part: MessageTransform | None) -> bool:
    """Whether a section ``attack`` changes messages, and not the attackers' data alone."""
    return part is not None and (not isinstance(part, Attackers) or part.on_messages)


def attack_by(s: Scenario, why: str, allowed: str) -> tuple[str, str]:
    """Message and key of what speaks against a section ``attack`` that changes messages.

    Where one key makes an attack on data change them, the message names it, and is about that key.
    """
    attack = s.attack
    if not isinstance(attack, Attackers) or (key := attack.changes_by) is None:
        return f"{why}; allowed: {allowed}", "attack"
    found, default = getattr(attack, key), next(f.default for f in fields(attack) if f.name == key)
    cause = f"'{s.names['attack']}' with {key} {found:g} changes messages"
    return f"{cause}: {why}; allowed: {key} {default:g}, {allowed}", f"attack.{key}"


def _refused(s: Scenario, at: str, why: str, allowed: str) -> Problem:
    """What speaks against the part at key `at`."""
    message, key = attack_by(s, why, allowed) if at == "attack" else (f"{why}; allowed: {allowed}", at)
    return Problem(message, key)


def _attack(s: Scenario, attack: Attack) -> Iterator[Problem]:
    """What an attack on messages needs of the round that it happens in."""
    name = s.names["attack"]
    if attack.start > max(1, s.run.rounds):
        message = f"found {attack.start}, but the run has {s.run.rounds} rounds: nobody would attack"
        yield Problem(f"{message}; allowed: 1 to {s.run.rounds}, or attackers: 0", "attack.start")
    if not attack.finite and s.aggregator.is_linear:
        message = (
            f"'{name}' sends what is no number, and '{s.names['aggregator']}' weighs every message, so that nothing "
            "would be left of the model; allowed: a rule that leaves such messages out, such as krum or median"
        )
        yield Problem(message, "aggregator.name")
    if s.algorithm.setting == "gossip":
        yield from _attack_on_graph(s, attack)
    if attack.local or attack.on_edges:
        return
    if s.names["participation"] == "asynchronous":
        message = (
            f"{_alone(name)}, and here every message is combined "
            "alone; allowed: fedbuff, fixed_interval, synchronous, or an attack that needs none of it, such as gaussian"
        )
        yield Problem(message, "participation.mode")
    elif getattr(s.participation, "buffer", None) == 1:
        yield Problem(f"found 1: {_alone(name)}; allowed: 2 or more", "participation.buffer")


def _attack_on_graph(s: Scenario, attack: Attack) -> Iterator[Problem]:
    """What an attack on messages needs of a graph's rounds, and of where its nodes are."""
    name = s.names["attack"]
    if s.names["participation"] == "poisson":
        message = f"'{name}' is made of the messages of a round, and Poisson clocks know none; allowed: mode gossip"
        yield Problem(message, "participation.mode")
    sees_all = attack.sees_all or (attack.knowledge == "all" and not attack.local and not attack.on_edges)
    if sees_all and s.backend.name == "ray":
        key = "attack.name" if attack.sees_all else "attack.knowledge"
        message = (
            f"'{name}' is made of what all honest nodes send, and actors have what their own nodes hear; allowed with "
            "the backend ray: attacks with knowledge: neighbours"
        )
        yield Problem(message, key)


def cohort_problems(s: Scenario, clients: int) -> Iterator[Problem]:
    """Rules about attackers that need the number of clients."""
    if not isinstance(s.attack, Attack) or s.attack.local or not isinstance(s.participation, Synchronous):
        return
    if s.participation.cohort_size(clients) == 1:
        key = "fraction" if s.participation.clients_per_round is None else "clients_per_round"
        found = getattr(s.participation, key)
        message = f"found {found}, a cohort of one: {_alone(s.names['attack'])}; allowed: cohorts of 2 or more"
        yield Problem(message, f"participation.{key}")


def _alone(name: str) -> str:
    return f"'{name}' is made of what honest clients send for the same round"
