"""Runs of a sweep side by side on Ray Tune, on this machine or a cluster."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.backends.ray.cluster import Cluster
from fedsim.core.errors import FedsimError, InputError, RunError
from fedsim.core.metrics import TABLE
from fedsim.core.modules import Places
from fedsim.engine.place import ACTORS
from fedsim.scenario.sections import Scenario
from fedsim.sweeps.axes import Stop
from fedsim.sweeps.home import Home
from fedsim.sweeps.trial import Work, trial

_SCRATCH = ".tune"
_CRASHES = 2  # of a run's process: it is continued from its checkpoint that often
_STORE_BYTES = 2**28

Told = Callable[[int, Mapping[str, Any]], None]
"""Called with a run's number and its latest metrics."""

Ended = Callable[[int, FedsimError | None], None]
"""Called with the number of a run that is finished or was stopped, or with the error that ended it."""


@dataclass(frozen=True)
class Together:
    """Runs side by side on Ray: `address` of the cluster, how many at a time, and what each takes.

    A run whose own backend is Ray takes its actors' share on top.
    """

    address: str = "local"
    parallel: int = 2
    cpus: float = 1.0
    gpus: float = 0.0

    def bundles(self, scenario: Scenario) -> list[dict[str, float]]:
        """CPUs and GPUs of a run's process, and of each actor of its own."""
        own = [{"CPU": self.cpus, "GPU": self.gpus}]
        backend = scenario.backend
        if backend.name == "ray":
            each = {"CPU": backend.cpus_per_actor or 1.0, "GPU": backend.gpus_per_actor or 0.0}
            own += [each] * (backend.actors or ACTORS)
        return own


def run_together(
    work: Sequence[tuple[Scenario, Path]], folder: Path, together: Together, stop: Stop | None, told: Told, ended: Ended
) -> None:
    """Run scenarios in their directories under `folder`, several at a time.

    Runs are continued where they have a checkpoint. Machines that do not see `folder` send the directories of their
    runs to the one that does.

    Raises
    ------
    InputError
        There is no such cluster, or it lacks the CPUs or GPUs of one run.
    KeyboardInterrupt
        Interrupted; what is finished stays finished.
    """
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a run that failed has no metric
    }  # fmt: skip
    needs = [together.bundles(scenario) for scenario, _ in work]
    largest = max(sum(bundle["CPU"] for bundle in need) for need in needs)
    cluster = Cluster(together.address, max(1, math.ceil(together.parallel * largest)), _STORE_BYTES)
    scratch = folder / _SCRATCH
    try:
        for need in needs:
            _check(cluster, need)
        scratch.mkdir(parents=True, exist_ok=True)
        metric = stop.metric if stop is not None else None
        away = together.address != "local"
        with _shared(cluster, work, scratch, away, metric) as shared:
            _tune(work, needs, scratch, together.parallel, stop, shared, told, ended)
    finally:
        cluster.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _check(cluster: Cluster, need: list[dict[str, float]]) -> None:
    """Raise InputError where a run can never start."""
    for bundle in need:
        cluster.check(1, bundle["CPU"], bundle["GPU"])
    for kind, there in cluster.resources().items():
        asked = sum(bundle[kind] for bundle in need)
        if asked > there:
            raise InputError(
                f"found {asked:g} {kind}s for a run and the actors of its own backend, but the cluster has "
                f"{cluster.described()}; allowed: less, or fewer actors"
            )


@contextmanager
def _shared(
    cluster: Cluster, work: Sequence[tuple[Scenario, Path]], scratch: Path, cluster_wide: bool, metric: str | None
) -> Iterator[Work]:
    """What trials share; on a cluster with an actor here that receives directories from other machines."""
    token = scratch / uuid.uuid4().hex
    token.touch()
    places = [str(place.resolve()) for _, place in work]
    # Relative paths are of the folder in which the sweep was started, where no trial is.
    scenarios = [pickle.dumps(_absolute(scenario)) for scenario, _ in work]
    home = None
    if cluster_wide:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = cluster.ray
        here = NodeAffinitySchedulingStrategy(cluster.here(), soft=False)
        home = ray.remote(num_cpus=0, scheduling_strategy=here)(Home).remote(places)
    try:
        yield Work(scenarios, places, str(token.resolve()), Places.here(), home, metric)
    finally:
        if home is not None:
            cluster.end([home])


def _absolute(scenario: Scenario) -> Scenario:
    document = scenario.document
    return replace(scenario, document=replace(document, file=document.file and document.file.resolve()))


def _tune(
    work: Sequence[tuple[Scenario, Path]],
    needs: Sequence[list[dict[str, float]]],
    scratch: Path,
    parallel: int,
    stop: Stop | None,
    shared: Work,
    told: Told,
    ended: Ended,
) -> None:
    from ray import tune

    class Follow(tune.Callback):
        def __init__(self, told: Told | None, ended: Ended | None) -> None:
            self.told, self.ended = told, ended

        def __reduce__(self) -> Any:  # Tune writes its set-up to disk, where a terminal does not belong
            return Follow, (None, None)

        def __deepcopy__(self, memo: Any) -> Any:
            return self

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            assert self.told is not None
            if "error" not in result:
                columns = {**TABLE, **work[trial.config["number"]][0].columns}  # the others are Tune's own
                self.told(trial.config["number"], {k: v for k, v in result.items() if k in columns})

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            assert self.ended is not None
            last = trial.last_result or {}
            error = (InputError if last.get("input") else RunError)(str(last["error"])) if "error" in last else None
            self.ended(trial.config["number"], error)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            assert self.ended is not None
            last = str(trial.get_error() or "unknown").strip().splitlines()[-1]
            self.ended(trial.config["number"], RunError(f"its process ended: {last}"))

    scheduler = None
    if stop is not None:
        rounds = max(scenario.run.rounds for scenario, _ in work)
        scheduler = tune.schedulers.AsyncHyperBandScheduler(
            time_attr="round", metric=stop.metric, mode=stop.mode, grace_period=min(stop.grace, rounds),
            max_t=rounds + 1, reduction_factor=stop.factor,
        )  # fmt: skip
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial, work=shared),
            lambda config: tune.PlacementGroupFactory(needs[config["number"]], strategy="PACK"),
        ),
        param_space={"number": tune.grid_search(list(range(len(work))))},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=parallel, reuse_actors=True),
        run_config=tune.RunConfig(
            name="trials", storage_path=str(scratch.resolve()), verbose=0, callbacks=[Follow(told, ended)],
            failure_config=tune.FailureConfig(max_failures=_CRASHES),
        ),
    )  # fmt: skip
    tuner.fit()
