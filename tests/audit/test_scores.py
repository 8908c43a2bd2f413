"""Membership scores and ROC curves on problems whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedsim.audit.scores import confidence, lira, roc, summary


def test_confidence_is_the_logit_of_p() -> None:
    out, y = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 7
    p = torch.softmax(out.double(), -1)[torch.arange(50), y]
    assert torch.allclose(confidence(out, y), torch.logit(p), atol=1e-10)


def test_confidence_survives_certainty() -> None:
    out = torch.tensor([[200.0, 0.0, -1.0], [0.0, 200.0, 0.0]])
    found = confidence(out, torch.tensor([0, 0]))
    expected = [200 - np.log(1 + np.exp(-1.0)), -200.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_confidence_of_one_output_is_the_margin() -> None:
    assert confidence(torch.tensor([[2.0], [2.0]]), torch.tensor([1, 0])).tolist() == [2.0, -2.0]


def world(shadows: int, examples: int, gap: float, hard: float, seed: int = 0):
    """phi ~ N(difficulty + gap * member, 1): easy and hard examples hide `gap` from who looks at phi alone."""
    random = np.random.default_rng(seed)
    difficulty = hard * random.standard_normal(examples)
    members = random.random((shadows + 1, examples)) < 0.5
    phi = difficulty + gap * members + random.standard_normal((shadows + 1, examples))
    return phi[0], members[0], phi[1:], members[1:]


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["global", "per_example"])
def test_lira_reaches_the_likelihood_ratio_test(mode, variance) -> None:
    target, inside, phi, members = world(200, 20_000, 1.0, 10.0)
    auc = roc(lira(target, phi, members, mode, variance), inside).auc
    assert auc == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.02)
    assert roc(target, inside).auc < 0.55  # difficulty drowns it: why LiRA compares with shadow models


def test_lira_online_is_the_log_likelihood_ratio() -> None:
    phi = np.array([[0.0], [2.0], [5.0], [9.0]])
    members = np.array([[False], [False], [True], [True]])
    out, inside = norm(1.0, np.sqrt(2.0)), norm(7.0, np.sqrt(8.0))
    found = lira(np.array([4.0]), phi, members, "online", "per_example")
    assert found[0] == pytest.approx(inside.logpdf(4.0) - out.logpdf(4.0), rel=1e-12)
    assert lira(np.array([4.0]), phi, members, "offline", "per_example")[0] == pytest.approx(3 / np.sqrt(2))


def test_an_example_that_no_shadow_had_gets_the_pooled_mean() -> None:
    phi = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 5.0], [4.0, 7.0]])
    members = np.array([[False, False], [False, False], [True, False], [True, False]])
    scores = lira(np.array([3.0, 3.0]), phi, members, "online", "global")
    assert np.isfinite(scores).all()


def test_roc_of_known_scores() -> None:
    curve = roc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    assert curve.auc == 0.75
    assert curve.balanced_accuracy == 0.75
    assert curve.tpr_at(0.5) == 1.0
    assert curve.tpr_at(0.4) is None  # no threshold lets 0.4 of two others through but none
    table = summary([curve, curve])
    assert (table["members"], table["non_members"], table["tpr_at_fpr_0.01"]) == (2, 2, None)
    assert table["auc"] == {"mean": 0.75, "std": 0.0}


def test_tpr_at_a_low_rate_counts_whole_false_positives() -> None:
    scores = np.concatenate([np.full(30, 3.0), np.full(70, 0.0), np.full(2, 5.0), np.full(298, 1.0)])
    members = np.arange(400) < 100
    curve = roc(scores, members)
    assert curve.tpr_at(0.01) == 0.3  # 3 of 300 may be wrong, and 2 are
    assert curve.tpr_at(0.005) == 0.0
    assert summary([curve])["tpr_at_fpr_0.01"] == {"mean": 0.3, "std": None, "false_positives": 3}
