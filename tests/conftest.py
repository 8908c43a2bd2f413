"""What many tests share: small quadratic problems on disk, and running a scenario in a fresh directory."""

from __future__ import annotations

import compileall
import gc
import os
import random
import sys
import zlib

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # at 15, Ray's own, actors stand still beside other tests
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads spin while they wait for a processor

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import order
import pytest
import torch
from hypothesis import settings

import fedsim

gc.disable()  # until the tests are collected: what they import stays, and going through it takes seconds
BYTECODE, sys.dont_write_bytecode = sys.dont_write_bytecode, False  # until then, so that one worker compiles for all
if "PYTEST_XDIST_WORKER" not in os.environ:  # hundreds of processes import fedsim, also where none may keep bytecode
    compileall.compile_dir(Path(fedsim.__file__).parent, quiet=2)

torch.set_num_threads(1)  # the problems are small: several threads would mostly wait for each other
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")


def flushed(file: Any) -> None:
    """In place of `os.fsync`: no test ends the machine, so that none has to wait for the disk several times a run."""
    os.fstat(file if isinstance(file, int) else file.fileno())


os.fsync = flushed


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Global generators begin every test in a state of its own, the same in every run of the tests."""
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test with Flower's processes fails, what these have said last is part of what is printed."""
    report = yield
    if report.failed:
        for said in {id(v): v for v in getattr(item, "funcargs", {}).values() if hasattr(v, "last_words")}.values():
            report.sections.append(("what the processes said last", said.last_words()))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Of ``-n auto``: two more than processors, since tests with Ray and Flower mostly wait for their processes."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else order.processors() + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return order.scheduler(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests and what they import stay to the end, so that no later search for garbage looks at them."""
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = BYTECODE
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order.arrange(items)


Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuadraticProblem:
    """f_i(x) = 1/2 (x - b_i)^T A_i (x - b_i): A ``[n, d, d]`` or ``[n, d]``, b ``[n, d]``, x0 ``[d]``, p ``[n]``."""

    A: Array
    b: Array
    x0: Array
    p: Array
    file: Path

    @property
    def n(self) -> int:
        return len(self.b)

    @property
    def d(self) -> int:
        return self.b.shape[1]

    def grad(self, i: int, x: Array) -> Array:
        return self.A[i] @ (x - self.b[i]) if self.A.ndim == 3 else self.A[i] * (x - self.b[i])

    def optimum(self, p: Array | None = None) -> Array:
        """argmin sum_i p_i f_i, solved directly."""
        p = self.p if p is None else p
        A = self.A if self.A.ndim == 3 else np.stack([np.diag(a) for a in self.A])
        return np.linalg.solve(
            sum(p[i] * A[i] for i in range(self.n)), sum(p[i] * A[i] @ self.b[i] for i in range(self.n))
        )

    def section(self, **more: Any) -> dict[str, Any]:
        """The scenario's ``data:``."""
        return {"dataset": "quadratic", "file": str(self.file), **more}


@pytest.fixture
def quadratic(tmp_path: Path) -> Callable[..., QuadraticProblem]:
    """``quadratic(n, d, dense=..., importance=..., seed=...)`` makes a problem with curvatures of 0.5 to 2."""
    numbers = count()

    def make(
        n: int = 5, d: int = 4, dense: bool = True, importance: bool = False, seed: int = 0, **arrays: Any
    ) -> QuadraticProblem:
        random = np.random.default_rng(seed)
        A = random.uniform(0.5, 2.0, (n, d))
        if dense:
            turns = [np.linalg.qr(random.standard_normal((d, d)))[0] for _ in range(n)]
            A = np.stack([q @ np.diag(a) @ q.T for q, a in zip(turns, A, strict=True)])
            A = (A + A.transpose(0, 2, 1)) / 2
        made = {"A": A, "b": 2.0 * random.standard_normal((n, d)), "x0": random.standard_normal(d)}
        if importance:
            made["p"] = random.uniform(1.0, 4.0, n)
        made |= {k: np.asarray(v, dtype=float) for k, v in arrays.items()}
        file = tmp_path / f"quadratic-{next(numbers)}.npz"
        np.savez(file, **made)
        p = made.get("p", np.ones(len(made["b"])))
        x0 = made.get("x0", np.zeros(made["b"].shape[1]))
        return QuadraticProblem(made["A"], made["b"], x0, p / p.sum(), file)

    return make


@pytest.fixture
def run_scenario(tmp_path: Path) -> Callable[..., Any]:
    """``run_scenario(data=..., algorithm=..., ...)``: a run in float64 on the CPU, traced, with few evaluations."""
    numbers = count()

    def run(**sections: Any) -> Any:
        settings = {
            "dtype": "float64",
            "device": "cpu",
            "trace": True,
            "eval_every": 1_000_000,
            **sections.pop("run", {}),
        }
        return fedsim.run({**sections, "run": settings}, out=tmp_path / f"run-{next(numbers)}")

    return run


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """A local Ray cluster on the loopback interface with ten logical CPUs."""
    ray = pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    os.environ |= {"RAY_memory_monitor_refresh_ms": "0"}  # it counts the whole machine's memory, not the tests'
    for left in (2, 1, 0):  # on a machine that stands still for half a minute Ray gives up
        try:
            ray.init(
                address="local", num_cpus=10, include_dashboard=False, object_store_memory=300_000_000,
                log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1",
            )  # fmt: skip
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    yield ray
    ray.shutdown()


@pytest.fixture
def ray_cluster(ray_session: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs with ``backend: {name: ray}`` use the session's cluster and its actors again."""
    import ray_reuse

    monkeypatch.setattr("fedsim.backends.ray.cluster.Cluster", ray_reuse.Reusing)
    return ray_session
