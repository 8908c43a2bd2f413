"""The worker beside a SuperNode: does the jobs that messages' processes hand over, and ends when it is not needed.

``python -m fedsim.deployment.resident FOLDER`` with a `link.Spec` as JSON on its input. It may be killed at any time:
what counts is on the disk. By itself it ends at once, whatever it does, when its SuperNode ends or a message's process
hangs up in the middle of a job, and between jobs after ``idle-seconds`` or when its name is no longer in the folder.
"""

from __future__ import annotations

import hmac
import json
import os
import queue
import secrets
import select
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safetensors.numpy import load, save

from fedsim.deployment.flower.records import Arrays, Order
from fedsim.deployment.link import NAME, Spec
from fedsim.deployment.node_config import NodeConfig

if TYPE_CHECKING:
    from fedsim.deployment.work import Opened

_BEAT = 1.0  # seconds between two signs of life, and between two looks at what a worker lives for
_LONGEST = 100  # bytes of a socket's path that every system takes
Answer = tuple[dict[str, Any], Arrays]


class Resident:
    """A worker of one client and one run."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.folder, self.spec, self.node = folder, spec, NodeConfig.read(spec.node)
        self.opened: Opened | None = None
        self.jobs: queue.SimpleQueue[tuple[Mapping[str, Any], Arrays, Future[Answer]]] = queue.SimpleQueue()
        self.open_jobs: set[Future[Answer]] = set()
        self.ending = threading.Lock()
        self.key = secrets.token_hex(32)
        self.place = _own_folder()
        self.listener = Listener(str(self.place / "socket"), "AF_UNIX", backlog=16)
        self._sign()
        _say(f"worker {os.getpid()} starts")

    def run(self) -> None:
        """Work until nobody asks any more; the other threads end the process for other reasons."""
        for task in (self._accept, self._watch):
            threading.Thread(target=task, daemon=True).start()
        patience = min(self.node.idle_seconds, threading.TIMEOUT_MAX)
        while True:
            try:
                header, arrays, answer = self.jobs.get(timeout=patience)
            except queue.Empty:
                self._end(f"no job for {self.node.idle_seconds:g} s")
            answer.set_result(self._answer(header, arrays))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _answer(self, header: Mapping[str, Any], arrays: Arrays) -> Answer:
        """What comes of a job, or the error it ended with; after an error nothing in memory is trusted."""
        try:
            opened = self.opened = self.opened or self._open()
            if header["what"] == "hello":
                greeting, said = opened.greet(arrays)
                return {"record": asdict(greeting)}, said
            if header["what"] == "evaluate":
                verdict, samples, values = opened.client.evaluate(Order(**header["order"]), arrays)
                return {"record": {"verdict": asdict(verdict), "samples": samples, "metrics": values}}, {}
            receipt, made = opened.client.work(Order(**header["order"]), arrays)
        except Exception as error:
            self.opened = None
            told, kind = traceback.format_exc(), type(error)
            _say(told)
            words = {"module": kind.__module__, "name": kind.__qualname__, "text": str(error), "traceback": told}
            return {"error": words}, {}
        return {"record": asdict(receipt)}, made

    def _open(self) -> Opened:
        """The client, whose data are read when it is asked; torch is imported here."""
        from fedsim.deployment.work import Opened
        from fedsim.scenario.load import load as load_scenario

        return Opened(load_scenario(self.spec.scenario, self.spec.settings), self.node, self.spec.run)

    # --- threads ------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            threading.Thread(target=self._serve, args=(self.listener.accept(),), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """One message's job: a sign of life every second until it is done."""
        with connection:
            try:
                header = json.loads(connection.recv_bytes())
                if not hmac.compare_digest(str(header["key"]), self.key):
                    return
                connection.send_bytes(b"")
                arrays = load(connection.recv_bytes())
            except (EOFError, OSError, ValueError, KeyError):
                return  # it only looked whether somebody is here, or it is nobody we know
            answer: Future[Answer] = Future()
            self.open_jobs.add(answer)
            self.jobs.put((header, arrays, answer))
            try:
                while True:
                    try:
                        record, made = answer.result(timeout=_BEAT)
                        break
                    except TimeoutError:
                        connection.send_bytes(b"")
                connection.send_bytes(json.dumps(record).encode())
                connection.send_bytes(save(made))
            except OSError:
                self._end("the message's process is gone")  # and with it who wants to know what comes of the job
            self.open_jobs.discard(answer)

    def _watch(self) -> None:
        """End with the SuperNode, or when the name was taken away."""
        wait = _watcher(self.spec.keepers)
        while wait():
            if not self.open_jobs and not self._is_signed():
                self._end("its name was taken away")
        self._end("its SuperNode ended")

    # --- the name -----------------------------------------------------------------------------------------------------

    def _sign(self) -> None:
        """Write where this worker listens; the file is there whole or not at all, and only its owner can read it."""
        name = {"address": self.listener.address, "pid": os.getpid(), "key": self.key, "spec": asdict(self.spec)}
        beside = self.folder / f"worker.{os.getpid()}.new"
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(name, file)
        beside.replace(self.folder / NAME)

    def _is_signed(self) -> bool:
        try:
            return bool(json.loads((self.folder / NAME).read_text(encoding="utf-8"))["key"] == self.key)
        except (OSError, ValueError):
            return False

    def _end(self, why: str) -> NoReturn:
        """Leave nothing but the log, whatever the other threads do; the first reason counts."""
        self.ending.acquire()
        if self._is_signed():
            (self.folder / NAME).unlink(missing_ok=True)
        shutil.rmtree(self.place, ignore_errors=True)
        _say(f"worker {os.getpid()} ends: {why}")
        os._exit(0)


def _own_folder() -> Path:
    """A new folder that only its owner can enter, with a path short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="fedsim-"))
    if len(os.fsencode(made / "socket")) > _LONGEST:
        made.rmdir()
        made = Path(tempfile.mkdtemp(prefix="fedsim-", dir="/tmp"))
    return made


def _watcher(pids: list[int]) -> Callable[[], bool]:
    """A function that waits a second, or less if one of these processes ends: whether all are still there."""
    poll = select.poll()
    try:
        for pid in pids:  # a handle says that it ended also where nobody has taken note of that
            poll.register(os.pidfd_open(pid), select.POLLIN)
    except ProcessLookupError:
        return lambda: False
    except (AttributeError, OSError):
        return lambda: _are_there(pids)
    return lambda: not poll.poll(_BEAT * 1000)


def _are_there(pids: list[int]) -> bool:
    """What `_watcher` says, on systems without such handles."""
    time.sleep(_BEAT)
    for pid in pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return True


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    Resident(Path(sys.argv[1]), Spec(**json.load(sys.stdin))).run()
