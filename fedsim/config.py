"""Scenario files: what a run is, checked before anything is computed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from fedsim.aggregators import Aggregator, Mean
from fedsim.algorithms.base import Algorithm, GossipAlgorithm, ServerAlgorithm
from fedsim.asynchronous import Clocked
from fedsim.augment import Augment
from fedsim.data import DatasetPart
from fedsim.errors import InputError, Problem, unknown
from fedsim.kernel import Precision
from fedsim.participation import Participation
from fedsim.parts import dump_part, make_part, part_from
from fedsim.poisson import PoissonGossip
from fedsim.privacy.base import Mechanism
from fedsim.registry import lookup
from fedsim.stacked import Way
from fedsim.store import Choice
from fedsim.system import SystemSection
from fedsim.types import Count
from fedsim.yaml_files import Document, override, read_yaml

SECTIONS = (
    "name", "seed", "data", "model", "algorithm", "topology", "participation", "system", "aggregator", "privacy", "run",
    "backend", "audit",
)  # fmt: skip
_MODES = {"server": "synchronous", "gossip": "gossip"}
"""The participation mode of a setting where a scenario names none."""

_BESIDE_DATASET = ("clients", "partition", "augment")
"""Keys of `data` that are not the data set's own."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._=-]*$"


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
    seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="stop before this virtual second is passed")
    trace: bool = Field(False, description="record the realised schedule in trace.jsonl")
    eval_samples: Count | None = Field(
        None, description="evaluate on a fixed random sample of that many rows (default: all)"
    )
    chunk_rows: Count | None = Field(
        None, description="clients computed together (default: what fits the cache or the GPU)"
    )
    threads: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        None, description="CPU threads (default: PyTorch's own choice)"
    )
    client_state: Choice = Field("auto", description="where clients' state is kept; auto: on disk above 1 GiB")
    checkpoint_seconds: Annotated[float, Field(gt=0)] = Field(60.0, description="write a checkpoint that often")

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


class Heading(BaseModel):
    """The keys of a scenario that are not sections."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(pattern=NAME, max_length=200)] = "scenario"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


@dataclass(frozen=True)
class Scenario:
    """A checked scenario. `partition`, `model` and `topology` stay mappings: what they mean depends on the data."""

    name: str
    seed: int
    dataset: DatasetPart
    clients: int | None
    partition: dict[str, Any] | None
    augment: Augment | None
    model: dict[str, Any] | None
    algorithm: Algorithm
    topology: dict[str, Any] | None
    participation: Participation
    system: SystemSection
    aggregator: Aggregator
    privacy: Mechanism | None
    run: RunSection
    backend: BackendSection
    document: Document

    @property
    def base(self) -> Path:
        """The folder that relative paths are relative to."""
        return self.document.base

    def resolved(self) -> dict[str, Any]:
        """The scenario with every default written out and paths absolute: running it again gives the same numbers."""
        raw = self.document.values
        data = {"dataset": raw["data"]["dataset"], **dump_part(self.dataset)}
        if self.clients is not None:
            data["clients"] = self.clients
        if self.partition is not None:
            data["partition"] = self.partition
        if self.augment is not None:
            data["augment"] = dump_part(self.augment)
        mode = raw.get("participation", {}).get("mode") or _MODES[self.algorithm.setting]
        sections: dict[str, Any] = {
            "name": self.name,
            "seed": self.seed,
            "data": _absolute(data, self.base),
            "model": self.model,
            "algorithm": {"name": raw["algorithm"]["name"], **dump_part(self.algorithm)},
            "topology": _absolute(self.topology, self.base) if self.topology else None,
            "participation": {"mode": mode, **dump_part(self.participation)},
            "system": self._system(),
            "aggregator": {"name": raw.get("aggregator", {}).get("name", "mean"), **dump_part(self.aggregator)},
            "privacy": None
            if self.privacy is None
            else {"mechanism": raw["privacy"]["mechanism"], **dump_part(self.privacy)},
            "run": self.run.model_dump(exclude_none=True),
            "backend": self.backend.model_dump(exclude_none=True),
        }
        return {k: v for k, v in sections.items() if v is not None}

    def _system(self) -> dict[str, Any] | None:
        """The section; left out where a gossip scenario has none, since giving one starts a finer clock."""
        given = self.algorithm.setting == "server" or "system" in self.document.values
        return self.system.model_dump(exclude_none=True) if given else None

    def hash(self) -> str:
        """Eight hex digits of what decides the numbers."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved(), sort_keys=False, width=120)


def load(path: str | Path, settings: list[str] | None = None) -> Scenario:
    """Read and check a scenario file, with ``key.path=value`` overrides.

    Raises
    ------
    InputError
        One problem per offending key, with file, line, dotted key, what was found and what is allowed.
    """
    document = override(read_yaml(path), settings or [])
    return parse(document)


def parse(document: Document | Mapping[str, Any]) -> Scenario:
    """Check a scenario given as a document or as nested mappings."""
    if not isinstance(document, Document):
        document = Document(dict(document))
    folder = str(document.base.resolve())
    if folder not in sys.path:  # so that 'my_module:MyAlgorithm' beside the scenario is found
        sys.path.append(folder)
    try:
        return _parse(document)
    except InputError as error:
        raise document.locate(error) from None


def _parse(document: Document) -> Scenario:
    raw = document.values
    problems = [Problem(unknown("key", k, SECTIONS), str(k)) for k in raw if k not in SECTIONS]
    for name in SECTIONS[2:]:
        if name in raw and not isinstance(raw[name], dict):
            found = "nothing" if raw[name] is None else repr(raw[name])
            problems.append(Problem(f"found {found}, allowed: a mapping", name))
    problems += [
        Problem("missing; every scenario needs this section", name) for name in ("data", "algorithm") if name not in raw
    ]
    if problems:
        raise InputError(problems)

    def section(name: str, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except InputError as error:
            problems.extend((error.under(name) if name else error).problems)
            return None

    data = raw["data"]
    heading = section("", lambda: make_part(Heading, {k: raw[k] for k in ("name", "seed") if k in raw}))
    dataset = section(
        "data",
        lambda: part_from("dataset", "dataset", {k: v for k, v in data.items() if k not in _BESIDE_DATASET}),
    )
    clients = (
        section("data", lambda: make_part(_Clients, {"clients": data.get("clients")})).clients
        if _is_count(data)
        else None
    )
    if not _is_count(data):
        problems.append(Problem(f"found {data['clients']!r}, allowed: a whole number above 0", "data.clients"))
    partition = section("data.partition", lambda: _named("partition", "scheme", data.get("partition")))
    augment = section("data.augment", lambda: _augment(data.get("augment")))
    model = section("model", lambda: _named("model", "name", raw.get("model")))
    algorithm = section("algorithm", lambda: part_from("algorithm", "name", raw["algorithm"]))
    topology = section("topology", lambda: _graph(raw.get("topology")))
    mode = raw.get("participation") or {}
    if "mode" not in mode and (setting := _setting(raw["algorithm"])):
        mode = {"mode": _MODES[setting], **mode}
    participation = (
        section("participation", lambda: part_from("participation", "mode", mode)) if "mode" in mode else None
    )
    aggregator = section(
        "aggregator", lambda: part_from("aggregator", "name", {"name": "mean", **raw.get("aggregator", {})})
    )
    privacy = (
        section("privacy", lambda: part_from("privacy", "mechanism", raw["privacy"])) if "privacy" in raw else None
    )
    system = section("system", lambda: make_part(SystemSection, _absolute(raw.get("system", {}), document.base)))
    section("audit", lambda: _check_audits(raw.get("audit", {})))
    run = section("run", lambda: make_part(RunSection, raw.get("run", {})))
    backend = section("backend", lambda: make_part(BackendSection, raw.get("backend", {})))
    if problems:
        raise InputError(problems)
    assert participation is not None
    scenario = Scenario(
        heading.name,
        heading.seed,
        dataset,
        clients,
        partition,
        augment,
        model,
        algorithm,
        topology,
        participation,
        system,
        aggregator,
        privacy,
        run,
        backend,
        document,
    )
    problems += _crosscheck(scenario)
    if problems:
        raise InputError(problems)
    return scenario


class _Clients(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    clients: Count | None = None


def _is_count(data: dict[str, Any]) -> bool:
    value = data.get("clients")
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _named(kind: str, discriminator: str, section: Any) -> dict[str, Any] | None:
    """A section whose part is built later, from the data; its keys are checked now where they are known."""
    if section is None:
        return None
    if not isinstance(section, dict):
        raise InputError(f"found {section!r}, allowed: a mapping with the key '{discriminator}'")
    if ":" in str(section.get(discriminator, "")):
        try:
            lookup(kind, section[discriminator])
        except InputError as error:
            raise error.under(discriminator) from None
        return dict(section)
    return (
        {discriminator: section[discriminator], **dump_part(part_from(kind, discriminator, section))}
        if discriminator in section
        else part_from(kind, discriminator, section)
    )


def _augment(section: Any) -> Augment | None:
    if section is None:
        return None
    if not isinstance(section, dict):
        raise InputError(f"found {section!r}, allowed: a mapping, e.g. {{flip: true, crop: 4}}")
    return make_part(Augment, section)


def _graph(section: dict[str, Any] | None) -> dict[str, Any] | None:
    if section is None:
        return None
    weights = {k: v for k, v in section.items() if k == "weights"}
    named = _named("graph", "graph", {k: v for k, v in section.items() if k != "weights"})
    if weights:
        try:
            lookup("mixing", weights["weights"])
        except InputError as error:
            raise error.under("weights") from None
    return {**(named or {}), **weights}


def _check_audits(audits: Mapping[str, Any]) -> None:
    """The section is for ``fedsim audit``; a run only checks it."""
    problems: list[Problem] = []
    for name, keys in audits.items():
        try:
            if keys is not None and not isinstance(keys, dict):
                raise InputError(f"found {keys!r}, allowed: a mapping")
            part_from("audit", "audit", {**(keys or {}), "audit": name})
        except InputError as error:
            problems += error.under(str(name)).problems
    if problems:
        raise InputError(problems)


def _setting(algorithm: Mapping[str, Any]) -> str | None:
    """Where an algorithm runs, also when something is wrong with its keys."""
    try:
        return getattr(lookup("algorithm", algorithm.get("name")), "setting", None)
    except InputError:
        return None


def _crosscheck(s: Scenario) -> list[Problem]:
    """Sections that do not fit together."""
    found: list[Problem] = []
    name = s.document.values["algorithm"]["name"]
    if s.algorithm.local_steps is not None and s.algorithm.local_epochs is not None:
        found.append(
            Problem("found both 'local_steps' and 'local_epochs', allowed: one of the two", "algorithm.local_epochs")
        )
    if s.algorithm.setting != s.participation.setting:
        mode = _MODES[s.algorithm.setting]
        found.append(
            Problem(f"'{name}' is a {s.algorithm.setting} algorithm, allowed: mode {mode}", "participation.mode")
        )
    if s.algorithm.setting == "gossip" and s.topology is None:
        found.append(Problem(f"missing; '{name}' runs on a graph, e.g. topology: {{graph: ring}}", "topology"))
    if s.algorithm.setting == "server" and s.topology is not None:
        found.append(
            Problem(
                f"'{name}' has a server and uses no graph: remove the section or choose a gossip algorithm", "topology"
            )
        )
    if s.algorithm.setting == "gossip" and not isinstance(s.aggregator, Mean):
        found.append(Problem("gossip mixes with a matrix, allowed: mean", "aggregator.name"))
    mode = s.document.values.get("participation", {}).get("mode", "synchronous")
    if isinstance(s.algorithm, ServerAlgorithm) and s.algorithm.modes is not None and mode not in s.algorithm.modes:
        message = f"{s.algorithm.modes_reason}; allowed with '{name}': {', '.join(s.algorithm.modes)}"
        found.append(Problem(f"found {mode!r}: {message}", "participation.mode"))
    only = s.algorithm.arrival_weights if isinstance(s.algorithm, ServerAlgorithm) else None
    if only is not None and isinstance(s.participation, Clocked) and s.participation.weights != only:
        found.append(
            Problem(f"found '{s.participation.weights}', allowed with '{name}': {only}", "participation.weights")
        )
    if isinstance(s.algorithm, GossipAlgorithm) and isinstance(s.participation, PoissonGossip):
        sporadic = all(how == "sporadic" for how in s.algorithm.indicators.values())
        if not (s.algorithm.in_continuous_time and sporadic):
            message = f"'{name}' acts by rounds, and Poisson clocks know none; allowed: dspodfl, or mode gossip"
            found.append(Problem(message, "participation.mode"))
        if "system" in s.document.values:
            found.append(Problem("ticks of Poisson clocks take no time: remove the section", "system"))
    for key in ("availability", "departure"):
        if s.algorithm.setting == "gossip" and getattr(s.system, key) is not None:
            message = "this is of clients of a server; allowed on a graph: participation.compute, participation.links"
            found.append(Problem(message, f"system.{key}"))
    if s.algorithm.setting == "gossip" and s.system.network is not None:
        found.append(
            Problem(
                "on a graph latency_ms and bandwidth_mbps of the edges of a graph file count: remove it",
                "system.network",
            )
        )
    if s.backend.name != "ray":
        given = [key for key in s.backend.model_dump(exclude_none=True) if key != "name"]
        found += [Problem(f"belongs to the backend 'ray', found '{s.backend.name}'", f"backend.{k}") for k in given]
    elif s.run.client_state == "disk":
        found.append(
            Problem("actors keep what clients keep in their memory, allowed: auto, memory", "run.client_state")
        )
    gpus = s.backend.gpus_per_actor
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        found.append(Problem(f"found {gpus}, allowed: a fraction up to 1, or whole GPUs", "backend.gpus_per_actor"))
    quadratic = s.document.values["data"]["dataset"] == "quadratic"
    if quadratic and s.model is not None:
        found.append(Problem("a quadratic problem has no model: remove the section", "model"))
    if quadratic:
        found += [
            Problem(f"found '{value}', but a quadratic problem has no model; allowed: {allowed}", f"run.{key}")
            for key, value, allowed in (("precision", s.run.precision, "full"), ("kernel", s.run.kernel, "auto"))
            if value != allowed
        ]
    elif s.run.precision == "bf16" and s.run.dtype == "float64":
        found.append(Problem("found 'bf16' with dtype float64, allowed: full", "run.precision"))
    if not quadratic and s.model is None:
        found.append(Problem("missing; e.g. model: {name: linear}", "model"))
    return found


def _absolute(section: dict[str, Any], base: Path) -> dict[str, Any]:
    """The section with its `path` and `file` keys absolute."""

    def fix(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: fix(k, v) for k, v in value.items()}
        if isinstance(value, list):
            return [fix(key, v) for v in value]
        return str((base / value).resolve()) if key in ("path", "file") and isinstance(value, str) else value

    return {k: fix(k, v) for k, v in section.items()}
