"""fedsim: federated and decentralized learning, simulated. One scenario file describes a run; `run` runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsim.core.registry import register

if TYPE_CHECKING:
    from fedsim.engine.loop import run
    from fedsim.scenario.load import load
    from fedsim.sweeps.run import sweep

__version__ = "0.1.0"
__all__ = ["load", "register", "run", "sweep"]

_HOME = {"load": "fedsim.scenario.load", "run": "fedsim.engine.loop", "sweep": "fedsim.sweeps.run"}


def __getattr__(name: str) -> Any:
    """Import torch and friends only when they are needed: ``fedsim --help`` has to be quick."""
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
