"""What goes with what, asked of the checks themselves: ``python -m fedsim.cli.combinations > docs/combinations.md``.

Every cell is a tiny scenario that is read and assembled as `fedsim plan` would. Where the answer is that a key is
missing or has to be another one, it is given and the question asked again; what is refused then is no combination.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from fedsim.core.errors import InputError, Problem
from fedsim.core.registry import lookup, names
from fedsim.deployment.noise import check_trust
from fedsim.engine.assembly import assemble
from fedsim.messages.graph_rules import GraphRule
from fedsim.privacy.others import NO_OTHERS, OTHERS
from fedsim.scenario.load import parse
from fedsim.scenario.sections import Scenario

Values = dict[str, Any]

_DATA = {"dataset": "synthetic", "clients": 8, "iid": True, "dimension": 3, "num_classes": 2, "max_samples": 12}
_RUN = {"rounds": 10}  # the events of every round are accounted for, which changes no answer
ANSWERS: Mapping[str, Any] = {  # keys that a check may ask for, and what they are given then
    "participation.window": 1.0, "participation.buffer": 8, "participation.weights": "identical",
    "participation.sampling": "poisson", "privacy.epsilon": {"noise_multiplier": 1.0}, "privacy.clip_norm": 1.0,
    "privacy.sampling_rate": 0.5, "algorithm.clip_norm": 1.0, "algorithm.difference_clip": 1.0,
    "algorithm.inner_clip": 1.0, "compression.k": 1, "compression.levels": 4, "attack.attackers": 0.25,
    "attack.target": 1, "attack.patch": 1, "algorithm.mu": 0.1, "aggregator.trim": 0.25, "aggregator.f": 1,
    "aggregator.tau": 1.0, "aggregator.root": 0, "participation.clients_per_round": 1,
}  # fmt: skip
_WIDTH = 120  # of lines
_MOST = 12  # columns, of a table that has fewer rows
_INTRODUCTION = """\
# What goes with what

Made by `python -m fedsim.cli.combinations` from the checks that scenarios pass, so it says what they do. ✓: the two go
together; a number: they do not, for the reason under the table. A letter stands for the names that are under the
table. A cell says it of the two names; `fedsim plan` says it of a whole scenario.
"""


def refusal(sections: Values, deployed: bool = False) -> str | None:
    """Why a scenario of these sections is refused (`deployed`: as a Flower deployment); None where it is not."""
    setting = setting_of("algorithm", sections["algorithm"]["name"])
    modes = [n for n in names("participation") if setting_of("participation", n) == setting]
    why = _asked(sections, deployed)
    if "participation" in sections or why is None or not why.startswith("`participation.mode`"):
        return why
    tried = [_asked({**sections, "participation": {"mode": mode}}, deployed) for mode in modes]  # it needs another mode
    return next((w for w in tried if w is None or not w.startswith("`participation.mode`")), why)


def _asked(sections: Values, deployed: bool) -> str | None:
    values: Values = {"data": _DATA, "model": {"name": "linear"}, "run": _RUN}
    values |= {k: dict(v) for k, v in sections.items()}
    if setting_of("algorithm", values["algorithm"]["name"]) == "gossip":
        values["topology"] = {"graph": "complete"}
    if lookup("algorithm", values["algorithm"]["name"])().needs.adversary:
        values |= {"data": {"dataset": "digits", "clients": 8, "limit": 80}, "adversary": {"eps": 0.1}}
    try:
        scenario = _completed(values)[1]
        if deployed:
            check_trust(scenario)
    except InputError as error:
        return _words(error.problems[0], values)
    return None


def completed(values: Values) -> Values:
    """The scenario with the keys that the checks ask for.

    Raises
    ------
    InputError
        What it says is no combination, whatever else is given.
    """
    return _completed(values)[0]


def _completed(values: Values) -> tuple[Values, Scenario]:
    """What `completed` gives, and the scenario that it is."""
    given: set[str] = set()
    while True:
        try:
            scenario = parse(values)
            assemble(scenario)
        except InputError as error:
            asked = next((p.key for p in error.problems if p.key in ANSWERS and p.key not in given), None)
            if asked is None:
                raise
            given.add(asked)
            section, _, key = asked.partition(".")
            value = ANSWERS[asked] if isinstance(ANSWERS[asked], dict) else {key: ANSWERS[asked]}
            values = {**values, section: {**values.get(section, {}), **value}}
        else:
            return values, scenario


def setting_of(kind: str, name: str) -> str:
    """``server`` or ``gossip``."""
    return str(lookup(kind, name).setting)


def page() -> str:
    """All tables, as Markdown."""
    server, graph = ([n for n in names("algorithm") if setting_of("algorithm", n) == s] for s in ("server", "gossip"))
    on_server, on_graph = ([{"participation": {"mode": n}} for n in names("participation")
                            if setting_of("participation", n) == s] for s in ("server", "gossip"))  # fmt: skip
    transforms = [*_sections("compression", "compressor"), *_sections("attack")]
    rules = {rule["aggregator"]["name"]: rule for rule in _sections("aggregator")}
    of_graph = [rule for name, rule in rules.items() if issubclass(lookup("aggregator", name), GraphRule)]
    messages = [*(rule for rule in rules.values() if rule not in of_graph), *transforms]
    on_edges = [*rules.values(), *transforms]
    private = _sections("privacy", key="mechanism")
    algorithms = [[{"algorithm": {"name": n}} for n in of] for of in (server, graph)]
    typical = [{"algorithm": {"name": n}} for n in ("fedavg", "dspodfl")]
    parts = [
        _INTRODUCTION,
        "## Algorithms with a server\n",
        "Modes of a graph and rules of its nodes are refused for all of them.\n",
        _table("algorithm", algorithms[0], [*on_server, *messages]),
        _table("algorithm", algorithms[0], private),
        "## Algorithms on a graph\n",
        "Modes of a server and what follows from them are refused for all of them.\n",
        _table("algorithm", algorithms[1], [*on_graph, *rules.values()]),
        _table("algorithm", algorithms[1], [*transforms, *private]),
        "## Participation modes\n",
        "With `{}` under a server and `{}` on a graph.\n".format(*(t["algorithm"]["name"] for t in typical)),
        _table("mode", [{**typical[0], **m} for m in on_server], [*messages, *private]),
        _table("mode", [{**typical[1], **m} for m in on_graph], [*on_edges, *private]),
        "## Privacy mechanisms\n",
        "Each with the first algorithm that it goes with.\n",
        _table("mechanism", [_with_algorithm(m) for m in private], on_edges),
        "## Backends\n",
        "What a run may have in this process, on Ray, and as a Flower deployment (`fedsim deploy`).\n",
        _backends([*({**typical[0], **m} for m in on_server), *({**typical[1], **m} for m in on_graph),
                   *(_with_algorithm(m) for m in private), *({**typical[0], **m} for m in messages),
                   *({**typical[1], **m} for m in of_graph)]),
    ]  # fmt: skip
    return "\n".join(parts)


def _sections(section: str, kind: str | None = None, key: str = "name") -> list[Values]:
    return [{section: {key: name}} for name in names(kind or section)]


def _with_algorithm(sections: Values) -> Values:
    """The sections with the first algorithm that they go with: `fedavg` and `dspodfl` before the others."""
    for name in ("fedavg", "dspodfl", *names("algorithm")):
        if refusal({"algorithm": {"name": name}, **sections}) is None:
            return {"algorithm": {"name": name}, **sections}
    raise AssertionError(f"{sections} goes with no algorithm")


def _label(sections: Values) -> str:
    """The last section's name of its part."""
    return f"`{next(iter(list(sections.values())[-1].values()))}`"


def _table(what: str, rows: Sequence[Values], columns: Sequence[Values]) -> str:
    return _drawn(
        what, [(_label(r), [refusal({**r, **c}) for c in columns]) for r in rows], [_label(c) for c in columns]
    )


def _backends(rows: Sequence[Values]) -> str:
    cells = [
        (_label(r), [refusal(r), refusal({**r, "backend": {"name": "ray"}}), refusal(r, deployed=True)]) for r in rows
    ]
    return _drawn("part", cells, ["`vectorized`", "`ray`", "deployment"])


def _drawn(what: str, rows: Sequence[tuple[str, list[str | None]]], header: Sequence[str]) -> str:
    """The table, equal rows and columns in one, with the reasons under it."""
    columns: dict[tuple[str | None, ...], list[str]] = {}
    for i, name in enumerate(header):
        columns.setdefault(tuple(cells[i] for _, cells in rows), []).append(name)
    merged: dict[tuple[str | None, ...], list[str]] = {}
    for number, (name, _) in enumerate(rows):
        merged.setdefault(tuple(column[number] for column in columns), []).append(name)
    if len(columns) > _MOST and len(columns) > len(merged):  # a long table is read more easily than a wide one
        return _drawn(
            f"with {what}", [(n, [c[i] for _, c in rows]) for i, n in enumerate(header)], [n for n, _ in rows]
        )
    reasons: dict[str, int] = {}
    shown = [
        ["✓" if why is None else str(reasons.setdefault(why, len(reasons) + 1)) for why in cells] for cells in merged
    ]
    letters: dict[str, str] = {}
    for room in range(_WIDTH, 0, -4):
        letters = {}
        heads = [_brief(names, room, letters) for names in columns.values()]
        lines = [f"| {' | '.join((what, *heads))} |", "|---" * (len(columns) + 1) + "|"]
        if len(lines[0]) <= _WIDTH:
            break
    for labels, cells in zip(merged.values(), shown, strict=True):
        room = _WIDTH - len(f"|  | {' | '.join(cells)} |")
        lines.append(f"| {' | '.join((_brief(labels, room, letters), *cells))} |")
    legend = [_wrapped(f"* {letter}: {names}", "  ") for names, letter in letters.items()]
    under = [_wrapped(f"{number}. {why}") for why, number in reasons.items()]
    return "\n".join([*lines, "", *legend, *([""] if legend and under else []), *under, ""])


def _brief(names: Sequence[str], room: int, letters: dict[str, str]) -> str:
    """The names, or where they are longer than `room` a letter that stands for them."""
    text = ", ".join(names)
    return text if len(text) <= room else letters.setdefault(text, ascii_uppercase[len(letters)])


def _words(problem: Problem, values: Values) -> str:
    """The problem, said of whatever algorithm, mechanism or mode it was found with; tables say what goes with those."""
    text = re.sub(r"^found '[^']*'(: |, but )", "", problem.message).partition(NO_OTHERS)[0].partition(OTHERS)[0]
    for section, key, word in (("algorithm", "name", "it"), ("privacy", "mechanism", "the mechanism")):
        if section in values:
            text = re.sub(rf"'{re.escape(values[section][key])}'", word, text)
    text = re.sub(rf"\b{lookup('algorithm', values['algorithm']['name']).__name__}\b", "it", text)
    return f"`{problem.key}`: {text}"


def _wrapped(text: str, indent: str = "   ") -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(page(), end="")
