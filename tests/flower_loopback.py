"""A Grid inside this process: real messages, real ClientApps, nodes that are slow, die, come back or send garbage.

Its seconds are not those of the machine: nobody waits in them, and a busy machine makes nobody late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fedsim.deployment.client import make_client_app
from fedsim.deployment.run_config import RunConfig
from fedsim.deployment.server import serve
from fedsim.engine.run_directory import Run
from fedsim.scenario.load import parse

Spoil = Callable[[Any, Any], Any]
"""``spoil(message, reply)``: what is sent instead of `reply`; None for silence."""


_TICK = 0.001
_FLOWER = ("absence", "backend", "crowd", "examiner", "goodbye", "journal", "roster", "telling")
_CLOCKED = (*(f"flower.{name}" for name in _FLOWER), "work")


@dataclass
class Clock:
    """Stands for the module `time`: a sleep moves it on, and so does every look at it, by a millisecond."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        self.seconds += _TICK
        return self.seconds

    def perf_counter(self) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Node:
    """A SuperNode: its config, how long it takes, what it does to its replies, its key."""

    config: dict[str, Any]
    delay: float = 0.0
    spoil: Spoil | None = None
    online: bool = True
    key: bytes = b""


@dataclass
class LoopbackGrid:
    """Answers are computed when a message is pushed, with the ClientApp that a deployment has."""

    scenario_file: Path
    nodes: dict[int, Node]
    run_config: dict[str, Any] = field(default_factory=dict)
    pushed: list[Any] = field(default_factory=list)
    on_push: Callable[[LoopbackGrid, Any], None] | None = None
    clock: Clock = field(default_factory=Clock)
    mods: list[Any] = field(default_factory=list)
    _ready: dict[str, tuple[float, int, Any]] = field(default_factory=dict)

    def get_nodes(self) -> list[Any]:
        from flwr.proto.node_pb2 import NodeInfo

        return [NodeInfo(node_id=i, public_key=node.key) for i, node in self.nodes.items() if node.online]

    def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
        return [self._push(m) for m in messages]

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        now = self.clock.monotonic()
        here = [i for i in ids if i in self._ready and self._ready[i][0] <= now]
        return [self._ready.pop(i)[2] for i in here if self.nodes[self._ready[i][1]].online]

    def _push(self, message: Any) -> str | None:
        from flwr.app import Context, Error, Message, RecordDict

        message.metadata.__dict__["_message_id"] = f"m{len(self.pushed)}"
        self.pushed.append(message)
        if self.on_push is not None:
            self.on_push(self, message)
        number = message.metadata.dst_node_id
        node = self.nodes.get(number)
        if node is None or not node.online:
            return None
        context = Context(1, number, node.config, RecordDict(), self.run_config)
        try:
            reply = make_client_app(self.scenario_file, self.mods)(
                message, context
            )  # a fresh app, as in a fresh process
        except Exception as error:
            reply = Message(Error(code=2, reason=str(error)), reply_to=message)
        if node.spoil is not None:
            reply = node.spoil(message, reply)
        if reply is not None:
            self._ready[message.metadata.message_id] = (self.clock.monotonic() + node.delay, number, reply)
        return str(message.metadata.message_id)


class Deployment:
    """A scenario on a `LoopbackGrid`: ``Deployment(folder, sections).run()``."""

    def __init__(self, folder: Path, sections: dict[str, Any], clients: int, **config: Any) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.scenario = folder, parse(sections)
        file = folder / "scenario.yaml"
        file.write_text(self.scenario.to_yaml())
        self.config = {"poll": 0.002, "out": str(folder / "results"), "wait-seconds": 20.0, **config}
        self.grid = LoopbackGrid(file, {100 + c: self.node(c, clients) for c in range(clients)})

    def node(self, client: int, clients: int, **config: Any) -> Node:
        disk = str(self.folder / f"disk-{client}")
        return Node({"partition-id": client, "num-partitions": clients, "state-dir": disk, **config})

    def run(self, run: str = "1", **config: Any) -> Run:
        from fedsim.scenario.load import load

        self.grid.run_config = {**self.config, **config}
        read = RunConfig.read(self.grid.run_config)
        scenario = load(self.grid.scenario_file, read.settings)
        with ExitStack() as stack:
            for module in _CLOCKED:
                stack.enter_context(patch(f"fedsim.deployment.{module}.time", self.grid.clock))
            return serve(self.grid, scenario, read, run)
