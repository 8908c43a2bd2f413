"""Packages that a test needs and that may be there without fitting PyTorch."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


def fitting(name: str) -> ModuleType:
    """The module, or the test is skipped: built for another PyTorch, it fails in other ways than by not being there."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"needs {name} that fits this PyTorch: {type(error).__name__}: {error}")
