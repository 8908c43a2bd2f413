"""Tests with Ray stay together, and long ones begin first."""

from __future__ import annotations

from types import SimpleNamespace as Plain
from typing import Any

import order
import pytest


def test_what_stays_together() -> None:
    assert order.scope("tests/backends/ray/test_ray_faults.py::test_a") == "ray"
    assert order.scope("tests/core/test_modules.py::test_ray_actors_find_them[x]") == "ray"
    assert order.scope("tests/engine/test_records.py::test_distance[ray-float32]") == "ray"
    assert order.scope("tests/core/test_modules.py::test_arrays") == "tests/core/test_modules.py"


def test_what_takes_long_comes_first() -> None:
    names = ["tests/graphs/a.py::t2", "tests/graphs/a.py::t1", "tests/test_docs.py::t", "tests/sweeps/test_ray_x.py::t"]
    items: Any = [Plain(nodeid=name) for name in names]
    order.arrange(items)
    assert [item.nodeid for item in items] == [names[3], names[2], names[0], names[1]]


def test_the_scheduler_hands_out_tests_with_ray_as_one(pytestconfig: pytest.Config) -> None:
    pytest.importorskip("xdist")
    made = order.scheduler(Plain(option=pytestconfig.option, getvalue=lambda _: ["popen"]), None)
    assert made._split_scope("tests/backends/ray/test_a.py::t") == made._split_scope("tests/a.py::test_on_ray") == "ray"
    assert made._split_scope("tests/a.py::t") == "tests/a.py"
