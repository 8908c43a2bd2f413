"""Exported models: applied to new rows in a process that has no fedsim, they say what fedsim says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.engine.assembly import assemble
from fedsim.engine.export import export_model
from fedsim.engine.run_directory import Run
from fedsim.models import exported
from fedsim.scenario.load import parse

WITHOUT = """
import importlib, json, pathlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fedsim":
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import torch

given = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.path.insert(0, "")
said = []
for number, (file, rows) in enumerate(given):
    if file.endswith(".pt"):
        text = torch.load(file, weights_only=True)["code"]
    elif file.endswith(".pt2"):
        extra = {"exported.py": ""}
        torch.export.load(file, extra_files=extra)
        text = extra["exported.py"]
    else:
        from safetensors import safe_open
        with safe_open(file, "pt") as opened:
            text = opened.metadata()["code"]
    text = text.decode() if isinstance(text, bytes) else text
    pathlib.Path(f"exported_copy{number}.py").write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    model = importlib.import_module(f"exported_copy{number}").load(file)
    if rows["columns"] is None:
        x = torch.tensor(rows["rows"], dtype=getattr(torch, rows["type"]))
    else:
        x = [dict(zip(rows["columns"], row)) for row in rows["rows"]]
    said.append({"outputs": model.outputs(x).tolist(), "labels": model.predict(x), "classes": model.classes})
print(json.dumps(said))
assert not any(name.split(".")[0] == "fedsim" for name in sys.modules)
"""

OWN = """
from torch import nn

class Tokens(nn.Module):
    def __init__(self, num_outputs, dim=4):
        super().__init__()
        self.table, self.head = nn.Embedding(9, dim), nn.Linear(dim, num_outputs)

    def forward(self, x):
        return self.head(self.table(x).mean(1))
"""

DRAW = np.random.default_rng(4)
TABLE = pandas.DataFrame(
    {
        "age": DRAW.integers(18, 80, 80),
        "school": np.array(["École", "Masters", "HS-grad"])[DRAW.integers(0, 3, 80)],
        "hours": DRAW.normal(40, 8, 80).round(3),
        "income": np.where(DRAW.random(80) < 0.5, ">50K", "<=50K"),
        "price": DRAW.normal(size=80),
    }
)
NEW = TABLE.iloc[:6].assign(
    age=[20, 30, 40, None, 60, 70], school=["École", "Masters", "PhD", "HS-grad", None, "École"]
)


def scenario(kind: str, folder: Path) -> dict[str, Any]:
    """A scenario of each kind of data; its test rows are the new rows."""
    TABLE.to_csv(folder / "train.csv", index=False)
    NEW.to_csv(folder / "new.csv", index=False)
    (folder / "own_tokens.py").write_text(OWN)
    csv = {"dataset": "csv", "path": str(folder / "train.csv"), "test_path": str(folder / "new.csv"), "clients": 3,
           "missing": "most_frequent", "features": ["age", "school", "hours"], "categorical": ["school"]}  # fmt: skip
    tokens = DRAW.integers(0, 9, (60, 5))
    tokens[:2] = [[0] * 5, [8] * 5]
    np.savez(folder / "tokens.npz", x=tokens, y=DRAW.integers(4, 7, 60))
    fedavg = {"name": "fedavg", "lr": 0.1, "local_epochs": 1}
    sections: dict[str, Any] = {"algorithm": fedavg, "run": {"rounds": 2}}
    match kind:
        case "table":
            sections |= {"data": {**csv, "target": "income"}, "model": {"name": "mlp", "hidden": [5]}}
        case "logistic":
            sections |= {"data": {**csv, "target": "income"}, "model": {"name": "linear", "loss": "logistic"}}
        case "regression":
            sections |= {"data": {**csv, "target": ["price", "hours"], "features": ["age"], "categorical": []}}
            sections |= {"model": {"name": "linear"}, "run": {"rounds": 2, "dtype": "float64"}}
        case "graph":
            sections |= {"data": {**csv, "target": "income"}, "model": {"name": "linear"}}
            sections |= {"algorithm": {"name": "dgd", "lr": 0.1, "batch_size": 8}, "topology": {"graph": "ring"}}
        case "images":
            sections |= {"data": {"dataset": "digits", "clients": 3, "limit": 60, "normalize": "standard"}}
            sections |= {"model": {"name": "cnn", "channels": [3], "hidden": 6}}
        case "residual":
            sections |= {"data": {"dataset": "digits", "clients": 3, "limit": 9}}
            sections |= {"model": {"name": "resnet18"}, "run": {"rounds": 1}}
        case "tokens":
            sections |= {"data": {"dataset": "npz", "path": str(folder / "tokens.npz"), "clients": 3}}
            sections |= {"model": {"name": "own_tokens:Tokens"}}
    return sections


KINDS = ("table", "logistic", "regression", "graph", "images", "residual", "tokens")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Path]]:
    made: dict[str, tuple[Run, Path]] = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        sys.path.insert(0, str(folder))
        made[kind] = fedsim.run(scenario(kind, folder), out=folder / "run"), folder
    return made


def own_prediction(folder: Path, kind: str, params: torch.Tensor) -> torch.Tensor:
    """What fedsim computes for the test rows."""
    task: Any = assemble(parse(scenario(kind, folder) | {"name": "again"})).task
    return task.kernel.outputs(params.unsqueeze(0), task.test_inputs)[0]


def raw_rows(kind: str) -> dict[str, Any]:
    """The test rows as they are in the file."""
    if kind in ("images", "residual"):
        from sklearn.datasets import load_digits

        from fedsim.data.splits import Split, divide

        digits = load_digits()
        whole = Split(digits.images[:, None].astype(np.float32), digits.target, 10)
        rows = divide(whole, 0.2)[1].x[: 60 if kind == "images" else 9]
        return {"columns": None, "rows": rows.tolist(), "type": "float32"}
    columns = ["age"] if kind == "regression" else ["age", "school", "hours"]
    found = NEW[columns].astype(object).where(NEW[columns].notna(), None)
    return {"columns": columns, "rows": found.to_numpy().tolist()}


SHIPPED = [kind for kind in KINDS if kind != "tokens"]


@pytest.fixture(scope="module")
def answers(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, Any]]]:
    """Of each kind what its exports' records say, and what one process without fedsim says of all kinds' exports."""
    folder = tmp_path_factory.mktemp("exported")
    files = [(kind, folder / f"{kind}{suffix}") for kind in SHIPPED for suffix in (".pt", ".safetensors", ".pt2")]
    about = [export_model(runs[kind][0].dir, runs[kind][0].params, file) for kind, file in files]
    done = applied([(file, raw_rows(kind)) for kind, file in files], folder)
    pairs = zip(files, about, done, strict=True)
    found: dict[str, list[tuple[Any, Any]]] = {kind: [] for kind in SHIPPED}
    for (kind, _), said, answer in pairs:
        found[kind].append((said, answer))
    return found


@pytest.mark.parametrize("kind", SHIPPED)
def test_an_export_needs_no_fedsim(runs: Any, answers: Any, kind: str) -> None:
    run, folder = runs[kind]
    expected = own_prediction(folder, kind, run.params if run.params.dim() == 1 else run.params.mean(0))
    assert len(answers[kind]) == 3
    for said, done in answers[kind]:
        found = torch.tensor(done["outputs"], dtype=expected.dtype)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
        if kind == "regression":
            assert np.allclose(done["labels"], expected.tolist())
            assert said["data"]["target"]["columns"] == ["price", "hours"]
            continue
        numbers = (expected[:, 0] > 0).long() if kind == "logistic" else expected.argmax(1)
        names = [str(k) for k in range(10)] if kind in ("images", "residual") else ["<=50K", ">50K"]
        assert done["classes"] == names
        assert [str(label) for label in done["labels"]] == [names[i] for i in numbers.tolist()]


def applied(given: list[tuple[Path, dict[str, Any]]], folder: Path, **environment: str) -> list[dict[str, Any]]:
    """What each of the exports says of its rows in a process that cannot import fedsim."""
    asked = folder / "asked.json"
    asked.write_text(json.dumps([(str(file), rows) for file, rows in given]), encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(asked)], capture_output=True, text=True, cwd=folder, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def test_somebodys_own_module_travels_as_a_program(runs: Any, tmp_path: Path) -> None:
    run, folder = runs["tokens"]
    rows = [[0, 8, 3, 2, 1], [4, 4, 4, 4, 4]]
    with torch.no_grad():
        expected = run.model()(torch.tensor(rows))
    labels = [[4, 5, 6][i] for i in expected.argmax(1).tolist()]
    given = {"columns": None, "rows": rows, "type": "int64"}
    run.export(tmp_path / "model.pt2")
    (done,) = applied([(tmp_path / "model.pt2", given)], tmp_path)
    assert torch.allclose(torch.tensor(done["outputs"]), expected, atol=1e-6)
    assert done["labels"] == labels
    run.export(tmp_path / "model.pt")
    (done,) = applied([(tmp_path / "model.pt", given)], tmp_path, PYTHONPATH=str(folder))
    assert torch.equal(torch.tensor(done["outputs"]), expected)
    with pytest.raises(ImportError, match=r"'nowhere:Net', which cannot be imported here .* to a .pt2 file"):
        exported.build({"name": "nowhere:Net", "layers": None, "dtype": "float32"})


def test_a_pt_file_is_plain(runs: Any, tmp_path: Path) -> None:
    run, _ = runs["table"]
    run.export(tmp_path / "m.pt")
    saved = torch.load(tmp_path / "m.pt", weights_only=True)
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    plain.load_state_dict(saved["state_dict"])
    assert torch.equal(plain[1].weight, run.state_dict()["1.weight"])
    assert torch.equal(plain[3].bias, run.model()[3].bias)
    columns = saved["about"]["data"]["input"]["columns"]
    assert [c["name"] for c in columns] == ["age", "school", "hours"]
    assert columns[1]["categories"] == ["HS-grad", "Masters", "École"]
    assert {"shift", "scale", "fill"} <= set(columns[0])
    assert saved["about"]["data"]["target"]["classes"] == ["<=50K", ">50K"]
    assert "clients" not in saved["about"]["data"]


def test_tensors_that_the_module_has_no_place_for_are_named(runs: Any, tmp_path: Path) -> None:
    """As PyTorch does, also those of a sub-module that somebody's own class no longer has."""
    run, _ = next(iter(runs.values()))
    run.export(tmp_path / "m.pt")
    saved = torch.load(tmp_path / "m.pt", weights_only=True)
    saved["state_dict"]["gone.weight"] = torch.ones(2)
    torch.save(saved, tmp_path / "m.pt")
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"gone\.weight"'):
        exported.load(tmp_path / "m.pt")


def test_of_a_graph_the_mean_or_a_node(runs: Any) -> None:
    run, _ = runs["graph"]
    flat = lambda model: torch.cat([p.detach().flatten() for p in model.parameters()])  # noqa: E731
    assert torch.equal(flat(run.model()), run.params.mean(0))
    assert torch.equal(flat(run.model(node=2)), run.params[2])
    with pytest.raises(InputError, match="found 3; allowed: 0 to 2"):
        run.model(node=3)
    with pytest.raises(InputError, match="has a server and one model"):
        runs["table"][0].state_dict(node=0)


def test_what_cannot_be_exported_is_said(runs: Any, tmp_path: Path) -> None:
    run, _ = runs["table"]
    with pytest.raises(InputError, match=r"found 'm.onnx'; allowed: a file name that ends in .pt, .safetensors, .pt2"):
        run.export(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no folder"):
        run.export(tmp_path / "nowhere" / "m.pt")
    with pytest.raises(RunError, match="holds no final parameters: the run is not finished"):
        Run(tmp_path).model()
    assert list(tmp_path.iterdir()) == []
    quadratic = {"data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")}, "run": {"rounds": 1}}
    np.savez(tmp_path / "q.npz", A=np.ones((2, 2)), b=np.ones((2, 2)))
    done = fedsim.run(quadratic | {"algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 1}}, out=tmp_path / "q")
    with pytest.raises(InputError, match="its problem has no data"):
        done.export(tmp_path / "q.pt")


def test_rows_that_do_not_fit_are_said(runs: Any, tmp_path: Path) -> None:
    run, _ = runs["table"]
    run.export(tmp_path / "m.safetensors")
    model = exported.load(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="a row lacks the column 'school'; needed: age, school, hours"):
        model.predict([{"age": 3}])
    with pytest.raises(ValueError, match="column 'hours' has no value"):
        model.predict({"age": 3, "school": "École", "hours": None})
    assert abs(float(model.probabilities({"age": 3, "school": "École", "hours": 40}).sum()) - 1) < 1e-6


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (2, 3, 8, 8)])
def test_images_of_another_shape_are_said(runs: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    runs["images"][0].export(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"needed: a list of rows of shape \[1, 8, 8\]"):
        exported.load(tmp_path / "m.safetensors").predict(torch.zeros(shape))


def test_files_of_a_run_are_as_readable_as_their_neighbours(runs: Any, tmp_path: Path) -> None:
    run, _ = runs["table"]
    modes = {file.name: file.stat().st_mode & 0o777 for file in run.dir.iterdir() if file.is_file()}
    assert set(modes.values()) == {modes["metrics.jsonl"]}
    run.export(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == modes["metrics.jsonl"]
