"""`fedsim check` on every kind of part: the built-in ones keep their laws, and each law can fail."""

from __future__ import annotations

import broken_parts
import pytest

import fedsim
from fedsim.contract.check import PROMISES, kind_of
from fedsim.core.registry import KINDS, names

ATTACKS = (
    "sign_flip",
    "alie",
    "ipm",
    "min_max",
    "mimic",
    "random",
    "zero",
    "nan",
    "label_flip",
    "dissensus",
    "spectral",
)
SETTINGS = {
    "top_k": ["k=2"], "rand_k": ["k=3"], "qsgd": ["levels=3"], **{k: ["attackers=3"] for k in ATTACKS},
    "attack gaussian": ["attackers=3"], "backdoor": ["attackers=3", "target=1", "boost=2.0"],
    "trimmed_mean": ["trim=0.2"], **{n: ["f=1"] for n in ("nna", "cs_he", "cs_plus", "gts", "ios", "bridge")},
    "centered_clipping": ["tau=100.0"], "fltrust": ["root=3"],
    "meamed": ["f=2"], "krum": ["f=2"], "multi_krum": ["f=2"], "bulyan": ["f=2"],
    "barabasi_albert": ["m=2"], "erdos_renyi": ["p=0.6"], "expander": ["degree=3"], "k_regular": ["degree=4"],
    "random_geometric": ["radius=0.5"], "watts_strogatz": ["k=4", "p=0.2"],
    "sequence": ["graphs=[{graph: ring}, {graph: star}]", "every=2"],
       "dp_sgd": ["clip_norm=1.0", "sampling_rate=0.3"], "dp_fedavg": ["clip_norm=0.5"], "dp_ftrl": ["clip_norm=1.0"],
    "local_dp": ["clip_norm=1.0"], "decor": ["clip_norm=1.0"], "muffliato": ["clip_norm=1.0"],
}  # fmt: skip
OWN_TESTS = ("algorithm", "participation", "backend", "dataset", "partition")
NEED_MORE = [  # a file, samples, clusters, its library
    ("graph", "file"), ("metric", "ensemble"), ("metric", "clusters"), ("logger", "wandb")
]  # fmt: skip
BUILT_IN = [(k, name) for k in PROMISES if k not in OWN_TESTS for name in names(k) if (k, name) not in NEED_MORE]


def failed(name: str, settings: list[str] | None = None, kind: str | None = None) -> dict[str, str]:
    return {r.name: r.detail for r in fedsim.check(name, settings or [], kind) if not r.passed}


@pytest.mark.parametrize("kind,name", BUILT_IN, ids=lambda v: v)
def test_built_in_parts(kind: str, name: str) -> None:
    assert failed(name, SETTINGS.get(f"{kind} {name}", SETTINGS.get(name)), kind) == {}


@pytest.mark.parametrize("settings", [["feedback=ef14"], ["feedback=ef21"], ["keys=[delta]"]])
def test_feedback(settings: list[str]) -> None:
    assert failed("top_k", ["k=2", *settings]) == {}


@pytest.mark.parametrize("name,settings", [("digits", []), ("synthetic", ["alpha=0.5", "beta=0.5"])])
def test_data_sets(name: str, settings: list[str]) -> None:
    assert failed(name, settings) == {}


def test_the_backend_in_this_process() -> None:
    assert failed("fedsim.backends.in_process:Vectorized", kind="backend") == {}


@pytest.mark.parametrize(
    "name,kind,law",
    [
        ("Upwards", "solver", "descends on a quadratic"),
        ("SharesMomentum", "solver", "arithmetic on the last axis"),
        ("Overwrites", "solver", "inputs are not mutated"),
        ("Wobbles", "solver", "same seed, same numbers"),
        ("SaysInPlace", "solver", "a step in place is x - lr v"),
        ("Miscounts", "solver", "weights of directions add up"),
        ("Forgets", "solver", "form of points and state"),
        ("LosesMass", "aggregator", "the weights' mass is kept"),
        ("KeepsTheRows", "aggregator", "form of what it returns"),
        ("NotLinear", "aggregator", "it is as linear as it says"),
        ("GrowingState", "aggregator", "what it keeps can be resumed"),
        ("SortsInPlace", "aggregator", "inputs are not mutated"),
        ("TossesACoin", "aggregator", "same seed, same numbers"),
        ("Forgetful", "aggregator", "YAML round trip"),
        ("broken_rules:Boasts", "aggregator", "attackers lead it nowhere"),
        ("broken_rules:TakesAnything", "aggregator", "what is not finite is left out"),
        ("broken_rules:NeverEnough", "aggregator", "form of what it returns"),
        ("FirstColumn", "aggregator", "form of what it returns"),
        ("Sums", "aggregator", "nodes that agree stay where they are"),
        ("SeesEverybody", "aggregator", "a node knows what it hears"),
        ("Believes", "aggregator", "what is not finite does not spread"),
        ("AddsInPlace", "aggregator", "inputs are not mutated"),
        ("MixesByChance", "aggregator", "same seed, same numbers"),
        ("MixesRows", "compressor", "stacked = sharded = single"),
        ("DropsAKey", "compressor", "form of messages"),
        ("ScalesInPlace", "compressor", "inputs are not mutated"),
        ("GlobalNoise", "attack", "same seed, same numbers"),
        ("HalfABit", "compressor", "bytes are counted"),
        ("Boasts", "compressor", "error as it says"),
        ("HitsEverybody", "attack", "honest messages arrive as they were sent"),
        ("Unsorted", "attack", "there are attackers and honest clients"),
        ("AlwaysThere", "attack", "nobody attacks before start"),
        ("CopiesWhoIsFirst", "attack", "honest messages count, not their order"),
        ("NeedsSomebody", "attack", "where no honest message came, it needs none"),
        ("FloatLabels", "attack", "form of poisoned rows"),
        ("FlipsInPlace", "attack", "rows that are given stay as they were"),
        ("AnyLabel", "attack", "same seed, same rows"),
        ("LiesForOthers", "attack", "nodes hear honest neighbours as they sent"),
        ("PullsInPlace", "attack", "what nodes heard is not mutated"),
        ("TellsAnything", "attack", "same seed, same messages to nodes"),
        ("KnowsTooMuch", "attack", "a node in a shard is told the same"),
        ("Quiet", "privacy", "another noise seed, other noise"),
        ("Free", "privacy", "every round is paid for"),
        ("GlobalDraws", "privacy", "same seed, same noise"),
        ("ForOthers", "privacy", "it binds, or says why not"),
        ("LabelTooLarge", "dataset", "form of rows and labels"),
        ("SharedRow", "dataset", "clients have rows of their own"),
        ("Shuffled", "dataset", "same seed, same numbers"),
        ("SeededSplit", "dataset", "files do not depend on the seed"),
        ("broken_results:chance", "graph", "same seed, same graph"),
        ("broken_results:TooMany", "graph", "a connected graph, a node per client"),
        ("broken_results:LosesWeight", "graph", "rows of its mixing sum to 1"),
        ("broken_results:ForgetsItsLength", "graph", "YAML round trip"),
        ("broken_results:Misnames", "metric", "columns as it declares"),
        ("broken_results:TakesAName", "metric", "columns as it declares"),
        ("broken_results:GivesATensor", "metric", "columns as it declares"),
        ("broken_results:Noisy", "metric", "same model, same numbers"),
        ("broken_results:Normalises", "metric", "it changes nothing"),
        ("broken_results:TellsTheTrainingLoss", "metric", "what is public needs no protected data"),
        ("broken_results:TellsOfAClient", "metric", "what is public needs no protected data"),
        ("broken_results:Shared", "logger", "a watcher for every run"),
        ("broken_results:NoWatcher", "logger", "a watcher for every run"),
        ("broken_results:NeedsAccuracy", "logger", "a run is told to its end"),
        ("broken_results:Meddles", "logger", "the run is as it is without it"),
        ("broken_results:Renames", "logger", "the run is as it is without it"),
        ("broken_results:OpensANewFile", "logger", "a resumed run is told again"),
        ("broken_results:ClosesItsFile", "logger", "it can be closed at any time"),
        ("broken_results:Untitled", "section", "a title and blocks"),
        ("broken_results:Raw", "section", "a title and blocks"),
        ("broken_results:NeedsRows", "section", "runs that recorded nothing"),
        ("broken_results:Unescaped", "section", "a name is text, not HTML"),
        ("broken_results:Draws", "section", "same runs, same blocks"),
        ("broken_results:Writes", "section", "runs are as they were"),
        ("broken_results:Sorts", "section", "runs are as they were"),
        ("Halves", "backend", "it gives the worker's messages"),
        ("Unordered", "backend", "jobs are told apart by their numbers"),
        ("Amnesiac", "backend", "a client's jobs build on each other"),
        ("LosesJobs", "backend", "a resumed one goes on as it was"),
        ("Inventive", "backend", "what was not dispatched is refused"),
    ],
)
def test_each_law_can_fail(name: str, kind: str, law: str) -> None:
    assert law in failed(name if ":" in name else f"broken_parts:{name}", kind=kind)


RULES = [
    ("trimmed_mean", ["f=6"]), ("krum", ["f=8"]), ("bulyan", ["f=4"]), ("multi_krum", ["f=2", "keep=20"]),
    ("krum", ["f=2", "closest=m-f-1", "pre=nnm"]), ("median", ["pre=[{name: bucketing, s: 3}]"]),
    ("median", ["pre={name: arc, f: 3}"]), ("geometric_median", ["pre={name: nnm, f: 4}", "start=zero"]),
    ("centered_clipping", ["tau=0.1"]), ("centered_clipping", ["tau=2", "iters=3", "pre={name: nnm, f: 2}"]),
    ("fltrust", ["root=12"]), ("fltrust", ["root=40"]),
]  # fmt: skip


@pytest.mark.parametrize("name,settings", RULES, ids=str)
def test_rules_with_other_keys(name: str, settings: list[str]) -> None:
    assert failed(name, settings, "aggregator") == {}


@pytest.mark.parametrize(
    "name", ["broken_parts:Good", *(f"broken_results:{name}" for name in ("wheel", "Size", "Counts", "Lengths"))]
)
def test_a_good_one_passes(name: str) -> None:
    assert failed(name, kind="graph" if name.endswith("wheel") else None) == {}


def test_what_no_run_here_has_is_said() -> None:
    with pytest.raises(fedsim.InputError, match=r"clients keep no 'personal' between rounds.*try it in a run of your"):
        fedsim.check("broken_results:AsksForPersonalModels")


@pytest.mark.parametrize(
    "name,kind",
    [
        ("median", "aggregator"), ("fedavg", "algorithm"), ("top_k", "compressor"), ("local_dp", "privacy"),
        ("broken_parts:Good", "aggregator"), ("broken_parts:Quiet", "privacy"), ("broken_parts:Shuffled", "dataset"),
    ],
)  # fmt: skip
def test_the_kind_shows(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_class_stands_for_its_name() -> None:
    assert fedsim.check(broken_parts.Good) == fedsim.check("broken_parts:Good")
    with pytest.raises(fedsim.InputError, match="cannot be found again by its name"):
        fedsim.check(lambda values: values)


@pytest.mark.parametrize(
    "name,kind,words",
    [
        ("medain", None, "did you mean 'median'"),
        ("pathlib:Path", None, "inherits nothing that promises anything"),
        ("median", "agregator", "did you mean 'aggregator'"),
        ("broken_parts:Good", "privacy", "a frozen dataclass that inherits fedsim.Mechanism"),
    ],
)
def test_what_cannot_be_checked(name: str, kind: str | None, words: str) -> None:
    with pytest.raises(fedsim.InputError, match=words):
        fedsim.check(name, [], kind)


def test_every_kind_with_a_base_is_told_apart() -> None:
    assert set(PROMISES) - set(KINDS) == {"backend"}


@pytest.mark.parametrize(
    "name,words",
    [
        ("top_k", "k: found neither 'k' nor 'fraction', allowed: one of the two; give --set k=..."),
        (
            "sign_flip",
            "attackers: missing; this key is required; allowed: a whole number greater than or equal to 0 or a number",
        ),
        (
            "fedbuff",
            "buffer: missing; this key is required; allowed: a whole number greater than 0",
        ),
    ],
)
def test_a_part_that_lacks_keys_says_how_to_give_them(name: str, words: str) -> None:
    with pytest.raises(fedsim.InputError) as refused:
        fedsim.check(name)
    assert words in str(refused.value)
