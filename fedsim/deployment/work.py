"""One client's row of the local training loop, its state on this machine's disk.

Whatever process does the work may end at any time, so nothing counts but the disk: ``<state-dir>/<run>/client-<i>/``
holds the client's share of the data (made at the first message of a run) and its state after the last rounds. A file is
replaced in one step, so a client that is killed at any time continues from the last whole one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fedsim
from fedsim.clients.evaluating import evaluate
from fedsim.core.crew import working
from fedsim.core.errors import InputError, RunError
from fedsim.core.job import Job
from fedsim.core.row_files import with_own_memory
from fedsim.core.tokens import Tokens, record
from fedsim.core.types import State
from fedsim.data.pixels import PixelRange
from fedsim.data.sets import Dataset
from fedsim.deployment.agreement import Agreement
from fedsim.deployment.answers import FILE, Answers, digest
from fedsim.deployment.flower.arrays import changed, to_arrays, to_tensors
from fedsim.deployment.flower.records import Arrays, BadRecord, Greeting, Order, Receipt, Verdict
from fedsim.deployment.node_config import NodeConfig
from fedsim.deployment.noise import with_own_noise
from fedsim.deployment.own_rows import introduced, own_rows
from fedsim.engine.assembly import Assembly, assemble
from fedsim.engine.client_evaluation import ClientEvaluation
from fedsim.engine.elsewhere import Held
from fedsim.messages.wire import wired
from fedsim.models.start import Start
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.sections import Scenario


class Opened:
    """One client of one run on this machine, whose data are read when it is asked for something."""

    def __init__(self, scenario: Scenario, node: NodeConfig, run: str) -> None:
        self.scenario, self.node, self.run = scenario, node, run
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client with its data."""
        if self._client is None:
            self._client = Client(self.scenario, self.node, self.run)
        return self._client

    def greet(self, lists: Arrays) -> tuple[Greeting, Arrays]:
        """Who this is and what it holds, by the server's `lists`; with statistics of its rows where they are wanted."""
        if self.node.own_data is None:
            return self.client.greeting(), {}
        agreement = Agreement.read(lists)
        if not agreement.final:
            self._client = None
            here = located(self.scenario, self.node, "own_data")
            return introduced(self.scenario, here, self.node, agreement)
        if self._client is None or self._client.agreed != agreement.digest:
            self._client = Client(self.scenario, self.node, self.run, agreement)
        return self._client.greeting(), {}


class Client:
    """One client of one run on this machine."""

    def __init__(self, scenario: Scenario, node: NodeConfig, run: str, agreement: Agreement | None = None) -> None:
        self.scenario, self.node, self.agreement = scenario, node, agreement
        self.here = _starting(scenario, node.model_init)
        self.folder = node.folder(run)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.held: Held | None = None
        self.secret, self.agreed = 0, ""
        with working(*scenario.run.crew):
            self.assembly = self._assemble()
        if self.assembly.network is None:
            self.assembly = dataclasses.replace(self.assembly, pipeline=wired(self.assembly.pipeline))
        self.worker = self.assembly.worker(scenario)
        self.answers = self._answers()
        self.examination = self._examination()
        self._fresh = self.worker.store.gather(np.array([node.client])) if node.client < node.clients else {}

    def greeting(self) -> Greeting:
        """Who this is and what it holds."""
        task, node, held = self.assembly.task, self.node, self.held
        shape = [task.dim] if held is None else list(held.data.train_x.shape[1:])
        classes = None if held is None else held.data.num_classes
        return Greeting(
            node.client, node.clients, int(task.sizes[node.client]), self._tests(), node.own_data is not None,
            "x".join(map(str, shape)), classes or 0,
            self.scenario.hash(), fedsim.__version__,
        )  # fmt: skip

    def work(self, order: Order, arrays: Arrays) -> tuple[Receipt, Arrays]:
        """Do `order` on what was received: the message ``[1, d]``, with the state after it on the disk."""
        self._check(order, first=1)
        started, fresh = time.perf_counter(), self._begins_anew(order)
        with working(*self.scenario.run.crew):
            message = self._released(order, arrays)
        seconds = time.perf_counter() - started
        if self.node.delay:
            time.sleep(self.node.delay)
        return Receipt(order.client, order.number, seconds + self.node.delay, fresh), message

    def evaluate(self, order: Order, arrays: Arrays) -> tuple[Verdict, int, dict[str, float]]:
        """What the client's model says of its own test rows, with how many these are; nothing of it is kept.

        Raises
        ------
        RunError
            The client says nothing of its rows: the run protects them, or has no use for it.
        """
        self._check(order, first=0)
        _finite(arrays)
        if self.examination is None:
            raise RunError(self._silent)
        started, fresh = time.perf_counter(), self._begins_anew(order)
        self._restore(order)
        who, received = np.array([order.client], dtype=np.int64), to_tensors(arrays, self.worker.initial.device)
        with working(*self.scenario.run.crew):
            asked = self.examination.asked(self.worker.algorithm, order.round)
            answers = evaluate(self.worker, who, received, asked)
            found = {**self.examination.values(who, answers), **answers.choices}
        values = {name: float(found[name][0]) for name in (*self.examination.names, *self.examination.choices)}
        targets = int(self.examination.tests.targets_of(who)[0])
        seconds = time.perf_counter() - started
        return Verdict(order.client, order.round, targets, seconds, fresh), self._tests(), values

    def _examination(self) -> ClientEvaluation | None:
        """How this client is evaluated; None where it is not."""
        if not self.scenario.tests_clients or self.assembly.privacy.claims or not self._tests():
            return None
        run = self.scenario.run.model_copy(update={"eval_clients": "all"})
        alone = dataclasses.replace(self.scenario, run=run)
        return ClientEvaluation(alone, self.assembly.task, np.array([self.node.client], dtype=np.int64))

    @property
    def _silent(self) -> str:
        """Why this client is not evaluated."""
        if self.assembly.privacy.claims:
            return "this client says nothing of its rows: the run's epsilon does not cover what is measured of them"
        return "this client has no test rows of its own, or the scenario evaluates no clients"

    def _tests(self) -> int:
        """How many test rows this client has."""
        own = self.assembly.task.own
        return 0 if own is None or self.node.client >= self.node.clients else int(own.sizes[self.node.client])

    def _check(self, order: Order, first: int) -> None:
        """Raise BadRecord where an order is not for this client, or of no round."""
        if order.client != self.node.client:
            raise BadRecord(f"a job of client {order.client} was sent to client {self.node.client}")
        if order.round < first or order.steps < 0:
            raise BadRecord(f"found round {order.round} with {order.steps} steps, expected a round from {first} on")

    def _released(self, order: Order, arrays: Arrays) -> Arrays:
        """What may leave this machine in answer to `order`; in a private run it is written down before (`answers`)."""
        _finite(arrays)  # of a private client's answer to them, what is not finite would tell without any noise
        past = self._restore(order)
        if self.answers is None:
            return self._computed(order, arrays, "")
        asked = digest({"round": order.round, "steps": order.steps, "past": past}, arrays)
        while True:
            serial = self.answers.begin(order.client, order, asked)
            message = self._computed(order, arrays, asked)
            if self.answers.leave(serial, asked, message):
                return message
            self._restore(order)

    def _computed(self, order: Order, arrays: Arrays, asked: str) -> Arrays:
        """The message, with the state after it on the disk."""
        who = np.array([order.client], dtype=np.int64)
        received = to_tensors(arrays, self.worker.initial.device)
        job = Job(who, np.array([order.round]), np.array([order.steps]), received, np.array([order.number]))
        message = to_arrays(self.worker.run(job))
        self._keep(order, self.worker.store.gather(who), asked)
        # a graph's server mixes for the nodes: what it sent, it has
        return message if self.assembly.network is None else changed(message, arrays)

    # --- the disk -----------------------------------------------------------------------------------------------------

    def _answers(self) -> Answers | None:
        privacy = self.assembly.privacy
        if not privacy.claims or all(release.z == 0 for release in privacy.ledger.planned):
            return None  # without noise nothing is private, and the numbers are those of the simulation
        return Answers(self.folder / FILE, privacy, self.secret, self.node.budget)

    def _restore(self, order: Order) -> str:
        """The state that the job builds on: what was after a later round, whose message was never taken, is void.

        Returns the digest of the job that left this state, which stands for all that ever had a part in it.
        """
        if not self._fresh:
            return ""
        file, rows, past = self._file(order.builds_on), self._fresh, ""
        if file.exists():
            rows = load_file(file, device=str(self.worker.initial.device))
            with safe_open(file, framework="pt") as opened:
                past = (opened.metadata() or {}).get("job", "")
        elif self._begins_anew(order) and self.node.lost_state == "refuse":
            raise RunError(
                f"{file} is not there: this client's state after round {order.builds_on} is lost "
                "(start its SuperNode with --node-config 'lost-state=\"fresh\"' to go on without it)"
            )
        self.worker.store.scatter(np.array([order.client], dtype=np.int64), rows)
        return past

    def _begins_anew(self, order: Order) -> bool:
        """Whether the state that a job builds on is lost."""
        return bool(self._fresh) and order.builds_on > 0 and not self._file(order.builds_on).exists()

    def _keep(self, order: Order, rows: State, asked: str) -> None:
        """Write the state after this round; forget all but what may still be built on."""
        if not rows:
            return
        _write(self._file(order.round), rows, {"job": asked} if asked else None)
        needed = {self._file(r) for r in (order.round, order.builds_on, order.keep)}
        for file in self.folder.glob("round-*.safetensors"):
            if file not in needed:
                file.unlink(missing_ok=True)

    def _file(self, round: int) -> Path:
        return self.folder / f"round-{round}.safetensors"

    # --- data ---------------------------------------------------------------------------------------------------------

    def _assemble(self) -> Assembly:
        """The task with this client's rows: from the disk, or made from the data and then kept there."""
        file, node = self.folder / "data.safetensors", self.node
        noisy = with_own_noise(self.here, self.folder / "noise.key", fresh=not file.exists())
        if noisy.privacy is not None:
            self.secret = noisy.privacy.noise_seed
        kept, agreed = _read_held(file, node.client) if file.exists() else (None, "")
        if kept is not None and (self.agreement is None or agreed == self.agreement.digest):
            self.held, self.agreed = kept, agreed
        elif node.own_data is not None:
            agreement = self.agreement or Agreement()
            self.held = own_rows(located(self.here, node, "own_data"), node, agreement).held
            self.agreed = agreement.digest
            _write_held(file, self.held, self.agreed)
        else:
            # clean rows are kept: those of an attacker are poisoned when they are assembled for it, below
            whole = assemble(dataclasses.replace(located(self.here, node, "data_path"), privacy=None, attack=None)).task
            if not isinstance(whole, SupervisedTask) or node.clients != whole.num_clients:
                return assemble(noisy)  # a quadratic problem is read anew; the server answers a wrong number
            self.held = _share(whole, node.client)
            _write_held(file, self.held)
        return assemble(noisy, held=self.held)


def located(scenario: Scenario, node: NodeConfig, key: str) -> Scenario:
    """The scenario with its data where the node config says they are."""
    place = getattr(node, key)
    if place is None:
        return scenario
    dataset = scenario.dataset
    name = next((k for k in ("path", "file") if hasattr(dataset, k)), None)
    if name is None:
        raise InputError(f"--node-config: data set '{type(dataset).__name__}' takes no path", key=key)
    return dataclasses.replace(scenario, dataset=dataclasses.replace(dataset, **{name: place}))  # type: ignore[type-var]


def _starting(scenario: Scenario, place: str | None) -> Scenario:
    """The scenario with the weights to start from where the node config says they are; they have the same digest."""
    if place is None:
        return scenario
    model = scenario.model
    if model is None or not isinstance(model.init, Start):
        found = "found model-init, but the scenario's model starts from no file"
        raise InputError(f"--node-config: {found}; allowed: no such key", key="model-init")
    here = model.init.model_copy(update={"file": str(Path(place).expanduser())})
    return dataclasses.replace(scenario, model=dataclasses.replace(model, init=here))


def _finite(arrays: Arrays) -> None:
    odd = [k for k, v in arrays.items() if not np.isfinite(v).all()]
    if odd:
        raise BadRecord(f"'{odd[0]}' was sent with numbers that are not finite")


def _share(task: SupervisedTask, client: int) -> Held:
    """The rows of one client."""
    rows = torch.as_tensor(task.indices[task.offsets[client] : task.offsets[client + 1]], device=task.device)
    x, y = task.inputs[rows].cpu(), task.targets[rows].cpu()
    tx, ty = x[:0], y[:0]
    if task.tests is not None:
        tested = torch.as_tensor(task.tests.of(client), device=task.device)
        tx, ty = task.tests.inputs[tested].cpu(), task.tests.targets[tested].cpu()
    data = Dataset("share", x, y, tx, ty, task.num_classes, pixels=task.pixels, tokens=task.tokens)
    by_samples = np.array_equal(task.importance, task.sizes / task.sizes.sum())
    return Held(data, client, task.sizes, None if by_samples else task.importance)


def _write_held(file: Path, held: Held, agreed: str = "") -> None:
    about = json.dumps({"classes": held.data.num_classes, "tokens": record(held.data.tokens), "agreed": agreed})
    tensors = {"x": held.data.train_x, "y": held.data.train_y, "sizes": torch.as_tensor(held.sizes)}
    if len(held.data.test_x):
        tensors |= {"test_x": held.data.test_x, "test_y": held.data.test_y}
    if held.importance is not None:
        tensors["importance"] = torch.as_tensor(held.importance)
    if held.data.pixels is not None:
        tensors |= {"low": held.data.pixels.low, "high": held.data.pixels.high}
    _write(file, tensors, {"about": about})


def _read_held(file: Path, client: int) -> tuple[Held, str]:
    """What is kept, and by which of the server's lists it is numbered."""
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["about"])
        told = about.get("tokens")  # a folder that an older version made says nothing of tokens
        tokens = Tokens(**told) if told is not None else None
        x, y, sizes = (opened.get_tensor(k) for k in ("x", "y", "sizes"))
        known = "low" in opened.keys()  # noqa: SIM118 - it is no mapping
        pixels = PixelRange(opened.get_tensor("low"), opened.get_tensor("high")) if known else None
        weighed = opened.get_tensor("importance").numpy() if "importance" in opened.keys() else None  # noqa: SIM118
        tested = "test_x" in opened.keys()  # noqa: SIM118
        tx, ty = (opened.get_tensor(k) for k in ("test_x", "test_y")) if tested else (x[:0], y[:0])
    data = Dataset("share", x, y, tx, ty, about["classes"], pixels=pixels, tokens=tokens)
    return Held(data, client, sizes.numpy(), weighed), about.get("agreed", "")


def _write(file: Path, tensors: State, metadata: dict[str, str] | None = None) -> None:
    """Replace `file` in one step, on the disk before it has its name."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.new")
    save_file(with_own_memory(tensors), temporary, metadata=metadata)
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(file)
