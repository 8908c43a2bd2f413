"""The part of a report about time: who worked, waited and delivered when.

It is made again from the run's scenario; of a deployment it is the one that happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.algorithms.base import numbers_of
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import FedsimError, InputError, RunError
from fedsim.core.job import RunFacts
from fedsim.core.oracle import Plan, Task
from fedsim.core.registry import lookup
from fedsim.core.types import BatchSize
from fedsim.data.partition_csv import FILE, read_partition
from fedsim.devices.system import SystemSection
from fedsim.engine.assembly import Assembly, assemble
from fedsim.engine.inputs import importance_of
from fedsim.engine.run_directory import read_jsonl
from fedsim.figures.html import Markup, details, heading, image, notes, paragraph, table
from fedsim.figures.schedule import staleness_figure
from fedsim.messages.base import Pipeline
from fedsim.participation.base import Participation
from fedsim.participation.durations import durations_of
from fedsim.reports.groups import Group, Record
from fedsim.reports.happened import happened, has_happened
from fedsim.reports.timeline import follow
from fedsim.reports.timeline_tables import client_rows, headline, timeline_figure
from fedsim.scenario.load import load
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Save = Callable[[str, "Figure"], bytes]

_MOST_PICTURES = 6


def schedules(groups: Sequence[Group], save: Save) -> list[object]:
    """Picture, staleness and clients' table of each group whose runs follow a clock; of its first run."""
    clocked = [group for group in groups if _is_clocked(group.runs[0])]
    if not clocked:
        return []
    parts: list[object] = [heading(2, "Schedule")]
    for number, group in enumerate(clocked[:_MOST_PICTURES], 1):
        run, name = group.runs[0], "schedule" if len(clocked) == 1 else f"schedule-{number}"
        try:
            parts += _schedule(run, name, save, group.label if len(groups) > 1 else "")
        except (FedsimError, OSError) as error:
            parts.append(notes([f"{run.dir}: the schedule cannot be made again: {error}"]))
    left = len(clocked) - _MOST_PICTURES
    return [*parts, paragraph(f"{left} more schedules are not shown.", soft=True) if left > 0 else ""]


def _is_clocked(run: Record) -> bool:
    if run.value("backend.name") == "flower":
        return has_happened(run.dir)
    try:
        mode: type[Participation] = lookup("participation", run.value("participation.mode"))
    except InputError:  # somebody's own, which is not there any more: the schedule says so in its place
        return True
    system = run.value("system")
    idle = SystemSection().model_dump(exclude_none=True)
    modelled = mode.setting == "server" and isinstance(system, dict) and {**idle, **system} != idle
    return mode.clocked or modelled


def _schedule(run: Record, name: str, save: Save, label: str) -> list[object]:
    real = has_happened(run.dir)
    if real:
        timeline = happened(run)
    else:
        scenario = load(run.dir / "scenario.yaml")
        timeline = follow(scenario, _assembly(scenario, run.dir))
    gantt = save(name, timeline_figure(timeline, real=real))
    header, rows = client_rows(timeline)
    parts: list[object] = [
        heading(3, label) if label else "",
        paragraph(f"{headline(timeline, real)}. The picture shows how it {'began' if real else 'begins'}.", soft=True),
        image(gantt, f"jobs of each client and combines over {'time as it happened' if real else 'virtual time'}"),
    ]
    counts = _staleness(run.dir / "trace.jsonl")
    if len(counts) > 1:
        parts.append(image(save(f"{name}-staleness", staleness_figure(counts)), "results by staleness"))
    if np.isnan(timeline.importance).all():
        parts.append(paragraph("p_i is not known: the file of the scenario's problem cannot be read here.", soft=True))
    return [*parts, _explained(header, rows)]


def _explained(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    return details("Table: deliveries, weights and use of time of the clients", table(header, rows))


def _staleness(path: Path) -> Counter[int]:
    """How many results had which staleness; nothing without a trace."""
    if not path.exists():
        return Counter()
    return Counter(int(s) for row in read_jsonl(path) for s in row.get("staleness", []))


def _assembly(scenario: Scenario, folder: Path) -> Assembly:
    """What a schedule needs of the run, from its folder where that tells it: a report does not load data."""
    if not (folder / FILE).exists():
        return assemble(scenario)
    samples, _ = read_partition(folder / FILE)
    dim, dtype = _dimension(folder / "params.safetensors"), getattr(torch, scenario.run.dtype)
    task = _Population(samples, importance_of(folder, samples), dim, dtype)
    numbers = numbers_of(scenario.algorithm, task, gossip=scenario.algorithm.setting == "gossip")
    facts = RunFacts(scenario.seed, task.num_clients, numbers=numbers)
    durations = durations_of(scenario.system, scenario.algorithm, task, Pipeline(scenario.transforms, facts))
    return Assembly(task, None, task.device, task.dtype, None, {}, durations)


def _dimension(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return int(file.get_slice("params").get_shape()[-1])
    except (OSError, SafetensorError) as error:
        raise InputError(f"the size of the model is not known: {error}", file=str(path)) from None


class _Population(Task):
    """Clients of whom only their numbers of samples and what they count are known."""

    metrics = ()

    def __init__(self, sizes: Ints, importance: Floats, dim: int, dtype: torch.dtype) -> None:
        self.sizes, self.num_clients, self.dim = sizes, len(sizes), dim
        self.importance = importance
        self.device, self.dtype = torch.device("cpu"), dtype

    def initial(self) -> torch.Tensor:
        return torch.zeros(self.dim, dtype=self.dtype)

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        raise RunError("there is no data to train on")

    def evaluate(self, params: torch.Tensor) -> dict[str, float]:
        raise RunError("there is no data to evaluate on")
