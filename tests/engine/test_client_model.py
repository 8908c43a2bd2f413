"""A client's own model, taken out of a finished run, says of the client's test rows what the run's table says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from torch.nn import functional
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.core.errors import InputError, RunError
from fedsim.engine.run_directory import Run
from fedsim.models import exported

WARDS = ["east", "north", "south", "west"]
ROUNDS = 3
FASTEST = {"system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.5}}}
RING = {"topology": {"graph": "ring"}}
HEAD = {"model": {"personal": ["3"]}}
TUNED = {"run": {"finetune": {"steps": 2}}}


def method(name: str, **keys: Any) -> dict[str, Any]:
    return {"algorithm": {"name": name, **keys}}


KINDS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "tuned": TUNED,
    "personal": HEAD,
    "personal-tuned": HEAD | TUNED,
    "personal-on-disk": HEAD | {"run": {"client_state": "disk"}},
    "norms": {"model": {"name": "cnn_like:Normed", "batch_norm": "local"}},
    "ditto": method("ditto"),
    "ditto-buffered": method("ditto") | {"participation": {"mode": "fedbuff", "buffer": 2}} | FASTEST,
    "personal-asynchronous": HEAD | {"participation": {"mode": "asynchronous"}} | FASTEST,
    "pfedme": method("pfedme"),
    "apfl": method("apfl"),
    "local": method("local"),
    "centralized": method("centralized"),
    "ifca": method("ifca"),
    "ring": method("dfedavg") | RING,
    "ring-personal": method("dfedavg") | RING | HEAD,
    "ring-ditto": method("gossip_ditto") | RING,
    "ring-merged": method("dfedavg") | RING | {"participation": {"merge": "final"}},
    "ring-poisson": method("dspodfl") | RING | {"participation": {"mode": "poisson"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, random = tmp_path_factory.mktemp("wards"), np.random.default_rng(0)
    for name, rows in (("train.csv", 12), ("test.csv", 5)):
        with (made / name).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["a", "b", "c", "ward", "state"])
            for number, ward in enumerate(WARDS):
                for row in random.normal(size=(rows, 3)):
                    table.writerow([*row, ward, int((row[0] > 0) ^ (number % 2))])
    (made / "cnn_like.py").write_text(
        "from torch import nn\n\n\n"
        "class Normed(nn.Sequential):\n"
        "    def __init__(self, input_shape, num_outputs):\n"
        "        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, num_outputs))\n",
        encoding="utf-8",
    )
    return made


def run_of(folder: Path, kind: str) -> Run:
    """The run of a kind; made once."""
    out = folder / "runs" / kind
    if (out / "params.safetensors").exists():
        return Run(out)
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "dataset": "csv", "path": str(folder / "train.csv"), "test_path": str(folder / "test.csv"),
            "target": "state", "partition": {"scheme": "natural_id", "partition_by": "ward"}, "local_test": "natural",
        },
        "model": {"name": "mlp", "hidden": [4]},
        "algorithm": {"name": "fedavg", "lr": 0.3, "local_steps": 2, "batch_size": 4},
        "run": {"rounds": ROUNDS, "eval_every": ROUNDS, "dtype": "float64"},
    }  # fmt: skip
    for key, more in KINDS[kind].items():
        sections[key] = sections.get(key, {}) | more
    if ":" in sections["model"]["name"]:
        del sections["model"]["hidden"]
    scenario = folder / f"{kind}.yaml"
    scenario.write_text(json.dumps(sections), encoding="utf-8")
    return fedsim.run(scenario, out=out)


def loss_of(file: Path, folder: Path, ward: str) -> float:
    """The mean loss of an exported model on a ward's test rows, in plain PyTorch."""
    with (folder / "test.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["ward"] == ward]
    inputs = [{k: float(row[k]) for k in "abc"} for row in rows]
    outputs = exported.load(file).outputs(inputs).double()
    return float(functional.cross_entropy(outputs, torch.tensor([int(row["state"]) for row in rows])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_clients_model_says_what_the_table_says(folder: Path, kind: str, tmp_path: Path) -> None:
    run = run_of(folder, kind)
    before = {p: p.read_bytes() for p in sorted(run.dir.rglob("*")) if p.is_file()}
    table = run.clients[run.clients["round"] == ROUNDS].set_index("name")["loss"]
    for number, ward in enumerate(WARDS):
        about = run.export(tmp_path / "own.pt", client=ward if number % 2 else number)
        said = loss_of(tmp_path / "own.pt", folder, ward)
        if kind != "ring-merged":  # the table is of the models before they were merged
            assert said == pytest.approx(table[ward], rel=1e-6)
        assert ward in about["which"]
    assert {p: p.read_bytes() for p in sorted(run.dir.rglob("*")) if p.is_file()} == before


def test_the_table_has_what_clients_chose(folder: Path) -> None:
    """The column `cluster` is the number of the one model of the server's that has the client's loss."""
    run = run_of(folder, "ifca")
    table = run.clients
    assert table["cluster"].dtype == "int64"
    assert set(table["cluster"]) <= {0, 1}
    last = table[table["round"] == ROUNDS].set_index("name")
    state = load_file(run.dir / "checkpoint" / "state.safetensors")
    for ward in WARDS:
        own = torch.cat([p.flatten() for p in run.model(client=ward).parameters()])
        assert torch.equal(own, state[f"model_{last.loc[ward, 'cluster'] + 1}"])
    assert set(last["cluster"]) == {0, 1}, "else this says little"
    assert not [name for name in run.metrics if "cluster" in name]
    page = Path(fedsim.report([run.dir], folder / "ifca.html")).read_text(encoding="utf-8")
    assert page.count("<th>cluster") == 1
    assert "clients-cluster" not in page
    assert "cluster" not in run_of(folder, "fedavg").clients


def test_a_run_that_recorded_no_choices_goes_on_without(folder: Path, tmp_path: Path) -> None:
    """As an earlier version left it."""
    import shutil

    shutil.copytree(run_of(folder, "ifca").dir, tmp_path / "run")
    path = tmp_path / "run" / "clients.parquet"
    parquet.write_table(parquet.read_table(path).drop_columns(["cluster"]), path)
    longer = fedsim.load(folder / "ifca.yaml", [f"run.rounds={2 * ROUNDS}"])
    run = fedsim.run(longer, out=tmp_path / "run", resume=True)
    assert run.resumed_at == ROUNDS
    assert sorted(set(run.clients["round"])) == [0, ROUNDS, 2 * ROUNDS]
    assert "cluster" not in run.clients


def test_a_run_that_a_measure_may_stop_has_clients_models(folder: Path) -> None:
    """The measure is not asked for when a client's model is made."""
    run_of(folder, "ditto")
    sections = json.loads((folder / "ditto.yaml").read_text(encoding="utf-8"))
    stop = {"metric": "macro_f1", "patience": 9}
    sections["run"] |= {"metrics": [{"name": "macro_f1"}], "stop": stop}
    run = fedsim.run(sections, out=folder / "runs" / "may-stop")
    own, other = (r.state_dict(client=1) for r in (run, run_of(folder, "ditto")))
    assert all(torch.equal(own[k], other[k]) for k in other)


def test_a_number_is_no_name(folder: Path, tmp_path: Path) -> None:
    """Clients may have names that look like numbers; a text is then a name, as the command has it."""
    import shutil

    shutil.copytree(run_of(folder, "ditto").dir, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    about["clients"]["names"] = ["3", "2", "1", "0"]
    (tmp_path / "run" / "data.json").write_text(json.dumps(about), encoding="utf-8")
    run, own = Run(tmp_path / "run"), tmp_path / "own.pt"
    for client in (3, np.int64(3)):  # as the table of clients has it
        assert run.export(own, client=client)["which"] == "client 3 (0)'s"  # type: ignore[arg-type]
    assert run.export(own, client="3")["which"] == "client 3's"
    same = [run.state_dict(client=client)["1.weight"] for client in ("0", 3)]
    assert torch.equal(*same)


def test_after_the_last_merge_all_clients_have_the_mean(folder: Path) -> None:
    run = run_of(folder, "ring-merged")
    for client in range(4):
        for own, mean in zip(run.model(client=client).parameters(), run.model().parameters(), strict=True):
            assert torch.allclose(own, mean)


def test_the_model_of_a_node_is_not_the_own_one_beside_it(folder: Path) -> None:
    run = run_of(folder, "ring-ditto")
    own, mixed = run.state_dict(client="east"), run.state_dict(node=0)
    assert own.keys() == mixed.keys()
    assert not all(torch.equal(own[k], mixed[k]) for k in own)


def test_work_under_way_is_done_first_where_nobody_was_evaluated(folder: Path) -> None:
    """The run without evaluations of clients has the same models as the one with them."""
    whole = run_of(folder, "personal-asynchronous")
    sections = json.loads((folder / "personal-asynchronous.yaml").read_text(encoding="utf-8"))
    sections["data"]["local_test"] = None
    run = fedsim.run(sections, out=folder / "runs" / "unseen")
    for client in range(4):
        one, other = whole.state_dict(client=client), run.state_dict(client=client)
        assert all(torch.allclose(one[k], other[k], rtol=0, atol=1e-12) for k in one)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"client": "nowhere"}, "found nowhere; allowed: 0 to 3, or a name: east, north, south, west"),
        ({"client": 4}, "found 4; allowed: 0 to 3"),
        ({"client": -1}, "found -1; allowed: 0 to 3"),
        ({"client": 0, "node": 1}, "found 1 together with client 0; allowed: one of the two"),
        ({"client": 0, "best": True}, "found 0 together with best"),
    ],
)
def test_who_is_asked_for_wrongly_is_told(folder: Path, asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as said:
        run_of(folder, "ditto").export(tmp_path / "own.pt", **asked)
    assert words in str(said.value)
    assert not list(tmp_path.iterdir())


def test_clients_of_a_deployment_keep_their_models(folder: Path, tmp_path: Path) -> None:
    """A run directory as a deployment leaves it: `deployment.json` is there, clients' own models are not."""
    import shutil

    for kind in ("ditto", "tuned", "fedavg"):
        copy = tmp_path / kind
        shutil.copytree(run_of(folder, kind).dir, copy)
        (copy / "deployment.json").write_text("{}", encoding="utf-8")
        if kind == "fedavg":
            own, common = Run(copy).state_dict(client="east"), Run(copy).state_dict()
            assert all(torch.equal(own[k], common[k]) for k in own)
            continue
        with pytest.raises(RunError, match="on their machines"):
            Run(copy).export(tmp_path / "own.pt", client="east")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("fedavg", None),
        ("ring", None),
        ("personal", "as it was before the first round"),
        ("norms", "as it was before the first round"),
        ("ditto", "not one of them"),
        ("ifca", "not one of them"),
        ("ring-personal", "not one of them"),
        ("ring-ditto", "not one of them"),
    ],
)
def test_a_common_model_says_that_clients_use_others(folder: Path, kind: str, said: str | None, tmp_path: Path) -> None:
    run = run_of(folder, kind)
    note = run.export(tmp_path / "common.pt").get("note")
    assert note is None if said is None else note is not None and note.endswith(said)
    assert "note" not in run.export(tmp_path / "own.pt", client=0)
    if "ring" in kind:
        assert ("note" in run.export(tmp_path / "node.pt", node=1)) is (kind == "ring-ditto")


def test_the_command_exports_a_clients_model(folder: Path, tmp_path: Path) -> None:
    run, own, common = str(run_of(folder, "personal").dir), str(tmp_path / "own.pt"), str(tmp_path / "common.pt")
    said = CliRunner().invoke(app, ["export", run, common])
    assert said.stdout.endswith("before the first round; --client NAME exports a client's\n")
    said = CliRunner().invoke(app, ["export", run, own, "--client", "south"])
    assert said.stdout == f"{own}: client south's model 'mlp', 2 outputs, classification\n"
    assert loss_of(Path(own), folder, "south") != pytest.approx(loss_of(Path(common), folder, "south"))
