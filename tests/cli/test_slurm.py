"""The job scripts of docs/slurm.md, as far as a shell can try them, and the cores that a job's commands take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "slurm.md"
SCRIPTS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_CPUS_PER_TASK": "16",
}
NOTING = '#!/bin/bash\necho "$(basename "$0") $*" >> "$NOTES"\n'
STAND_INS = {
    "fedsim": NOTING,
    "srun": NOTING,
    "hostname": "#!/bin/bash\necho 10.0.0.7 192.168.0.7\n",
    "ray": NOTING + '[ "$1" = status ] && printf " 1 node_a\\n 1 node_b\\n 1 node_c\\n"\nexit 0\n',
    "python": "#!/bin/bash\necho 0123456789abcdef\n",
}
SETTINGS = [f"--set seed={seed} --set algorithm.lr={lr}" for lr in (0.1, 0.3) for seed in (0, 1)]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


def run(script: str, place: Path, **variables: str) -> list[str]:
    """What the script called, in order."""
    (place / "bin").mkdir()
    for name, text in STAND_INS.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    (place / "settings.txt").write_text("\n".join(SETTINGS) + "\n")
    (place / "job.sh").write_text(script)
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **SLURM, **variables, "PATH": path, "NOTES": str(place / "notes")}
    subprocess.run(["bash", "job.sh"], cwd=place, env=environment, check=True, timeout=240)
    return (place / "notes").read_text().splitlines()


def test_the_page_has_three_scripts_that_bash_can_read(tmp_path: Path) -> None:
    assert len(SCRIPTS) == 3
    for number, script in enumerate(SCRIPTS):
        file = tmp_path / f"{number}.sh"
        file.write_text(script)
        subprocess.run(["bash", "-n", file], check=True)


def test_one_machine(tmp_path: Path) -> None:
    assert run(SCRIPTS[0], tmp_path) == ["fedsim run scenarios/quickstart.yaml --out runs/quickstart-4711"]


def test_a_task_of_an_array_takes_its_line(tmp_path: Path) -> None:
    expected = "fedsim run scenarios/quickstart.yaml --set seed=0 --set algorithm.lr=0.3 --out rates/3 --resume"
    assert run(SCRIPTS[1], tmp_path) == [expected]


def test_machines_join_the_head_before_the_sweep_begins(tmp_path: Path) -> None:
    calls = run(SCRIPTS[2], tmp_path)
    where = "10.0.0.7:14711"
    assert calls[0] == "ray start --head --node-ip-address 10.0.0.7 --port 14711 --num-cpus 16"
    assert (
        f"srun --relative=1 --nodes=2 --ntasks=2 --cpus-per-task=16 ray start --address {where} --num-cpus 16 --block"
        in calls
    )
    sweep = next(i for i, call in enumerate(calls) if call.startswith("fedsim"))
    assert calls[sweep].split()[:5] == ["fedsim", "sweep", "scenarios/topologies-sweep.yaml", "--address", where]
    assert "--parallel 48 " in calls[sweep]
    assert f"ray status --address {where}" in calls[:sweep]
    assert [call for call in calls if not call.startswith("srun")][-1] == "ray stop"  # srun is in the background


def test_one_machine_of_a_cluster_waits_for_nobody(tmp_path: Path) -> None:
    calls = run(SCRIPTS[2], tmp_path, SLURM_JOB_NUM_NODES="1")
    assert not any(call.startswith("srun") for call in calls)
    assert any("--parallel 16 " in call for call in calls)
