"""``fedsim export``: a run's model in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.json_output import AsJson, emit
from fedsim.core.errors import InputError


def export(
    run: Annotated[Path, typer.Argument(help="run directory", metavar="RUN")],
    file: Annotated[Path, typer.Argument(help="where the model goes: .pt, .safetensors or .pt2", metavar="FILE")],
    node: Annotated[
        int | None, typer.Option("--node", help="of a graph: the model that a node mixes (default: the mean)")
    ] = None,
    client: Annotated[
        str | None, typer.Option("--client", help="the model that a client uses: its number or name", metavar="NAME")
    ] = None,
    code: Annotated[
        Path | None, typer.Option("--code", help="also write the Python file that applies it without fedsim")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="the model that the logger 'best' kept, instead of the last one")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's model in plain PyTorch, with all that is needed to apply it to a new row."""
    from fedsim.engine.run_directory import Run
    from fedsim.models import exported

    if not run.is_dir():
        raise InputError("no such run directory", file=str(run))
    if code is not None and code.suffix != ".py":
        raise InputError(f"--code: found {code.name!r}; allowed: a file name that ends in .py")
    about = Run(run).export(file, node, client, best)
    if code is not None:
        code.write_text(Path(exported.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    if as_json:
        emit({"file": str(file), **about})
        return
    model, target = about["model"], about["data"]["target"]
    print(f"{file}: {about['which']} model '{model['name']}', {model['num_outputs']} outputs, {target['task']}")
    if "note" in about:
        print(f"{about['note']}; --client NAME exports a client's")
    if code is not None:
        print(f"{code}: load({str(file)!r}).predict(rows) applies it")
