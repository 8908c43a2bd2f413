"""``fedsim new``: a commented scenario of one's own, from flags, and from questions where there is a terminal.

What is written is read and assembled before, so that it runs as it stands; comments come from the parts themselves.
"""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.cli.terminal import say
from fedsim.core.documents import Document, change, override
from fedsim.core.errors import InputError, unknown
from fedsim.core.registry import lookup, names

Values = dict[str, Any]

_READERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".npz": "npz"}
_HIDDEN = {"mlp": {"hidden": [64]}}
_DIRICHLET = {"scheme": "dirichlet", "alpha": 0.5}
_CHOSEN = "chosen here"
_LOOKED_AT = 1000  # rows of a CSV file, to see which of its columns are words
_EMPTY = {"", "#N/A", "<NA>", "N/A", "NA", "NULL", "None", "n/a", "null"}
"""Cells that count as missing values when a CSV file is read, and no words."""
_WIDE = 50  # texts, from which on one-hot columns are told of
_MANY = 20  # cells, from which on a column of words that never repeats is taken for names of rows
_FILL = {"data.missing": "mean"}
_WORK = {"lr": 0.1, "local_epochs": 1, "batch_size": 32}


def new(
    name: Annotated[str, typer.Argument(help="of the scenario; NAME.yaml is written", metavar="NAME")],
    data: Annotated[str | None, typer.Option(help="a data set of fedsim, or a CSV, parquet or npz file")] = None,
    target: Annotated[str | None, typer.Option(help="of a CSV or parquet file: the column to predict")] = None,
    clients: Annotated[int | None, typer.Option(help="how many clients share the data")] = None,
    partition: Annotated[str | None, typer.Option(help="how they share it (default: dirichlet, else iid)")] = None,
    model: Annotated[str | None, typer.Option(help="a model of fedsim, or PKG.MOD:NAME")] = None,
    algorithm: Annotated[str | None, typer.Option(help="an algorithm of fedsim, or PKG.MOD:NAME")] = None,
    graph: Annotated[str | None, typer.Option(help="the graph, of algorithms without a server")] = None,
    rounds: Annotated[int | None, typer.Option(help="how many rounds")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="any other key: key.path=value", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="the file (default: NAME.yaml)")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing: defaults for all that is not given")] = False,
) -> None:
    """Write a scenario of your own with comments; in a terminal it asks for what no flag says."""
    name = name.removesuffix(".yaml")
    place = out or Path(f"{name}.yaml")
    if place.exists():
        raise InputError("is there already; allowed: another NAME, or --out with a new file", file=str(place))
    ask = _Asks(not yes and _at_terminal())
    source = data or ask("data set, or a file of yours (.csv, .parquet, .npz)", "digits", _check_data)
    section, left_out, texts = _data(source, target, place, ask)
    section, divided = _beside(section, settings or [])
    values: Values = {"name": name, "seed": 0, "data": section}
    kind = algorithm or ask("algorithm (fedsim list algorithms)", "dfedavg" if graph else "fedavg", _known("algorithm"))
    part = lookup("algorithm", kind)
    on_graph = getattr(part, "setting", "server") == "gossip"
    if graph is not None and not on_graph:
        raise InputError(
            f"--graph: found {graph!r} with '{kind}', which has a server; allowed: an algorithm on a graph"
        )
    usual = "nodes" if on_graph else "clients"
    if clients is not None or not divided:
        values["data"]["clients"] = ask(f"number of {usual}", 10, int) if clients is None else clients
    if on_graph:
        values["topology"] = {"graph": graph or ask("graph (fedsim list graphs)", "ring", _known("graph"))}
    shape = model or ask("model (fedsim list models)", "mlp", _known("model"))
    values["model"] = {"name": shape, **_HIDDEN.get(shape, {})}
    values["algorithm"] = {"name": kind, **_work(part)}
    values["participation"] = {"mode": _mode(part)}
    count = ask("rounds", 50, int) if rounds is None else rounds
    values["run"] = {"rounds": count, "eval_every": max(1, count // 10)}
    kept = section.get("features")
    values, guessed = _settled(values, partition, settings or [], place)
    from fedsim.cli.commented import commented

    text = commented(values, str(place), guessed)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=str(place)) from None
    say(" is written", bold=str(place))
    if left_out and values["data"].get("features") == kept:
        say(f"left out of data.features, since no two of its rows have the same text: {', '.join(left_out)}")
    chosen = section.get("categorical", [])
    for column in chosen if values["data"].get("categorical") == chosen else []:
        if texts[column] > _WIDE:
            say(
                f"have a look: column {column} becomes {texts[column]} one-hot columns or more; a date, say, is better "
                "made a number, or left out of data.features"
            )
    for key in guessed:
        section_of, _, inner = key.rpartition(".")
        say(f"chosen, so have a look: {key}: {values[section_of][inner]}")
    say(f"try: fedsim plan {place}\n     fedsim run {place}")


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


class _Asks:
    """Questions at the terminal; without one the answer is the default."""

    def __init__(self, there: bool) -> None:
        self.there = there

    def __call__(self, question: str, default: Any, check: Any) -> Any:
        if not self.there:
            return default

        def checked(answer: Any) -> Any:
            try:
                return check(answer)
            except (InputError, ValueError) as error:
                raise typer.BadParameter(str(error)) from None

        return typer.prompt(question, default=default, value_proc=checked, err=True)


def _known(kind: str) -> Any:
    def check(answer: str) -> str:
        lookup(kind, answer)
        return answer

    return check


def _check_data(answer: str) -> str:
    if not _is_file(answer):
        lookup("dataset", answer)
    elif not Path(answer).exists():
        raise InputError("no such file", file=answer)
    return answer


def _is_file(source: str) -> bool:
    return Path(source).suffix in _READERS or os.sep in source


def _data(source: str, target: str | None, place: Path, ask: _Asks) -> tuple[Values, list[str], dict[str, int]]:
    """The section ``data`` without its clients, the columns that are left out of its features, and how many texts those
    of words have."""
    if not _is_file(source):
        try:
            lookup("dataset", source)
        except InputError:
            message = unknown("data set", source, names("dataset"))
            raise InputError(f"--data: {message}, or a file that ends in {', '.join(_READERS)}") from None
        if target is not None:
            raise InputError(f"--target: found with the data set '{source}'; allowed: with a CSV or parquet file")
        return {"dataset": source}, [], {}
    file = Path(source)
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise InputError(f"--data: found {source!r}; allowed: a data set, or a file that ends in {', '.join(_READERS)}")
    if not file.exists():
        raise InputError("no such file", file=source)
    found: Values = {"dataset": reader, "path": os.path.relpath(file, place.parent)}
    if reader == "npz":
        return found, [], {}
    numeric, unlike, texts = _columns(file, found) if reader == "csv" else ({}, set(), {})
    columns = list(numeric)
    if target is None:
        if not ask.there:
            raise InputError(
                f"--target: missing; allowed: a column{'' if not columns else ' of ' + ', '.join(columns)}"
            )
        target = str(ask(f"column to predict{'' if not columns else ' of ' + ', '.join(columns)}",
                         columns[-1] if columns else None, str))  # fmt: skip
    if columns and target not in columns:
        raise InputError(f"--target: {unknown('column', target, columns)}")
    left_out = [name for name in columns if name in unlike and name != target]
    features = [name for name in columns if name != target and name not in left_out]
    if not features:  # there is nothing else to learn from
        left_out, features = [], left_out
    words = [name for name in features if not numeric[name]]
    named: Values = {"features": features} if left_out else {}
    return {**found, "target": target, **named, **({"categorical": words} if words else {})}, left_out, texts


def _beside(section: Values, settings: list[str]) -> tuple[Values, bool]:
    """The section with columns of words that fit the features and the division that settings name, and whether they
    divide by a column: then it says how many clients there are, and is no feature itself."""
    given = override(Document({"data": {}}), settings).values["data"]
    if not isinstance(given, dict):
        return section, False
    partition = given.get("partition")
    whose = partition.get("partition_by") if isinstance(partition, dict) else None
    wanted, fitted = given.get("features"), dict(section)
    for key in ("features", "categorical"):
        kept = [c for c in section.get(key, []) if c != whose]
        if key == "categorical" and isinstance(wanted, list):
            kept = [c for c in section.get(key, []) if c in wanted]
        if key in section:
            fitted[key] = kept
    if not fitted.get("categorical", True):
        del fitted["categorical"]
    return fitted, whose is not None


def _columns(file: Path, found: Values) -> tuple[dict[str, bool], set[str], dict[str, int]]:
    """The columns of a CSV file and whether its first rows have numbers there alone, those of words never repeated, and
    how many texts the first rows have in each column of words.

    One-hot columns of such words, a customer's number say, would tell the model nothing of rows that it has not seen.
    A separator that is no comma goes to `found`.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            head = list(islice(lines, _LOOKED_AT))
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot be read as UTF-8 text: {error}; a scenario that you write yourself may have data.encoding"
        raise InputError(message, file=str(file)) from None
    separator = max(",;\t|", key=head[0].count) if head else ","
    if separator != "," and head[0].count(separator):
        found["separator"] = separator
    try:
        names, *rows = list(csv.reader(head, delimiter=separator)) or [[]]
    except csv.Error as error:
        raise InputError(f"cannot be read as CSV: {error}", file=str(file)) from None
    numeric, unlike, texts = {}, set(), {}
    for i, name in enumerate(names):
        cells = [row[i] for row in rows if i < len(row)]
        numeric[name] = all(map(_is_number, cells))
        if not numeric[name] and all(_is_number(cell.replace(",", ".")) for cell in cells):
            first = next(cell for cell in cells if "," in cell)
            raise InputError(
                f"column {name!r} has numbers with commas, e.g. {first!r}; allowed: decimal points", file=str(file)
            )
        if not numeric[name]:
            texts[name] = len(set(cells))
            if len(cells) >= _MANY and texts[name] == len(cells):
                unlike.add(name)
    return numeric, unlike, texts


def _is_number(text: str) -> bool:
    try:
        float("0" if text.strip() in _EMPTY else text)
    except ValueError:
        return False
    return True


def _work(part: Any) -> Values:
    """Usual local work, as far as the algorithm has the keys and its defaults are not its own choice."""
    from fedsim.core.described import keys

    defaults = {key.name: key.default for key in keys(part)}
    usual = {"lr": 0.1, "local_epochs": None, "local_steps": None, "batch_size": 32}
    return {k: v for k, v in _WORK.items() if k in defaults and defaults[k] == usual[k]}


def _mode(part: Any) -> str:
    """The participation mode that a scenario without one would have, or the first that the algorithm allows."""
    from fedsim.cli.parts import modes
    from fedsim.scenario.sections import MODES

    usual = getattr(part, "usual", {}).get("mode", MODES.get(part.setting))
    allowed = modes(part)
    return str(usual) if usual in allowed else allowed[0]


def _settled(values: Values, partition: str | None, settings: list[str], place: Path) -> tuple[Values, list[str]]:
    """The scenario as it passes its checks, and the keys that were chosen because a check asked for them.

    Without `partition` the clients' data are unequal where there are labels to make them so.
    """
    schemes: list[Values | None] = [_DIRICHLET, {"scheme": "iid"}, None]
    if partition is not None:
        schemes = [_DIRICHLET if partition == "dirichlet" else {"scheme": partition}]
    for scheme in schemes:
        data = {**values["data"], **({} if scheme is None else {"partition": scheme})}
        try:
            return _answered(override(Document({**values, "data": data}, file=place), settings))
        except InputError as error:
            last = error
            if not any((p.key or "").startswith("data.partition") for p in error.problems):
                break
    raise InputError([replace(p, file=None) if p.file in (str(place), _CHOSEN) else p for p in last.problems]) from None


def _answered(draft: Document) -> tuple[Values, list[str]]:
    """The scenario with what its checks ask for; it is assembled, too, unless that would download data."""
    from fedsim.cli.combinations import ANSWERS
    from fedsim.engine.assembly import assemble
    from fedsim.scenario.load import parse

    answers = {**ANSWERS, **_FILL}
    guessed: list[str] = []
    while True:
        try:
            scenario = parse(draft)
            if not hasattr(scenario.dataset, "hub") or getattr(scenario.dataset, "path", None) is not None:
                assemble(scenario)
        except InputError as error:
            usual = [f"algorithm.{k}" for k in _WORK if f"algorithm.{k}" not in draft.changed]
            work = next((p.key for p in error.problems if p.key in usual), None)
            if work is not None and work.partition(".")[2] in draft.values["algorithm"]:  # it is not so usual here
                algorithm = {k: v for k, v in draft.values["algorithm"].items() if f"algorithm.{k}" != work}
                draft = replace(draft, values={**draft.values, "algorithm": algorithm})
                continue
            asked = next((p.key for p in error.problems if p.key in answers and not _given(p.key, draft)), None)
            if asked is None:
                raise
            guessed.append(asked)
            section, answer = asked.partition(".")[0], answers[asked]
            more = {f"{section}.{k}": v for k, v in answer.items()} if isinstance(answer, dict) else {asked: answer}
            for key, value in more.items():
                draft = change(draft, key, value, (_CHOSEN, None))
        else:
            return draft.values, guessed


def _given(key: str, draft: Document) -> bool:
    """Whether somebody has set the key, or a section that it is in: then a check that refuses it is right."""
    parts = key.split(".")
    return any(".".join(parts[: i + 1]) in draft.changed for i in range(len(parts)))
