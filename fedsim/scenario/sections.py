"""What a scenario is once it is checked: its sections, and what is written down of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field

from fedsim.algorithms.base import Algorithm
from fedsim.clients.store import Choice
from fedsim.core.client_metrics import BASE, client_columns
from fedsim.core.documents import Document
from fedsim.core.errors import InputError
from fedsim.core.fields import keys_of
from fedsim.core.metrics import Measure, Metric, columns
from fedsim.core.registry import lookup
from fedsim.core.types import BatchSize, Count, Positive, Seconds
from fedsim.data.augment import Augment
from fedsim.data.local_test import LocalTest
from fedsim.data.partition import Partition
from fedsim.data.sets import DatasetPart
from fedsim.devices.system import SystemSection
from fedsim.graphs.base import Graph
from fedsim.messages.aggregators import Aggregator
from fedsim.messages.base import MessageTransform
from fedsim.messages.compressor import Compressor
from fedsim.messages.compressors import Whole
from fedsim.messages.memory import OwnCompressor
from fedsim.messages.sized import Sized
from fedsim.models.build import Model
from fedsim.objective.adversary import Adversary
from fedsim.objective.kernel import Precision
from fedsim.objective.stacked import Way
from fedsim.participation.base import Participation
from fedsim.privacy.base import Mechanism
from fedsim.scenario.stopping import Stop
from fedsim.scenario.table import (
    FormSection,
    ListSection,
    Named,
    NameSection,
    PartSection,
    PartsSection,
    Section,
    Values,
    ValueSection,
    absolute,
)

MODES = {"server": "synchronous", "gossip": "gossip"}
"""The participation mode of a setting where a scenario names none."""

_EVERY_SCENARIO = "every scenario needs this section"

NAME = r"^[A-Za-z0-9][A-Za-z0-9._=-]*$"


class Finetune(BaseModel):
    """Plain SGD of each client on its own training rows, of which nothing is kept."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    steps: Count | None = Field(None, description="local steps")
    epochs: Count | None = Field(None, description="passes over the client's training rows, instead of steps")
    lr: Positive | None = Field(None, description="learning rate (default: algorithm.lr as it is in that round)")
    batch_size: BatchSize | None = Field(None, description="samples per step (default: algorithm.batch_size)")


class RunSection(BaseModel):
    """How long a run is and what it records."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    rounds: Count = Field(100, description="rounds (combines) to run")
    eval_every: Count = Field(10, description="evaluate in every that many rounds, besides round 0 and the last")
    dtype: Literal["float32", "float64"] = "float32"
    precision: Precision = Field(
        "full", description="bf16: training runs the model under bfloat16 autocast; parameters stay float32"
    )
    kernel: Way = Field("auto", description="clients of a chunk as one stacked computation, or one after the other")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    seconds: Seconds | None = Field(None, description="stop before this virtual second is passed")
    trace: bool = Field(False, description="record the realised schedule in trace.jsonl")
    eval_samples: Count | None = Field(
        None, description="evaluate on a fixed random sample of that many rows (default: all)"
    )
    eval_clients: Count | Literal["all"] | None = Field(
        None, description="evaluate that many clients, drawn anew each time, or all (default: all with data.local_test)"
    )
    finetune: Finetune | None = Field(
        None, description="SGD on its training rows that each client's model takes before it is evaluated"
    )
    chunk_rows: Count | None = Field(
        None, description="clients computed together (default: what fits the cache or the GPU)"
    )
    threads: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        None, description="CPU threads (default: OMP_NUM_THREADS, or the cores that the process may use)"
    )
    operator_threads: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        None,
        description="instead of threads: PyTorch's threads within every operator; numbers' last bits depend on it",
    )
    client_state: Choice = Field("auto", description="where clients' state is kept; auto: on disk above 1 GiB")
    checkpoint_seconds: Annotated[float, Field(gt=0)] = Field(60.0, description="write a checkpoint that often")

    @property
    def crew(self) -> tuple[int | None, bool]:
        """How many threads compute, and whether within operators: what `fedsim.core.crew.working` takes."""
        return self.operator_threads or self.threads, self.operator_threads is not None

    def passed(self, time: float) -> bool:
        """Whether virtual second `time` is past the end that `seconds` sets."""
        return self.seconds is not None and time > self.seconds

    def evaluates(self, round: int) -> bool:
        """Whether metrics are recorded after `round` rounds."""
        return round % self.eval_every == 0 or round == self.rounds


class BackendSection(BaseModel):
    """Where clients are computed. All keys but `name` belong to ``ray``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Literal["vectorized", "ray"] = "vectorized"
    actors: Count | None = Field(default=None, description="processes that share the clients (default: 2)")
    cpus_per_actor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="CPUs of each, also its threads (default: an equal share of all, at least 1)"
    )
    gpus_per_actor: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="GPUs of each, e.g. 0.25 (default: 0)"
    )
    address: Annotated[str, Field(pattern=r"^(local|auto|[^:\s]+:\d{1,5})$")] | None = Field(
        default=None,
        description="local (this machine alone; default), auto (the cluster that runs), or HOST:PORT",
    )
    client_errors: Literal["fail", "drop"] | None = Field(
        default=None,
        description="clients whose work raises fail the run (default) or are left out of the cohort",
    )
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="seconds without a sign of life after which an actor counts as lost (default: 60)"
    )
    rebalance: bool | None = Field(
        default=None,
        description="whether clients move to other actors where one takes 1.3 times the mean of all (default: true)",
    )


class Heading(BaseModel):
    """The keys of a scenario that are not sections."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(pattern=NAME, max_length=200)] = "scenario"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class Held(BaseModel):
    """What clients are tested on."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    local_test: LocalTest = Field(
        description="share of each client's rows that is held out, or natural: its own test rows"
    )


class Clients(BaseModel):
    """How many clients there are."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    clients: Count


def _usual_mode(raw: Values) -> Values | None:
    """The participation mode that goes with the algorithm, also when something is wrong with its keys, and the keys of
    that mode that go with it."""
    given = raw.get("participation")
    named = given.get("mode") if isinstance(given, Mapping) else None
    try:
        algorithm = lookup("algorithm", raw["algorithm"].get("name"))
    except InputError:
        return {} if named is not None else None
    usual: Values = getattr(algorithm, "usual", {})
    mode = named if named is not None else usual.get("mode", MODES.get(getattr(algorithm, "setting", "")))
    if mode is None:
        return None
    return {**(usual if usual.get("mode") == mode else {}), "mode": mode}


def _natural(raw: Values) -> Values | None:
    """The division among natural clients of a data set that has some, where a file says nothing of clients."""
    given = raw.get("data")
    if not isinstance(given, Mapping):
        return None
    if given.get("partition") is not None:
        return {}
    try:
        part = lookup("dataset", given.get("dataset"))
    except InputError:
        return None
    column = getattr(part, "natural", None)
    if not isinstance(column, str) or given.get("clients") is not None:
        return None
    return {"scheme": "natural_id", "partition_by": column}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A checked scenario: a field per section, in the order in which they are written out.

    `names` are the names under which a section's part was asked for, `given` the sections that the file has.
    """

    name: Annotated[str, ValueSection(path="name", form=Heading)]
    seed: Annotated[int, ValueSection(path="seed", form=Heading)]
    dataset: Annotated[
        DatasetPart, PartSection(path="data", kind="dataset", key="dataset", required=_EVERY_SCENARIO, paths=True)
    ]
    clients: Annotated[int | None, ValueSection(path="data.clients", form=Clients, optional=True)]
    partition: Annotated[
        Partition | None, PartSection(path="data.partition", kind="partition", key="scheme", fill=_natural)
    ]
    augment: Annotated[Augment | None, FormSection(path="data.augment", form=Augment, optional="{flip: true, crop: 4}")]
    local_test: Annotated[LocalTest | None, ValueSection(path="data.local_test", form=Held, optional=True)]
    model: Annotated[Model | None, PartSection(path="model", kind="model")]
    algorithm: Annotated[Algorithm, PartSection(path="algorithm", kind="algorithm", required=_EVERY_SCENARIO)]
    topology: Annotated[Graph | None, PartSection(path="topology", kind="graph", key="graph", paths=True)]
    mixing: Annotated[str | None, NameSection(path="topology.weights", kind="mixing")]
    participation: Annotated[
        Participation, PartSection(path="participation", kind="participation", key="mode", fill=_usual_mode)
    ]
    system: Annotated[SystemSection, FormSection(path="system", form=SystemSection, paths=True)]
    aggregator: Annotated[Aggregator, PartSection(path="aggregator", kind="aggregator", fill={"name": "mean"})]
    privacy: Annotated[Mechanism | None, PartSection(path="privacy", kind="privacy", key="mechanism")]
    compression: Annotated[MessageTransform | None, PartSection(path="compression", kind="compressor")]
    attack: Annotated[MessageTransform | None, PartSection(path="attack", kind="attack")]
    adversary: Annotated[
        Adversary | None, FormSection(path="adversary", form=Adversary, optional="{eps: 0.1, step: 0.025, steps: 10}")
    ]
    run: Annotated[RunSection, FormSection(path="run", form=RunSection)]
    stop: Annotated[Stop | None, FormSection(path="run.stop", form=Stop, optional="{patience: 5}")]
    metrics: Annotated[
        tuple[Named, ...],
        ListSection(path="run.metrics", kind="metric", description="measures besides those that every run has"),
    ]
    loggers: Annotated[
        tuple[Named, ...],
        ListSection(path="run.loggers", kind="logger", description="who else is told how the run goes"),
    ]
    backend: Annotated[BackendSection, FormSection(path="backend", form=BackendSection)]
    audits: Annotated[Mapping[str, Any], PartsSection(path="audit", kind="audit", recorded=False)]
    names: Mapping[str, str]
    given: frozenset[str]
    document: Document

    @property
    def transforms(self) -> tuple[MessageTransform, ...]:
        """What happens to messages after privacy, in its order: compression at clients, attacks as they arrive."""
        compression = self.own_compressor or self.compression
        return tuple(part for part in (self.sized, compression, self.attack) if part is not None)

    @property
    def sized(self) -> Sized | None:
        """What counts the messages of an algorithm that sends less than its tensors; None where it sends them."""
        return Sized(size=self.algorithm.message_size) if self.algorithm.needs.own_size else None

    @property
    def own_compressor(self) -> OwnCompressor | None:
        """What an algorithm does to its messages whose compressor `compression` is; None where it has none."""
        needs = self.algorithm.needs.compression
        if needs is None or not isinstance(self.compression, Compressor | None):
            return None
        compressor = self.compression or Whole()
        return OwnCompressor(compressor=compressor, remembers=needs, **self.algorithm.compresses)

    @property
    def base(self) -> Path:
        """The folder that relative paths are relative to."""
        return self.document.base

    @property
    def measures(self) -> list[Measure]:
        """What is measured besides what every run measures."""
        return [named.part for named in self.metrics]

    @property
    def columns(self) -> dict[str, Metric]:
        """What those measures say of the columns that they add, and what the columns are that sum up clients."""
        return {
            **columns(self.measures),
            **(client_columns(self.client_metrics.values()) if self.tests_clients else {}),
        }

    @property
    def tests_clients(self) -> bool:
        """Whether clients are evaluated one by one."""
        return self.local_test is not None or self.run.eval_clients is not None

    @property
    def client_measures(self) -> list[Measure]:
        """The measures that are asked about every client, too."""
        return [measure for measure in self.measures if measure.per_client]

    @property
    def client_metrics(self) -> dict[str, Metric]:
        """What is measured of every client."""
        return {**BASE, **columns(self.client_measures)}

    def resolved(self) -> dict[str, Any]:
        """The scenario with every default written out and paths absolute: running it again gives the same numbers."""
        found: dict[str, Any] = {}
        for attribute, row in SECTIONS.items():
            if not row.recorded or (row.path == "system" and not self._has_clock):
                continue
            value = row.write(getattr(self, attribute), self.names.get(row.path))
            if value is None:
                continue
            place = found
            for key in row.path.split(".")[:-1]:
                place = place[key]
            place[row.last] = value
        for row in SECTIONS.values():
            if row.paths and row.path in found:
                found[row.path] = absolute(found[row.path], self.base)
        return found

    @property
    def _has_clock(self) -> bool:
        """Whether `system` counts: on a graph only where the file has it, since giving it starts a finer clock."""
        return self.algorithm.setting == "server" or "system" in self.given

    def hash(self) -> str:
        """Eight hex digits of what decides the numbers, which loggers do not."""
        values = self.resolved()
        values["run"].pop("loggers", None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The resolved scenario, and as remarks what else was found out about the algorithm."""
        facts, keys = self.algorithm.facts(), keys_of(type(self.algorithm))
        remarks = "".join(f"# {name}: {value}\n" for name, value in facts.items() if name not in keys)
        return remarks + yaml.safe_dump(self.resolved(), sort_keys=False, width=120)


SECTIONS: dict[str, Section] = {
    attribute: row
    for attribute, hint in get_type_hints(Scenario, include_extras=True).items()
    for row in getattr(hint, "__metadata__", ())
    if isinstance(row, Section)
}
"""Fields of `Scenario` and the sections they are read from."""

INNER: dict[str, tuple[str, ...]] = {
    outer.path: tuple(row.last for row in SECTIONS.values() if row.path.startswith(f"{outer.path}."))
    for outer in SECTIONS.values()
}
"""Of every section the keys that are rows of their own."""
