"""What a CUDA device asks of the code, shown without one: one device per operator, and no wait in a local step.

A whole process runs every part's scenario on the CPU and on a device that is pretended (`tests/pretended_cuda.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.cli.combinations import completed, setting_of
from fedsim.core import registry
from fedsim.core.errors import InputError
from fedsim.core.fields import keys_of
from fedsim.core.registry import lookup

HERE = Path(__file__).parents[1]
STEPS = (2, 4)
RUN = {"rounds": 1, "eval_every": 1, "dtype": "float64"}
DIGITS = {"dataset": "digits", "clients": 8, "limit": 64}
MORE = {"nan": {"aggregator": {"name": "median"}}}
MANY = ", more steps"
WAITS, TWO_DEVICES = BROKEN = ("waiting_algorithms:WaitsInSteps", "waiting_algorithms:TwoDevices")
KIND = {"compression": "compressor"}
STEPS_KEY = {"diff2_bvr": "inner_steps"}
Sections = dict[str, Any]


def names(kind: str) -> list[str]:
    """Of fedsim's own parts: other tests register some, too."""
    return [name for name in registry.names(kind) if lookup(kind, name).__module__.startswith("fedsim.")]


def fitted(sections: Sections) -> Sections:
    """The scenario without the keys that its algorithm refuses, and with a mode and a model that it takes."""
    modes = [m for m in names("participation") if setting_of("participation", m) == of(sections).setting]
    while True:
        try:
            return completed(sections)
        except InputError as error:
            key = error.problems[0].key or ""
            section, _, name = key.partition(".")
            if key == "participation.mode" and modes:
                sections = {**sections, "participation": {"mode": modes.pop()}}
            elif name in ("local_steps", "batch_size") and name in sections["algorithm"]:
                sections = {**sections, "algorithm": {k: v for k, v in sections["algorithm"].items() if k != name}}
            elif sections["model"]["name"] == "mlp" and section == "algorithm":
                sections = {**sections, "model": {"name": "linear"}}
            else:
                raise


def of(sections: Sections) -> Any:
    return lookup("algorithm", sections["algorithm"]["name"])


def of_algorithm(name: str, steps: int) -> Sections:
    """The smallest scenario of an algorithm; `steps` local ones where it has a number of them."""
    rate = {"lr": 0.02} if "lr" in keys_of(lookup("algorithm", name)) else {}
    return fitted(base(algorithm={"name": name, **rate, STEPS_KEY.get(name, "local_steps"): steps, "batch_size": 4}))


def base(**sections: Any) -> Sections:
    made: Sections = {"data": DIGITS, "model": {"name": "mlp", "hidden": [8]}, "run": RUN, **sections}
    name = made["algorithm"]["name"]
    if setting_of("algorithm", name) == "gossip":
        made["topology"] = {"graph": "complete"}
    if lookup("algorithm", name)().needs.adversary:
        made["adversary"] = {"eps": 0.1}
    return made


def has_steps(sections: Sections) -> bool:
    algorithm = sections["algorithm"]
    return STEPS_KEY.get(algorithm["name"], "local_steps") in algorithm


def with_part(section: str, key: str, name: str) -> Sections:
    """A part with the first algorithm that takes it."""
    last: InputError | None = None
    for algorithm in ("fedavg", "dspodfl", *names("algorithm")):
        try:
            part = {section: {key: name}, **MORE.get(name, {})}
            return fitted(base(algorithm={"name": algorithm, "local_steps": 2, "batch_size": 4}, **part))
        except InputError as error:
            last = error
    raise AssertionError(f"{section} {name}: {last}")


def text(folder: Path, model: str) -> Sections:
    lines = [f"{'to be or not to be'[i % 5 :]},{'ab'[i % 2]}" for i in range(24)]
    (folder / "lines.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    target = {"target": "label"} if model == "text_cnn" else {}
    return {"dataset": "text", "path": str(folder / "lines.csv"), "context": 8, "clients": 3, **target}


def of_model(steps: int, data: Sections = DIGITS, **model: Any) -> Sections:
    return base(data=data, model=model, algorithm={"name": "fedavg", "lr": 0.02, "local_steps": steps, "batch_size": 4})


def with_steps(folder: Path, steps: int) -> dict[str, Sections]:
    """What has local steps, with so many of them."""
    made = {f"algorithm {name}": of_algorithm(name, steps) for name in [*names("algorithm"), *BROKEN]}
    for name in names("model"):
        if name not in ("vgg11", "resnet18"):  # they are large, and have no layer that the others lack
            data = text(folder, name) if name in ("char_lstm", "text_cnn", "transformer") else DIGITS
            made[f"model {name}"] = of_model(steps, data, name=name)
    for name in ("Tied", "Frozen", "Dropped", "DroppedConvolutions", "Attention"):
        made[f"model {name}"] = of_model(steps, name=f"own_models:{name}")
    for how in ("average", "local", "group", "frozen"):
        made[f"batch norm {how}"] = of_model(steps, name="own_models:Normed", batch_norm=how)
    made["lora"] = of_model(steps, name="mlp", hidden=[8], lora={"rank": 2, "targets": ["*"]})
    for name in names("solver"):
        made[f"solver {name}"] = of_model(steps, name="mlp", hidden=[8])
        made[f"solver {name}"]["algorithm"]["solver"] = {"name": name}
    return made


def parts() -> dict[str, Sections]:
    """What works once a round."""
    kinds = {"aggregator": "name", "attack": "name", "compression": "name", "participation": "mode"}
    return {f"{section} {name}": with_part(section, key, name) for section, key in kinds.items()
            for name in names(KIND.get(section, section))}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of every scenario on the device."""
    folder = tmp_path_factory.mktemp("device")
    few, many = (with_steps(folder, steps) for steps in STEPS)
    private = {f"privacy {name}": with_part("privacy", "mechanism", name) for name in names("privacy")}
    asked = {name: {**sections, "compared": True} for name, sections in few.items()}
    asked |= {f"{name}{MANY}": sections for name, sections in many.items() if has_steps(sections)}
    asked |= {**parts(), **private}
    file = folder / "scenarios.json"
    file.write_text(json.dumps(asked))
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "pretended_cuda.py"), str(file)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert set(answers) == set(asked)
    return answers


def test_every_part_computes_on_the_device(found: dict[str, dict[str, Any]]) -> None:
    """No operator has tensors of two places, and nothing of the device is taken for NumPy's."""
    failed = {name: answer["error"] for name, answer in found.items() if "error" in answer}
    assert "TwoDevicesError" in failed.pop(f"algorithm {TWO_DEVICES}")
    failed.pop(f"algorithm {TWO_DEVICES}{MANY}")
    assert failed == {}


def test_the_numbers_are_those_of_the_cpu(found: dict[str, dict[str, Any]]) -> None:
    """To rounding; noise for privacy is drawn by other generators there."""
    apart = {name: answer["apart"] for name, answer in found.items() if "apart" in answer}
    wrong = {name: far for name, far in apart.items() if not far < 1e-12 and not name.startswith("privacy")}
    assert wrong == {}


def test_no_local_step_waits_for_the_device(found: dict[str, dict[str, Any]]) -> None:
    """With more local steps the host waits as often as with few."""
    waiting = {}
    for name, answer in found.items():
        many = found.get(f"{name}{MANY}", {})
        if "waits" in many and "waits" in answer:
            more = {place: count - answer["waits"].get(place, 0) for place, count in many["waits"].items()}
            waiting[name] = {place: count for place, count in more.items() if count}
    assert len(waiting) > len(names("model")) + len(names("solver"))
    waited = waiting.pop(f"algorithm {WAITS}")
    assert waited
    assert all(place.startswith("item at") for place in waited)
    assert {name: more for name, more in waiting.items() if more} == {}
