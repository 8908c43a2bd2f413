"""The same rounds in fedsim and in its peers, taking turns on the same cores: milliseconds a round, and ratios.

    python benchmarks/peers.py [--threads 2] [--repeats 5] [--envs DIR] [--peer P] [--cpu] [--write [PAGE]] [work ...]

Peers are fedsim, a lean PyTorch loop (`benchmarks/loops.py`), JAX, Flower's simulation runtime, pfl and fluke, each a
process of its own in an environment that is made once under `--envs`. All start from the same data, partition and
parameters, and compute a first round of the same minibatches, after which their parameters are compared with fedsim's
(they may differ by 1e-4). Then they draw their own minibatches and cohorts and take turns of half a second or a round.
A turn of each comes before those that count. `--cpu` counts the processor's seconds of each process instead, which
other programs disturb less; not of Flower, which has several processes. `--write` puts the table into docs/speed.md,
and a JSON file beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peer.environments import python_of
from peer.prepare import prepare
from peer.works import WORKS
from tables import PAGE, load_words, markdown, page_of, said_of, with_earlier, wrapped, write

HERE = Path(__file__).parent
CLOSE, SECONDS, PATIENCE = 1e-4, 0.5, 900.0
ENVS = Path.home() / ".cache" / "fedsim" / "peers"


@dataclass(frozen=True)
class Peer:
    """A program in the environment of ``requirements/env.txt``; whether it `gossips`: it can be of nodes on a graph."""

    words: str
    script: str
    env: str
    gossips: bool = False


PEERS = {
    "fedsim": Peer("fedsim", "fedsim_engine.py", "fedsim", True),
    "loop": Peer("lean PyTorch loop", "torch_loop.py", "loop", True),
    "jax": Peer("JAX", "jax_vmap.py", "jax", True),
    "flower": Peer("Flower simulation", "flower_simulation.py", "flower"),
    "pfl": Peer("pfl", "pfl_simulated.py", "pfl"),
    "fluke": Peer("fluke", "fluke_serial.py", "fluke"),
}


@dataclass
class Child:
    """A peer's process, which computes when it is asked to."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    versions: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """What it says next.

        Raises
        ------
        RuntimeError
            It has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            end = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"{self.name} ended: {' | '.join(end)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, what: str, seconds: float = 0.0) -> dict[str, Any]:
        """Its answer to `what`: ``first`` or ``turn``."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {seconds}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it; whoever does not go is killed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(60)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def environment(threads: int) -> dict[str, str]:
    """Of every peer's process: as many threads, nothing that calls home, fedsim where this one has it."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    alike = {"RAY_worker_niceness": "0"}  # at 15, Ray's own, actors stand still beside other programs
    return {**os.environ, **quiet, **alike, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def started(name: str, folder: Path, threads: int, envs: Path) -> Child:
    """The process of a peer, which begins to get ready."""
    peer, log = PEERS[name], folder / f"{name}.log"
    command = [python_of(peer.env, envs), str(HERE / "peer" / peer.script), str(folder)]
    own = environment(threads)
    if peer.env != "fedsim":
        own.pop("PYTHONPATH", None)  # its environment has what it needs
    else:
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), own.get("PYTHONPATH")]))
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True, env=own, cwd=folder
        )
    return Child(name, process, log)


def gap(folder: Path, name: str) -> float:
    """Largest difference of a peer's parameters after the first round from fedsim's."""
    ours, theirs = np.load(folder / "after.npy"), np.load(folder / f"after-{name}.npy")
    assert ours.shape == theirs.shape, f"{name} has parameters of shape {theirs.shape}, fedsim {ours.shape}"
    return float(np.abs(ours - theirs).max())


def measured(name: str, peers: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a round of each peer, with how far its parameters are from fedsim's, and its versions."""
    with tempfile.TemporaryDirectory(prefix="peers-") as place:
        folder = Path(place)
        prepare(name, folder, options.threads)
        moved = float(np.abs(np.load(folder / "after.npy") - np.load(folder / "start.npy")).max())
        assert moved > CLOSE, f"a round of {name} moves parameters by {moved} alone: nothing can be compared"
        children = [started(p, folder, options.threads, options.envs) for p in peers]
        try:
            for child in children:
                child.versions = child.answer()["versions"]
                child.ask("first")
            gaps = {child.name: gap(folder, child.name) for child in children}
            far = {peer: value for peer, value in gaps.items() if not value <= CLOSE}
            if far:
                raise RuntimeError(f"{name}: parameters after a round differ from fedsim's by {far}; allowed: {CLOSE}")
            for repeat in range(options.repeats + 1):
                for child in children:
                    took = child.ask("turn", SECONDS)["cpu" if options.cpu else "seconds"]
                    if repeat:  # the first one compiles, and meets everything cold
                        child.seconds.append(took)
        finally:
            for child in children:
                child.close()
    return {
        child.name: {"seconds": child.seconds, "gap": gaps[child.name], "versions": child.versions}
        for child in children
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of turns that followed each other."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Milliseconds a round, and how many times fedsim's that is."""
    names = [p for p in PEERS if any(p in of for of in found.values())]
    rows = []
    for work, of in found.items():
        cells = [WORKS[work].words]
        for name in names:
            if name not in of:
                cells.append("")
                continue
            ms = 1e3 * statistics.median(of[name]["seconds"])
            told = f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
            times = "" if name == "fedsim" else f" ({ratio(of['fedsim']['seconds'], of[name]['seconds']):.2g}x)"
            cells.append(told + times)
        rows.append(cells)
    return markdown(["ms a round (times fedsim's)", *(PEERS[n].words for n in names)], rows)


def told(found: dict[str, dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table with what it is of."""
    versions: dict[str, str] = {}
    for of in found.values():
        for result in of.values():
            versions |= result["versions"]
    listed = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    far = max(result["gap"] for of in found.values() for result in of.values())
    head = (
        f"Medians of {facts['repeats']} turns, {facts['threads']} "
        f"{'thread' if facts['threads'] == 1 else 'threads'}, {facts['machine']}. After the same first round "
        f"parameters differ from fedsim's by at most {far:.0e}. {listed}.{said_of(facts.get('earlier', []))}"
    )
    return f"{wrapped(head)}\n\n{table(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", choices=[*WORKS, []], help="default: all but the trial")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="default: all; fedsim always takes part")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--envs", type=Path, default=ENVS, help="where environments are made (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="seconds of each process's processor")
    parser.add_argument("--write", nargs="?", type=page_of, const=PAGE, help="into this page (default: docs/speed.md)")
    options = parser.parse_args()
    chosen = [p for p in PEERS if p == "fedsim" or p in (options.peer or PEERS)]
    chosen = [p for p in chosen if not (options.cpu and p == "flower")]
    for name in chosen:
        python_of(PEERS[name].env, options.envs)
    began, machine, found = time.perf_counter(), load_words(), {}
    for name in options.work or (w for w in WORKS if w != "trial"):
        peers = [p for p in chosen if PEERS[p].gossips or not WORKS[name].gossip]
        found[name] = measured(name, peers, options)
        print(table({name: found[name]}), flush=True)
    machine += ", seconds of the processor" if options.cpu else ""
    facts = {"repeats": options.repeats, "threads": options.threads, "machine": machine}
    print(f"\n{told(found, facts)}\n\n{time.perf_counter() - began:.0f} s in all")
    if options.write:
        works, kept = with_earlier("peers", options.write, found, lambda of: of["works"])
        facts["earlier"] = [WORKS[name].words for name in kept]
        write("peers", told(works, facts), {**facts, "works": works}, options.write)


if __name__ == "__main__":
    sys.exit(main())
