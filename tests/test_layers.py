"""Imports go strictly downwards, and heavy libraries are imported only where they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

LAYERS = (  # every module imports only from rows above its own
    "errors types rng clock memory schedule figures row_files replies terminal sweep_home",
    "registry laws augment yaml_files splits graph_files model_checks vision partition_table page device_traces",
    "parts losses cache mixing partitioners aggregators time_laws",
    "models data_files graphs availability",
    "kernel synthetic topology system",
    "chain data persample fates",
    "stacked california",
    "task partition datasets",
    "supervised algorithms",
    "store",
    "worker participation",
    "asynchronous gossip contract_bench",
    "backends privacy poisson",
    "modes scenario contract",
    "scenario_checks",
    "config",
    "assembly realtime results schema deploy_noise deploy_node",
    "deploy_link deploy_work",
    "backend_factory",
    "schedule_view simulation deploy_client deploy_worker",
    "deploy_server deploy_strategy",
    "planning sweep_axes audit schedule_tables deploy",
    "sweep_files sweep_trial run_groups",
    "sweep_tune sweep_book",
    "sweeps sweep_view",
    "report_setting report_sweep report_schedule report_deployment report_privacy",
    "report",
    "cli",
)
_RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row.split()}


def modules() -> dict[str, set[str]]:
    """Modules of the package (a sub-package counts as one) and the other modules each imports, anywhere in its code."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "fedsim").rglob("*.py"):
        name = file.relative_to(ROOT / "fedsim").parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        imports = found.setdefault(name, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedsim":
                parts = (node.module or "").split(".")
                imports |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return {name: imports - {name} for name, imports in found.items()}


def test_every_module_has_a_layer() -> None:
    assert set(modules()) - set(_RANK) == set()


def test_imports_go_downwards() -> None:
    # `register` and `__version__` are names of the package itself, not modules.
    upwards = {
        f"{name} imports {other}"
        for name, imports in modules().items()
        for other in imports & set(_RANK)
        if _RANK[other] >= _RANK[name]
    }
    assert upwards == set()


def test_the_simulator_starts_without_what_it_may_not_need() -> None:
    heavy = ("ray", "flwr", "datasets", "flwr_datasets", "sklearn", "matplotlib", "pandas")
    code = f"import fedsim.engine.loop, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
