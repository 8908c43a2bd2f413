"""``fedsim list`` and ``fedsim describe``: what scenarios can name, and what a part is.

Nothing is written down here: names come from the registry, keys and sources from the parts (`core.described`), what
goes with what from the checks that scenarios pass (`combinations`).
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.json_output import AsJson, emit
from fedsim.cli.terminal import cell, say, table
from fedsim.core.documents import flow
from fedsim.core.errors import InputError, nearest, unknown
from fedsim.core.registry import KINDS, kinds, load_object, lookup, names

if TYPE_CHECKING:
    from fedsim.core.described import Key

_PLURALS = {"loss": "losses", "mixing": "weights", "pre": "pre-aggregators", "privacy": "mechanisms"}
_OTHERS = {"topologies": "graph", "rules": "aggregator", "data": "dataset", "modes": "participation", "pres": "pre"}
"""Other words for kinds."""
_CALLED_WITH = {
    "model": {"input_shape", "num_outputs", "vocabulary"},
    "graph": {"n", "seed"},
    "metric": {"targets", "guesses"},
}
"""Arguments by which somebody's own function is known as what makes, or is, a part of that kind; none is its key."""
_LEAST = 4  # parts that share a key and its default, at least, where it is told once and not for each


def plurals() -> dict[str, str]:
    """What ``fedsim list`` calls the kinds of parts, and their names in the registry."""
    return {_PLURALS.get(k, f"{k}s"): k for k in kinds()}


def complete_kind(typed: str) -> list[str]:
    """For the shell."""
    return [word for word in (*plurals(), *_OTHERS) if word.startswith(typed)]


Kind = Annotated[
    str | None, typer.Argument(help="algorithms, datasets, models, graphs, ...", autocompletion=complete_kind)
]


def list_parts(kind: Kind = None, as_json: AsJson = False) -> None:
    """List what scenarios can name; of one kind also keys with their defaults."""
    if kind is None:
        if as_json:
            emit({word: {n: _headline(lookup(single, n)) for n in names(single)} for word, single in plurals().items()})
            return
        for word, single in plurals().items():
            table(word, [(name, _headline(lookup(single, name))) for name in names(single)])
        return
    single = _single(kind)
    if as_json:
        emit({name: _facts(single, name) for name in names(single)})
        return
    from fedsim.core.described import keys

    found = {name: [_key(k) for k in keys(lookup(single, name))] for name in names(single)}
    counts = Counter(k for of in found.values() for k in of)
    shared = [k for k, n in counts.items() if n >= max(_LEAST, len(found) / 2)]
    rows = []
    for name, of in found.items():
        more = [f"modes: {', '.join(modes(lookup(single, name)))}"] if single == "algorithm" else []
        rows.append([name, _headline(lookup(single, name)), ", ".join(k for k in of if k not in shared), *more])
    if not any(row[2] for row in rows):
        rows = [[*row[:2], *row[3:]] for row in rows]
    table(kind, rows)
    if shared:
        say(f"common keys, left out above: {', '.join(shared)}")


def describe(
    name: Annotated[str, typer.Argument(help="a registered name or PKG.MOD:NAME")],
    kind: Annotated[
        str | None,
        typer.Option(help="algorithm, model, ..., where the name does not tell", autocompletion=complete_kind),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a part is: equation, keys with defaults and ranges, what it goes with, source, BibTeX."""
    found = [_facts(single, name, goes=True) for single in _kinds_of(name, kind)]
    if as_json:
        emit(found)
        return
    for facts in found:
        _print(facts)


def modes(part: Any) -> list[str]:
    """The participation modes under which an algorithm makes sense, as it says of itself."""
    needs = _bare(part).needs
    if part.setting == "gossip":
        return ["poisson"] if needs.flows else ["gossip", "poisson"] if needs.continuous_time else ["gossip"]
    return list(needs.modes or [n for n in names("participation") if lookup("participation", n).setting == "server"])


def _bare(part: Any) -> Any:
    """An algorithm with its defaults; those of its keys that have to be given are not there."""
    from fedsim.core.described import keys

    return object.__new__(part) if any(key.required for key in keys(part)) else part()


def goes_with(kind: str, name: str) -> dict[str, dict[str, list[str]]]:
    """What a part goes with: by section, the names of the parts that do under ``""``, of others under the reason.

    Empty for kinds whose parts all go with everything that the scenario's checks of names could tell, and for
    algorithms with keys that have to be given: nothing says with what they would pass the checks.
    """
    from fedsim.cli.combinations import refusal, setting_of
    from fedsim.core.described import keys

    sections = _crossed()
    if kind != "algorithm":
        if kind not in sections:
            return {}
        section, key = sections[kind]
        return {"algorithm": _by_reason(names("algorithm"), lambda a: refusal(_pair(a, section, key, name)))}
    if any(key.required for key in keys(lookup(kind, name))):
        return {}
    setting, found = setting_of(kind, name), {}
    for other, (section, key) in sections.items():
        of = [n for n in names(other) if other != "participation" or setting_of(other, n) == setting]
        found[section] = _by_reason(of, lambda n, s=section, k=key: refusal(_pair(name, s, k, n)))  # type: ignore[misc]
    alone = {"algorithm": {"name": name}}
    places: Mapping[str, Callable[[], str | None]] = {
        "vectorized": lambda: refusal(alone),
        "ray": lambda: refusal({**alone, "backend": {"name": "ray"}}),
        "a deployment": lambda: refusal(alone, deployed=True),
    }
    found["backend"] = _by_reason(places, lambda place: places[place]())
    return found


@cache
def references() -> Mapping[str, str]:
    """BibTeX entries by arXiv identifier."""
    text = files("fedsim.cli").joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text)]
    return {re.findall(r"eprint = \{([^}]*)\}", entry)[0]: entry for entry in entries}


def _crossed() -> dict[str, tuple[str, str]]:
    """Kinds whose parts are sections of a scenario that its checks compare with the algorithm: section and key."""
    from fedsim.scenario.sections import SECTIONS
    from fedsim.scenario.table import PartSection

    wanted = ("participation", "aggregator", "compressor", "attack", "privacy")
    rows = [row for row in SECTIONS.values() if isinstance(row, PartSection) and row.kind in wanted]
    return {row.kind: (row.path, row.key) for row in rows}


def _pair(algorithm: str, section: str, key: str, name: str) -> dict[str, Any]:
    return {"algorithm": {"name": algorithm}, section: {key: name}}


def _by_reason(of: Iterable[str], why: Callable[[str], str | None]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in of:
        found.setdefault(why(name) or "", []).append(name)
    return found


def _single(word: str) -> str:
    """The kind that a word stands for: its name, its plural or another word."""
    words = {**plurals(), **_OTHERS, **{k: k for k in kinds()}}
    if word not in words:
        raise InputError(unknown("kind", word, [*plurals(), *_OTHERS]))
    return words[word]


def _kinds_of(name: str, kind: str | None) -> list[str]:
    """The kinds that have a part of that name."""
    if kind is not None:
        single = _single(kind)
        lookup(single, name)
        return [single]
    if ":" in name:
        return [_kind_of_own(name)]
    found = [k for k in kinds() if name in names(k)]
    if not found:
        every = sorted({n for k in kinds() for n in names(k)})
        hint = nearest(name, every)
        raise InputError(
            f"unknown part '{name}'{hint}; allowed: what fedsim list names, or 'pkg.mod:Name' for your own"
        )
    return found


def _kind_of_own(name: str) -> str:
    """The kind of somebody's own part: what a class inherits, or what a function is called with.

    Raises
    ------
    InputError
        It is a part of no kind, or a function that may be of several.
    """
    part, bases = load_object(name), {k: load_object(row.base) for k, row in KINDS.items() if row.base}
    for kind, base in bases.items():  # the first: compressors and attacks inherit the same
        if isinstance(part, type) and issubclass(part, base):
            return kind
    if isinstance(part, type) and issubclass(part, load_object("torch.nn:Module")):
        return "model"
    if not callable(part):
        raise InputError(f"'{name}' is {type(part).__name__}; allowed: a class or a function that is a part")
    found = [kind for kind, given in _CALLED_WITH.items() if given & set(_arguments(part))]
    if len(found) != 1:
        taking = [kind for kind, base in bases.items() if hasattr(base, "from_function")]
        what = f"a function, and its arguments do not tell of which kind; allowed: --kind {' or --kind '.join(taking)}"
        raise InputError(f"'{name}' is {what}, or a subclass of what a kind of part inherits")
    return found[0]


def _arguments(function: Any) -> dict[str, Any]:
    """Names of what a function is called with, with their defaults; some built-in callables tell none."""
    try:
        named = inspect.signature(function).parameters.values()
    except ValueError:
        return {}
    return {p.name: p.default for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _keys(kind: str, part: Any) -> list[Key]:
    """The keys of a part; of somebody's own function, or module, its arguments besides those that fedsim gives."""
    from fedsim.core.described import REQUIRED, Key, keys

    if kind not in _CALLED_WITH or hasattr(part, "__dataclass_fields__"):
        return keys(part)
    own = {n: d for n, d in _arguments(part).items() if n not in _CALLED_WITH[kind]}
    plain = (bool, int, float, str, list, type(None))
    told = {
        n: REQUIRED if d is inspect.Parameter.empty else d if isinstance(d, plain) else repr(d) for n, d in own.items()
    }
    return [Key(name, default, "", "") for name, default in told.items()]


def _facts(kind: str, name: str, goes: bool = False) -> dict[str, Any]:
    """All that is said of a part."""
    from fedsim.core.described import papers, prose, story

    part = lookup(kind, name)
    numbers, keys = papers(part), _keys(kind, part)
    facts: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "says": prose(part),
        "keys": [
            {"key": k.name, "required": k.required, "default": None if k.required else k.default,
             "allowed": k.allowed, "says": k.says}
            for k in keys
        ],
        "arxiv": numbers,
    }  # fmt: skip
    if kind == "algorithm":
        facts |= {"setting": part.setting, "modes": modes(part)}
    if goes:
        facts |= {
            "scenario": _example(kind, name, [k.name for k in keys if k.required]),
            "source": story(part),
            "module": part.__module__,
            "goes_with": goes_with(kind, name),
            "bibtex": [references()[n] for n in numbers if n in references()],
        }
    return facts


def _example(kind: str, name: str, required: Sequence[str]) -> str | None:
    """How a scenario names it; None for kinds that are no section of one."""
    from fedsim.scenario.sections import SECTIONS
    from fedsim.scenario.table import PartSection

    row = next((r for r in SECTIONS.values() if isinstance(r, PartSection) and r.kind == kind), None)
    if row is None:
        return None
    text = ", ".join([f"{row.key}: {name}", *(f"{key}: ..." for key in required)])
    for word in reversed(row.path.split(".")):
        text = f"{word}: {{{text}}}"
    return text


def _print(facts: Mapping[str, Any]) -> None:
    where = {"server": ", under a server", "gossip": ", on a graph"}.get(str(facts.get("setting")), "")
    say(f" ({facts['kind']}{where})", bold=facts["name"])
    say("")
    say(facts["says"])
    if facts["scenario"]:
        say(f"\n{facts['scenario']}")
    if facts["keys"]:
        say("")
        rows = [
            (k["key"], "required" if k["required"] else _default(k["default"]), _short(k["allowed"]), k["says"])
            for k in facts["keys"]
        ]
        table("keys: default, what is allowed, meaning", rows)
    goes = [
        (section, ", ".join(of) if not why else f"not {', '.join(of)}: {why}")
        for section, by in facts["goes_with"].items()
        for why, of in sorted(by.items())
    ]
    if goes:
        say("")
        table("goes with", goes)
    if facts["source"]:
        say(f"\n{facts['module']} says:\n\n{facts['source']}")
    for entry in facts["bibtex"]:
        say(f"\n{entry}")
    say("")


def _key(key: Any) -> str:
    return f"{key.name} (required)" if key.required else f"{key.name}={_default(key.default)}"


def _default(value: Any) -> str:
    if isinstance(value, float):
        return cell(value)
    return "none" if value is None else flow(value)


def _short(allowed: str) -> str:
    """The words of messages as signs, so that the column is narrow."""
    for words, sign in (("greater than or equal to ", ">= "), ("less than or equal to ", "<= "),
                        ("greater than ", "> "), ("less than ", "< ")):  # fmt: skip
        allowed = allowed.replace(words, sign)
    return allowed


def _headline(part: Callable[..., Any]) -> str:
    return (part.__doc__ or "").strip().split("\n")[0].replace("``", "")
