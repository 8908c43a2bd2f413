"""From a scenario's `backend` section to the backend: where a run's clients are computed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.backends.base import Backend
from fedsim.backends.in_process import Vectorized
from fedsim.clients.store import ClientStore
from fedsim.clients.worker import Worker, fresh_rows
from fedsim.core.arrays import Floats
from fedsim.core.cores import available
from fedsim.core.errors import InputError
from fedsim.engine.assembly import Assembly
from fedsim.participation.gossip import Gossip
from fedsim.participation.poisson import PoissonGossip
from fedsim.privacy.base import Bound
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    from fedsim.backends.ray.clients import RayBackend

ACTORS = 2


def make_backend(scenario: Scenario, assembly: Assembly, folder: Path) -> Backend:
    """The backend of a run in the directory `folder`, ready to be dispatched to.

    Raises
    ------
    InputError
        There is no such cluster, or it lacks what is asked for.
    RunError
        The cluster did not start what it was asked for.
    """
    if scenario.backend.name == "ray":
        try:
            return _ray(scenario, assembly)
        except InputError as error:
            raise scenario.document.locate(error.under("backend")) from None
    task, choice = assembly.task, scenario.run.client_state
    kept = fresh_rows(assembly.algorithm_of(scenario), task, assembly.pipeline)
    store = ClientStore(kept, task.device, task.num_clients, choice, folder)
    return Vectorized(assembly.worker(scenario, store))


def client_load(scenario: Scenario, assembly: Assembly) -> Floats:
    """Sample gradients of every client's work in the first round, ``[n]``: what clients are placed by."""
    task, algorithm = assembly.task, assembly.algorithm_of(scenario)
    clients = np.arange(task.num_clients, dtype=np.int64)
    rounds, load = np.ones_like(clients), np.empty(task.num_clients)
    steps = algorithm.steps(task, clients, rounds, scenario.seed)
    for role, rows in algorithm.by_role(clients, rounds, scenario.seed):
        load[rows] = role.evaluated(task, clients[rows], steps[rows])
    return load


def shards_mix(scenario: Scenario, assembly: Assembly) -> bool:
    """Whether actors keep and mix the models of a graph's nodes themselves.

    A privacy mechanism of somebody's own that changes what is broadcast or aggregated needs all rows in one place.
    """
    hooks = ("broadcast", "aggregate")
    return (
        assembly.network is not None
        and isinstance(scenario.participation, (Gossip, PoissonGossip))
        and all(getattr(type(assembly.privacy), h) is getattr(Bound, h) for h in hooks)
    )


def _ray(scenario: Scenario, assembly: Assembly) -> RayBackend:
    from fedsim.backends.ray.calls import Pool
    from fedsim.backends.ray.clients import RayBackend
    from fedsim.backends.ray.cluster import Cluster
    from fedsim.backends.ray.nodes import RayNodes

    section, task = scenario.backend, assembly.task
    actors = min(section.actors or ACTORS, task.num_clients)
    cores = available()
    asked = int(np.ceil((section.cpus_per_actor or 1.0) * actors))
    cluster = Cluster(section.address or "local", max(cores, asked), _store_bytes(assembly))
    try:
        total = cluster.resources()["CPU"] if section.address not in (None, "local") else cores
        cpus = section.cpus_per_actor or float(max(1, int(total) // actors))
        gpus = section.gpus_per_actor or 0.0
        cluster.check(actors, cpus, gpus)
        number, within = scenario.run.crew
        threads = (number or max(1, int(cpus)), within)
        drop = section.client_errors == "drop"
        timeout = section.timeout or Pool.timeout
        mixing, moves = assembly.mixing(scenario), section.rebalance is not False
        pool = Pool(section.address or "local", actors, cpus, gpus, threads, drop, timeout, mixing, moves)
        build = partial(
            Worker, algorithm=assembly.algorithm_of(scenario), chunk_rows=scenario.run.chunk_rows,
            pipeline=assembly.pipeline,
        )  # fmt: skip
        load = client_load(scenario, assembly)
        if assembly.network is not None and shards_mix(scenario, assembly):
            return RayNodes(pool, cluster, task, build, load, assembly.network)
        return RayBackend(pool, cluster, task, build, load, cohort=assembly.network is None)
    except BaseException:
        cluster.close()
        raise


def _store_bytes(assembly: Assembly) -> int:
    """About what a run keeps in shared memory: data, models on their way, and rows between shards."""
    task = assembly.task
    data = sum(v.numel() * v.element_size() for v in vars(task).values() if isinstance(v, torch.Tensor))
    model = task.dim * torch.empty((), dtype=task.dtype).element_size()
    rows = task.num_clients if assembly.network is not None else min(task.num_clients, 1000)
    return int(1.2 * data) + model * (4 * rows + 64) + 2**28
