"""The first sentences of a report: who was first and best, and no such claim where the seeds do not support it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsim.core.metrics import TABLE
from fedsim.reports.findings import findings
from fedsim.reports.groups import Group, Record, group_runs

SHOWN = [TABLE[name] for name in ("test_accuracy", "test_loss")]
FAST = [0.1, 0.7, 0.92, 0.93]
SLOW = [0.1, 0.3, 0.7, 0.91]


def group(label: str, *seeds: Sequence[float | None], finished: bool = True, **settings: str) -> Group:
    def record(seed: int, values: Sequence[float | None]) -> Record:
        rows = [{"round": 5 * k, "test_accuracy": v} for k, v in enumerate(values)]
        return Record(Path(f"{label}-{seed}"), {"seed": seed, "run": {"rounds": 15}}, "", rows, finished)

    return Group(label, [record(i, values) for i, values in enumerate(seeds)], settings)


def test_who_was_first_and_best_with_spreads_apart() -> None:
    a = group("a", FAST, [0.1, 0.72, 0.93, 0.94])
    b = group("b", SLOW, [0.1, 0.2, 0.6, 0.9])
    text = findings([b, a], SHOWN)
    assert text.startswith("a reached 0.9 test accuracy first, by round 10; b by round 15 (mean ")
    assert "At the end a has the highest test accuracy, 0.9350 ± 0.0071; next is b with 0.9050 ± 0.0071" in text
    assert "over 2 seeds" in text


def test_no_claim_where_spreads_overlap() -> None:
    a = group("a", FAST, SLOW)
    b = group("b", SLOW, FAST)
    text = findings([a, b], SHOWN)
    assert text.startswith("No group was clearly the first to reach 0.9 test accuracy: a by round 12.5 ± 3.5 and b by")
    assert "At the end no group has clearly the highest test accuracy" in text
    assert text.count("spreads overlap over 2 seeds") == 2


def test_seeds_that_are_apart_overlap_within_their_standard_deviation() -> None:
    a = group("a", [0.1, 0.80], [0.1, 0.90])  # mean 0.85, standard deviation 0.07
    b = group("b", [0.1, 0.79], [0.1, 0.79])
    assert "no group has clearly the highest" in findings([a, b], SHOWN)


def test_one_seed_each_may_be_chance() -> None:
    text = findings([group("a", FAST), group("b", SLOW)], SHOWN)
    assert text.count("(one seed each, so that this may be chance)") == 2


def test_one_seed_against_several_has_no_spread() -> None:
    assert "some have one seed, whose spread is not known" in findings(
        [group("a", FAST), group("b", SLOW, SLOW)], SHOWN
    )


def test_who_never_got_there_is_said() -> None:
    text = findings([group("a", FAST), group("b", SLOW), group("c", [0.1, 0.2, 0.2, 0.2])], SHOWN)
    assert "; not reached by c." in text


def test_no_level_that_a_group_began_with() -> None:
    text = findings([group("a", [0.5, 0.51]), group("b", [0.1, 0.52])], SHOWN)
    assert "first" not in text
    assert "At the end" in text


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([group("a", FAST), group("b", [0.1, None])], "Left out here: b ended without a finite test accuracy."),
        ([group("a", FAST), group("b", SLOW, finished=False)], "Left out here: 1 of 2 groups are unfinished."),
        (
            [group("a", FAST, **{"data.dataset": "mnist"}), group("b", SLOW, **{"data.dataset": "digits"})],
            "The groups have different data, so that their numbers are not compared.",
        ),
    ],
)
def test_what_cannot_be_compared(groups: list[Group], said: str) -> None:
    text = findings(groups, SHOWN)
    assert text.endswith(said)
    assert "first" not in text
    assert "highest" not in text


def clocked(label: str, seconds: float | None, values: Sequence[float], **participation: Any) -> Group:
    """A group whose rounds take so many virtual seconds each (None: nobody recorded any)."""
    rows = [{"round": 5 * k, "test_accuracy": v} for k, v in enumerate(values)]
    rows = rows if seconds is None else [{**row, "time": seconds * row["round"]} for row in rows]
    scenario = {"participation": participation, "run": {"rounds": 15}}
    return Group(label, [Record(Path(label), scenario, "", rows, True)])


@pytest.mark.parametrize(
    ("slow", "quick", "key"),
    [
        ({"mode": "fixed_interval", "window": 0.5}, {"mode": "asynchronous"}, "participation.mode"),
        ({}, {"mode": "asynchronous"}, "participation.mode"),  # nothing said: synchronous
        ({"mode": "fixed_interval", "window": 0.5}, {"mode": "fixed_interval", "window": 0.1}, "participation.window"),
        ({"mode": "fedbuff", "buffer": 10}, {"mode": "fedbuff", "buffer": 2}, "participation.buffer"),
    ],
)
def test_rounds_of_different_kinds_are_compared_by_virtual_time(
    slow: dict[str, Any], quick: dict[str, Any], key: str
) -> None:
    text = findings([clocked("a", 0.5, FAST, **slow), clocked("b", 0.1, SLOW, **quick)], SHOWN)
    assert text.startswith(
        "b reached 0.9 test accuracy first, by 1.50 virtual seconds (round 15); a by 5 virtual seconds (round 10) (one"
    )
    assert f". Virtual time is compared here, since their rounds are of different kinds ({key}). At the end a " in text
    assert text.endswith(" They ended after 1.5 to 7.5 virtual seconds.")


def test_rounds_of_one_kind_are_compared_as_rounds() -> None:
    text = findings([clocked("a", 0.5, FAST, mode="asynchronous"), clocked("b", 0.1, SLOW, mode="asynchronous")], SHOWN)
    assert text.startswith("a reached 0.9 test accuracy first, by round 10; b by round 15 (")
    assert "virtual" not in text


@pytest.mark.parametrize("other", [{"seconds": None}, {"seconds": 1.0, "mode": "gossip"}])
def test_without_a_clock_nobody_is_first_in_rounds_of_different_kinds(other: dict[str, Any]) -> None:
    """A gossip round is a second where nothing says how long it takes, which is no clock."""
    text = findings([clocked("a", 0.5, FAST, mode="asynchronous"), clocked("b", values=SLOW, **other)], SHOWN)
    assert text.startswith("0.9 test accuracy was reached by these: a by round 10 and b by round 15 (one seed each")
    assert "Which was first is not said: their rounds are of different kinds (participation.mode), and not all" in text
    assert " first, " not in text


def test_real_and_virtual_seconds_are_not_compared(tmp_path: Path) -> None:
    a, b = clocked("a", 0.5, FAST, mode="asynchronous"), clocked("b", 0.1, SLOW)
    (tmp_path / "deployment.json").write_text("{}")
    deployed = Group("b", [replace(b.runs[0], dir=tmp_path)])
    assert "and the seconds of deployments are those of real machines" in findings([a, deployed], SHOWN)


def test_smaller_losses_are_better() -> None:
    made = []
    for label, last in (("a", 0.5), ("b", 0.2)):
        rows = [{"round": 0, "test_loss": 2.0}, {"round": 5, "test_loss": last}]
        made.append(Group(label, [Record(Path(label), {}, "", rows, True)]))
    text = findings(made, SHOWN)
    assert text.startswith("At the end b has the lowest test loss, 0.2; next is a with 0.5 (one seed each")


def test_a_group_alone() -> None:
    assert findings([group("a", FAST)], SHOWN) == "a ended with a test accuracy of 0.9300 after 15 rounds, its best."
    worse = findings([group("a", [*FAST[:3], 0.5])], SHOWN)
    assert worse == "a ended with a test accuracy of 0.5000 after 15 rounds; the best was 0.9200 in round 10."
    several = findings([group("a", FAST, SLOW)], SHOWN)
    assert several == "a ended with a test accuracy of 0.9200 ± 0.0141 over 2 seeds (0.9100 to 0.9300) after 15 rounds."
    assert "is unfinished, so far with" in findings([group("a", FAST, finished=False)], SHOWN)
    assert findings([group("a", [0.1, None])], SHOWN) == "a ended in round 5 without a finite test accuracy."


def test_a_best_that_came_earlier_is_said_with_its_round() -> None:
    text = findings([group("a", [0.1, 0.7, 0.93, 0.93])], SHOWN)
    assert text == "a ended with a test accuracy of 0.9300 after 15 rounds, its best, which it first had in round 10."


def test_on_a_graph_it_is_said_whose_model_was_tested() -> None:
    ring, star = group("ring", FAST), group("star", SLOW)
    for one in (ring, star):
        one.runs[0].rows[-1]["node_accuracy"] = 0.75
    assert findings([ring], SHOWN).endswith(
        " On a graph the test accuracy is that of the mean of all nodes' models; the nodes' own have a node accuracy "
        "of 0.7500, on average."
    )
    ring.runs[0].scenario["attack"] = {"name": "alie", "attackers": 2}
    text = findings([ring, star], SHOWN)
    assert "that of the mean of all honest nodes' models" in text
    assert text.endswith("; the node accuracy is that of models that nodes have.")
    assert "On a graph" not in findings([ring, group("server", SLOW)], SHOWN)


def test_nothing_to_say() -> None:
    assert findings([group("a", FAST), Group("b", [Record(Path("b"), {}, "", [], False)])], SHOWN) == ""
    assert findings([group("a", FAST)], []) == ""


def runs(*scenarios: dict[str, Any]) -> list[Record]:
    return [Record(Path(f"folder-{i}"), one, "", [], True) for i, one in enumerate(scenarios)]


def test_groups_are_named_as_people_named_them() -> None:
    here = {"backend": {"name": "vectorized"}, "algorithm": {"name": "fedavg"}}
    mine, other = {**here, "name": "mine"}, {**here, "name": "other_seed=3", "algorithm": {"name": "x"}, "seed": 3}
    assert [g.label for g in group_runs(runs(mine, other))[0]] == ["mine", "other"]


def test_no_group_is_called_after_what_changes_no_number() -> None:
    here = {"name": "n", "backend": {"name": "vectorized"}, "algorithm": {"name": "fedavg"}, "run": {"trace": True}}
    there = {**here, "backend": {"name": "ray", "actors": 2}, "run": {"trace": False}}
    groups, differing = group_runs(runs(here, there))
    assert [g.label for g in groups] == ["folder-0", "folder-1"]
    assert set(differing) == {"backend.name", "backend.actors", "run.trace"}
    other = {**there, "algorithm": {"name": "scaffold"}}
    labels = [g.label for g in group_runs(runs(here, there, other))[0]]
    assert labels == ["fedavg, folder-0", "fedavg, folder-1", "scaffold"]
