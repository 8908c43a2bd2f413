"""How many CPU cores this process may use, which is often fewer than the machine has.

A job of a cluster, a container or ``taskset`` gets some of a machine's cores. Taking all of them makes processes wait
for each other, so everything that starts threads or processes counts cores here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")  # of the task, else of the job on this machine


def available(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """Cores that this process may use, at least 1: the least of what its affinity, its control group and Slurm allow.

    `environ` and `root` are where to look for Slurm's variables and for ``/proc`` and ``/sys`` (default: the system's).
    """
    environ = os.environ if environ is None else environ
    allowed = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    allowed += _quotas(root)
    slurm = next((count for name in _SLURM if (count := _positive(environ.get(name, "")))), None)
    return max(1, min(allowed if slurm is None else [*allowed, slurm]))


def threads(ours: int, environ: Mapping[str, str] | None = None) -> int:
    """Threads to compute with where nobody said how many: `ours`, PyTorch's choice, but no more than there are cores.

    OMP_NUM_THREADS is somebody's word, which PyTorch's choice has heard; it stands.
    """
    environ = os.environ if environ is None else environ
    told = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return ours if _positive(told) else max(1, min(ours, available(environ)))


def _quotas(root: Path) -> list[int]:
    """Whole cores that the quotas of the control groups around this process amount to; a part of a core is one."""
    found = []
    for folder in _groups(root):
        second = _numbers(folder / "cpu.max")  # "max 100000" has no quota
        first = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        for numbers in (second, first):
            if len(numbers) == 2 and min(numbers) > 0:
                found.append(-(-numbers[0] // numbers[1]))
    return found


def _groups(root: Path) -> list[Path]:
    """Folders of the process's control group and of those around it, of both versions of control groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    folders: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = ("sys/fs/cgroup",) if not controllers else ("sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}")
        for top in tops:
            steps = [part for part in path.split("/") if part not in ("", "..")]
            folders += [root.joinpath(top, *steps[:depth]) for depth in range(len(steps) + 1)]
    return folders


def _numbers(file: Path) -> list[int]:
    try:
        words = file.read_text(encoding="utf-8").split()
        return [int(word) for word in words]
    except (OSError, ValueError):
        return []


def _positive(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None
