"""The ClientApp of a deployment: takes messages, has the work done, answers.

Flower starts a process for every message. Such a process does not import torch but hands the work to the worker that
stays beside the SuperNode (`link`). Where processes stay by themselves (Flower's simulation runtime), and on
request (``idle-seconds=0``), the work is done here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedsim
from fedsim.core.errors import InputError
from fedsim.deployment.flower.records import (
    LISTS,
    MOMENTS,
    Arrays,
    Greeting,
    Order,
    Receipt,
    Verdict,
    pack,
    pack_metrics,
    unpack,
    unpack_arrays,
)
from fedsim.deployment.link import Spec, ask, release, retire
from fedsim.deployment.node_config import NodeConfig, settings_of

if TYPE_CHECKING:
    from fedsim.deployment.work import Opened

_PRIVATE = "which takes an answer for a whole model, and here it is a change; allowed: privacy in the scenario"
_SECURE = "whose protocol this server does not speak: nothing would be hidden; allowed: none of its kind"
_NOT_THESE = {
    **dict.fromkeys(("LocalDpMod", "fixedclipping_mod", "adaptiveclipping_mod"), _PRIVATE),
    **dict.fromkeys(("secagg_mod", "secaggplus_mod"), _SECURE),
}  # of Flower's mods


def make_client_app(scenario_file: str | Path, mods: Sequence[Any] = ()) -> Any:
    """The ClientApp that answers a fedsim ServerApp, for ``[tool.flwr.app.components]``.

    `mods` are Flower's, or of its kind: ``mod(message, context, call_next) -> message`` around every message, the first
    one outermost. What they change of an answer is what the server gets, beyond all that the scenario says.

    Raises
    ------
    InputError
        A mod of Flower's takes answers for whole models, or speaks a protocol with the server that this one does not.
    """
    from flwr.app import Message, RecordDict
    from flwr.clientapp import ClientApp

    _check_mods(mods)
    app = ClientApp(mods=list(mods))
    opened = _opener(scenario_file)

    def asked(what: str, order: Order, arrays: Arrays, context: Any) -> tuple[dict[str, Any], Arrays]:
        settings = settings_of(str(context.run_config.get("settings", "")))
        node = dict(context.node_config)
        spec = Spec(str(scenario_file), settings, node, order.run, _keepers(), fedsim.__version__)
        return ask(spec, what, order, arrays)

    @app.query("hello")  # type: ignore[untyped-decorator,unused-ignore]
    def hello(message: Message, context: Any) -> Message:
        order, node = unpack(Order, message.content), NodeConfig.read(context.node_config)
        lists = unpack_arrays(message.content.get(LISTS) or {})
        retire(node, order.run)
        if _has_worker(node):
            record, said = asked("hello", order, lists, context)
            greeting = Greeting(**{**record, "worker": True})
        else:
            greeting, said = opened(order, context).greet(lists)
        return Message(pack(greeting, said or None, MOMENTS), reply_to=message)

    @app.query("bye")  # type: ignore[untyped-decorator,unused-ignore]
    def bye(message: Message, context: Any) -> Message:
        release(NodeConfig.read(context.node_config), unpack(Order, message.content).run)
        return Message(RecordDict(), reply_to=message)

    @app.train()  # type: ignore[untyped-decorator,unused-ignore]
    def train(message: Message, context: Any) -> Message:
        order, arrays = unpack(Order, message.content), unpack_arrays(message.content["arrays"])
        if _has_worker(NodeConfig.read(context.node_config)):
            record, made = asked("train", order, arrays, context)
            receipt = Receipt(**record)
        else:
            receipt, made = opened(order, context).client.work(order, arrays)
        return Message(pack(receipt, made), reply_to=message)

    @app.evaluate()  # type: ignore[untyped-decorator,unused-ignore]
    def evaluate(message: Message, context: Any) -> Message:
        order, arrays = unpack(Order, message.content), unpack_arrays(message.content["arrays"])
        if _has_worker(NodeConfig.read(context.node_config)):
            record = asked("evaluate", order, arrays, context)[0]
            verdict, samples, values = Verdict(**record["verdict"]), record["samples"], record["metrics"]
        else:
            verdict, samples, values = opened(order, context).client.evaluate(order, arrays)
        return Message(pack_metrics(verdict, samples, values), reply_to=message)

    return app


def _check_mods(mods: Sequence[Any]) -> None:
    for mod in mods:
        name, home = getattr(mod, "__name__", type(mod).__name__), getattr(mod, "__module__", "")
        if home.partition(".")[0] == "flwr" and name in _NOT_THESE:
            raise InputError(f"mods: found {name}, {_NOT_THESE[name]}", key="mods")


def _has_worker(node: NodeConfig) -> bool:
    """Whether the work is done in a worker: where this process ends with its message, on a system that has sockets.

    An environment that Flower makes for one message (``--allow-runtime-dependency-installation``) ends with it, too,
    and a worker would lose its modules.
    """
    fleeting = Path(sys.argv[0]).name.startswith("flwr-clientapp") and "runtime-envs" not in Path(__file__).parts
    return fleeting and os.name == "posix" and node.idle_seconds > 0


def _keepers() -> list[int]:
    """The process that started this one for its message and, where the system says so, the SuperNode above it."""
    parent = os.getppid()
    try:
        above = int(Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return [parent]
    return [parent, above] if above > 1 else [parent]


def _opener(scenario_file: str | Path) -> Callable[[Order, Any], Opened]:
    """The clients whose work is done in this process: a simulation's actor answers many messages."""
    clients: dict[tuple[str, int], Opened] = {}

    def opened(order: Order, context: Any) -> Opened:
        from fedsim.deployment.work import Opened
        from fedsim.scenario.load import load

        node = NodeConfig.read(context.node_config)
        if (order.run, node.client) not in clients:
            if len(clients) >= 64:
                clients.clear()
            scenario = load(scenario_file, settings_of(str(context.run_config.get("settings", ""))), notes=False)
            clients[order.run, node.client] = Opened(scenario, node, order.run)
        return clients[order.run, node.client]

    return opened
