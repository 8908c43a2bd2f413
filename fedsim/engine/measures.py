"""Measures that a scenario can ask for in ``run.metrics``, beside those that every run has."""

from __future__ import annotations

from fedsim.engine.clusters import Clusters
from fedsim.engine.ensemble import Ensemble
from fedsim.engine.quality import (
    F1,
    Auc,
    BalancedAccuracy,
    CalibrationError,
    Determination,
    MacroF1,
    MeanAbsoluteError,
    TopK,
)

__all__ = [
    "F1",
    "Auc",
    "BalancedAccuracy",
    "CalibrationError",
    "Clusters",
    "Determination",
    "Ensemble",
    "MacroF1",
    "MeanAbsoluteError",
    "TopK",
]
