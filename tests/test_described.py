"""The documents say what is so: every part, key, column and law is described, and what they point to is there."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_pages import PAGES, ROOT, SCENARIOS, blocks, items
from fitting import fitting

import fedsim
from fedsim.cli.combinations import refusal, setting_of
from fedsim.contract.check import PROMISES
from fedsim.core.errors import InputError
from fedsim.core.fields import keys_of
from fedsim.core.metrics import TABLE
from fedsim.core.registry import lookup, names
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.sections import RunSection
from fedsim.sweeps.files import points


def test_parts_are_made_of_public_names() -> None:
    """What the pages about own parts import of fedsim is in ``fedsim`` itself."""
    for page in PAGES:
        if page.name.startswith("extending"):
            text = "\n".join(b.text for b in blocks(page) if b.language == "python")
            assert re.findall(r"^from fedsim import", text, re.MULTILINE) or page.name == "extending.md", page.name
            assert not re.findall(r"(?:from|import) fedsim\.[\w.]+", text), page.name


_GOOD: dict[str, list[tuple[str, list[str]]]] = {
    "algorithm": [("fedavg", [])], "solver": [("sgd", [])], "aggregator": [("median", [])],
    "compressor": [("top_k", ["k=2"])], "attack": [("sign_flip", ["attackers=2"])],
    "participation": [("synchronous", [])], "privacy": [("local_dp", ["clip_norm=1.0"])],
    "dataset": [("synthetic", ["alpha=0.5", "beta=0.5"])],
    "partition": [("iid", [])], "graph": [("ring", [])], "metric": [("macro_f1", [])], "logger": [("csv", [])],
    "section": [("contract.broken_results:Lengths", [])], "backend": [("fedsim.backends.in_process:Vectorized", [])],
}  # fmt: skip
"""A part of each kind that has laws."""


def test_every_law_is_described() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text[text.index("## `fedsim check`") :]
    said: dict[str, list[str]] = {}
    for kind, law in re.findall(r"^\* ([^,:]+), (.+?): ", section, re.MULTILINE):
        said.setdefault(kind, []).append(law)
    common = said.pop("transform")
    attackers, on_graphs, on_data = said.pop("attackers"), said.pop("attack on a graph"), said.pop("poisoned data")
    for name, laws in (("label_flip", [*common, *attackers, *on_data]), ("dissensus", [*on_graphs, "YAML round trip"])):
        assert {r.name for r in fedsim.check(name, ["attackers=2"])} == set(laws)
    said["attack"] += [*attackers, *on_graphs]
    said |= {kind: [*common, *said[kind]] for kind in ("compressor", "attack")}
    of_graph = said.pop("rule on a graph")  # an aggregator too, with laws of its own
    assert {r.name for r in fedsim.check("nna", ["f=1"])} == set(of_graph)
    assert set(said) == set(PROMISES) == set(_GOOD)
    for kind, parts in _GOOD.items():
        for name, settings in parts:
            results = fedsim.check(name, settings, kind)
            assert [r.name for r in results if not r.passed] == [], kind
            assert {r.name for r in results} == set(said[kind]), kind


def test_every_field_of_a_round_is_described() -> None:
    text = (ROOT / "docs" / "extending-algorithms.md").read_text(encoding="utf-8")
    section = text[text.index("| `round.` |") : text.index("A second argument of `aggregate`")]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [f.name for f in fields(fedsim.Round)]


def test_every_scenario_is_on_the_page_of_scenarios() -> None:
    """And it says there what its file says of itself."""
    script = runpy.run_path(str(ROOT / "docs" / "scenarios.py"))
    written, figures = script["page"](), script["figures"]()
    assert (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8") == written, "python docs/scenarios.py"
    assert all(f"[{scenario.name}]" in written for scenario in SCENARIOS)
    there = {file.name: file.read_text(encoding="utf-8") for file in script["FIGURES"].iterdir()}
    assert there == figures, "python docs/scenarios.py"
    assert set(re.findall(r"\]\(images/scenarios/(\S+)\)", written)) == set(figures)
    assert max(len(drawn) for drawn in figures.values()) < 10_000
    assert set(script["found"]()) <= {scenario.name for scenario in SCENARIOS}


def test_the_pages_show_something() -> None:
    for page in PAGES:
        assert items(page) or page.name in (
            "speed.md",
            "combinations.md",
            "architecture.md",
            "slurm.md",
            "scenarios.md",
        ), page.name
    assert sum(i.command is not None for page in PAGES for i in items(page)) > 20


def test_the_errors_shown_are_the_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = blocks(ROOT / "docs" / "scenario.md")
    at = next(i for i, b in enumerate(shown) if "name: wrong" in b.text)
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text(shown[at].text)
    with pytest.raises(InputError) as caught:
        fedsim.load("wrong.yaml")
    expected = shown[at + 1].text.splitlines()
    assert len(expected) == len(caught.value.problems)
    for line, problem in zip(expected, caught.value.problems, strict=True):
        head = line.removesuffix("...")
        assert str(problem).startswith(head) if head != line else str(problem) == line


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_it_names_exist(page: Path) -> None:
    text = re.sub(r"```yaml\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(
        r"\b((?:benchmarks|tests|scenarios|topologies)/[\w.-]*\w\.(?:py|yaml|graphml|npz|md))", text
    ):
        assert (ROOT / name).exists(), name


def test_modules_it_names_exist() -> None:
    """In pages, and in what the package says of itself: names of modules that were moved are found."""
    sources = [*PAGES, *(ROOT / "fedsim").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    found: dict[str, bool] = {}
    for file in sources:
        for name in set(re.findall(r"(?<![\w/.-])fedsim(?:\.[A-Za-z]\w*)+(?!\w|\{)", file.read_text(encoding="utf-8"))):
            if name not in found:
                found[name] = _exists(name)
            assert found[name], f"{file.relative_to(ROOT)}: {name}"


def _exists(name: str) -> bool:
    """Whether ``pkg.mod.Name.attribute`` can be had."""
    words = name.split(".")
    thing: Any = None
    for i in range(len(words), 0, -1):
        try:
            thing = importlib.import_module(".".join(words[:i]))
        except ModuleNotFoundError:
            continue
        for word in words[i:]:
            if not hasattr(thing, word):
                return False
            thing = getattr(thing, word)
        return True
    return False


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_no_line_is_long(page: Path) -> None:
    """Prose, tables, links and code: an editor shows every page without wrapping."""
    assert [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 120] == []


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 150_000, picture.name


def test_equations_lead_to_code() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    found = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    assert len(found) > 30
    for file, name in found:
        thing: Any = importlib.import_module("fedsim." + file.removesuffix(".py").replace("/", "."))
        for attribute in name.split("."):
            thing = getattr(thing, attribute)
        assert Path(inspect.getsourcefile(thing) or "") == ROOT / "fedsim" / file, name
    files = {file for file, _ in found}
    for name in names("algorithm"):
        module = inspect.getsourcefile(lookup("algorithm", name))
        if module is not None and "fedsim/algorithms" in module:
            assert f"algorithms/{Path(module).name}" in files, name


@pytest.mark.parametrize(
    "kind,page",
    [
        ("algorithm", "scenario"), ("participation", "scenario"), ("aggregator", "robustness"), ("pre", "robustness"),
        ("dataset", "data"),
        ("partition", "data"), ("model", "models"), ("loss", "models"), ("graph", "gossip"), ("mixing", "gossip"),
        ("selection", "fairness"), ("solver", "scenario"),
        ("compressor", "scenario"), ("attack", "robustness"), ("privacy", "privacy"),
        ("audit", "audit"), ("metric", "howto/loggers"), ("logger", "howto/loggers"),
    ],
)  # fmt: skip
def test_every_part_and_key_is_described(kind: str, page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`(?:\w+: )?([\w-]+)`", text)) | (named_in("algorithms") if kind == "algorithm" else set())
    for name in names(kind):
        part: Any = lookup(kind, name)
        if not part.__module__.startswith("fedsim."):
            continue
        keys = [k for k in keys_of(part) if not k.startswith("_")] if isinstance(part, type) else []
        unsaid = {name, *keys} - known - ({"nodes"} if kind == "graph" else set())
        assert not unsaid, f"{kind} {name}: docs/{page}.md does not say {sorted(unsaid)}"


def test_every_key_of_a_run_is_described() -> None:
    assert set(RunSection.model_fields) <= named_in("scenario")


def test_every_column_is_described(tmp_path: Path) -> None:
    gossip: dict[str, Any] = {"topology": {"graph": "ring"}, "algorithm": {"name": "dspodfl", "lr": 0.01}}
    server: dict[str, Any] = {"algorithm": {"name": "fedavg", "lr": 0.01}}
    for i, sections in enumerate((gossip, server)):
        for data in (
            {"dataset": "quadratic", "file": str(ROOT / "scenarios/quadratic.npz")},
            {"dataset": "digits", "clients": 4},
        ):
            model: dict[str, Any] = {} if "file" in data else {"model": {"name": "linear"}}
            folder = tmp_path / f"{i}-{data['dataset']}"
            fedsim.run({"data": data, **model, **sections, "run": {"rounds": 1, "trace": True}}, out=folder)
            columns = {k for file in ("metrics", "trace") for row in read_jsonl(folder / f"{file}.jsonl") for k in row}
            said = named_in("runs") | named_in("howto/client-accuracy") | named_in("howto/loggers")
            assert columns <= said, columns - said


def test_the_columns_are_those_of_the_table_with_their_directions() -> None:
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    section = text[text.index("### Metrics\n") : text.index("### More metrics")]
    said = {None: "", True: "largest", False: "smallest"}
    entries = re.findall(r"^\* ((?:`\w+`(?:, )?)+)(?: \(([^)]*)\))?:", section, re.MULTILINE)
    directions = [("".join(re.findall(r"best: (\w+)", told)), names) for names, told in entries]
    found = {name: direction for direction, names in directions for name in re.findall(r"`(\w+)`", names)}
    assert found == {m.name: said[m.larger_is_better] for m in TABLE.values()}


def named_in(page: str) -> set[str]:
    """Everything a page has in backticks, word by word."""
    return set(re.findall(r"`(\w+)`", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))


def test_the_schema_is_what_the_command_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "fedsim.cli.app", "schema"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert json.loads(printed) == json.loads((ROOT / "docs" / "scenario.schema.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_combinations_are_what_the_command_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "fedsim.cli.combinations"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert printed == (ROOT / "docs" / "combinations.md").read_text(encoding="utf-8")


def test_combinations_ask_the_checks() -> None:
    fedavg, scaffold, dgd = ({"algorithm": {"name": n}} for n in ("fedavg", "scaffold", "dgd"))
    clocked = {"participation": {"mode": "asynchronous"}}
    assert refusal({**fedavg, **clocked}) is None
    assert "one common model" in str(refusal({**scaffold, **clocked}))
    assert "gossip algorithm" in str(refusal({**dgd, **clocked}))
    decor = {"privacy": {"mechanism": "decor"}}
    assert refusal({**dgd, **decor}) is None
    assert "neighbours draw together" in str(refusal({**dgd, **decor}, deployed=True))
    for kind, setting in (("algorithm", "server"), ("algorithm", "gossip")):  # what the page says in one sentence
        for name in names(kind):
            if setting_of(kind, name) == setting:
                for mode in names("participation"):
                    if setting_of("participation", mode) != setting:
                        assert refusal({"algorithm": {"name": name}, "participation": {"mode": mode}}) is not None


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda p: p.name)
def test_shipped_scenarios_load_and_fit_the_schema(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    if "scenario" in values:
        assert len(points(file)[1]) > 1
        return
    prefix = "# yaml-language-server: $schema="
    first = text.splitlines()[0]
    assert first.startswith(prefix)
    schema = (file.parent / first.removeprefix(prefix)).resolve()
    assert schema == ROOT / "docs" / "scenario.schema.json"
    sections = json.loads(schema.read_text(encoding="utf-8"))["properties"]
    assert set(values) <= set(sections)
    for section, key in {
        "data": "dataset",
        "model": "name",
        "algorithm": "name",
        "topology": "graph",
        "participation": "mode",
    }.items():
        if section in values and ":" not in values[section][key]:
            choices = {c["title"]: c["properties"] for c in sections[section]["anyOf"]}
            assert set(values[section]) <= set(choices[values[section][key]]), section
    if "torchvision" in text:
        fitting("torchvision.models")
    fedsim.load(file)
