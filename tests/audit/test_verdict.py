"""The sentence and the table at the head of an audit's page."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.audit.base import Finding
from fedsim.audit.verdict import outcomes, verdict

BOUND = {"claimed_epsilon": 3.0, "lower_bound": 0.5, "confidence": 0.95, "one_run": {"most_it_could_show": 3.4}}
MEMBERS = {
    "lira_online": {"auc": {"mean": 0.61, "std": 0.02}, "tpr_at_fpr_0.01": {"mean": 0.05}},
    "loss": {"auc": {"mean": 0.55, "std": None}, "tpr_at_fpr_0.01": None},
}
PICTURES = {"victims": 2, "psnr_db": {"mean": 20.0, "std": 1.0, "median": 21.0, "best": 22.5}}


def found(alarm: str | None = None, **results: Any) -> dict[str, Finding]:
    return {name: Finding("The attacker", told, alarm) for name, told in results.items()}


def test_each_attack_is_one_row() -> None:
    every = outcomes(found(canaries=BOUND, lira=MEMBERS, idlg=PICTURES, own={"flag": True, "hits": 7}, none={}))
    assert [one.cells for one in every] == [
        (
            "canaries",
            "lower bound on epsilon, confidence 95%",
            "0.5",
            "claimed: 3; the most that it could show: 3.4",
        ),
        ("lira online of lira", "AUC", "0.610 ± 0.020", "guessing: 0.5; true positives 5.0% at 1 % false ones"),
        ("loss of lira", "AUC", "0.550", "guessing: 0.5"),
        ("idlg", "PSNR, median", "21.0 dB", "best 22.5 dB; below some 12 dB nothing is to be seen"),
        ("own", "hits", "7", ""),
        ("none", "", "", "see below"),
    ]


@pytest.mark.parametrize(
    ("findings", "claim", "said"),
    [
        (found(a=BOUND, b={**BOUND, "lower_bound": 1.25}), {"epsilon": 3.0},
         "No audit shows the claimed epsilon of 3 to be false (the largest lower bound, of b, is 1.25)."),
        (found("5 is more than 3.", a=BOUND), {"epsilon": 3.0},
         "Alarm: what is claimed was shown to be false (a: 5 is more than 3)."),
        (found(lira=MEMBERS), {"epsilon": 3.0},
         "The claimed epsilon of 3 was not tested, as no audit here bounds it from below; the best attack on "
         "membership, lira online of lira, has an AUC of 0.610 ± 0.020 (guessing: 0.5)."),
        (found(loss={"loss": MEMBERS["loss"]}), None,
         "No epsilon is claimed; the best attack on membership, loss, has an AUC of 0.550 (guessing: 0.5)."),
        (found(idlg=PICTURES, other={"psnr_db": {**PICTURES["psnr_db"], "median": 9.0}}), None,
         "No epsilon is claimed; the best reconstruction, by idlg, has a median PSNR of 21.0 dB, above the 12 dB or so "
         "from which something is to be seen."),
    ],
)  # fmt: skip
def test_the_sentence(findings: dict[str, Finding], claim: dict[str, Any] | None, said: str) -> None:
    assert verdict(findings, claim) == said


@pytest.mark.parametrize(
    ("told", "cells"),
    [
        ({"mine": {"auc": 0.6, "tpr_at_fpr_0.01": 0.2}},
         ("mine of own", "AUC", "0.600", "guessing: 0.5; true positives 20.0% at 1 % false ones")),
        ({"psnr_db": 13.0}, ("own", "PSNR, median", "13.0 dB", "best 13.0 dB; below some 12 dB nothing is to be seen")),
        ({"victims": 1, "psnr_db": {"median": float("nan"), "best": float("nan")}}, ("own", "PSNR, median", "–", "")),
        ({"lower_bound": None, "tries": 3}, ("own", "tries", "3", "")),
        ({"lower_bound": 1, "claimed_epsilon": None, "confidence": None}, ("own", "lower bound on epsilon", "1", "")),
    ],
)  # fmt: skip
def test_results_of_any_form_are_told(told: dict[str, Any], cells: tuple[str, ...]) -> None:
    findings = found(own=told)
    assert [one.cells for one in outcomes(findings)] == [cells]
    assert verdict(findings, {"epsilon": 3.0}).endswith(".")
