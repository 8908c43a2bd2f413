"""From a message's process to the worker that stays beside the SuperNode, and how such a worker is started and ended.

Flower starts a process for every message, in which importing torch would take longer than most jobs. That process only
hands the job over: to a worker of this client and run, which holds task and data in memory (`resident`).
The worker's name is ``worker.json`` in the client's folder, readable by its owner only: a socket and a key. Without
that file it ends. One that dies or falls silent is replaced, and the job, whose draws are keyed, done again.

On the socket: a JSON header and safetensors each way, and an empty frame every second while the work goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from safetensors.numpy import load, save

from fedsim.core.errors import RunError
from fedsim.deployment.flower.records import Arrays, Order
from fedsim.deployment.node_config import NodeConfig

NAME, LOG = "worker.json", "worker.log"
_START = 60.0  # seconds a worker may take before it listens, which it does before it imports torch
_SILENCE = 120.0  # seconds without a sign of life after which a worker is taken for hung
_KEPT = (
    "data.safetensors*",
    "noise.key",
    "answers.jsonl",
    "round-*.safetensors*",
    "worker.*",
)  # what a run leaves in a client's folder


@dataclass(frozen=True)
class Spec:
    """What a worker is for; one that was started for something else is replaced.

    Parameters
    ----------
    scenario : the scenario file.
    settings : overrides of it.
    node : the SuperNode's ``--node-config`` as it was given.
    run : the run's name on this disk.
    keepers : the processes whose end is the worker's, too: the one that starts the messages' processes, its SuperNode.
    version : of fedsim.
    """

    scenario: str
    settings: list[str]
    node: Mapping[str, Any]
    run: str
    keepers: list[int]
    version: str


def ask(spec: Spec, what: str, order: Order, arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """The worker's answer to `order`; it is started where it is not there, and once more where it ends on the way.

    Raises
    ------
    RunError
        Two workers ended at this job, or none could be started; the message names their log. Errors of the work itself
        are raised under their own name.
    """
    node = NodeConfig.read(spec.node)
    folder = node.folder(spec.run)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"what": what, "order": asdict(order)}
    for _ in range(2):
        try:
            connection, place = _connected(folder, spec)
            with connection:
                answer, made = _exchange(connection, place, header, save(arrays))
        except (EOFError, ConnectionError, FileNotFoundError):
            _dismiss(folder, dead=True)  # its socket may still answer while the system clears it away
            continue
        if "error" in answer:
            raise _as_error(answer["error"])
        if order.ends:
            _dismiss(folder)
        return answer["record"], made
    raise RunError(f"the worker of client {node.client} ended twice at this job; {_last_words(folder)}")


def retire(node: NodeConfig, run: str) -> None:
    """Where `run` begins: the workers of this client's other runs end, and the oldest of these runs are forgotten.

    Only files that a run leaves there are removed, and none of a run whose worker is still alive.
    """
    here = node.folder(run)
    here.mkdir(parents=True, exist_ok=True)
    os.utime(here)
    others = [f for f in node.state_dir.glob(f"*/{here.name}") if f != here and _left_by_a_run(f)]
    others.sort(key=lambda f: f.stat().st_mtime, reverse=True)
    for position, folder in enumerate(others):
        alive = _dismiss(folder)
        if alive or position < node.keep_runs:
            continue
        for file in _left_by_a_run(folder):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # something else is there, or another client's folder
            folder.rmdir()
            folder.parent.rmdir()


def release(node: NodeConfig, run: str) -> None:
    """Where `run` is over: its worker of this client ends."""
    _dismiss(node.folder(run))


def _left_by_a_run(folder: Path) -> list[Path]:
    return [file for pattern in _KEPT for file in folder.glob(pattern)]


# --- one job ----------------------------------------------------------------------------------------------------------


def _exchange(
    connection: Connection, place: Mapping[str, Any], header: dict[str, Any], payload: bytes
) -> tuple[dict[str, Any], Arrays]:
    """Send the job, wait for what comes of it."""

    def receive() -> bytes:
        if not connection.poll(_SILENCE):
            with suppress(ProcessLookupError):
                os.kill(place["pid"], signal.SIGKILL)
            raise EOFError
        return connection.recv_bytes()

    connection.send_bytes(json.dumps({**header, "key": place["key"]}).encode())
    receive()  # it listens: only now what may be too much for the socket's buffer
    connection.send_bytes(payload)
    while not (answer := receive()):
        pass
    return json.loads(answer), load(receive())


def _as_error(told: Mapping[str, str]) -> RunError:
    """The worker's exception under its own name, with its traceback as a note."""
    error: RunError = type(told["name"], (RunError,), {"__module__": told["module"]})(told["text"])
    error.add_note(told["traceback"])
    return error


# --- the worker's life ------------------------------------------------------------------------------------------------


def _connected(folder: Path, spec: Spec) -> tuple[Connection, Mapping[str, Any]]:
    """A connection to the worker of `spec`, and its name; one message at a time starts it."""
    with _locked(folder / "worker.lock"):
        with suppress(OSError, ValueError):
            place = _name(folder)
            if place["spec"] == asdict(spec):
                return Client(place["address"]), place
        _start(folder, spec)
        place = _name(folder)
        return Client(place["address"]), place


def _start(folder: Path, spec: Spec) -> None:
    """Start a worker in a session of its own and wait until it listens."""
    _dismiss(folder)
    paths = os.pathsep.join(p for p in sys.path if p)
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedsim.deployment.resident", str(folder)],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(asdict(spec)).encode())
    end = time.monotonic() + _START
    while not (folder / NAME).exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise RunError(f"the worker of {folder} does not start; {_last_words(folder)}")
        time.sleep(0.02)


def _name(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{folder / NAME} is not what a worker writes")
    return found


def _dismiss(folder: Path, dead: bool = False) -> bool:
    """Take a worker's name away, with which it ends; whether it was alive. A dead one's socket is cleared away."""
    try:
        place = _name(folder)
    except (OSError, ValueError):
        return False
    (folder / NAME).unlink(missing_ok=True)
    if not dead:
        with suppress(OSError):
            Client(place["address"]).close()
            return True
    shutil.rmtree(Path(place["address"]).parent, ignore_errors=True)
    return False


def _last_words(folder: Path) -> str:
    """The end of the worker's log, for errors."""
    file = folder / LOG
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []
    said = " / ".join(line.strip() for line in [line for line in lines if line.strip()][-3:])
    return f"its log {file} ends with: {said}" if said else f"its log {file} is empty"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    import fcntl  # not where there are no workers (Windows)

    with file.open("wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
