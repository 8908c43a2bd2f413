"""fedsim: federated and decentralized learning, simulated. One scenario file describes a run; `run` runs it.

These names are the public interface, for users and for authors of parts of their own; everything else may move.
Each is imported when it is first used, for ``fedsim --help`` has to be quick.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # the module `typing` takes longer to import than this one
if TYPE_CHECKING:
    from typing import Any

    from fedsim.algorithms.base import Effort, GossipAlgorithm, Round, ServerAlgorithm
    from fedsim.algorithms.needs import Needs
    from fedsim.algorithms.solvers import LocalSolver
    from fedsim.contract.check import check
    from fedsim.core import rng
    from fedsim.core.errors import InputError, RunError
    from fedsim.core.job import Job, RunFacts
    from fedsim.core.metrics import Measure, Metric, View
    from fedsim.core.oracle import Oracle
    from fedsim.core.registry import register
    from fedsim.core.tokens import Tokens
    from fedsim.core.types import (
        Aggregate,
        BatchSize,
        Count,
        Decay,
        Fraction,
        Message,
        NonNegative,
        Positive,
        Probability,
        State,
        clip_norm,
        dot,
        norm,
    )
    from fedsim.data.partition import Partition
    from fedsim.data.sets import Dataset, DatasetPart
    from fedsim.engine.run import run
    from fedsim.engine.run_directory import Run
    from fedsim.engine.watch import Logger, Watched, Watcher
    from fedsim.graphs.base import Graph
    from fedsim.messages.aggregators import Aggregator
    from fedsim.messages.attack import Attack
    from fedsim.messages.base import MessageTransform
    from fedsim.messages.compressor import Compressor
    from fedsim.messages.edge_attacks import EdgeAttack
    from fedsim.messages.graph_rules import GraphRule
    from fedsim.messages.heard import Heard, Near
    from fedsim.messages.poison import Poison
    from fedsim.models.build import Model
    from fedsim.participation.base import Arrival, Dispatch, Ended, Participation, Setting
    from fedsim.participation.clocked import Clocked
    from fedsim.participation.policy import Alert, Arrived, Combine, Lost, Policy, Rang, Start, Woke, Work
    from fedsim.participation.selection import ClientLosses, Pool, Reported, Selection
    from fedsim.privacy.accounting import Release, calibrate
    from fedsim.privacy.base import Bound, Mechanism
    from fedsim.privacy.ledger import Claim, PrivacyLedger
    from fedsim.privacy.noise import gaussian
    from fedsim.reports.graph_facts import topology
    from fedsim.reports.plan import plan
    from fedsim.reports.report import write_report as report
    from fedsim.reports.sections import ReportSection
    from fedsim.scenario.load import load
    from fedsim.scenario.sections import Scenario
    from fedsim.sweeps.run import sweep

__version__ = "0.1.0"

_HOME = {
    "load": "scenario.load",
    "run": "engine.run",
    "sweep": "sweeps.run",
    "plan": "reports.plan",
    "topology": "reports.graph_facts",
    "report": "reports.report:write_report",
    "check": "contract.check",
    "Scenario": "scenario.sections",
    "Run": "engine.run_directory",
    "InputError": "core.errors",
    "RunError": "core.errors",
    "rng": "core:rng",
    "register": "core.registry",
    # for authors of parts
    "ServerAlgorithm": "algorithms.base",
    "GossipAlgorithm": "algorithms.base",
    "Needs": "algorithms.needs",
    "LocalSolver": "algorithms.solvers",
    "Round": "algorithms.base",
    "Effort": "algorithms.base",
    "Oracle": "core.oracle",
    "Aggregator": "messages.aggregators",
    "GraphRule": "messages.graph_rules",
    "Heard": "messages.heard",
    "Near": "messages.heard",
    "MessageTransform": "messages.base",
    "Compressor": "messages.compressor",
    "Attack": "messages.attack",
    "EdgeAttack": "messages.edge_attacks",
    "Poison": "messages.poison",
    "Metric": "core.metrics",
    "Measure": "core.metrics",
    "View": "core.metrics",
    "Logger": "engine.watch",
    "Watcher": "engine.watch",
    "ReportSection": "reports.sections",
    "Watched": "engine.watch",
    "Job": "core.job",
    "RunFacts": "core.job",
    "Participation": "participation.base",
    "Dispatch": "participation.base",
    "Arrival": "participation.base",
    "Setting": "participation.base",
    "Ended": "participation.base",
    "Clocked": "participation.clocked",
    **dict.fromkeys(
        ("Alert", "Arrived", "Combine", "Lost", "Policy", "Rang", "Start", "Woke", "Work"), "participation.policy"
    ),
    **dict.fromkeys(("ClientLosses", "Pool", "Reported", "Selection"), "participation.selection"),
    "Dataset": "data.sets",
    "DatasetPart": "data.sets",
    "Tokens": "core.tokens",
    "Partition": "data.partition",
    "Model": "models.build",
    "Graph": "graphs.base",
    "Mechanism": "privacy.base",
    "Bound": "privacy.base",
    "Claim": "privacy.ledger",
    "PrivacyLedger": "privacy.ledger",
    "Release": "privacy.accounting",
    "calibrate": "privacy.accounting",
    "gaussian": "privacy.noise",
    **dict.fromkeys(
        (
            "Aggregate", "BatchSize", "Count", "Decay", "Fraction", "Message", "NonNegative", "Positive", "Probability",
            "State", "clip_norm", "dot", "norm",
        ),
        "core.types",
    ),
}  # fmt: skip
"""Name: the module below fedsim that has it, and what it is called there if that differs."""

__all__ = [
    "Aggregate", "Aggregator", "Alert", "Arrival", "Arrived", "Attack", "BatchSize", "Bound", "Claim", "ClientLosses",
    "Clocked", "Combine", "Compressor", "Count", "Dataset", "DatasetPart", "Decay", "Dispatch", "EdgeAttack", "Effort",
    "Ended", "Fraction", "GossipAlgorithm", "Graph", "GraphRule", "Heard", "InputError", "Job", "LocalSolver",
    "Logger", "Lost", "Measure", "Mechanism", "Message", "MessageTransform", "Metric", "Model", "Near", "Needs",
    "NonNegative", "Oracle", "Participation", "Partition", "Poison", "Policy", "Pool", "Positive", "PrivacyLedger",
    "Probability", "Rang", "Release", "ReportSection", "Reported", "Round", "Run", "RunError", "RunFacts", "Scenario",
    "Selection", "ServerAlgorithm", "Setting", "Start", "State", "Tokens", "View", "Watched", "Watcher", "Woke",
    "Work", "calibrate", "check", "clip_norm", "dot", "gaussian", "load", "norm", "plan", "register", "report", "rng",
    "run", "sweep", "topology",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "data":  # a package, for `data.from_arrays`
        return importlib.import_module("fedsim.data")
    if name not in _HOME:
        raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
    module, _, other = _HOME[name].partition(":")
    value = getattr(importlib.import_module(f"fedsim.{module}"), other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "data"]
