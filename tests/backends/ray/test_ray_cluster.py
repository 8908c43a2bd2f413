"""A cluster of two nodes on the loopback interface: checkpoints of both, and the loss of one in the middle of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
import fedsim
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse
from fedsim.engine.loop import Simulation

keys = dict(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=150_000_000)
cluster = Cluster(initialize_head=True, head_node_args={**keys, "include_dashboard": False})
second = cluster.add_node(**keys)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
sections = {
    "data": {"dataset": "digits", "clients": 8}, "model": {"name": "linear"}, "algorithm": {"name": "scaffold"},
    "run": {"rounds": 8, "eval_every": 4, "dtype": "float64", "device": "cpu"},
}
# Rows of the second node's actor pass through this process; those of the first one's do not.
gossip = {
    **sections, "algorithm": {"name": "gradient_tracking"}, "topology": {"graph": "ring"},
    "backend": {"name": "ray", "actors": 2, "address": "auto"},
}
fedsim.run({**gossip, "run": {**sections["run"], "rounds": 4}}, sys.argv[1] + "/gossip")
far = fedsim.run(gossip, sys.argv[1] + "/gossip", resume=True)
near = fedsim.run({**gossip, "backend": {"name": "vectorized"}}, sys.argv[1] + "/near")
print("by file", far.resumed_at, float((far.params - near.params).abs().max()))

whole = fedsim.run(sections, sys.argv[1] + "/whole")
scenario = parse({**sections, "backend": {"name": "ray", "actors": 2, "address": "auto", "timeout": 20}})
simulation = Simulation(scenario, assemble(scenario), Path(sys.argv[1]) / "lost")

def progress(number, row):
    if number == 4:
        cluster.remove_node(second, allow_graceful=False)

lost = simulation.run(progress)
simulation.backend.close()
print("difference", float((whole.params - lost.params).abs().max()))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_and_the_loss_of_one_change_no_number(tmp_path: Path) -> None:
    environment = os.environ | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    resumed_at, difference = done.stdout.split("by file")[1].split("\n")[0].split()
    assert resumed_at == "4"
    assert float(difference) < 1e-12
    assert float(done.stdout.split("difference")[1].split("\n")[0]) < 1e-12


OUT_OF_MEMORY = """
import os
import sys
import time
from pathlib import Path
import numpy as np
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
import fedsim
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse
from fedsim.engine.loop import Simulation

GIB = 2**30
os.environ["RAY_memory_usage_threshold"] = str((get_used_memory() + 4 * GIB) / get_system_memory())
sections = {
    "data": {"dataset": "digits", "clients": 8}, "model": {"name": "linear"}, "algorithm": {"name": "scaffold"},
    "run": {"rounds": 8, "eval_every": 4, "dtype": "float64", "device": "cpu"},
}
whole = fedsim.run(sections, sys.argv[1] + "/whole")
scenario = parse({**sections, "backend": {"name": "ray", "actors": 2}})
simulation = Simulation(scenario, assemble(scenario), Path(sys.argv[1]) / "crowded")
ray = simulation.backend.cluster.ray
pids = [ray.get(host.ready.remote()) for host in simulation.backend.host.values()]
killed = []

def available():
    told = Path("/proc/meminfo").read_text().split()
    return 1024 * int(told[told.index("MemAvailable:") + 1])

def progress(number, row):
    if number == 4:
        crowd = []  # other programs come and go: what is needed is found out, in small steps
        while not killed and available() > 2 * GIB:
            crowd.append(np.ones(GIB // 8, dtype=np.uint8))
            for _ in range(20):  # one that is killed is to be seen before Ray looks again, and kills the next
                time.sleep(0.01)
                killed.extend(pid for pid in pids if not Path(f"/proc/{pid}").exists())
                if killed:
                    crowd.clear()
                    break

crowded = simulation.run(progress)
simulation.backend.close()
print("killed", len(killed))
print("difference", float((whole.params - crowded.params).abs().max()))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_that_ray_kills_for_its_memory_changes_no_number(tmp_path: Path) -> None:
    told = Path("/proc/meminfo").read_text().split()
    if int(told[told.index("MemAvailable:") + 1]) < 9 * 2**20:
        pytest.skip("needs 9 GiB of free memory, to crowd 4 of them")
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("needs the memory of the machine for itself: run it without -n, as .ci/run does")
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "100"}
    for attempt in range(3):  # where other programs take memory meanwhile, Ray kills more than was meant to be
        done = subprocess.run(
            [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path / str(attempt))], capture_output=True, text=True,
            timeout=400, env=environment,
        )  # fmt: skip
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    said = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("killed", "difference")))
    assert int(said["killed"]) >= 1
    assert float(said["difference"]) < 1e-12


GIVES_UP = """
import sys
import ray
from fedsim.backends.ray.cluster import Cluster
from fedsim.core.errors import RunError

start, times = ray.init, [0]

def init(**keys):
    times[0] += 1
    if times[0] <= int(sys.argv[1]):
        raise Exception("The current node timed out during startup.")
    return start(**keys)

ray.init = init
try:
    cluster = Cluster("local", 1, 100_000_000)
    print(times[0], cluster.resources()["CPU"])
    cluster.close()
except RunError as error:
    print(times[0], error)
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    "failures,told", [(1, "2 1.0"), (2, "2 Ray did not start on this machine: The current node timed out")]
)
def test_where_ray_gives_up_it_is_started_once_more(failures: int, told: str) -> None:
    """On a machine that stands still for half a minute it does; the second start is a real one."""
    done = subprocess.run([sys.executable, "-c", GIVES_UP, str(failures)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(told)
    assert "is started once more: The current node timed out" in done.stderr
