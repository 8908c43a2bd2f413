"""What a scenario is once it is checked: its sections, and what is written down of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from fedsim.algorithms.base import Algorithm
from fedsim.clients.store import Choice
from fedsim.core.documents import Document
from fedsim.core.fields import dump_part
from fedsim.core.types import Count
from fedsim.data.augment import Augment
from fedsim.data.sets import DatasetPart
from fedsim.devices.system import SystemSection
from fedsim.messages.aggregators import Aggregator
from fedsim.objective.kernel import Precision
from fedsim.objective.stacked import Way
from fedsim.participation.base import Participation
from fedsim.privacy.base import Mechanism

MODES = {"server": "synchronous", "gossip": "gossip"}
"""The participation mode of a setting where a scenario names none."""

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
        mode = raw.get("participation", {}).get("mode") or MODES[self.algorithm.setting]
        sections: dict[str, Any] = {
            "name": self.name,
            "seed": self.seed,
            "data": absolute(data, self.base),
            "model": self.model,
            "algorithm": {"name": raw["algorithm"]["name"], **dump_part(self.algorithm)},
            "topology": absolute(self.topology, self.base) if self.topology else None,
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


def absolute(section: dict[str, Any], base: Path) -> dict[str, Any]:
    """The section with its `path` and `file` keys absolute."""

    def fix(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: fix(k, v) for k, v in value.items()}
        if isinstance(value, list):
            return [fix(key, v) for v in value]
        return str((base / value).resolve()) if key in ("path", "file") and isinstance(value, str) else value

    return {k: fix(k, v) for k, v in section.items()}
