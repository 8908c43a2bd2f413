"""A SuperLink and SuperNodes as real processes on loopback, each ended by its pid."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ports import free_port

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also where nobody has taken note of it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition: Callable[[], Any], seconds: float = 200.0, pause: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


class Cluster:
    """Processes, their logs and Flower's configuration in `folder`; nothing outside it is touched.

    With `names` of key pairs it speaks TLS and lets in SuperNodes with these keys alone; they are made by
    deploy/keys.sh, into `folder` as well.
    """

    def __init__(self, folder: Path, simulation: bool = False, names: Sequence[str] = ()) -> None:
        self.folder, self.port, self.name, self.locked = folder, free_port(), "loopback", bool(names)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, Path] = {}
        home = folder / "flwr"
        home.mkdir(parents=True)
        safety = f'root-certificates = "{folder / "ca.pem"}"' if self.locked else "insecure = true"
        address = f'[superlink.{self.name}]\naddress = "127.0.0.1:{self.port}"\n{safety}\n'
        (home / "config.toml").write_text(address)
        self.environment = {
            **os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        }  # fmt: skip
        more = ["--simulation"] if simulation else []
        more += self.make_keys(names) if self.locked else ["--insecure"]
        self.start("superlink", ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port), *more])
        self.wait_for_port()
        for name in names:
            self.flwr("supernode", "register", f"{name}.pub", self.name)

    def make_keys(self, names: Sequence[str]) -> list[str]:
        """Make certificates, and key pairs with these names; the SuperLink's options for them."""
        lines = (ROOT / "docs" / "deploy.md").read_text().replace("\\\n", "").splitlines()
        script, keys = ROOT / "deploy" / "keys.sh", self.folder / "keys"
        subprocess.run(["bash", str(script), str(keys), "localhost", *names], check=True, timeout=120)
        for file in keys.iterdir():
            file.rename(self.folder / file.name)
        (begin,) = (
            line for line in lines if line.startswith("flower-superlink ") and "--enable-supernode-auth" in line
        )
        words = [word.removeprefix("keys/") for word in begin.split()[1:]]
        for option in ("--host", "--port", "--database"):  # of this cluster's own, and in memory
            del words[(at := words.index(option)) : at + 2]
        return words

    def start(self, name: str, command: Sequence[str]) -> None:
        self.logs[name] = self.folder / f"{name}-{len(self.logs)}.log"
        with self.logs[name].open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]], cwd=self.folder, env=self.environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def supernode(self, client: int, clients: int, name: str = "", **config: Any) -> None:
        """Start client `client`'s SuperNode; `config` are further keys of its node config, ``_`` for ``-``.

        `name` is that of its key where it needs one; default: the client's.
        """
        name = name or f"client-{client}"
        keys = {"partition-id": client, "num-partitions": clients, "state-dir": str(self.folder / f"disk-{client}")}
        keys |= {k.replace("_", "-"): v for k, v in config.items()}
        text = " ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in keys.items())
        safety = ["--insecure"]
        if self.locked:
            safety = ["--root-certificates", "ca.pem", "--auth-supernode-private-key", name]
        link = ["--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())]
        self.start(name, ["flower-supernode", *safety, *link, "--node-config", text])

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one process and what it started; they are a process group of their own."""
        process = self.processes.pop(name)
        try:
            os.killpg(process.pid, how)
            process.wait(timeout=20)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)

    def close(self) -> None:
        for name in sorted(self.processes, reverse=True):
            self.end(name)

    def wait_for_port(self, seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"no SuperLink after {seconds:g} s:\n{self.log('superlink')}")

    def log(self, name: str) -> str:
        return self.logs[name].read_text(errors="replace") if name in self.logs else ""

    def last_words(self, lines: int = 12) -> str:
        """The ends of all logs, of clients' workers too, with which processes of these are left."""
        logs = [*self.logs.values(), *sorted(self.folder.glob("disk-*/*/client-*/worker.log"))]
        ends = [(file, file.read_text(errors="replace").splitlines()[-lines:]) for file in logs if file.exists()]
        said = [f"--- {file.relative_to(self.folder)}\n" + "\n".join(end) for file, end in ends]
        return "\n".join([*said, "--- processes", *self.left()])

    def left(self) -> list[str]:
        """Command lines and states of the processes that this cluster's have started."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                about = (place / "stat").read_text().rpartition(")")[2].split()
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            if int(about[2]) in {process.pid for process in self.processes.values()} or str(self.folder) in command:
                found.append(f"{place.name} {about[0]} (parent {about[1]}): {command[:200]}")
        return sorted(found)

    def flwr_log(self, run: str) -> str:
        """What a run's ServerApp has logged."""
        command = [str(BIN / "flwr"), "log", run, self.name, "--show"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout + done.stderr

    def flwr(self, *arguments: str, seconds: float = 120.0) -> Any:
        """A ``flwr`` command with JSON output."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments, "--format", "json"], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout[done.stdout.index("{") :])

    def begin(self, app: Path, federation: str = "", **config: Any) -> str:
        """Start a run; its number. Its directory is ``results`` in the app's folder unless `config` says otherwise."""
        if "\nout = " in (app / "pyproject.toml").read_text():
            config = {"out": str(app / "results"), **config}
        text = " ".join(f"{k.replace('_', '-')}={json.dumps(v)}" for k, v in config.items())
        more = ["--federation-config", federation] if federation else []
        return str(self.flwr("run", str(app), self.name, "-c", text, *more)["run-id"])

    def status(self, run: str) -> tuple[str, str]:
        """A run's status and what is said about it."""
        found = self.flwr("list", self.name, "--run-id", run)["runs"][0]
        return found["status"], str(found.get("status-details", ""))

    def finish(self, run: str, seconds: float = 300.0) -> tuple[str, str]:
        """Wait for the end of a run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(rf"Finished task \d+ of run {run}", self.log("superlink")):  # asking takes a process each time
                status, details = self.status(run)
                if status.startswith("finished"):
                    return status, details
            time.sleep(0.5)
        raise TimeoutError(f"run {run} did not end within {seconds:g} s:\n{self.log('superlink')[-4000:]}")
