"""A run's attackers: who they are, what they do to the task, and what is recorded of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedsim.core.disk import write_whole
from fedsim.core.errors import InputError
from fedsim.core.job import RunFacts
from fedsim.core.oracle import Task
from fedsim.graphs.honest import HonestGraph, check_connected, honest_graph
from fedsim.graphs.network import Network
from fedsim.messages.attack import Attack
from fedsim.messages.attackers import Attackers
from fedsim.messages.poison import Poison
from fedsim.participation.synchronous import Synchronous
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    import networkx as nx

FILE = "attack.json"


def attackers_of(s: Scenario, clients: int, network: Network | None) -> tuple[int, ...] | None:
    """The scenario's attackers, ascending; None where it has no section, or it says itself who they are.

    Raises
    ------
    InputError
        There are no such clients, a placement on the graph means nothing, or without them the graph's honest nodes are
        not connected.
    """
    if not isinstance(s.attack, Attackers):
        return None
    graph = None
    if network is not None and s.attack.placement != "random":
        if any(mixing.redrawn for mixing in network.mixings):
            message = (
                f"found '{s.attack.placement}', but with '{s.names['topology']}' everybody may meet everybody; "
                "allowed: random, or the attackers' numbers"
            )
            raise InputError(message, key="attack.placement")
        graph = everything(network)
    found = tuple(s.attack.placed(s.seed, clients, graph).tolist())
    if network is not None and found and not s.attack.allow_disconnected:
        check_connected(network, found)
    return found


def everything(network: Network) -> nx.Graph[Any]:
    """The graph that placements look at: where graphs take turns, all of their links."""
    import networkx as nx

    return nx.compose_all(network.topology.graphs)


def attacked(s: Scenario, task: Task, run: RunFacts) -> Task:
    """The task with attackers' rows poisoned where the scenario says so, measured on what honest clients hold.

    Raises
    ------
    InputError
        The data have nothing that could be poisoned in this way.
    """
    honest, attack = run.honest, s.attack
    if isinstance(attack, Poison):
        classes = getattr(task, "num_classes", None)
        if classes is None:
            message = "it changes labels of classes, and these data have none"
            raise InputError(f"{message}; allowed: an attack on messages, such as sign_flip", key="attack.name")
        attack.fits(tuple(getattr(task, "inputs").shape[1:]), classes)  # noqa: B009 - of a supervised task
        attack.fits_tokens(getattr(task, "tokens"))  # noqa: B009
        if honest is not None:

            def change(client: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
                return attack.rows(inputs, targets, classes, client, run.seed)

            task = task.poisoned(np.array(run.attackers, dtype=np.int64), change)
    return task if honest is None else task.judged_by(honest)


def tolerated(s: Scenario) -> int | None:
    """How many attackers the rule is told to tolerate; None where it has no such number."""
    f = getattr(s.aggregator, "f", None)
    return f if isinstance(f, int) else None


def honest_part(network: Network | None, run: RunFacts) -> HonestGraph | None:
    """The honest nodes of a run's graph, where it has one and somebody attacks."""
    return honest_graph(network, run.attackers) if network is not None and run.attackers else None


def record(s: Scenario, run: RunFacts, network: Network | None) -> dict[str, Any] | None:
    """What ``attack.json`` says; None where the scenario has no attackers.

    ``within_bound``: whether the rule hears no more attackers than it tolerates, in any round and at any node.
    """
    if not isinstance(s.attack, Attackers):
        return None
    attackers, f, honest = list(run.attackers or ()), tolerated(s), honest_part(network, run)
    most = len(attackers) if honest is None else int(honest.heard.max())
    if honest is None and isinstance(s.participation, Synchronous) and s.participation.sampling == "uniform":
        most = min(most, s.participation.cohort_size(run.num_clients))
    return {
        "attackers": attackers,
        "name": s.names["attack"],
        "start": s.attack.start if isinstance(s.attack, Attack) else 1,
        "f": f,
        "delta_max": None if honest is None else honest.delta_max,
        "honest_gap": None if honest is None else honest.gap,
        "connected": None if honest is None else honest.connected,
        "within_bound": None if f is None else most <= f,
    }


def write_record(folder: Path, found: dict[str, Any] | None) -> None:
    """``attack.json`` of a run directory; no file where nobody attacks."""
    if found is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    write_whole(folder / FILE, json.dumps(found, indent=2) + "\n")


def read_attackers(folder: Path) -> list[int]:
    """The attackers of the run in `folder`; none where it has no ``attack.json``.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["attackers"]
        return [int(i) for i in found]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"cannot be read: {error}", file=str(path)) from None


def chances(s: Scenario, run: RunFacts) -> dict[str, Any]:
    """How likely a cohort has more attackers than the rule tolerates, where it has no such number as many as half of
    its members, and with a rule that one attacker can move anywhere (``mean``) any; nothing where cohorts are not drawn
    evenly."""
    from scipy.stats import binom, hypergeom

    mode, n, b = s.participation, run.num_clients, len(run.attackers or ())
    if (
        not isinstance(mode, Synchronous)
        or not b
        or mode.over_selection > 1
        or mode.dropout
        or mode.deadline
        or mode.asks_losses
    ):
        return {}
    m = mode.cohort_size(n)
    f = tolerated(s)
    if f is not None:
        most, said = f, f"chance of more than {f} attackers in a cohort"
    elif s.aggregator.is_linear:
        most, said = 0, "chance of an attacker in a cohort"
    else:
        most, said = (m - 1) // 2, f"chance that half of a cohort of {m} or more attack"
    if mode.sampling == "uniform":
        chance = float(hypergeom.sf(most, n, b, m))
    elif mode.sampling in ("bernoulli", "poisson"):
        chance = float(binom.sf(most, b, m / n if mode.fraction is None else mode.fraction))
    else:
        return {}
    return {said: chance}
