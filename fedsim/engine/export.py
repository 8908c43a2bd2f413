"""A run's model in plain PyTorch, with all that is needed to apply it to a new row: files that need no fedsim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import fedsim
from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.client import ClientHalf
from fedsim.core.documents import read_yaml
from fedsim.core.errors import InputError, RunError
from fedsim.core.fields import part_from
from fedsim.core.row_files import make_readable, with_own_memory
from fedsim.core.tokens import Tokens
from fedsim.engine.attackers import read_attackers
from fedsim.engine.inputs import read_about
from fedsim.models import exported
from fedsim.models.build import COMMON, ELSEWHERE, Model, OwnModel, new_module
from fedsim.models.layout import layout, load_flat, placed, stays, views
from fedsim.models.lora import merge
from fedsim.models.start import Start, Weights, read_weights

PARAMS = "params.safetensors"
"""The file of a run directory with the final parameters, and buffers that go with them."""
FORMAT = "fedsim model 1"
SUFFIXES = (".pt", ".safetensors", ".pt2")


def chosen(params: Tensor, node: int | None, attackers: Sequence[int] = ()) -> Tensor:
    """One model ``[d]``: the server's, or of a graph ``[n, d]`` the mean of the honest nodes' or a node's own.

    Raises
    ------
    InputError
        There is no such node.
    """
    if params.dim() == 1:
        if node is not None:
            raise InputError(f"found {node}, but this run has a server and one model; leave it out", key="node")
        return params
    if node is None:
        honest = np.setdiff1d(np.arange(len(params)), attackers)
        return params.mean(0) if not len(attackers) else params[torch.as_tensor(honest)].mean(0)
    if not 0 <= node < len(params):
        raise InputError(f"found {node}; allowed: 0 to {len(params) - 1}, or left out for the mean model", key="node")
    return params[node].clone()


def run_model(
    folder: Path, params: Tensor, node: int | None = None, saved: str = PARAMS, carried: Tensor | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The module with its trained parameters, and what describes it (see :func:`fedsim.models.exported.build`).

    `saved` is the file of the run directory that has the parameters, and the buffers that go with them; `carried`
    are buffers ``[b]`` that take their place.

    Raises
    ------
    InputError
        The run directory lacks ``scenario.yaml`` or ``data.json``, or somebody's own model cannot be made here.
    """
    about = read_about(folder)
    scenario = read_yaml(folder / "scenario.yaml").values
    section = scenario.get("model")
    if not isinstance(section, dict):
        raise InputError("has no model: a quadratic problem has none", file=str(folder / "scenario.yaml"))
    model: Model = part_from("model", "name", section)
    dtype = getattr(torch, scenario["run"]["dtype"])
    shape, target = tuple(about["input"]["shape"]), about["target"]
    classes = len(target["classes"]) if target["task"] == "classification" else None
    tokens = Tokens(about["input"].get("vocabulary"), positions=target.get("positions"))

    def new(weights: Weights | None) -> tuple[nn.Module, str, int]:
        values, seed, name = int(target.get("values", 1)), int(scenario["seed"]), str(section["name"])
        return new_module(model, shape, classes, seed, dtype, values, name, tokens, weights)

    module, loss, outputs = new(None)
    if isinstance(model.init, Start) and stays(module)["bytes"]:  # else everything is in the run directory
        try:
            module, loss, outputs = new(start_of(model))
        except InputError as error:
            raise error.under("model") from None
    flat = chosen(params, node, read_attackers(folder))
    if flat.numel() != layout(module).total:
        raise RunError(f"{folder} has {flat.numel()} parameters, but its model needs others: was its code changed?")
    load_flat(module, flat)
    load_buffers(module, folder, node, saved, carried)
    merge(module)
    apart = ("name", *(COMMON if isinstance(model, OwnModel) else ELSEWHERE))
    keys = {k: v for k, v in section.items() if k not in apart}
    takes = about["input"].get("model_takes", about["input"]["type"])
    module.eval()  # whose own may return nothing
    return module, {
        "name": section["name"], "keys": keys, "input_shape": list(shape), "num_outputs": outputs, "loss": loss,
        "dtype": str(dtype).removeprefix("torch."),
        "takes": "int64" if takes == "int64" else str(dtype).removeprefix("torch."),
        "layers": exported.describe(module), "batch_norm": model.batch_norm,
        "vocabulary": tokens.vocabulary,
    }  # fmt: skip


def start_of(model: Model | None) -> Weights | None:
    """The weights that ``model.init`` names; of a run directory those that `Run.state_dict` gives. None without any.

    Raises
    ------
    InputError
        The file is not there, has changed, cannot be read, or the run is not finished.
    """
    if model is None or not isinstance(model.init, Start):
        return None
    path = model.init.checked()
    if not path.is_dir():
        return Weights(str(path), read_weights(path), model.init.partial)
    try:
        params = load_file(path / PARAMS).get("params")
        if params is None or not params.is_floating_point():
            raise InputError(f"{PARAMS} is no file of a run")
        module, _ = run_model(path, params)
    except (InputError, RunError, SafetensorError) as error:
        raise InputError(f"{path} has no model to start from: {error}", key="init") from None
    return Weights(str(path), module.state_dict(), model.init.partial)


@torch.no_grad()
def load_buffers(module: nn.Module, folder: Path, node: int | None, file: str, carried: Tensor | None = None) -> None:
    """Copy the buffers that the run's training changed into `module`; integers are rounded."""
    from safetensors import safe_open

    with safe_open(folder / file, "pt") as saved:
        if "buffers" not in saved.keys():  # noqa: SIM118 - it is no mapping
            return
        names = json.loads(saved.metadata()["buffers"])
        own = None if carried is None or not carried.numel() else carried
        flat = own if own is not None else chosen(saved.get_tensor("buffers"), node, read_attackers(folder))
    there = dict(module.named_buffers())
    places = placed({name: there[name] for name in names})
    exported.keeping(module, names)
    for name, value in views(flat, places).items():
        there[name].copy_(value if there[name].is_floating_point() else value.round())


def export_model(
    folder: Path,
    params: Tensor,
    file: Path,
    node: int | None = None,
    saved: str = PARAMS,
    carried: Tensor | None = None,
    which: str | None = None,
) -> dict[str, Any]:
    """Write the run's model to `file`; what it is goes by the extension. `which` is a word for another model's owner.

    ``.pt``: ``torch.save`` of plain types and tensors (``torch.load(..., weights_only=True)`` reads it): `state_dict`,
    `about`, and `code`, the file that applies the model to new rows. ``.safetensors``: the tensors, with `about` and
    `code` as metadata. ``.pt2``: a program of ``torch.export`` from rows to outputs, which needs no code, with
    ``about.json`` and ``exported.py`` beside it.

    Returns
    -------
    What describes the model and its data.

    Raises
    ------
    InputError
        As `run_model`; another extension; the folder of `file` is not there.
    RunError
        ``torch.export`` cannot make a program of somebody's own module.
    """
    if file.suffix not in SUFFIXES:
        raise InputError(f"found {file.name!r}; allowed: a file name that ends in {', '.join(SUFFIXES)}")
    if not file.absolute().parent.is_dir():
        raise InputError(f"no folder {file.absolute().parent}", file=str(file))
    module, model = run_model(folder, params, node, saved, carried)
    data = {k: v for k, v in read_about(folder).items() if k != "clients"}  # who trained it stays with the run
    graph = "topology" in read_yaml(folder / "scenario.yaml").values
    rows = "node" if graph else "chain"  # of a server's run
    one = params.dim() == 1 and not graph
    which = which or ("the server's" if one else f"the mean of the {rows}s'" if node is None else f"{rows} {node}'s")
    about = {"format": FORMAT, "fedsim": fedsim.__version__, "which": which, "model": model, "data": data}
    if carried is None and (said := _said_of_clients(folder, graph, node)) is not None:
        about["note"] = said
    code = Path(exported.__file__).read_text(encoding="utf-8")
    temporary = file.with_name(f".{file.name}.new{file.suffix}")
    try:
        if file.suffix == ".pt2":
            _write_program(temporary, module, about, code)
        elif file.suffix == ".safetensors":
            from safetensors.torch import save_file

            state, told = module.state_dict(), {"about": json.dumps(about), "code": code}
            if (wide := next((k for k, v in state.items() if v.dtype is torch.complex128), None)) is not None:
                raise InputError(f"'{wide}' is complex128, which {file.suffix} does not know; allowed: .pt, .pt2")
            save_file(with_own_memory(state), temporary, metadata=told)
            make_readable(temporary)
        else:
            torch.save({"state_dict": dict(module.state_dict()), "about": about, "code": code}, temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return about


def _said_of_clients(folder: Path, graph: bool, node: int | None) -> str | None:
    """What has to be known of the common model of a run whose clients use others; None where they use no others."""
    scenario = read_yaml(folder / "scenario.yaml").values
    said = "clients of this run use models of their own, and this is not one of them"
    model = scenario["model"]
    if model.get("personal") or model.get("batch_norm") == "local":
        if graph:
            return said if node is None else None
        return f"{said}: what stays with clients is here as it was before the first round"
    try:
        algorithm: Algorithm = part_from("algorithm", "name", scenario["algorithm"])
    except InputError:  # a module of somebody's own that is not here
        return None
    return None if type(algorithm).personal_model is ClientHalf.personal_model else said


def _write_program(file: Path, module: nn.Module, about: Mapping[str, Any], code: str) -> None:
    encoder = exported.Encoder(about)
    rows = _example(about)
    try:
        batch = torch.export.Dim("batch")
        program = torch.export.export(nn.Sequential(encoder, module).eval(), (rows,), dynamic_shapes=({0: batch},))
        torch.export.save(program, str(file), extra_files={"about.json": json.dumps(about), "exported.py": code})
    except Exception as error:  # torch.export has dozens of error types, and own modules may do anything
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(
            f"torch.export cannot make a program of this model ({type(error).__name__}: {first}); .pt and "
            ".safetensors hold its parameters"
        ) from error


def _example(about: Mapping[str, Any]) -> Tensor:
    """Two rows as numbers, as the encoder takes them."""
    columns = about["data"]["input"].get("columns")
    shape = [len(columns)] if columns else about["data"]["input"]["shape"]
    return torch.zeros(2, *shape, dtype=torch.int64 if about["data"]["input"]["type"] == "int64" else torch.float32)
