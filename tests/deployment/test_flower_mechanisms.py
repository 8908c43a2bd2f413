"""Every privacy mechanism with every option that `fedsim run` takes: deployed, or refused by `fedsim deploy`.

The mechanisms and their keys come from the registry: one that is not in `CASES` fails a test here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from flower_loopback import Deployment

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names
from fedsim.deployment.app import deploy
from fedsim.privacy.adaptive import Adaptive
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
N, ROUNDS = 3, 2

EVERYBODY: dict[str, Any] = {"mode": "synchronous"}
POISSON = {"mode": "synchronous", "sampling": "poisson", "fraction": 0.7}
DIFF2 = {"name": "diff2", "lr": 0.5, "batch_size": "full", "clip_norm": 1.0, "difference_clip": 1.0, "restart_every": 2}
BVR = {**DIFF2, "name": "diff2_bvr", "inner_batch": 2, "inner_clip": 1.0, "inner_steps": 3}
FULL = {"name": "fedavg", "lr": 0.1, "batch_size": "full"}
ADAM = {"name": "fedadam", "lr": 0.1, "local_steps": 1}
DGD = {"name": "dgd", "lr": 0.1, "batch_size": "full"}
ONE = {"clip_norm": 0.05, "noise_multiplier": 1.0}


@dataclass(frozen=True)
class Case:
    """A mechanism with some of its options, in a scenario that it is for.

    `refused` is what `fedsim deploy` says; `equal`: drawn from the scenario's seed, also the noise is the simulation's.
    """

    mechanism: str
    options: dict[str, Any]
    algorithm: dict[str, Any] = field(default_factory=lambda: {"name": "fedavg", "lr": 0.1, "local_steps": 2})
    participation: dict[str, Any] = field(default_factory=lambda: EVERYBODY)
    graph: bool = False
    refused: str = ""
    equal: bool = True

    def __str__(self) -> str:
        said = "-".join(f"{k}={v}" for k, v in self.options.items() if k not in ONE) or "plain"
        return f"{self.mechanism}-{said}-{self.algorithm['name']}".replace(" ", "")

    def sections(self, data: Path, quiet: bool) -> dict[str, Any]:
        noise = {k: 0.0 for k in self.options if k.endswith("noise_multiplier")} or {"noise_multiplier": 0.0}
        options = self.options if not quiet else {k: v for k, v in self.options.items() if k != "epsilon"} | noise
        return {
            "name": "private",
            "data": {"dataset": "npz", "path": str(data), "clients": N, "partition": {"scheme": "iid"}},
            "model": {"name": "linear"},
            "algorithm": self.algorithm,
            "participation": {"mode": "gossip"} if self.graph else self.participation,
            **({"topology": {"graph": "ring"}} if self.graph else {}),
            "privacy": {"mechanism": self.mechanism, **options},
            "run": {"rounds": ROUNDS, "eval_every": 2, "dtype": "float64", "device": "cpu"},
        }


SECAGG, SHARED = "privacy.trust: found secagg", "privacy.mechanism: found noise that neighbours draw together"
BITS = {"quantile": 0.7, "rate": 0.5, "initial": 0.1, "bit_noise": 0.6}
CASES = [
    Case("dp_fedavg", {**ONE, "trust": "central"}),
    Case("dp_fedavg", ONE, participation=POISSON, equal=False),
    Case("dp_fedavg", {"clip_norm": 0.05, "epsilon": 2.0, "delta": 1e-4, "noise_seed": 5}),
    Case("dp_fedavg", {"noise_multiplier": 1.0, "adaptive": BITS}),
    Case("dp_fedavg", {"epsilon": 4.0, "adaptive": {"bit_noise": 2.0}}, ADAM),
    Case("dp_fedavg", {"noise_multiplier": 1.0, "adaptive": {"bit_noise": 2.0}}, participation=POISSON, equal=False),
    Case("dp_fedavg", {**ONE, "trust": "secagg", "honest": 2}, refused=SECAGG),
    Case("dp_ftrl", {**ONE, "trust": "central", "correlation": "tree", "restart_every": 1}),
    Case("dp_ftrl", {**ONE, "correlation": "banded", "bands": 2}, participation={**EVERYBODY, "clients_per_round": 2},
         equal=False),
    Case("dp_ftrl", {"clip_norm": 0.1, "epsilon": 2.0, "delta": 1e-4, "noise_seed": 5, "correlation": "none"}),
    Case("gaussian", {"noise_multiplier": 1.0, "difference_noise_multiplier": 2.0, "trust": "central"}, DIFF2),
    Case("gaussian", {"epsilon": 2.0, "delta": 1e-4, "noise_seed": 5, "calibration": "paper"}, DIFF2),
    Case("gaussian", {"epsilon": 2.0, "calibration": "exact", "restart_share": 0.5, "trust": "local"}, DIFF2,
         equal=False),
    Case("gaussian", {"noise_multiplier": 1.0, "trust": "secagg", "honest": 2}, DIFF2, refused=SECAGG),
    Case("gaussian_bvr",
         {"noise_multiplier": 1.0, "difference_noise_multiplier": 2.0, "inner_noise_multiplier": 3.0}, BVR,
         equal=False),
    Case("gaussian_bvr", {"epsilon": 9.0, "delta": 1e-4, "noise_seed": 5, "inner_share": 0.3, "trust": "central"}, BVR,
         equal=False),
    Case("gaussian_bvr", {"noise_multiplier": 1.0, "trust": "secagg"}, BVR, refused=SECAGG),
    Case("gaussian_bvr", {"noise_multiplier": 1.0, "trust": "local"}, BVR, refused="privacy.trust: found 'local'"),
    Case("local_dp", {**ONE, "trust": "local"}, {"name": "scaffold", "lr": 0.1, "local_steps": 1}, equal=False),
    Case("local_dp", {"clip_norm": 0.1, "epsilon": 5.0, "delta": 1e-4, "noise_seed": 5}, equal=False),
    Case("dp_sgd", {**ONE, "trust": "local"}, FULL, equal=False),
    Case("dp_sgd", {"clip_norm": 0.1, "epsilon": 5.0, "delta": 1e-4, "noise_seed": 5}, FULL, equal=False),
    Case("dp_sgd", {**ONE, "sampling_rate": 0.5}, equal=False),
    Case("muffliato", {**ONE, "trust": "local", "unit": "node"}, DGD, graph=True, equal=False),
    Case("muffliato", {"clip_norm": 0.1, "epsilon": 5.0, "delta": 1e-4, "noise_seed": 5, "unit": "example",
                       "gossip_steps": 3}, DGD, graph=True, equal=False),
    Case("decor", {**ONE, "trust": "local", "unit": "node", "correlation": 2.0, "adversary": "eavesdropper"}, DGD,
         graph=True, refused=SHARED),
    Case("decor", {"clip_norm": 0.1, "epsilon": 5.0, "delta": 1e-4, "noise_seed": 5, "unit": "example",
                   "adversary": "participant"}, DGD, graph=True, refused=SHARED),
]  # fmt: skip
DEPLOYED = [c for c in CASES if not c.refused]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random, file = np.random.default_rng(3), tmp_path_factory.mktemp("data") / "few.npz"
    y = np.arange(24) % 3
    x = (random.normal(size=(24, 2)) + y[:, None]).astype(np.float32)
    np.savez(file, x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    return file


@pytest.mark.parametrize("name", names("privacy"))
def test_no_mechanism_and_no_option_is_forgotten(name: str) -> None:
    mine = [c.options for c in CASES if c.mechanism == name]
    kinds = get_type_hints(lookup("privacy", name))
    for key in (f.name for f in fields(lookup("privacy", name))):
        given = [options[key] for options in mine if key in options]
        assert given, f"no case has privacy.{key}"
        allowed = get_args(kinds[key]) if get_origin(kinds[key]) is Literal else ()
        assert set(allowed) <= set(map(str, given)), f"cases of privacy.{key} lack one of {allowed}"
    if "adaptive" in kinds:
        told = {key for options in mine for key in options.get("adaptive") or ()}
        assert told == set(Adaptive.model_fields)


@pytest.mark.parametrize("case", DEPLOYED, ids=str)
def test_what_runs_deploys(case: Case, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise it is the simulation, as it is where the server's noise is drawn from the scenario's seed."""
    if case.equal:
        seed = case.options.get("noise_seed", 0)
        monkeypatch.setattr("fedsim.deployment.noise.secrets", SimpleNamespace(randbits=lambda _: seed))
    for quiet in (False,) if case.equal else (True, False):
        sections = case.sections(data, quiet)
        simulated = fedsim.run(sections, out=tmp_path / f"simulated-{quiet}")
        run = Deployment(tmp_path / f"app-{quiet}", sections, N).run()
        apart = float((run.params - simulated.params).abs().max())
        if case.equal or (quiet and "adaptive" not in case.options):
            assert apart < 1e-12
        elif not quiet:  # the noise is another secret's, and so is that on how many updates were within the norm
            assert apart > 1e-6
        assert run.metrics["epsilon"].equals(simulated.metrics["epsilon"])


@pytest.mark.parametrize("case", [c for c in CASES if c.refused], ids=str)
def test_what_does_not_deploy_is_refused_before_anything_is_written(case: Case, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=case.refused):
        deploy(parse(case.sections(data, quiet=False)), tmp_path / "app")
    assert not (tmp_path / "app").exists()
