"""Runs with attackers: who they are, what is measured of the honest ones, and what is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attackers_bench import DIGITS, V, refused, rows, rows_of, scenario_of
from reference import attacks as reference

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.deployment.noise import check_trust
from fedsim.engine.assembly import assemble
from fedsim.engine.elsewhere import Held, load_data
from fedsim.scenario.load import parse

# --- under a server ---------------------------------------------------------------------------------------------------


def test_a_round_of_attackers_and_honest_clients(seven: dict[str, Any], tmp_path: Path) -> None:
    """A round moves to the mean of what arrives: five honest rows of V, and twice what the attackers send."""
    honest = np.array(V[:5])
    attacks = {
        "alie": ({"z": 1.0}, reference.alie(honest, 1.0)),
        "min_max": ({}, reference.min_max(honest, "std")),
        "ipm": ({"eps": 0.5}, reference.ipm(honest, 0.5)),
        "zero": ({}, np.zeros(3)),
    }
    for name, (keys, sent) in attacks.items():
        scenario = {**seven, "attack": {"name": name, "attackers": [5, 6], **keys}}
        scenario["run"] = {**seven["run"], "rounds": 1}
        run = fedsim.run(scenario, out=tmp_path / name)
        assert run.params.numpy() == pytest.approx((honest.sum(0) + 2 * sent) / 7, abs=1e-12)


def test_measured_on_honest_clients(seven: dict[str, Any], tmp_path: Path) -> None:
    """Loss and optimum are those of the five honest clients; the attackers' own problem does not count."""
    honest = np.array(V[:5])
    run = fedsim.run({**seven, "attack": {"name": "zero", "attackers": [5, 6]}}, out=tmp_path / "run")
    x, last = run.params.numpy(), rows(run)[-1]
    assert last["train_loss"] == pytest.approx(0.5 * ((x - honest) ** 2).sum(1).mean(), abs=1e-12)
    assert last["optimum_distance"] == pytest.approx(np.linalg.norm(x - honest.mean(0)), abs=1e-12)


def test_what_is_written_down(seven: dict[str, Any], tmp_path: Path) -> None:
    cohorts = {"mode": "synchronous", "clients_per_round": 3}
    scenario = {**seven, "participation": cohorts, "attack": {"name": "ipm", "attackers": 2}}
    run = fedsim.run(scenario, out=tmp_path / "run")
    found = json.loads((run.dir / "attack.json").read_text())
    assert found == {
        "attackers": found["attackers"], "name": "ipm", "start": 1, "f": None, "delta_max": None, "honest_gap": None,
        "connected": None, "within_bound": None,
    }  # fmt: skip
    assert len(found["attackers"]) == 2
    for row in run.trace:
        assert row["attackers"] == sorted(set(row["clients"]) & set(found["attackers"]))
    again = fedsim.run(seven, out=run.dir)
    assert not (run.dir / "attack.json").exists()
    assert "attackers" not in again.trace[0]


@pytest.mark.parametrize("attackers", [0, []])
def test_nobody_attacks(seven: dict[str, Any], tmp_path: Path, attackers: Any) -> None:
    plain = fedsim.run(seven, out=tmp_path / "plain")
    run = fedsim.run({**seven, "attack": {"name": "alie", "attackers": attackers}}, out=tmp_path / "run")
    assert torch.equal(run.params, plain.params)
    assert rows(run) == rows(plain)
    assert run.trace == plain.trace


@pytest.mark.parametrize("name,keys", [("gaussian", {}), ("alie", {}), ("mimic", {}), ("backdoor", {"target": 3})])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, name: str, keys: dict[str, Any]) -> None:
    scenario = {**DIGITS, "attack": {"name": name, "attackers": 2, **keys}}
    whole = fedsim.run({**scenario, "run": {**DIGITS["run"], "rounds": 4}}, out=tmp_path / "whole")
    fedsim.run(scenario, out=tmp_path / "half")
    rest = fedsim.run({**scenario, "run": {**DIGITS["run"], "rounds": 4}}, out=tmp_path / "half", resume=True)
    assert torch.equal(rest.params, whole.params)
    assert rows(rest) == rows(whole)


def test_start(seven: dict[str, Any], tmp_path: Path) -> None:
    """On a clock `start` is a round of the server too, though clients count their own jobs."""
    clock = {"mode": "fedbuff", "buffer": 3, "weights": "identical"}
    honest = np.array(V[:5])
    for name, mode in (("synchronous", {}), ("fedbuff", {"participation": clock, "system": {"compute": 1.0}})):
        clean = []
        for rounds in range(1, 6):
            plain = {**seven, **mode, "run": {**seven["run"], "rounds": rounds}}
            x = fedsim.run(plain, out=tmp_path / f"{name}-{rounds}").params.numpy()
            clean.append(float(0.5 * ((x - honest) ** 2).sum(1).mean()))
        for start in (3, 4):
            attack = {"name": "zero", "attackers": [5, 6], "start": start}
            late = fedsim.run({**plain, "attack": attack}, out=tmp_path / f"{name}-from-{start}")
            found = [row["train_loss"] for row in rows(late)[1:]]
            assert found[: start - 1] == pytest.approx(clean[: start - 1], abs=1e-12)
            assert abs(found[-1] - clean[-1]) > 1e-3  # a buffer may be without attackers, but not all of them


@pytest.mark.parametrize("mode", [{}, {"participation": {"mode": "fedbuff", "buffer": 3, "weights": "identical"}}])
def test_a_start_after_the_end(seven: dict[str, Any], tmp_path: Path, mode: dict[str, Any]) -> None:
    message = refused({**seven, **mode, "attack": {"name": "zero", "attackers": 2, "start": 4}}, tmp_path / "run")
    assert "attack.start: found 4, but the run has 3 rounds: nobody would attack; allowed: 1 to 3" in message


# --- poisoned data ----------------------------------------------------------------------------------------------------


def test_labels_are_flipped_for_attackers_alone() -> None:
    plain = assemble(scenario_of(DIGITS)).task
    found = assemble(scenario_of({**DIGITS, "attack": {"name": "label_flip", "attackers": [1, 4]}})).task
    for client in range(6):
        x, y = rows_of(plain, client)
        poisoned_x, poisoned_y = rows_of(found, client)
        assert torch.equal(x, poisoned_x)
        expected = reference.reversed_labels(y.tolist(), 10) if client in (1, 4) else y.tolist()
        assert poisoned_y.tolist() == expected
    assert torch.equal(plain.test_targets, found.test_targets)


def test_labels_flipped_twice_are_what_they_were() -> None:
    part = scenario_of({**DIGITS, "attack": {"name": "label_flip", "attackers": 1}}).attack
    x, y = torch.zeros(7, 3), torch.tensor([0, 1, 2, 3, 9, 9, 4])
    once = part.rows(x, y, 10, 0, 0)
    assert once[1].tolist() == [9, 8, 7, 6, 0, 0, 5]
    assert torch.equal(part.rows(*once, 10, 0, 0)[1], y)


def test_a_backdoor_changes_a_share_of_the_rows() -> None:
    attack = {"name": "backdoor", "attackers": [2], "target": 7, "share": 0.25, "patch": 2, "value": 0.5}
    plain, found = (assemble(scenario_of({**DIGITS, **more})).task for more in ({}, {"attack": attack}))
    x, y = rows_of(plain, 2)
    poisoned_x, poisoned_y = rows_of(found, 2)
    changed = (x != poisoned_x).flatten(1).any(1)
    assert int(changed.sum()) == round(0.25 * len(y))
    assert (poisoned_y[changed] == 7).all()
    assert torch.equal(poisoned_y[~changed], y[~changed])
    image = poisoned_x[changed]
    assert (image[..., -2:, -2:] == 0.5).all() if image.dim() > 2 else (image[..., -2:] == 0.5).all()


def test_how_often_a_backdoor_opens(tmp_path: Path) -> None:
    """The share of test rows of other classes that the trigger turns into the target, counted by hand."""
    attack = {"name": "backdoor", "attackers": 3, "target": 7, "share": 1.0}
    run = fedsim.run({**DIGITS, "attack": attack, "run": {**DIGITS["run"], "rounds": 20}}, out=tmp_path / "run")
    honest = fedsim.run({**DIGITS, "run": {**DIGITS["run"], "rounds": 20}}, out=tmp_path / "honest")
    assert "attack_success" not in honest.metrics
    scenario = scenario_of({**DIGITS, "attack": attack})
    task = assemble(scenario).task
    hits = []
    for x, y in zip(task.test_inputs, task.test_targets.tolist(), strict=True):
        if y != 7:
            guess = task.kernel.outputs(run.params.unsqueeze(0), scenario.attack.triggered(x.unsqueeze(0)))
            hits.append(int(guess.argmax()) == 7)
    assert run.metrics["attack_success"].iloc[-1] == pytest.approx(np.mean(hits), abs=1e-12)
    assert np.mean(hits) > 0.5


def test_the_training_loss_is_that_of_clean_rows(tmp_path: Path) -> None:
    attacked = {**DIGITS, "attack": {"name": "label_flip", "attackers": [1, 4]}}
    run = fedsim.run(attacked, out=tmp_path / "run")
    task = assemble(scenario_of(DIGITS)).task
    honest = [rows_of(task, client) for client in (0, 2, 3, 5)]
    x, y = (torch.cat([pair[i] for pair in honest]) for i in (0, 1))
    loss = torch.nn.functional.cross_entropy(task.kernel.outputs(run.params.unsqueeze(0), x)[0], y)
    assert run.metrics["train_loss"].iloc[-1] == pytest.approx(float(loss), abs=1e-12)


def test_boosted_messages() -> None:
    attack = {"name": "backdoor", "attackers": [1], "target": 0, "boost": 5.0}
    part = scenario_of({**DIGITS, "attack": attack}).attack
    one = np.ones(2, dtype=np.int64)
    messages = {"delta": torch.ones(2, 3), "steps": torch.ones(2, 1)}
    sent, _ = part.send(messages, {}, Job(np.array([0, 1]), one, one, {}), RunFacts(0, 6))
    assert sent["delta"].tolist() == [[1.0] * 3, [5.0] * 3]
    assert sent["steps"].tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("client,poisoned", [(1, True), (2, False)])
def test_a_machine_of_a_deployment_poisons_its_own_rows(client: int, poisoned: bool) -> None:
    """A client of a deployment has its rows alone, and attacks where the scenario says that it does."""
    data = load_data(parse(DIGITS))
    sizes = np.full(6, len(data.train_y))
    scenario = parse({**DIGITS, "attack": {"name": "label_flip", "attackers": [1, 4]}})
    check_trust(scenario)
    _, labels = rows_of(assemble(scenario, held=Held(data, client, sizes)).task, client)
    assert labels.tolist() == [9 - y if poisoned else y for y in data.train_y.tolist()]


@pytest.mark.parametrize(
    "attack", [{"name": "zero"}, {"name": "alie"}, {"name": "backdoor", "target": 1, "boost": 2.0}]
)
def test_machines_of_a_deployment_send_what_they_send(attack: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="poisoned data"):
        check_trust(parse({**DIGITS, "attack": {"attackers": 2, **attack}}))
    check_trust(parse({**DIGITS, "attack": {"attackers": 2, "name": "backdoor", "target": 1}}))
