"""Runs of a sweep side by side on Ray Tune, on this machine or a cluster."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.backends.ray_cluster import Cluster
from fedsim.config import Scenario
from fedsim.errors import FedsimError, InputError, RunError
from fedsim.simulation import run
from fedsim.sweep_axes import Stop

_SCRATCH = ".tune"
_CRASHES = 2  # of a run's process: it is continued from its checkpoint that often
_STORE_BYTES = 2**28

Told = Callable[[int, Mapping[str, Any]], None]
"""Called with a run's number and its latest metrics, or ``{"error": ...}`` or ``{"done": True}`` at its end."""


def run_together(
    work: Sequence[tuple[Scenario, Path]],
    folder: Path,
    address: str,
    parallel: int,
    cpus: float,
    gpus: float,
    stop: Stop | None,
    told: Told,
) -> dict[int, FedsimError]:
    """Run scenarios in their directories, `parallel` at a time; the errors of those that failed, by number.

    Directories must be where every machine of the cluster finds them. Runs are continued where they have a checkpoint.

    Raises
    ------
    InputError
        There is no such cluster, or it lacks the CPUs or GPUs of one run.
    KeyboardInterrupt
        Interrupted; what is finished stays finished.
    """
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0",
    }  # fmt: skip
    cluster = Cluster(address, max(1, int(parallel * cpus + 0.999)), _STORE_BYTES)
    try:
        cluster.check(1, cpus, gpus)
        return _tuned(work, folder, parallel, {"cpu": cpus, "gpu": gpus}, stop, told)
    finally:
        cluster.close()
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)


def _tuned(
    work: Sequence[tuple[Scenario, Path]],
    folder: Path,
    parallel: int,
    each: dict[str, float],
    stop: Stop | None,
    told: Told,
) -> dict[int, FedsimError]:
    from ray import tune

    class Follow(tune.Callback):
        def __init__(self, told: Told | None) -> None:
            self.told = told

        def __reduce__(self) -> Any:  # Tune writes its set-up to disk, where a terminal does not belong
            return Follow, (None,)

        def __deepcopy__(self, memo: Any) -> Any:
            return self

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            assert self.told is not None
            self.told(trial.config["number"], {k: v for k, v in result.items() if k in _TOLD})

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            assert self.told is not None
            error = (trial.last_result or {}).get("error")
            self.told(trial.config["number"], {"error": error} if error else {"done": True})

    scheduler = None
    if stop is not None:
        rounds = max(scenario.run.rounds for scenario, _ in work)
        scheduler = tune.schedulers.AsyncHyperBandScheduler(
            time_attr="round", metric=stop.metric, mode=stop.mode, grace_period=stop.grace, max_t=rounds + 1,
            reduction_factor=stop.factor,
        )  # fmt: skip
    packed = [(pickle.dumps(scenario), str(place.resolve())) for scenario, place in work]
    trainable = tune.with_resources(tune.with_parameters(_one, work=packed, paths=list(sys.path)), each)
    tuner = tune.Tuner(
        trainable,
        param_space={"number": tune.grid_search(list(range(len(work))))},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=parallel, reuse_actors=True),
        run_config=tune.RunConfig(
            name="trials", storage_path=str((folder / _SCRATCH).resolve()), verbose=0, callbacks=[Follow(told)],
            failure_config=tune.FailureConfig(max_failures=_CRASHES),
        ),
    )  # fmt: skip
    errors: dict[int, FedsimError] = {}
    results: Any = tuner.fit()
    for result in results:
        number, said = int(result.config["number"]), result.metrics or {}
        if result.error is not None:
            errors[number] = RunError(f"its process ended: {str(result.error).strip().splitlines()[-1]}")
        elif said.get("error"):
            errors[number] = (InputError if said.get("input") else RunError)(str(said["error"]))
    return errors


_TOLD = ("round", "test_accuracy", "node_accuracy", "test_loss", "train_loss", "error")


def _one(config: Mapping[str, Any], work: list[tuple[bytes, str]], paths: list[str]) -> None:
    """One run, in a process of the cluster."""
    from ray import tune

    sys.path.extend(p for p in paths if p not in sys.path)  # somebody's own modules

    def progress(_: int, row: Mapping[str, Any] | None) -> None:
        if row is not None:
            tune.report({k: v for k, v in row.items() if isinstance(v, (int, float))})

    try:
        packed, place = work[config["number"]]
        run(pickle.loads(packed), place, resume=True, progress=progress)
    except FedsimError as error:
        tune.report({"error": str(error), "input": isinstance(error, InputError), "round": 10**9})
