"""What the command line imports: a small run starts in little more time than torch does."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

from fedsim.core.libraries import imported_together, nx, sparse

QUICKSTART = Path(__file__).parents[2] / "scenarios" / "quickstart.yaml"
NOWHERE = {
    "ray", "flwr", "flwr_datasets", "datasets", "pandas", "pyarrow", "matplotlib", "sklearn", "scipy", "networkx",
    "jinja2", "torch._dynamo", "torch._inductor", "IPython", "seaborn",
}  # fmt: skip
"""What neither the help nor a small run of a server imports."""
LISTED = {"scipy", "networkx", "jinja2"}
"""What the list of parts may import: it has graphs, audits and sections of reports."""

CODE = """
import contextlib, io, json, sys
from fedsim.cli.start import main

found = []
for argv in json.loads(sys.argv[1]):
    sys.argv = ["fedsim", *argv]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        found.append([end.code or 0, sorted(sys.modules)])
print(json.dumps(found))
"""


def test_only_what_is_needed_is_imported(tmp_path: Path) -> None:
    run = ["run", str(QUICKSTART), "--set", "run.rounds=1", "--out", "run"]
    asked = json.dumps([["--help"], run, ["list"]])
    done = subprocess.run(
        [sys.executable, "-c", CODE, asked], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    helped, ran, listed = json.loads(done.stdout)
    for (code, modules), banned in (
        (helped, NOWHERE | {"torch", "numpy"}),
        (ran, NOWHERE),
        (listed, NOWHERE - LISTED),
    ):
        assert code == 0, done.stderr
        assert banned & set(modules) == set()
    assert "torch" in ran[1]
    assert (tmp_path / "run" / "params.safetensors").exists()


def test_libraries_are_what_they_stand_for() -> None:
    import networkx
    from scipy.sparse import csr_array

    assert nx.Graph is networkx.Graph
    assert sparse.csr_array is csr_array
    assert not hasattr(nx, "no_such_name")


def test_garbage_is_looked_for_again_after_imports() -> None:
    import torch  # noqa: F401

    frozen = gc.get_freeze_count()
    with imported_together():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen  # nothing was imported here
