"""Rules of a server: the mass of the weights, whole messages, and what a rule keeps between rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.core.fields import make_part
from fedsim.core.registry import lookup, names, register
from fedsim.core.types import Aggregate, Message, State
from fedsim.messages.aggregators import Aggregator, Mean
from fedsim.messages.graph_rules import GraphRule
from fedsim.messages.robust import Median, TrimmedMean

ROWS = torch.tensor([[1.0, -4.0], [2.0, 0.0], [6.0, 5.0], [0.0, 1.0]], dtype=torch.float64)
KEYS: dict[str, dict[str, Any]] = {
    **{name: {"f": 1} for name in ("meamed", "krum", "multi_krum", "bulyan")},
    "centered_clipping": {"tau": 4.0}, "fltrust": {"root": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in names("aggregator") if not issubclass(lookup("aggregator", n), GraphRule)])
def test_mass_is_kept(name: str) -> None:
    """Equal rows give ``sum(w) v``: weights of virtual time, which need not sum to 1, are not lost."""
    rule = make_part(lookup("aggregator", name), KEYS.get(name, {}))
    weights = torch.tensor([0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.007], dtype=torch.float64)
    v = torch.tensor([3.0, -2.0], dtype=torch.float64)
    aggregate, _ = rule.bind({"delta": v.expand(7, -1)}, weights, rule.fresh({"delta": v.unsqueeze(0)}))
    assert aggregate(v.expand(7, -1)).tolist() == pytest.approx((0.707 * v).tolist(), abs=1e-12)


@pytest.mark.parametrize("rule", [Mean(), Median(), TrimmedMean(trim=0.25)], ids=lambda r: type(r).__name__)
def test_weights_scale(rule: Aggregator) -> None:
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
    assert rule(ROWS, 0.5 * weights).tolist() == pytest.approx((0.5 * rule(ROWS, weights)).tolist(), abs=1e-12)


def test_middle_of_an_even_number() -> None:
    assert Median()(ROWS, torch.full((4,), 0.25, dtype=torch.float64)).tolist() == [1.5, 0.5]


@register.aggregator("test-first-then-last")
@dataclass(frozen=True)
class Alternating(Aggregator):
    """Takes the whole message of the first client, in the next round that of the last one, and so on."""

    def fresh(self, form: Message) -> State:
        return {"turn": next(iter(form.values())).new_zeros(1)}

    def bind(self, messages: Message, weights: Tensor, state: State) -> tuple[Aggregate, State]:
        row = 0 if float(state["turn"]) % 2 == 0 else -1

        def chosen(values: Tensor, given: Tensor | None = None) -> Tensor:
            return (weights if given is None else given).sum() * values[row]

        return chosen, {"turn": state["turn"] + 1}


def test_a_rule_sees_whole_messages_and_keeps_state(tmp_path: Path) -> None:
    scenario: dict[str, Any] = {
        "data": {"dataset": "quadratic", "file": str(_quadratic(tmp_path))},
        "algorithm": {"name": "fednova", "lr": 1.0, "local_steps": 1},
        "aggregator": {"name": "test-first-then-last"},
        "run": {"rounds": 3, "eval_every": 1, "dtype": "float64"},
    }
    run = fedsim.run(scenario, out=tmp_path / "run")
    assert run.params.tolist() == pytest.approx([1.0, 2.0])  # rounds 1 and 3 follow the first client to its optimum
    scenario["run"]["rounds"] = 2
    fedsim.run(scenario, out=tmp_path / "parts")
    scenario["run"]["rounds"] = 3
    again = fedsim.run(scenario, out=tmp_path / "parts", resume=True)  # its turn is part of the checkpoint
    assert torch.equal(again.params, run.params)


def test_one_of_two_has_to_be_defined() -> None:
    with pytest.raises(TypeError, match="neither __call__ nor bind"):

        class Neither(Aggregator):
            """Defines nothing."""


def _quadratic(folder: Path) -> Path:
    import numpy as np

    file = folder / "q.npz"
    np.savez(file, A=np.ones((3, 2)), b=np.array([[1.0, 2.0], [5.0, 5.0], [-3.0, 0.0]]))
    return file
