"""What does not go with a model that draws or counts while it trains, found before anything is written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsim.algorithms.base import one_message
from fedsim.clients.worker import Worker
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.oracle import Task
from fedsim.models.nature import trains_on_one
from fedsim.objective.kernel import NoSampleGradientError
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.sections import Scenario


def check_training(s: Scenario, supervised: SupervisedTask) -> None:
    """Let a client take a step, where that is not sure to work.

    Raises
    ------
    InputError
        Gradients of single samples are needed, which a sample has not while statistics are of a minibatch.
    """
    if not supervised.kernel.nature.buffers.total:
        return
    _check_minibatches(s, supervised)
    try:
        _step(s, supervised)
    except NoSampleGradientError:
        raise InputError(
            f"found '{s.names['algorithm']}', which needs the gradient of each sample, and a model with batch "
            "normalisation or another buffer that training changes; allowed: model.batch_norm group or frozen, or "
            "another algorithm",
            key="algorithm.name",
        ) from None


def check_carried(s: Scenario, task: Task) -> None:
    """Raise InputError where what models carry beside their parameters cannot be averaged as the field does it."""
    if not task.common_carried:
        return
    found = next((reason for reason in _reasons(s) if reason is not None), None)
    if found is not None:
        key, what, allowed = found
        raise InputError(
            f"{what}, and statistics of batches (or other buffers) travel beside parameters; allowed: {allowed}, or "
            "model.batch_norm local, group or frozen",
            key=key,
        )


def _reasons(s: Scenario) -> Iterator[tuple[str, str, str] | None]:
    """What stands in the way: the key, what was found, and what would do."""
    names, a = s.names, s.algorithm
    if s.privacy is not None:
        yield "privacy.mechanism", f"found '{names['privacy']}', which covers what a client sends", "no privacy"
    if a.needs.compression is not None or (a.needs.own_size and a.needs.alone is None):
        yield "algorithm.name", f"found '{names['algorithm']}', which compresses what travels", "another algorithm"
    if a.tokens is not None or a.needs.alone is not None or a.sampling is not None or a.needs.flows:
        yield "algorithm.name", f"found '{names['algorithm']}', whose models do not meet in rounds", "another algorithm"
    if a.needs.own_models:
        yield "algorithm.name", f"found '{names['algorithm']}', which trains two models", "another algorithm"
    if a.needs.columns:
        yield "algorithm.name", f"found '{names['algorithm']}', whose weights do not sum to 1", "another algorithm"
    if s.compression is not None:
        yield "compression.name", f"found '{names['compression']}'", "no compression"
    if s.attack is not None:
        yield "attack.name", f"found '{names['attack']}'", "no attack"
    if not s.aggregator.is_linear:
        yield "aggregator.name", f"found '{names['aggregator']}', which is no weighted mean", "mean"
    if s.participation.clocked or s.participation.continuous:
        yield "participation.mode", f"found '{names['participation']}', without rounds in common", "synchronous, gossip"
    if s.adversary is not None and s.adversary.attack_on == "received":
        yield "adversary.attack_on", "found received", "local"


def _check_minibatches(s: Scenario, task: SupervisedTask) -> None:
    """Raise InputError where a minibatch of a client has one sample, of which there are no statistics."""
    if trains_on_one(task.kernel.module, task.inputs[:1]):
        return
    size, (_, epochs) = s.algorithm.batch_size, s.algorithm.work()
    most = task.sizes if size == "full" else np.minimum(task.sizes, size)
    alone = most == 1
    if epochs and size != "full":
        alone |= task.sizes % size == 1
    if alone.any():
        client = int(alone.argmax())
        raise InputError(
            f"found {size}, but client {client} has {task.sizes[client]} samples, which leaves a minibatch of 1, and "
            "one sample has no statistics to normalise with; allowed: a size that leaves 2 or more, local_steps "
            "instead of epochs, or model.batch_norm group or frozen",
            key="algorithm.batch_size",
        )


def _step(s: Scenario, task: SupervisedTask) -> None:
    client = np.array([int(np.diff(task.offsets).argmax())])  # on a machine of a deployment the only one with rows here
    received, _ = one_message(s.algorithm, task, gossip=s.algorithm.setting == "gossip")
    one = np.ones(1, dtype=np.int64)
    Worker(task, s.algorithm, chunk_rows=1).run(Job(client, one, one, received))
