"""Membership audits: the game is fair, overfitting shows, and what has no examples is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsim.audit.base import Subject
from fedsim.audit.command import audit
from fedsim.audit.membership import Game
from fedsim.core.errors import InputError
from fedsim.scenario.load import parse


def scenario(**sections: Any) -> Any:
    return parse(
        {
            "data": {"dataset": "digits", "clients": 4, "limit": 120},
            "model": {"name": "mlp", "hidden": [16]},
            "algorithm": {"name": "fedavg", "lr": 0.5, "local_epochs": 10, "batch_size": 8},
            "run": {"rounds": 15, "device": "cpu", "threads": 1},
            **sections,
        }
    )


def test_coins_are_fair_and_trained_on() -> None:
    subject = Subject(scenario(data={"dataset": "digits", "clients": 4}))
    games = [Game(subject, i) for i in range(3)]
    for game in games:
        assert abs(game.members.mean() - 0.5) < 0.05
        trained = np.sort(np.concatenate(game.rows))
        assert np.array_equal(game.pool[game.members], trained)
    assert 0.4 < (games[0].members == games[1].members).mean() < 0.6
    assert np.array_equal(games[2].members, Game(subject, 2).members)


def test_a_client_with_one_example_keeps_it() -> None:
    subject = Subject(scenario(data={"dataset": "digits", "clients": 40, "limit": 40}))
    assert min(len(rows) for rows in Game(subject, 0).rows) == 1


def test_an_overfitted_model_gives_its_members_away() -> None:
    report = audit(scenario(audit={"lira": {"shadows": 6}, "loss": {"targets": 2}}))
    lira, loss = (a.finding.results for a in report.audits)
    assert lira["lira_online"]["auc"]["mean"] > 0.6
    assert lira["lira_online"]["targets"] == 7
    assert loss["loss"]["auc"]["mean"] > 0.55
    assert loss["loss"]["tpr_at_fpr_0.001"] is None  # some 60 non-members cannot say
    assert "shadow models" in report.audits[0].finding.threat_model


def test_a_model_that_was_not_trained_gives_nothing_away() -> None:
    lazy = {"name": "fedavg", "lr": 1e-9, "local_steps": 1}
    found = (
        audit(scenario(algorithm=lazy, data={"dataset": "digits", "clients": 4}), ["loss"]).audits[0].finding.results
    )
    assert found["loss"]["auc"]["mean"] == pytest.approx(0.5, abs=0.04)


def test_iha_sees_more_than_the_loss() -> None:
    report = audit(scenario(model={"name": "mlp", "hidden": [4], "activation": "tanh"}), ["iha"])
    found = report.audits[0].finding.results
    assert found["iha"]["auc"]["mean"] > 0.5
    assert set(found) == {"iha", "loss"}


def test_graphs_are_audited_at_the_mean_model() -> None:
    gossip = scenario(
        algorithm={"name": "dspodfl", "lr": 0.3}, topology={"graph": "ring"}, run={"rounds": 3, "device": "cpu"}
    )
    assert "mean model" in audit(gossip, ["loss"]).audits[0].finding.threat_model


@pytest.mark.parametrize(
    "sections,attack,key",
    [
        ({"data": {"dataset": "quadratic", "file": "scenarios/quadratic.npz"}, "model": None}, "loss", "data.dataset"),
        ({"model": {"name": "mlp", "hidden": [100]}}, "iha", "model"),
    ],
)
def test_what_cannot_be_attacked_is_said(sections: dict[str, Any], attack: str, key: str, request: Any) -> None:
    values = {k: v for k, v in {**scenario().document.values, **sections}.items() if v is not None}
    if "file" in values["data"]:
        values["data"] = {**values["data"], "file": str(request.config.rootpath / values["data"]["file"])}
        values["algorithm"] = {"name": "fedavg", "lr": 0.1}
    with pytest.raises(InputError) as caught:
        audit(parse(values), [attack])
    assert caught.value.problems[0].key == key


def test_regression_is_refused_by_lira(tmp_path: Any) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez(tmp_path / "r.npz", x=x, y=x.sum(1))
    data = {"dataset": "npz", "path": str(tmp_path / "r.npz"), "clients": 3}
    s = scenario(data=data, algorithm={"name": "fedavg", "lr": 0.01})
    with pytest.raises(InputError, match="needs classes"):
        audit(s, ["lira"])
    assert "auc" in audit(s, ["loss"]).audits[0].finding.results["loss"]
