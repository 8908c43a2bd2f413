"""The server's part where clients bring data of their own: what it asks of them, and what it makes of the answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.algorithms.base import Algorithm
from fedsim.core.arrays import Array
from fedsim.core.errors import RunError
from fedsim.data.agreed import Moments, features_of, lists_of, merged, scaling_of
from fedsim.data.partition_csv import write_partition
from fedsim.data.sets import LEARNT
from fedsim.data.splits import Normalize, Scaling
from fedsim.deployment.agreement import Agreement
from fedsim.deployment.flower.records import Arrays, Greeting
from fedsim.deployment.flower.roster import LOG
from fedsim.deployment.run_config import RunConfig
from fedsim.engine.assembly import Assembly
from fedsim.engine.elsewhere import Told
from fedsim.scenario.sections import Scenario

SIZES_ARE_PUBLIC = "how many samples each client says it has: all are told, and weights and noise follow from it"
_SHOWN = 6


def proposed(assembly: Assembly) -> Agreement:
    """What nodes are told first; final where neither scaling nor noise waits for what they say."""
    if assembly.about is None:
        return Agreement()
    learnt = LEARNT in assembly.about["input"]
    return Agreement(lists_of(assembly.about), final=not learnt and not assembly.privacy.claims)


def settled(
    proposal: Agreement,
    scenario: Scenario,
    assembly: Assembly,
    greetings: Mapping[int, Greeting],
    said: Mapping[int, Arrays],
    late: str | None,
) -> Agreement | None:
    """What all agree on, from what every client has said; None where none brings data of its own.

    `late` says why clients may not come later with data of their own (None: they may). Until they do, their sizes are
    0.

    Raises
    ------
    RunError
        Clients are missing, or some train on shares of the scenario's data, which are scaled otherwise.
    """
    own = tuple(sorted(c for c, g in greetings.items() if g.own))
    if not own:
        return None
    clients = assembly.task.num_clients
    sizes = tuple(greetings[c].samples if c in greetings else 0 for c in range(clients))
    missing = check_there(sizes, late)
    scaling = None
    if learns(assembly):
        others = [c for c in greetings if c not in own]
        if others:
            raise RunError(
                f"clients {others} train on shares of the scenario's data, which are scaled by its own statistics, and "
                f"clients {list(own)} bring their own data; allowed: own data for all of them, or data.normalize = none"
            )
        scaling = _pooled(scenario, assembly, _sample(greetings[own[0]]), [said[c] for c in own])
    return replace(proposal, final=True, own=tuple(sorted([*own, *missing])), sizes=sizes, scaling=scaling)


def check_there(sizes: Sequence[int] | None, late: str | None) -> list[int]:
    """The clients that are still to say their sizes; raise RunError where, as `late` says, they may not come later."""
    missing = [c for c, size in enumerate(sizes or ()) if size == 0]
    if missing and late is not None:
        raise RunError(
            f"clients {missing} are not there: with data of their own, all have to say how much they have, since {late}"
        )
    return missing


def all_at_once(scenario: Scenario, config: RunConfig, stateful: bool) -> str | None:
    """Why all clients with data of their own have to be there before the first round, or None."""
    if not config.among_connected(scenario.participation):
        return "cohorts are drawn among all clients (population = connected draws them among those that are there)"
    if stateful:
        return f"what clients of {scenario.names['algorithm']} keep is weighted by all clients' sizes"
    if _begins_with_sizes(scenario.algorithm):
        return f"the weights that {scenario.names['algorithm']} begins with are made of all clients' sizes"
    return None


def _begins_with_sizes(algorithm: Algorithm) -> bool:
    """Whether what the server keeps about clients is at first made of their shares of the samples."""
    even, uneven = (algorithm.of_clients(torch.tensor(shares)) for shares in ([[0.5], [0.5]], [[0.25], [0.75]]))
    return any(not torch.equal(even[name], uneven[name]) for name in even)


def joined(agreement: Agreement, greeting: Greeting, assembly: Assembly, folder: Path) -> Agreement:
    """What is agreed on when a client comes after the first round, with data of its own; the weights follow from it.

    The others are told nothing: of what they do, nothing depends on how much it has.
    """
    assert agreement.sizes is not None
    sizes = list(agreement.sizes)
    sizes[greeting.client] = greeting.samples
    LOG.info(
        "client %d joins with %d samples of its own; %s", greeting.client, greeting.samples,
        "no statistics scale them" if agreement.scaling is None
        else "features stay scaled by the statistics of those who were there at the start",
    )  # fmt: skip
    agreement, task, total = replace(agreement, sizes=tuple(sizes)), assembly.task, sum(sizes)
    task.sizes[:] = sizes  # in place: the objective around the task has the same arrays
    task.importance[:] = [size / total for size in sizes]
    task.__dict__.pop("cumulative_importance", None)
    keep(agreement, assembly, folder)
    return agreement


def learns(assembly: Assembly) -> bool:
    """Whether features are scaled by statistics of the rows that are trained on."""
    return assembly.about is not None and LEARNT in assembly.about["input"]


def _pooled(scenario: Scenario, assembly: Assembly, sample: list[int], said: list[Arrays]) -> dict[str, Any]:
    """The scaling of all clients' rows, whose samples have the shape `sample`."""
    assert assembly.about is not None
    try:
        whole = merged([Moments.read(arrays) for arrays in said])
    except ValueError as error:
        raise RunError(f"the statistics of the clients' rows cannot be used: {error}") from None
    mode: Normalize = getattr(scenario.dataset, "normalize", "standard")
    found = scaling_of(whole, mode, features_of(assembly.about["input"], sample))
    assert found.shift is not None
    assert found.scale is not None
    LOG.info(
        "features are scaled by statistics of the rows of all %d clients, asked once for counts, sums, squares and "
        "extremes: shift %s, scale %s", len(said), _few(found.shift), _few(found.scale),
    )  # fmt: skip
    return {"shift": found.shift.tolist(), "scale": found.scale.tolist()}


def _sample(greeting: Greeting) -> list[int]:
    """The shape of one of its samples."""
    return [int(n) for n in greeting.shape.split("x")]


def _few(values: Array) -> str:
    rest = ", ..." if values.size > _SHOWN else ""
    return ", ".join(f"{v:.6g}" for v in values.ravel()[:_SHOWN].tolist()) + rest


def told(agreement: Agreement | None) -> Told | None:
    """What the server's own task has to know of it."""
    if agreement is None or agreement.sizes is None:
        return None
    scaling = None
    if agreement.scaling is not None:
        shift, scale = (np.asarray(agreement.scaling[k], dtype=np.float64) for k in ("shift", "scale"))
        scaling = Scaling(None, shift, scale)
    return Told(agreement.sizes, scaling)


def keep(agreement: Agreement, assembly: Assembly, folder: Path) -> None:
    """Write down what was agreed on; from here on it is the run's."""
    agreement.write(folder)
    write_partition(folder, None, assembly.task.sizes)
    if assembly.privacy.claims:
        assembly.privacy.uncovered.append(SIZES_ARE_PUBLIC)


def refuses_own(
    greeting: Greeting, scenario: Scenario, assembly: Assembly, config: RunConfig, here: tuple[str, int] | None
) -> str | None:
    """What is wrong with a client that brings data of its own, or None.

    `here` are the form of the scenario's samples and its number of classes; None: the scenario has no samples.
    """
    least, most = config.min_samples, config.max_samples
    if assembly.algorithm != scenario.algorithm:
        return "it brings its own data, but the algorithm's step or weights were made for the scenario's"
    if assembly.privacy.claims and learns(assembly):
        return (
            "it brings its own data, whose statistics would scale them, and the run's epsilon covers no statistics; "
            "allowed: data.normalize = none (of images also unit)"
        )
    if here is None:
        return "it brings its own data, but the scenario's objectives are given"
    if (greeting.shape, greeting.classes) != here:
        found = f"samples of shape {greeting.shape} with {greeting.classes} classes"
        return f"its own data have {found}; the scenario's have {here[0]} with {here[1]}"
    if not least <= greeting.samples <= most:
        allowed = f"allowed: {least} to {most} ({'min-samples, ' if least > 1 else ''}max-samples)"
        return f"it says that its own data have {greeting.samples} samples; {allowed}"
    if not 0 <= greeting.tests <= most:
        return f"it says that its own data have {greeting.tests} test samples; allowed: 0 to {most} (max-samples)"
    if scenario.tests_clients and assembly.privacy.claims:
        return (
            "it brings its own data, on which nobody may evaluate it, since the run's epsilon does not cover what is "
            "measured of them; allowed: a scenario without data.local_test and run.eval_clients"
        )
    if scenario.tests_clients and config.evaluates == "server":
        return "it brings its own data, which only it can evaluate a model on; allowed with eval = auto, clients"
    return None


def doubts(greeting: Greeting, said: Arrays, assembly: Assembly) -> str | None:
    """What is wrong with the statistics that a client with data of its own says of its rows, or None."""
    assert assembly.about is not None
    try:
        moments = Moments.read(said)
    except ValueError as error:
        return str(error)
    shape = _sample(greeting)
    wanted = math.prod(features_of(assembly.about["input"], shape))
    if len(moments.mean) != wanted:
        return f"found statistics of {len(moments.mean)} features; its rows have {wanted}"
    each = shape[1] * shape[2] if len(shape) == 3 else 1  # of images, statistics are per channel
    if moments.count != greeting.samples * each:
        expected = f"its {greeting.samples} samples have {greeting.samples * each}"
        return f"found statistics of {moments.count} values; {expected}"
    return None
