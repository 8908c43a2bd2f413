"""Parameters that stay with clients: they are trained there, and nothing else ever sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.personal_loops import graph_loop, server_loop
from torch import Tensor

import fedsim
from fedsim.algorithms.base import one_message
from fedsim.clients.personal import composed, fresh_personal, own_models
from fedsim.clients.worker import Worker
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.oracle import CARRIED, PERSONAL, PERSONAL_CARRIED
from fedsim.core.sharing import Split
from fedsim.core.types import message_bytes
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.models.layout import views
from fedsim.reports.plan import plan
from fedsim.scenario.load import parse

RING = {"algorithm": {"name": "dspodfl"}, "topology": {"graph": "ring"}}
HEAD = {"personal": ["head"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "momentum": {"algorithm": {"momentum": 0.5, "server_momentum": 0.5, "weight_decay": 0.01}},
    "relaxed": {"algorithm": {"relaxed_init": 0.1}},
    "fedprox": {"algorithm": {"name": "fedprox", "mu": 0.1}},
    "fednova": {"algorithm": {"name": "fednova"}},
    "fedadam": {"algorithm": {"name": "fedadam"}},
    "fedsam": {"algorithm": {"name": "fedsam"}},
    "cohorts": {"participation": {"fraction": 0.5}},
    "asynchronous": {"participation": {"mode": "asynchronous"}},
    "buffered": {"participation": {"mode": "fedbuff", "buffer": 2, "concurrency": 3}},
    "top_k": {"compression": {"name": "top_k", "k": 20, "feedback": "ef14"}},
    "median": {"aggregator": {"name": "median"}},
    "attacked": {"attack": {"name": "sign_flip", "attackers": 1}},
    "dp_fedavg": {
        "privacy": {"mechanism": "dp_fedavg", "noise_multiplier": 0.1, "clip_norm": 1.0},
        "algorithm": {"weighting": "uniform"},
    },
    "dspodfl": {**RING, "participation": {"mode": "gossip", "compute": 0.7, "links": 0.7}},
    "dfedavg": {**RING, "algorithm": {"name": "dfedavg"}},
    "poisson": {**RING, "participation": {"mode": "poisson"}},
}


def scenario(module: str = "Whole", **sections: Any) -> dict[str, Any]:
    local = {"lr": 0.1, "local_epochs": 1, "batch_size": 16}
    return {
        "data": {"dataset": "digits", "clients": 4, "limit": 240, "partition": {"scheme": "dirichlet", "alpha": 1.0}},
        "model": {"name": f"own_models:{module}", **sections.pop("model", HEAD)},
        "algorithm": {"name": "fedavg", **local, **sections.pop("algorithm", {})},
        "run": {"rounds": 4, "eval_every": 2, "dtype": "float64", "eval_samples": 60, **sections.pop("run", {})},
        **sections,
    }


def simulated(folder: Path, **sections: Any) -> Simulation:
    parsed = parse(scenario(**sections))
    made = Simulation(parsed, assemble(parsed), folder)
    made.run()
    return made


def named(made: Simulation, row: Tensor) -> dict[str, Tensor]:
    """A model ``[d + b]`` by the names of its parameters and buffers."""
    kernel: Any = made.assembly.task.kernel  # type: ignore[attr-defined]
    d = made.assembly.task.dim
    return {**views(row[:d], kernel.layout), **views(row[d:], kernel.nature.buffers)}


def own(made: Simulation) -> list[dict[str, Tensor]]:
    """Every client's model, by names."""
    task, who = made.assembly.task, np.arange(made.assembly.task.num_clients)
    graph = made.assembly.network is not None
    state = {k: v if graph else v.expand(len(who), -1) for k, v in made.home.values.items()}
    return [named(made, row) for row in own_models(task, state, made.home.personal(who))]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("personal", [{"head.weight", "head.bias"}, {"body.weight"}], ids=["head", "body"])
def test_a_server_s_rounds_are_those_of_a_plain_loop(personal: set[str], tmp_path: Path) -> None:
    made = simulated(tmp_path / "run", model={"personal": sorted(personal)})
    task: Any = made.assembly.task
    first = assemble(parse(scenario())).task.kernel.module  # type: ignore[attr-defined]
    shared, kept = server_loop(first, task, 4, personal, [(lambda _: True, 1)], 0.1, 16)
    for client, found in enumerate(own(made)):
        for name, value in {**shared, **kept[client]}.items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-10), (client, name)
    apart = [own(made)[i][name] for i in (0, 1) for name in sorted(personal)[:1]]
    assert not torch.allclose(*apart)


def test_a_graph_s_rounds_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    made = simulated(tmp_path / "run", algorithm={"name": "dfedavg"}, topology={"graph": "ring"})
    network: Any = made.assembly.network
    first = assemble(parse(scenario())).task.kernel.module  # type: ignore[attr-defined]
    matrix = torch.as_tensor(network.mixings[0].matrix.toarray())
    nodes = graph_loop(first, made.assembly.task, 4, {"head.weight", "head.bias"}, matrix, 0.1, 16)
    for found, wanted in zip(own(made), nodes, strict=True):
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-10), name


def test_one_client_with_a_personal_head_trains_as_if_all_were_shared(tmp_path: Path) -> None:
    data = {"dataset": "digits", "clients": 1, "limit": 60}
    parts, whole = (simulated(tmp_path / name, data=data, model=m) for name, m in (("parts", HEAD), ("whole", {})))
    for name, value in named(whole, whole.home.values["x"]).items():
        assert torch.allclose(own(parts)[0][name], value, rtol=0, atol=1e-12), name


def test_a_personal_parameter_that_nothing_uses_changes_nothing(tmp_path: Path) -> None:
    """What travels is then FedAvg's, bit for bit."""
    parts = simulated(tmp_path / "parts", model={"name": "own_models:Unused", "personal": ["spare"]})
    whole = simulated(tmp_path / "whole", model={"name": "own_models:Unused"})
    assert torch.equal(parts.home.values["x"], parts.assembly.task.sharing.params.common(whole.home.values["x"]))


# --- laws over modes and algorithms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_goes_on_with_what_stayed(name: str, tmp_path: Path) -> None:
    sections = SETTINGS[name]
    unbroken = simulated(tmp_path / "unbroken", **sections)
    fedsim.run(scenario(**sections, run={"rounds": 2}), out=tmp_path / "broken")
    parsed = parse(scenario(**sections))
    resumed = Simulation(parsed, assemble(parsed), tmp_path / "broken", resume=True)
    assert not resumed.fresh
    resumed.run()
    everybody = np.arange(4)
    for k, v in unbroken.home.values.items():
        assert torch.equal(v, resumed.home.values[k]), k
    assert torch.equal(unbroken.home.personal(everybody)[PERSONAL], resumed.home.personal(everybody)[PERSONAL])
    one, other = (fedsim.Run(tmp_path / folder).metrics.drop(columns="wall") for folder in ("unbroken", "broken"))
    assert one.equals(other)


@pytest.mark.parametrize("name", SETTINGS)
def test_personal_parameters_move_and_stay_apart(name: str, tmp_path: Path) -> None:
    made = simulated(tmp_path / "run", **SETTINGS[name])
    task, common = made.assembly.task, made.assembly.task.sharing.params.common
    rows = made.home.personal(np.arange(4))[PERSONAL]
    before = task.sharing.params.personal(task.initial())
    moved = (rows != before).any(1)
    assert moved.sum() >= 2
    assert len(torch.unique(rows[moved], dim=0)) == int(moved.sum())
    assert all(v.shape[-1] in (1, task.dim - 130) for v in made.home.values.values())
    assert task.dim == 64 * 12 + 12 + 130
    x = made.home.values["x"]
    assert x.shape[-1] == len(common(task.initial()))
    centre = made.home.centre()
    assert torch.equal(task.sharing.params.personal(centre), before)
    assert fedsim.Run(tmp_path / "run").params.shape == (*x.shape[:-1], task.dim)


@pytest.mark.parametrize("name", ["fedavg", "momentum", "relaxed", "fedprox", "dspodfl", "dfedavg", "top_k"])
def test_stacked_is_sharded_is_single(name: str) -> None:
    parsed = parse(scenario(**SETTINGS[name]))
    made = assemble(parsed)
    clients, steps = np.arange(4), np.array([1, 3, 2, 0])

    def sent(groups: list[list[int]], chunk: int | None = None) -> list[dict[str, Tensor]]:
        messages: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        for group in groups:
            rows, index = np.array(group), torch.tensor(group)
            task = made.task.shard(np.sort(rows)) if len(rows) < 4 else made.task
            worker = Worker(task, parsed.algorithm, chunk, pipeline=made.pipeline)
            for number in (1, 2):
                job = Job(clients[rows], np.full(len(rows), number), steps[rows], {"x": made.task.common()})
                message = worker.run(job)
            for found, part in ((messages, message), (kept, worker.store.gather(rows))):
                for k, v in part.items():
                    found.setdefault(k, v.new_full((4, v.shape[-1]), torch.nan))[index] = v
        return [messages, kept]

    together = sent([[0, 1, 2, 3]])
    fresh = fresh_personal(made.task)[PERSONAL][0]
    assert (together[1][PERSONAL][:3] != fresh).any(1).all()
    assert torch.equal(together[1][PERSONAL][3], fresh)
    for others in (sent([[2, 0], [3, 1]]), sent([[3], [1], [2], [0]]), sent([[0, 1, 2, 3]], chunk=2)):
        for one, other in zip(together, others, strict=True):
            assert one.keys() == other.keys()
            for k, v in one.items():
                assert torch.allclose(v, other[k], rtol=0, atol=1e-12), k


@pytest.mark.parametrize("name", ["fedavg", "cohorts", "fednova", "top_k", "dspodfl"])
def test_only_what_is_shared_is_sent_and_counted(name: str, tmp_path: Path) -> None:
    """The plan's message is the run's, and shorter than that of the whole model by what stays."""
    sections = SETTINGS[name]
    parsed = parse(scenario(**sections, run={"rounds": 1, "eval_every": 1}))
    made = assemble(parsed)
    received, sent = (message_bytes(m) for m in one_message(parsed.algorithm, made.task, made.network is not None))
    row = fedsim.run(parsed, out=tmp_path / "run").metrics.iloc[-1]
    first = made.pipeline.row_bytes(one_message(parsed.algorithm, made.task, made.network is not None)[1], first=True)
    event = next(e for e in parsed.participation.events(made.setting(parsed), 0) if hasattr(e, "sends"))
    down = 0 if made.network is not None else len(event.clients) * received
    assert row["bytes_sent"] == down + event.sends * first
    whole = assemble(parse(scenario(**sections, model={})))
    more = [message_bytes(m) for m in one_message(parsed.algorithm, whole.task, made.network is not None)]
    assert [more[0] - received, more[1] - sent] == [130 * 8, 130 * 8]
    rows = plan(parsed)["data"]
    assert rows["parameters"] == "910 that train, of which 780 travel"
    assert rows["personal parameters"].startswith("130: ")


def test_a_client_s_own_model_is_what_it_received_beside_what_it_kept() -> None:
    made = assemble(parse(scenario(**SETTINGS["fedavg"])))
    task = made.task
    worker = Worker(task, parse(scenario()).algorithm)
    common = torch.arange(780, dtype=torch.float64)
    worker.run(Job(np.array([1]), np.array([1]), np.array([2]), {"x": task.common()}))
    kept = worker.store.gather(np.arange(2))
    whole = composed({"x": common}, {PERSONAL: kept[PERSONAL]}, task.sharing)
    models = worker.algorithm.personal_model(whole, {})
    assert torch.equal(task.sharing.params.common(models), common.expand(2, -1))
    assert torch.equal(models[0, 780:], task.initial()[780:])
    assert not torch.equal(models[1, 780:], task.initial()[780:])


def test_a_split_takes_vectors_apart_and_puts_them_together() -> None:
    split = Split.of(torch.tensor([True, False, False, True, False]))
    v = torch.arange(10.0).view(2, 5)
    assert split.personal(v).tolist() == [[0, 3], [5, 8]]
    assert split.common(v).tolist() == [[1, 2, 4], [6, 7, 9]]
    assert torch.equal(split.whole(split.common(v), split.personal(v)), v)
    assert split.whole(split.common(v[0]), split.personal(v)).tolist() == [[0, 1, 2, 3, 4], [5, 1, 2, 8, 4]]
    assert Split.of(torch.zeros(3, dtype=torch.bool)).common(v) is v


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"personal": ["hed"]}}, r"model\.personal\.0: found 'hed', which matches no parameter \(did you"),
        ({"model": {"personal": ["*"]}}, r"model\.personal: found \*, with which all parameters stay with clients"),
        (
            {"model": {"name": "own_models:Frozen", "personal": ["body"]}},
            r"model\.personal\.0: found 'body', .* do not train",
        ),
        ({"algorithm": {"name": "scaffold"}}, r"model\.personal: found .* but 'scaffold' keeps .* allowed: .*fedavg"),
        ({**RING, "algorithm": {"name": "gradient_tracking"}}, r"model\.personal: .*allowed: .*dfedavg"),
        (
            {"privacy": {"mechanism": "dp_sgd", "noise_multiplier": 1.0, "clip_norm": 1.0}},
            r"model\.personal: .*'dp_sgd' protects examples; allowed: .*dp_fedavg",
        ),
        ({"model": {"batch_norm": "local"}}, r"model\.batch_norm: found local, but no layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fedsim.run(scenario(**sections), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- what trains when -------------------------------------------------------------------------------------------------

PERSONAL_NAMES = {"head.weight", "head.bias"}


def is_personal(name: str) -> bool:
    return name in PERSONAL_NAMES


def is_shared(name: str) -> bool:
    return name not in PERSONAL_NAMES


PAPERS: dict[str, tuple[list[dict[str, Any]], list[Any], bool]] = {
    "fedrep": (
        [{"parameters": "personal", "epochs": 2}, {"parameters": "shared", "epochs": 1}],
        [(is_personal, 2), (is_shared, 1)],
        True,
    ),
    "fedbabu": ([{"parameters": "shared", "epochs": 1}], [(is_shared, 1)], True),
    "steps": (
        [
            {"parameters": ["body"], "steps": 1},
            {"parameters": "all", "steps": 2},
            {"parameters": ["*.bias"], "steps": 1},
        ],
        [(lambda name: name.startswith("body"), 1), (lambda _: True, 2), (lambda name: name.endswith("bias"), 1)],
        False,
    ),
}  # fmt: skip


def phased(phases: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    return {"algorithm": {"local_epochs": None, "train": phases, **keys}}


@pytest.mark.parametrize("paper", PAPERS)
def test_phases_are_those_of_a_plain_loop(paper: str, tmp_path: Path) -> None:
    phases, by_hand, epochs = PAPERS[paper]
    made = simulated(tmp_path / "run", **phased(phases))
    first = assemble(parse(scenario())).task.kernel.module  # type: ignore[attr-defined]
    shared, kept = server_loop(first, made.assembly.task, 4, PERSONAL_NAMES, by_hand, 0.1, 16, epochs)
    for client, found in enumerate(own(made)):
        for name, value in {**shared, **kept[client]}.items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-10), (client, name)
    if paper == "fedbabu":
        before = first.head.weight.detach()
        assert all(torch.equal(found["head.weight"], before) for found in own(made))


@pytest.mark.parametrize("solver", [None, {"name": "sgd", "momentum": 0.9}, {"name": "adam"}], ids=str)
def test_a_phase_of_everything_that_is_shared_is_fedavg(solver: dict[str, Any] | None, tmp_path: Path) -> None:
    keys = {} if solver is None else {"solver": solver}
    whole = simulated(tmp_path / "whole", model={}, algorithm={"local_epochs": 2, **keys})
    one = simulated(tmp_path / "one", model={}, **phased([{"parameters": "shared", "epochs": 2}], **keys))
    assert torch.equal(whole.home.values["x"], one.home.values["x"])


def test_a_solver_starts_anew_in_every_phase(tmp_path: Path) -> None:
    """So the head's steps are nothing to the body's: a phase of the head alone, before or not, changes no direction."""
    adam = {"solver": {"name": "adam"}, "lr": 0.01}
    both = [{"parameters": ["head"], "steps": 1}, {"parameters": ["body"], "steps": 1}]
    once = {"rounds": 1, "eval_every": 1}
    made = [
        simulated(tmp_path / str(i), model={}, run=once, **phased(phases, **adam))
        for i, phases in enumerate((both[1:], both))
    ]
    x = [run.home.values["x"] for run in made]
    first = assemble(parse(scenario(model={}))).task.initial()
    body = 64 * 12 + 12
    assert torch.equal(x[0][body:], first[body:])
    assert not torch.equal(x[1][body:], first[body:])
    assert float((x[1][:body] - first[:body]).abs().max()) < 0.0101  # Adam's first step is no longer than lr


@pytest.mark.parametrize("name", ["fedavg", "momentum", "dfedavg"])
def test_phases_in_shards_and_chunks(name: str) -> None:
    """Rows of unequal size are in different phases at the same step."""
    sections = SETTINGS[name]
    sections = {**sections, "algorithm": {**sections.get("algorithm", {}), **phased(PAPERS["fedrep"][0])["algorithm"]}}
    parsed = parse(scenario(**sections))
    made = assemble(parsed)
    clients, rounds = np.arange(4), np.ones(4, dtype=np.int64)
    steps = parsed.algorithm.steps(made.task, clients, rounds, 0)
    assert len(set(steps.tolist())) > 1

    def sent(groups: list[list[int]], chunk: int | None = None) -> Tensor:
        found = torch.empty(4, made.task.dim, dtype=torch.float64)
        for group in groups:
            rows = np.array(group)
            worker = Worker(made.task, parsed.algorithm, chunk, pipeline=made.pipeline)
            message = worker.run(Job(clients[rows], rounds[rows], steps[rows], {"x": made.task.common()}))
            kept = worker.store.gather(rows)[PERSONAL]
            found[rows] = torch.cat([next(iter(message.values())), kept], 1)
        return found

    together = sent([[0, 1, 2, 3]])
    for others in (sent([[2, 0], [3, 1]]), sent([[3], [1], [2], [0]]), sent([[0, 1, 2, 3]], chunk=2)):
        assert torch.allclose(together, others, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"algorithm": {"train": PAPERS["fedrep"][0]}}, r"algorithm\.local_epochs: found beside train"),
        (phased([{"parameters": "personal"}]), r"algorithm\.train\.0: .*allowed: one of the two"),
        (phased([*PAPERS["fedbabu"][0], {"parameters": "all", "steps": 1}]), r"algorithm\.train: found steps in one"),
        (phased([{"parameters": ["hed"], "steps": 1}]), r"algorithm\.train\.0\.parameters\.0: found 'hed'"),
        ({"model": {}, **phased([{"parameters": "personal", "steps": 1}])}, r"train\.0\.parameters: found personal"),
        (phased(PAPERS["fedrep"][0], name="fednova"), r"algorithm\.train: FedNova divides by local steps"),
        (
            phased(PAPERS["fedrep"][0], solver={"name": "adam", "state": "kept"}),
            r"algorithm\.solver\.state: found kept beside train",
        ),
    ],
)  # fmt: skip
def test_phases_that_cannot_be_are_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fedsim.run(scenario(**sections), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- batch normalisation that stays -----------------------------------------------------------------------------------


def test_fedbn_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """Weights, biases and statistics of batch normalisation stay; nothing of them is sent."""
    sections: dict[str, Any] = {"model": {"name": "own_models:Normed", "batch_norm": "local"}}
    made = simulated(tmp_path / "run", **sections)
    first = assemble(parse(scenario(**sections))).task.kernel.module  # type: ignore[attr-defined]
    norms = [name for name, layer in first.named_modules() if "BatchNorm" in type(layer).__name__]
    personal = {name for name in first.state_dict() if name.rpartition(".")[0] in norms}
    assert len(personal) == 5 * len(norms) > 0
    shared, kept = server_loop(first, made.assembly.task, 4, personal, [(lambda _: True, 1)], 0.1, 16)
    for client, found in enumerate(own(made)):
        for name, value in {**shared, **kept[client]}.items():
            assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=1e-10), (client, name)
    assert CARRIED not in made.home.values
    assert set(made.home.personal(np.arange(4))) == {PERSONAL, PERSONAL_CARRIED}


def test_clients_are_evaluated_with_their_own_normalisation(tmp_path: Path) -> None:
    data = {"dataset": "digits", "clients": 4, "limit": 240, "local_test": 0.25}
    made = simulated(tmp_path / "run", data=data, model={"name": "own_models:Normed", "batch_norm": "local"})
    table = fedsim.Run(tmp_path / "run").clients
    last = table[table["round"] == 4].set_index("client")
    task: Any = made.assembly.task
    module = task.kernel.module
    for client, state in enumerate(own(made)):
        module.load_state_dict({k: v.to(module.state_dict()[k].dtype) for k, v in state.items()})
        rows = torch.as_tensor(task.tests.of(client))
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(module.eval()(task.inputs[rows]), task.targets[rows])
        assert last.loc[client, "loss"] == pytest.approx(float(loss), abs=1e-10)
