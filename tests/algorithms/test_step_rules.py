"""By which rule steps are taken together, and who has steps of its own: subclasses, mixins, models beside x."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms.apfl import APFL
from fedsim.algorithms.base import Algorithm, ServerAlgorithm
from fedsim.algorithms.client import adds_to_next, directions_of, for_solver
from fedsim.algorithms.ditto import Ditto, DittoClient
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedcm import FedCM
from fedsim.algorithms.feddyn import FedDyn
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.sam import FedSAM, SharpnessAware
from fedsim.algorithms.scaffold import Scaffold
from fedsim.core.oracle import Oracle
from fedsim.core.returned import WrongFormError
from fedsim.core.rules import Affine, Climb, HeavyBall
from fedsim.core.types import Message, State


def test_who_steps_in_a_way_of_its_own_has_no_rule_but_with_directions_of_its_own() -> None:
    """What an algorithm says of its directions is nothing that its subclasses say of theirs."""

    class Doubled(FedProx):
        def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
            return 2 * super().direction(oracle, x, received, client)

    class Longer(FedProx):
        def pulled(self, g: Tensor, y: Tensor, x: Tensor, a: float) -> Tensor:
            return super().pulled(g, y, x, 2 * a)

    class Other(FedDyn):
        def corrected(self, g: Tensor, x: Tensor, received: Message, client: State) -> Tensor:
            return 2 * g

    class Signs(FedAvg):
        def clipped(self, g: Tensor) -> Tensor:
            return g.sign()

    class Told(Doubled):
        def affine_direction(self, received: Message, client: State) -> Affine:
            once = super().affine_direction(received, client)
            return Affine(2.0, 2 * once.pull, None if once.shift is None else 2 * once.shift)

    assert [part.rule for part in (Doubled(mu=0.1), Longer(), Other(), Signs(), Signs(clip=1.0))] == [None] * 5
    assert not Signs().is_plain_sgd
    assert Told(mu=0.1).rule == HeavyBall()


@pytest.mark.parametrize("name", ServerAlgorithm.stepping)
@pytest.mark.parametrize("base", [FedAvg, FedProx, FedCM, FedDyn, Scaffold])
def test_directions_say_nothing_of_mixins_that_they_do_not_know(base: type[ServerAlgorithm], name: str) -> None:
    """Wherever one stands that has a hand in steps: before, between or behind the classes that have directions."""
    assert base().rule == HeavyBall()
    assert type("Sharp", (SharpnessAware, base), {})().rule == HeavyBall()
    own = type("Own", (Algorithm,), {name: vars(next(b for b in base.__mro__ if name in vars(b)))[name]})
    for bases in ((own, base), (base, own), (own, SharpnessAware, base), (SharpnessAware, own, base)):
        assert type("Mixed", bases, {})().rule is None


def test_a_model_of_one_s_own_has_no_rule_with_ascents_either() -> None:
    assert type("Sharp", (SharpnessAware, APFL), {})().rule is None


def test_what_adds_to_directions_adds_to_those_of_models_beside_as_well() -> None:
    """A climb is one of both models; a mixin that says nothing of the second one takes steps."""
    sharp = type("Sharp", (SharpnessAware, Ditto), {})()
    assert sharp.rule == HeavyBall()
    x = torch.ones(2, 3)
    (along, times), plain = sharp.affine_beside({"x": x}, {"v": x})["v"], sharp.affine_direction({"x": x}, {"v": x})
    assert (along.climb, along.pull, times) == (Climb(0.1), 0.1, 1.0)
    assert plain.climb == Climb(0.1)

    class Silent(Algorithm):
        @adds_to_next
        def affine_direction(self, received: Message, client: State) -> Affine | None:
            return super().affine_direction(received, client)

    assert type("Mixed", (Silent, FedAvg), {})().rule == HeavyBall()
    assert type("Mixed", (Silent, Ditto), {})().rule is None
    assert type("Mixed", (DittoClient, FedProx), {})().rule == HeavyBall()


def test_an_ascent_is_taken_whatever_number_of_gradients_a_subclass_claims() -> None:
    class Modest(FedSAM):
        @property
        def calls_per_step(self) -> int:
            return 1

    assert Modest().climb == Climb(0.1)


ROWS = torch.ones(2, 3, dtype=torch.float64)
WRONG: dict[str, tuple[Any, str]] = {
    "a pair": ((1.0, ROWS), "made tuple, allowed: an Affine of fedsim.core.rules, or None"),
    "text": (Affine(pull="0.1"), "made pull str, allowed: a number"),  # type: ignore[arg-type]
    "a number in a tensor": (Affine(scale=ROWS[0, :1]), r"made scale torch.float64 \[1\], allowed: a number"),  # type: ignore[arg-type]
    "a number": (Affine(shift=0.1), r"made shift float, no tensor, allowed: torch.float64 \[2, 3\] or \[3\]"),  # type: ignore[arg-type]
    "an array": (Affine(shift=ROWS.numpy()), "made shift ndarray, no tensor"),  # type: ignore[arg-type]
    "columns": (
        Affine(shift=ROWS[:, :1]),
        r"made shift torch.float64 \[2, 1\], allowed: .* \[2, 3\] or \[3\], or None",
    ),
    "another width": (Affine(shift=ROWS[:, :2]), r"made shift torch.float64 \[2, 2\]"),
    "another type": (Affine(shift=ROWS.float()), r"made shift torch.float32 \[2, 3\], allowed: torch.float64"),
    "a climb's length": (
        Affine(climb=Climb(ROWS[0, 0])),  # type: ignore[arg-type]
        r"made a climb with rho torch.float64 \[\], allowed: a number",
    ),
    "a climb": (Affine(climb=0.1), "made climb float, allowed: a Climb of fedsim.core.rules, or None"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_directions_of_another_form_are_named(case: str) -> None:
    """Where they are of x, and where they are of a model beside it."""
    found, words = WRONG[case]

    class Own(FedAvg):
        def affine_direction(self, received: Message, client: State) -> Affine | None:
            return found  # type: ignore[no-any-return]

    class Beside(Ditto):
        def affine_beside(self, received: Message, client: State) -> dict[str, tuple[Affine, float]]:
            return {"v": (found, 1.0)}

    local = {"x": ROWS, "v": ROWS}
    for one, method in ((Own(), "affine_direction"), (Beside(), "affine_beside")):
        with pytest.raises(WrongFormError, match=rf"{type(one).__name__}\.{method} \(.*{words}"):
            directions_of(one, local, local, local)


@pytest.mark.parametrize(
    "found,words",
    [
        ([], "made list, allowed: a dict of tensors"),
        ({"w": (Affine(), 1.0)}, "made 'w', allowed: v"),
        ({"x": (Affine(), 1.0)}, "made 'x', allowed: v"),
        ({"v": Affine()}, r"made 'v' Affine, allowed: a pair \(Affine, rate\)"),
        ({"v": (Affine(), ROWS)}, r"made 'v' tuple, allowed: a pair \(Affine, rate\)"),
        ({"v": (None, 1.0)}, r"made 'v' tuple, allowed: a pair \(Affine, rate\)"),
    ],
)
def test_models_beside_are_ones_that_steps_have(found: Any, words: str) -> None:
    class Beside(Ditto):
        def affine_beside(self, received: Message, client: State) -> dict[str, tuple[Affine, float]]:
            return found  # type: ignore[no-any-return]

    local = {"x": ROWS, "v": ROWS}
    with pytest.raises(WrongFormError, match=words):
        directions_of(Beside(), local, local, local)


def test_steps_are_taken_one_by_one_where_they_may_change_something_else() -> None:
    """Nobody says of a count beside the models what becomes of it; what solvers remember of a model is known."""

    class Counting(Ditto):
        def start(self, received: Message, client: State) -> State:
            return {**super().start(received, client), "steps": torch.zeros(2, 1)}

        def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
            return {**super().local_step(oracle, local, received, client), "steps": local["steps"] + 1}

        def affine_direction(self, received: Message, client: State) -> Affine | None:
            return super().affine_direction(received, client)

        def affine_beside(self, received: Message, client: State) -> dict[str, tuple[Affine, float]]:
            return super().affine_beside(received, client)

    class Forgetful(Counting):
        def start(self, received: Message, client: State) -> State:
            return Ditto.start(self, received, client)

        def affine_direction(self, received: Message, client: State) -> Affine | None:
            return super().affine_direction(received, client)

        def affine_beside(self, received: Message, client: State) -> dict[str, tuple[Affine, float]]:
            return {}

    x = torch.ones(2, 3)
    received, client = {"x": x}, {"v": x}
    for kind, known in ((Ditto, True), (Counting, False), (Forgetful, False)):
        algorithm = kind(momentum=0.5)
        assert algorithm.rule == HeavyBall(momentum=0.5)
        local = {**algorithm.begin(received, client), **for_solver({"b": x}), **for_solver({"b": x}, "v")}
        assert (directions_of(algorithm, local, received, client) is not None) == known
