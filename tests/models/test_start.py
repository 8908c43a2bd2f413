"""``model.init``: weights to start from, put into a model name by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.deployment.app import deploy
from fedsim.engine.assembly import assemble
from fedsim.models.layout import flatten
from fedsim.models.start import put
from fedsim.scenario.load import load, parse


def scenario(model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 3},
        "model": model,
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 8},
        "run": {"rounds": 1, "dtype": "float64", "eval_samples": 50},
        **sections,
    }


MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [6]},
    "cnn": {"name": "cnn", "channels": [2], "hidden": 5, "kernel": 3},
    "own": {"name": "own_models:Whole"},
    "tied": {"name": "own_models:Tied"},
    "normed": {"name": "own_models:Normed"},
}


def other(model: dict[str, Any]) -> nn.Module:
    """The same model with other weights and buffers than a run would draw."""
    module = assemble(parse(scenario(model, seed=77))).task.kernel.module  # type: ignore[attr-defined]
    for b in module.buffers():
        b.copy_(b + 2)
    return module  # type: ignore[no-any-return]


def initial(model: dict[str, Any]) -> nn.Module:
    return assemble(parse(scenario(model))).task.kernel.module  # type: ignore[attr-defined, no-any-return]


def saved(module: nn.Module, file: Path) -> None:
    state = {k: v.detach().clone() for k, v in module.state_dict().items()}
    if file.suffix == ".safetensors":
        save_file(state, file)
    elif file.stem == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, file)
    else:
        torch.save(state, file)


@pytest.mark.parametrize("file", ["w.pt", "w.pth", "w.safetensors", "wrapped.pt"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_starts_from_a_file(name: str, file: str, tmp_path: Path) -> None:
    module = other(MODELS[name])
    saved(module, tmp_path / file)
    made = initial({**MODELS[name], "init": str(tmp_path / file)})
    for key, value in module.state_dict().items():
        assert torch.equal(made.state_dict()[key], value), key
    assert not torch.equal(flatten(initial(MODELS[name])), flatten(made))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_starts_from_a_run(name: str, tmp_path: Path) -> None:
    before = fedsim.run(scenario(MODELS[name]), out=tmp_path / "before")
    made = initial({**MODELS[name], "init": str(tmp_path / "before")})
    for key, value in before.state_dict().items():
        assert torch.equal(made.state_dict()[key], value), key


def test_a_graph_starts_from_a_graph_s_mean_model(tmp_path: Path) -> None:
    graph = {"topology": {"graph": "ring"}, "algorithm": {"name": "dspodfl", "lr": 0.1, "batch_size": 8}}
    before = fedsim.run(scenario(MODELS["mlp"], **graph), out=tmp_path / "before")
    task = assemble(parse(scenario({**MODELS["mlp"], "init": str(tmp_path / "before")}, **graph))).task
    assert torch.equal(task.initial(), before.params.mean(0))


def test_frozen_parameters_start_from_the_file_too(tmp_path: Path) -> None:
    model = {"name": "own_models:Frozen"}
    saved(other(MODELS["own"]), tmp_path / "w.pt")
    first = fedsim.run(scenario({**model, "init": str(tmp_path / "w.pt")}), out=tmp_path / "first")
    body = torch.load(tmp_path / "w.pt")["body.weight"]
    assert torch.equal(first.state_dict()["body.weight"], body)
    first.export(tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt")["state_dict"]["body.weight"], body)
    again = initial({**model, "init": str(tmp_path / "first")})  # a run that itself started from a file
    assert torch.equal(again.body.weight, body)  # type: ignore[union-attr, arg-type]
    (tmp_path / "w.pt").unlink()
    with pytest.raises(InputError, match="no such file"):
        fedsim.Run(tmp_path / "first").state_dict()


def _misfit(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        state = {k: v.clone() for k, v in other(MODELS["mlp"]).state_dict().items()}
        change(state)
        torch.save(state, file)

    return write


@pytest.mark.parametrize(
    "write,says",
    [
        (_misfit(lambda s: [s.pop("3.bias")]), "missing in the file: 3.bias"),
        (_misfit(lambda s: s.update(fc=torch.ones(2))), "left over in the file: fc"),
        (
            _misfit(lambda s: s.update({"3.weight": torch.ones(4, 6)})),
            r"of another shape: 3.weight \[4, 6\] instead of \[10, 6\]",
        ),
        (_misfit(lambda s: [s["1.bias"].fill_(torch.nan)]), "'1.bias' has numbers that are not"),
        (_misfit(lambda s: s.update({"1.bias": s["1.bias"].int()})), "'1.bias' is int32 in the file, and float64 in"),
        (_misfit(lambda s: s.update({"1.bias": s["1.bias"] > 0})), "'1.bias' is bool in the file, and float64 in"),
        (_misfit(lambda s: s.update({"1.bias": s["1.bias"] * 1j})), "'1.bias' is complex128 in the file"),
        (_misfit(lambda s: s.update({"1.bias": s["1.bias"].to_sparse()})), "another form .sparse_coo.; allowed: dense"),
        (_misfit(lambda s: s.update({"1.weight": s["1.weight"].to_sparse_csr()})), "another form .sparse_csr."),
        (_misfit(lambda s: s.update({"1.bias": s["1.bias"].to("meta")})), "another form .meta."),
        (
            _misfit(
                lambda s: s.update({"1.bias": torch.quantize_per_tensor(s["1.bias"].float(), 0.1, 0, torch.qint8)})
            ),
            "'1.bias' is a tensor of another form .qint8.",
        ),
        (_misfit(lambda s: s.update({"1.bias": torch.nested.nested_tensor([torch.ones(3)])})), "a nested tensor"),
        (_misfit(lambda s: s.clear()), "no tensor of it fits this model"),
        (lambda file: torch.save({"a": 3}, file), "'a', which is int; allowed: a state_dict"),
        (
            lambda file: torch.save(nn.Linear(2, 2), file),
            r"as weights alone \(UnpicklingError: it has more than tensors",
        ),
        (lambda file: file.write_bytes(b"not torch"), "cannot be read as weights alone"),
        (lambda _: None, "no such file"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(write: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    write(tmp_path / "w.pt")
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(scenario({**MODELS["mlp"], "init": str(tmp_path / "w.pt")}), out=tmp_path / "run")
    assert caught.value.problems[0].key == "model.init"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_short_floating_point_numbers_are_taken(kind: torch.dtype, tmp_path: Path) -> None:
    state = {k: v.to(kind) for k, v in other(MODELS["mlp"]).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    found = initial({**MODELS["mlp"], "init": str(tmp_path / "w.pt")}).state_dict()
    assert all(torch.equal(found[k], v.double()) for k, v in state.items())


def test_numbers_that_the_run_s_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    torch.save({k: v * 1e39 for k, v in other(MODELS["mlp"]).state_dict().items()}, tmp_path / "w.pt")
    made = scenario({**MODELS["mlp"], "init": str(tmp_path / "w.pt")})
    made["run"]["dtype"] = "float32"
    with pytest.raises(InputError, match=r"'3\.weight' has numbers that float32 cannot hold"):
        fedsim.run(made, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_whole_numbers_stay_whole() -> None:
    module = nn.BatchNorm1d(2)
    state = {**module.state_dict(), "num_batches_tracked": torch.tensor(2.5)}
    with pytest.raises(InputError, match="'num_batches_tracked' has numbers that are not whole"):
        put(module, state, partial=False)
    put(module, {**state, "num_batches_tracked": torch.tensor(3.0)}, partial=False)
    assert int(module.num_batches_tracked) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind,numbers",
    [
        (torch.int8, torch.tensor([300, 1])), (torch.int8, torch.tensor([300.0, 1.0])),
        (torch.uint8, torch.tensor([-1, 1])), (torch.bool, torch.tensor([2, 0])),
        (torch.int64, torch.tensor([1e30, 1.0])),
    ],
)  # fmt: skip
def test_whole_numbers_beyond_their_type_are_refused(kind: torch.dtype, numbers: Tensor) -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("counts", torch.zeros(2, dtype=kind))
    word = str(kind).removeprefix("torch.")
    with pytest.raises(InputError, match=f"'counts' has numbers that {word} cannot hold"):
        put(module, {**module.state_dict(), "counts": numbers}, partial=False)
    put(module, {**module.state_dict(), "counts": torch.tensor([1.0, 0.0])}, partial=False)
    assert module.get_buffer("counts").tolist() == [1, 0]


@pytest.mark.parametrize("tensors", [{"other": torch.ones(3)}, {"params": torch.ones(3, dtype=torch.int32)}])
def test_a_file_of_a_run_that_another_program_wrote(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    fedsim.run(scenario(MODELS["mlp"]), out=tmp_path / "run")
    save_file(tensors, tmp_path / "run" / "params.safetensors")
    with pytest.raises(InputError, match=r"has no model to start from: params\.safetensors is no file of a run"):
        initial({**MODELS["mlp"], "init": str(tmp_path / "run")})


@pytest.mark.parametrize("name", ["./zero", "folder", "readme.txt"])
def test_names_that_are_no_weights_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(InputError, match=r"allowed: 'default' or 'zeros', a file that ends in \.pt, \.pth"):
        initial({**MODELS["mlp"], "init": str(tmp_path / name)})


def test_a_partial_load_says_what_it_took(tmp_path: Path) -> None:
    state = dict(other(MODELS["mlp"]).state_dict())
    state["3.weight"] = torch.ones(4, 6)
    del state["3.bias"]
    torch.save({**state, "fc": torch.ones(2)}, tmp_path / "w.pt")
    model = {**MODELS["mlp"], "init": {"file": str(tmp_path / "w.pt"), "partial": True}}
    made, drawn = initial(model).state_dict(), initial(MODELS["mlp"]).state_dict()
    assert all(torch.equal(made[k], state[k]) for k in ("1.weight", "1.bias"))
    assert all(torch.equal(made[k], drawn[k]) for k in ("3.weight", "3.bias"))
    (note,) = fedsim.plan(scenario(model))["data"]["notes"]
    assert "starts from 2 tensors" in note
    for words in ("1.weight, 1.bias;", "missing in the file: 3.bias", "left over in the file: fc", "[4, 6] instead"):
        assert words in note
    fedsim.run(scenario(model), out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["notes"] == [note]


def test_group_normalisation_takes_the_place_of_loaded_layers(tmp_path: Path) -> None:
    module = other(MODELS["normed"])
    saved(module, tmp_path / "w.pt")
    made = initial({**MODELS["normed"], "init": str(tmp_path / "w.pt"), "batch_norm": "group"})
    assert torch.equal(made.state_dict()["first.weight"], module.state_dict()["first.weight"])
    assert "first.running_mean" not in made.state_dict()


def test_names_of_one_parameter_have_one_value() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    assert put(module, {"0.weight": torch.eye(2)}, False).whole  # one of the names is enough
    with pytest.raises(InputError, match=r"'0\.weight' and '1\.weight' differ"):
        put(module, {"0.weight": torch.eye(2), "1.weight": torch.ones(2, 2)}, False)


def test_a_run_records_the_file_s_digest_and_resumes_with_the_same_alone(tmp_path: Path) -> None:
    saved(other(MODELS["mlp"]), tmp_path / "w.pt")
    given = scenario({**MODELS["mlp"], "init": str(tmp_path / "w.pt")})
    run = fedsim.run(given, out=tmp_path / "run")
    recorded = load(run.dir / "scenario.yaml")
    assert recorded.hash() == parse(given).hash()
    given["run"]["rounds"] = 2
    resumed = fedsim.run(given, out=tmp_path / "run", resume=True)
    assert resumed.resumed_at == 1
    assert torch.equal(fedsim.run(given, out=tmp_path / "whole").params, resumed.params)
    saved(initial(MODELS["mlp"]), tmp_path / "w.pt")
    given["run"]["rounds"] = 3
    with pytest.raises(InputError, match=r"model.init.digest: found '[0-9a-f]{64}', but the run"):
        fedsim.run(given, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"w\.pt has changed: its SHA-256 is"):
        assemble(recorded)
    assert parse(given).hash() != recorded.hash()


def test_paths_are_from_the_scenario_s_folder(tmp_path: Path) -> None:
    saved(other(MODELS["mlp"]), tmp_path / "w.pt")
    text = json.dumps(scenario({**MODELS["mlp"], "init": "w.pt"}))
    (tmp_path / "s.yaml").write_text(text)
    checked = load(tmp_path / "s.yaml")
    assert checked.resolved()["model"]["init"]["file"] == str(tmp_path / "w.pt")
    assert torch.equal(assemble(checked).task.initial(), flatten(other(MODELS["mlp"])))


def test_an_argument_of_one_s_own_called_init_is_refused() -> None:
    with pytest.raises(InputError, match="is a key of every model, and an argument of 'own_models:WithInit'"):
        parse(scenario({"name": "own_models:WithInit", "init": "w.pt"}))
    assert parse(scenario({"name": "own_models:WithInit"})).resolved()["model"] == {"name": "own_models:WithInit"}


def test_a_deployment_is_refused_where_the_file_has_changed(tmp_path: Path) -> None:
    saved(other(MODELS["mlp"]), tmp_path / "w.pt")
    deploy(parse(scenario({**MODELS["mlp"], "init": str(tmp_path / "w.pt")})), tmp_path / "app")
    here = load(tmp_path / "app" / "fedsim_deployment" / "scenario.yaml")
    assert torch.equal(assemble(here).task.initial(), flatten(other(MODELS["mlp"])))
    saved(initial(MODELS["mlp"]), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt has changed"):
        assemble(here)
