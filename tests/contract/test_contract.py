"""One contract over all registered algorithms, and proof that each of its laws can fail."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedsim.cli.app import app
from fedsim.contract.bench import Bench
from fedsim.contract.laws import LAWS, CheckResult, check_algorithm
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names

FORM, UNTOUCHED, SHARDS, AXIS, SEED, DECAY, AFFINE, KEYS, NO_STEP, FLOW, THROUGH, DESCENT, ROUND_TRIP = LAWS
VARIANTS = [
    ("fedavg", ["momentum=0.9", "weight_decay=0.01", "clip=2.0", "server_momentum=0.5", "lr_decay=0.99"]),
    ("fedavg", ["local_epochs=2", "batch_size=full", "weighting=uniform", "server_lr=0.5", "lr=1e-5"]),
    ("fedavg", ["lr=50.0", "lr_decay={step: 0.5, every: 50}", "local_steps=[1, 2, 3, 4, 5, 6]"]),
    ("fedprox", ["mu=0.5", "local_steps={uniform: [1, 5]}"]),
    ("scaffold", ["option=1"]),
    ("scaffold", ["momentum=0.5", "lr_decay={cosine: 500}"]),
    ("feddyn", ["alpha=1.0", "momentum=0.3"]),
    ("fednova", ["mu=0.5"]),
    ("fednova", ["momentum=0.9"]),
    ("fedadam", ["bias_correction=true", "tau=0.1"]),
    ("fedcm", ["alpha=0.5", "momentum=0.5", "local_steps=3"]),
    ("fedsam", ["rho=0.05", "normalize=false", "relaxed_init=0.1"]),
    ("fedgamma", ["option=1", "weight_decay=0.01"]),
    ("fedspeed", ["dual=active", "alpha=0.5", "normalize=false", "lambda=5.0"]),
    ("fedspeed", ["clip=1.0", "clipping=official", "relaxed_init=0.1", "momentum=0.3"]),
    ("fedsmoo", ["clip=1.0", "clipping=corrected", "relaxed_init=0.1"]),
    ("fedamd", ["anchor_every=3", "weight_decay=0.01", "weighting=uniform"]),
    ("qffl", ["q=5.0", "lipschitz=3.0"]),
    ("dspodfl", ["local_steps=3", "momentum=0.9"]),
    ("dfedavg", ["local_steps=5", "weight_decay=0.01"]),
    ("periodic_gossip", ["every=3"]),
    ("gradient_tracking", ["lr=0.02", "clip=100.0"]),
    ("dadao", ["weight_decay=0.01", "batch_size=1"]),
    ("acid", ["momentum=0.5", "weight_decay=0.01", "alpha_tilde=2.0"]),
    ("acid", ["eta=0.0", "clip=1.0"]),
]


@functools.cache
def failed_by(broken: str) -> dict[str, str]:
    return failed(check_algorithm(f"broken_algorithms:{broken}", []))


def failed(results: list[CheckResult]) -> dict[str, str]:
    return {r.name: r.detail for r in results if not r.passed}


@pytest.mark.parametrize("name", names("algorithm"))
def test_registered_algorithms_keep_every_law(name: str) -> None:
    results = check_algorithm(name, [])
    assert [r.name for r in results][1:] == list(LAWS)
    assert failed(results) == {}


@pytest.mark.parametrize("name,settings", VARIANTS, ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_and_with_other_keys(name: str, settings: list[str]) -> None:
    assert failed(check_algorithm(name, settings)) == {}


def test_somebodys_own_algorithm_keeps_every_law() -> None:
    results = check_algorithm("broken_algorithms:Good", ["bound=5.0", "local_steps=2"])
    assert failed(results) == {}
    assert len(results) == 1 + len(LAWS)


@pytest.mark.parametrize(
    "broken,law,says",
    [
        ("StepsInPlace", UNTOUCHED, ["local_step changed its input 'x'", "make a new tensor"]),
        ("MovesTheServerInPlace", UNTOUCHED, ["combine changed its input 'x'"]),
        ("ScalesMessages", UNTOUCHED, ["combine changed its input 'delta'"]),
        ("ForgetsTheClient", UNTOUCHED, ["message added or removed keys", "['sum'] became []"]),
        ("CentresOverClients", SHARDS, ["round 1, message 'delta' of client", "dim=-1"]),
        ("MeanWithoutDim", SHARDS, ["message 'delta' of client", "dim=-1"]),
        ("CountsRows", SHARDS, ["round 1, message 'delta' of client"]),
        ("NeedsAClientAxis", AXIS, ["IndexError", "broken_algorithms.py", "in direction"]),
        ("ScalarMeanAtTheServer", DESCENT, ["above its minimum", "sign wrong"]),
        ("GlobalRandom", SEED, ["round 1, message 'delta'", "a generator that the seed does not reach"]),
        ("RemembersBetweenRuns", SEED, ["round 1, state 'x'", "keeps something between runs"]),
        ("WrongSign", DESCENT, ["above", "sign wrong"]),
        ("WrongSignOnAGraph", DESCENT, ["sign wrong"]),
        ("DoesNothing", DESCENT, ["does nothing reach the state"]),
        ("Overflows", SHARDS, ["not finite"]),
        ("SumsParametersAway", FORM, ["'size' has shape [1]", "allowed: [1, 5] or [1, 1]"]),
        ("HalvesThePrecision", FORM, ["'delta' is torch.float32", "torch.float64"]),
        ("SendsATensor", FORM, ["message, what is sent: found Tensor", "a dict of tensors"]),
        ("LeavesItAtHome", FORM, ["lets delta stay with the client", "nothing stays under a server"]),
        ("SendsAndKeeps", FORM, ["sends delta and lets it stay", "one of the two"]),
        ("ReturnsAPair", FORM, ["message gave 2 values", "what is sent, what stays, what is kept"]),
        ("NeedsAStep", NO_STEP, ["message needs 'g'", "which only local_step makes"]),
        ("ReadsMoreThanChange", NO_STEP, ["marked with reads_change, but reads 'x' of local"]),
        ("ReadsTheChangeOtherwise", NO_STEP, ["of x and of its change alone", "read change(local, received), not x"]),
        ("DividesByItsSteps", NO_STEP, ["what is sent without a local step: 'delta' is not finite"]),
        ("FlowsByEuler", FLOW, ["in one and in two stretches", "an Euler step is none"]),
        ("FlowsUnsaid", FLOW, ["the state after a second", "Needs(flows=True)"]),
        ("NeverDecays", DECAY, ["at a quarter of the learning rate", "use oracle.lr"]),
        (
            "SaysOtherDirections",
            AFFINE,
            ["x after local step 1 and along affine_direction", "scale g + pull x"],
        ),
        ("ForgetsTheClip", AFFINE, ["x after local step 1 and along affine_direction with clip 0.1"]),
        ("StepsWithoutTheSolver", AFFINE, ["along affine_direction with momentum 0.5 and weight_decay 0.1"]),
        ("StepsWithoutTheSolver", KEYS, ["weight_decay 0.3 is accepted and changes nothing", "self.step"]),
        ("ForgetsTheMomentum", KEYS, ["momentum 0.5 is accepted and changes nothing"]),
        ("PullsByItsRate", AFFINE, ["at a lower rate, as lr_decay has it", "the same at every rate"]),
        ("CountsOneGradient", AFFINE, ["calls_per_step is 1, affine directions take 2 gradients per step"]),
        ("SaysItInPlace", UNTOUCHED, ["affine_direction", "x"]),
        ("SaysItInAPair", AFFINE, ["SaysItInAPair.affine_direction", "made tuple, allowed: an Affine"]),
        ("SumsPastTheAggregator", THROUGH, ["round 1, state", "'x' differs by", "past aggregate"]),
        ("CallsItW", FORM, ["keys ['w']", "'x' of shape [5]"]),
        ("DoublesItsKey", ROUND_TRIP, ["mu changes", "mu=1.0", "mu=2.0"]),
        ("Crashes", FORM, ["KeyError: 'control'", "broken_algorithms.py:", "in direction"]),
        ("CheckCrashes", "keys fit together", ["ZeroDivisionError: no luck with 6", "in check"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_every_law_catches_who_breaks_it(broken: str, law: str, says: list[str]) -> None:
    found = failed_by(broken)
    assert law in found
    for words in says:
        assert words in found[law]


@pytest.mark.parametrize(
    "broken,laws",
    [
        ("MovesTheServerInPlace", {UNTOUCHED}),
        ("ScalesMessages", {UNTOUCHED}),
        ("CentresOverClients", {SHARDS, AXIS}),
        ("NeedsAClientAxis", {AXIS}),
        ("ScalarMeanAtTheServer", {DESCENT, THROUGH}),
        ("NeverDecays", {DECAY, KEYS}),
        ("SaysOtherDirections", {AFFINE}),
        ("ForgetsTheClip", {AFFINE}),
        ("StepsWithoutTheSolver", {AFFINE, KEYS}),
        ("ForgetsTheMomentum", {KEYS}),
        ("PullsByItsRate", {AFFINE}),
        ("CountsOneGradient", {AFFINE}),
        ("SumsPastTheAggregator", {THROUGH}),
        ("SaysThatItSums", set()),
        ("RemembersBetweenRuns", {SEED, DESCENT, SHARDS, THROUGH}),
        ("WrongSignOnAGraph", {DESCENT}),
        ("DoesNothing", {DESCENT}),
        ("DoublesItsKey", {ROUND_TRIP}),
    ],
)
def test_and_only_that_law(broken: str, laws: set[str]) -> None:
    assert set(failed_by(broken)) <= laws


def test_an_algorithm_s_solver_keeps_its_own_laws() -> None:
    found = check_algorithm("fedavg", ["solver={name: 'broken_parts:SaysInPlace'}"])
    assert "solver: a step in place is x - lr v" in failed(found)
    assert not failed(check_algorithm("fedavg", ["solver={name: nesterov, state: kept}"]))


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    check_algorithm("fedavg", [])
    after = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]


@pytest.mark.parametrize(
    "name,settings,says",
    [
        ("fedavgg", [], "did you mean 'fedavg'"),
        ("broken_algorithms:Missing", [], "unknown attribute"),
        ("broken_algorithms:NotAnAlgorithm", [], "inherits fedsim.Algorithm"),
        ("broken_algorithms:CALLS", [], "inherits fedsim.Algorithm"),
        ("broken_algorithms:Unfinished", [], "does not define combine"),
        ("no_such_module:X", [], "cannot import 'no_such_module'"),
        ("fedprox", ["muu=1"], "did you mean 'mu'"),
        ("fedprox", ["mu=-1"], "mu: found -1"),
        ("fedprox", ["mu"], "key.path=value"),
        ("fedavg", ["lr=fast"], "found 'fast'"),
    ],
)
def test_what_is_no_algorithm_is_an_input_error(name: str, settings: list[str], says: str) -> None:
    with pytest.raises(InputError, match=r".") as error:
        check_algorithm(name, settings)
    assert says in str(error.value)


def test_keys_that_do_not_fit_are_the_only_result() -> None:
    results = check_algorithm("fednova", ["mu=0.5", "momentum=0.5"])
    assert [(r.name, r.passed) for r in results] == [("keys fit together", False)]
    assert "not for both" in results[0].detail


def test_the_bench_is_hard_enough() -> None:
    """Unequal steps, idle nodes where allowed, changing cohorts, different objectives."""
    server, node, tracker = (Bench(lookup("algorithm", n)()) for n in ("fedavg", "dspodfl", "gradient_tracking"))
    cohorts = [server.cohort(t) for t in (1, 2, 3, 4)]
    assert len({tuple(c) for c, _ in cohorts}) == 4
    assert all(len(set(s.tolist())) > 1 for _, s in cohorts)
    assert any(0 in node.cohort(t)[1] for t in (1, 2, 3, 4))
    assert all((tracker.cohort(t)[1] == 1).all() for t in (1, 2, 3, 4))
    assert np.abs(server.b - server.b.mean(0)).max() > 0.1
    assert len(set(server.p.tolist())) == 6


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["check", *arguments])


def test_the_command_passes_and_fails() -> None:
    good = command("broken_algorithms:Good", "--set", "bound=3.0")
    assert good.exit_code == 0
    assert good.output.count("passed") == 1 + len(LAWS)
    bad = command("broken_algorithms:WrongSign")
    assert bad.exit_code == 1
    assert "FAILED" in bad.output
    assert isinstance(command("broken_algorithms:NotAnAlgorithm").exception, InputError)
