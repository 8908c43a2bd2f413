"""Connecting to Ray, what a cluster has, and actors on it: every wait ends."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedsim.backends.ray.token import check_token
from fedsim.backends.ray.transport import Packed, unpack
from fedsim.backends.shard import Shard
from fedsim.clients.malloc import keep_freed_memory
from fedsim.core import crew
from fedsim.core.about import install
from fedsim.core.errors import InputError, RunError
from fedsim.core.global_draws import undisturbed
from fedsim.core.interrupts import interrupts_wait
from fedsim.core.modules import Places

log = logging.getLogger("fedsim")
_START_SECONDS = 120.0
_CONNECT_SECONDS = 10.0
_STARTS = 2  # of a cluster of one's own: Ray gives up after half a minute, which a busy machine may stand still
_SMALLEST_STORE = 2**28
_LOOK_SECONDS = 0.5


class Cluster:
    """A connection to Ray: one that is there already, one at an address, or one started for this process only.

    A cluster started here listens on the loopback interface and ends with `close`.
    """

    def __init__(self, address: str, cpus: int, store_bytes: int) -> None:
        """Connect.

        Raises
        ------
        InputError
            Ray is not installed, or there is no cluster at the address.
        RunError
            Ray does not start here (too busy a machine, say).
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address == "local":  # read when a node starts: keeps a node of its own on 127.0.0.1
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            os.environ.setdefault("RAY_worker_niceness", "0")  # 15 is Ray's own: any other program would starve actors
        try:
            import ray
        except ImportError:
            raise InputError(f"found 'ray', which is not installed: {install('ray')}", key="name") from None
        self.ray: Any = ray
        self.mine = not ray.is_initialized()
        self.broken, self.closing = False, threading.Event()
        if not self.mine:
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": uuid.uuid4().hex}
        if address == "local":
            free = _shared_memory()
            store = max(_SMALLEST_STORE, min(store_bytes, free // 2) if free else store_bytes)
            for left in range(_STARTS - 1, -1, -1):
                try:
                    _connect(
                        ray, address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=store,
                        _node_ip_address="127.0.0.1", **quiet,
                    )  # fmt: skip
                    break
                except Exception as error:  # of a kind of its own for nothing that may go wrong
                    ray.shutdown()
                    first = str(error).strip().splitlines()[0]
                    if not left:
                        raise RunError(f"Ray did not start on this machine: {first}") from error
                    log.warning("Ray did not start on this machine and is started once more: %s", first)
            threading.Thread(target=self._watch, name="fedsim-ray", daemon=True).start()
            return
        _reachable(address)
        check_token(address)
        try:
            _connect(ray, address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"found {address}, where no Ray cluster answers: {first}", key="address") from None

    def _watch(self) -> None:
        """Say so when a process of the cluster ends by itself: Ray may end this one before anybody else can."""
        node = self.ray._private.worker._global_node
        while not self.closing.wait(_LOOK_SECONDS):
            dead = [f"{kind} (process {process.pid})" for kind, process in node.dead_processes()]
            if dead and not self.closing.is_set():
                self.broken = True
                what = " and ".join(dead)
                log.error("Ray's own %s on this machine ended while the run went on (killed, or out of memory?)", what)
                return

    def check_alive(self) -> None:
        """Raise RunError where one of the processes of a cluster that was started here has ended by itself."""
        if self.broken:
            raise RunError("the Ray cluster of this run is gone; --resume goes on from the last checkpoint")

    def end(self, hosts: list[Any]) -> None:
        """End actors."""
        for host in hosts:
            self.ray.kill(host)

    def close(self) -> None:
        """End the cluster where it was started here; leave any other."""
        self.closing.set()
        if self.broken:  # a shutdown would wait for what is dead, and Ray would end this process before it says why
            self.ray._private.worker._global_node.kill_all_processes(check_alive=False, allow_graceful=False)
        elif self.mine and self.ray.is_initialized():
            self.ray.shutdown()

    def here(self) -> str:
        """The name in the cluster of the machine that this process runs on."""
        return str(self.ray.get_runtime_context().get_node_id())

    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of the whole cluster, used or not."""
        found = self.ray.cluster_resources()
        return {name: float(found.get(name, 0.0)) for name in ("CPU", "GPU")}

    def described(self) -> str:
        """What the cluster has, for messages."""
        total, free = self.ray.cluster_resources(), self.ray.available_resources()
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        parts = [f"{total.get(k, 0):g} {k}s ({free.get(k, 0):g} free)" for k in ("CPU", "GPU")]
        return f"{' and '.join(parts)} on {nodes} node{'s' if nodes != 1 else ''}"

    def check(self, actors: int, cpus: float, gpus: float) -> None:
        """Raise InputError where the cluster can never hold the actors: Ray itself would wait without end."""
        if gpus > 0:
            room = sum(_fits(node["Resources"].get("GPU", 0.0), gpus) for node in self.ray.nodes() if node["Alive"])
            if room < actors:
                raise InputError(
                    f"found {gpus:g} for each of {actors} actors, but the cluster has {self.described()}; allowed: "
                    + (f"at most {room} such actors" if room else "0, or a cluster with GPUs"),
                    key="gpus_per_actor",
                )
        room = sum(_fits(node["Resources"].get("CPU", 0.0), cpus) for node in self.ray.nodes() if node["Alive"])
        if room < actors:
            raise InputError(
                f"found {cpus:g} for each of {actors} actors, but the cluster has {self.described()}; allowed: less, "
                "or fewer actors",
                key="cpus_per_actor",
            )

    def start(
        self, count: int, cpus: float, gpus: float, threads: tuple[int, bool], seconds: float = _START_SECONDS
    ) -> list[Any]:
        """New actors, ready to be used; `threads` says how many each has, and whether within operators.

        Raises
        ------
        RunError
            They did not start in time.
        DiedAtStartError
            One of them ended while it started: with its node, or killed for its memory, or by an error of its own.
        """
        ray = self.ray
        kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, concurrency_groups={"health": 1})(Host)
        if (
            count > 1 and ray.util.get_current_placement_group() is None
        ):  # where a sweep reserved places, those are taken
            kind = kind.options(scheduling_strategy="SPREAD")
        hosts = [kind.remote(Places.here(), threads, gpus > 0) for _ in range(count)]
        calls = [host.ready.remote() for host in hosts]
        ready, waiting = ray.wait(calls, num_returns=count, timeout=seconds)
        try:
            if waiting:
                raise RunError(
                    f"{len(waiting)} of {count} actors of {cpus:g} CPUs and {gpus:g} GPUs did not start within "
                    f"{seconds:g} seconds; the cluster has {self.described()}"
                )
            ray.get(ready)
        except (RunError, ray.exceptions.RayError) as error:
            self.end(hosts)
            if isinstance(error, RunError):
                raise
            raise DiedAtStartError(f"an actor could not start: {error}") from error
        return hosts


class DiedAtStartError(RunError):
    """An actor ended while it started."""


class Host:
    """The actor: a process with some shards (one, unless it took over those of a process that is gone)."""

    def __init__(self, places: Places, threads: tuple[int, bool], gpu: bool) -> None:
        places.adopt()  # where the driver finds modules, somebody's own too
        crew.settle(*threads)
        self.device = torch.device("cuda" if gpu else "cpu")
        if not gpu:
            keep_freed_memory()
        self.shards: dict[int, Shard] = {}

    def ready(self) -> int:
        return os.getpid()

    def alive(self) -> int:
        """As `ready`; called in a concurrency group of its own, so that it answers while something is computed."""
        return os.getpid()

    def adopt(self, number: int, packed: list[Any]) -> str:
        """Hold the shard that `packed` describes; its buffers may be references to shared memory.

        Returns the machine's name in the cluster.
        """
        import ray

        task, *rest = unpack([packed[0], *ray.get(packed[1:], timeout=_START_SECONDS)])
        self.shards[number] = Shard(task.to(self.device), *rest)
        return str(ray.get_runtime_context().get_node_id())

    def calls(self, number: int, tell: bool, calls: list[tuple[str, tuple[Any, ...]]], *mapped: Any) -> Any:
        """Call methods of a shard one after the other; what the last one returns.

        With `tell` that and what clients' jobs took since that was last told. Every argument that is None is the next
        one of `mapped`: Ray only maps what is an argument by itself.
        """
        shard, values, result = self.shards[number], iter(mapped), None
        for method, arguments in calls:
            result = getattr(shard, method)(*(next(values) if a is None else a for a in arguments))
        return (result, shard.spent()) if tell else result

    def call(self, number: int, returns: int, method: str, *arguments: Any) -> Any:
        """A method of a shard that returns rows and a last word, as `returns` values: None for rows that it has not."""
        *rows, last = getattr(self.shards[number], method)(*arguments)
        return last if returns == 1 else (*rows, *[None] * (returns - 1 - len(rows)), last)


class Shipment:
    """Puts packed objects into Ray's shared memory, each buffer once."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._there: dict[tuple[int, int], Any] = {}

    def send(self, packed: Packed) -> list[Any]:
        """The packed object with references in the place of its buffers."""
        return [packed[0], *(self._reference(buffer) for buffer in packed[1:])]

    def _reference(self, buffer: np.ndarray[Any, Any]) -> Any:
        key = (buffer.__array_interface__["data"][0], buffer.nbytes)
        if key not in self._there:
            self._there[key] = (self._put(buffer), buffer)  # the buffer too: its address stays taken
        return self._there[key][0]


def _fits(amount: float, each: float) -> int:
    """How many times `each` fits on a node; a fraction of a GPU is of one GPU."""
    if each <= 0:
        return 10**9
    return int(amount) * int(1 / each + 1e-9) if each < 1 else int(amount / each + 1e-9)


def _connect(ray: Any, **settings: Any) -> None:
    """``ray.init``, after which Ctrl-C and SIGTERM are answered as before: Ray itself would leave by ``sys.exit``.

    Both wait until it is over, since a Ray that is interrupted while it starts leaves processes behind; then nothing of
    it stays.
    """
    utils: Any = ray._private.utils
    own = getattr(utils, "set_sigterm_handler", None)
    try:
        with interrupts_wait():
            try:
                utils.set_sigterm_handler = lambda handler: None  # noqa: ARG005
                with undisturbed():
                    ray.init(**settings)
            finally:
                if own is not None:
                    utils.set_sigterm_handler = own
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    except SystemExit:  # of a Ray that answers it by other means
        ray.shutdown()
        raise KeyboardInterrupt from None


def _shared_memory() -> int:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _reachable(address: str) -> None:
    """Raise InputError where nothing listens at HOST:PORT; Ray itself would try for long."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        message = f"found {address}, where nothing answers ({error}); allowed: local, auto, or HOST:PORT of a cluster"
        raise InputError(message, key="address") from None
