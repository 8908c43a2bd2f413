"""Counting the cores that a process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.core import cores

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def made(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


def test_without_limits_it_is_the_affinity(tmp_path: Path) -> None:
    assert cores.available({}, tmp_path) == HERE


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_bound_to_one_core_has_one() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from fedsim.core.cores import available; print(available())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"}, 1),
        ({"SLURM_CPUS_ON_NODE": "1"}, 1),
        ({"SLURM_CPUS_PER_TASK": "64"}, HERE),  # more than the affinity allows
        ({"SLURM_CPUS_PER_TASK": "none", "SLURM_CPUS_ON_NODE": "0"}, HERE),
        ({"OMP_NUM_THREADS": "1"}, HERE),  # of threads, not of processes
    ],
)
def test_slurm(variables: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert cores.available(variables, tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),  # half a core is one
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, HERE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, HERE),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/c\n",
                "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            HERE,
        ),
        ({"proc/self/cgroup": "nonsense"}, HERE),
    ],
)
def test_control_groups(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert cores.available({}, made(tmp_path, files)) == expected


def test_threads_are_no_more_than_the_cores_unless_somebody_says_so() -> None:
    assert cores.threads(64, {"SLURM_CPUS_PER_TASK": "1"}) == 1
    assert cores.threads(64, {"SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "64"}) == 64
    assert cores.threads(1, {}) == 1


def test_nobody_else_counts_cores() -> None:
    package = Path(cores.__file__).parent.parent
    counting = ("cpu_count", "sched_getaffinity")
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if any(word in file.read_text(encoding="utf-8") for word in counting)
    }
    assert found == {"core/cores.py", "engine/run_directory.py"}  # the latter notes the machine's as well
