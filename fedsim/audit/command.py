"""``fedsim audit``: which audits run, and what they leave behind: ``audit.json``, ``audit.html`` and figures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.audit.base import Audit, Finding, Subject
from fedsim.audit.reconstruction import HEADINGS as RECONSTRUCTED
from fedsim.audit.reconstruction import compared
from fedsim.audit.verdict import HEADINGS, outcomes, verdict
from fedsim.core.crew import working
from fedsim.core.disk import write_whole
from fedsim.core.errors import InputError
from fedsim.core.fields import dump_part, part_from
from fedsim.figures.html import Markup, details, found, heading, image, lead, mark, notes, page, paragraph, pre, table
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Audited:
    """One audit, its keys, and what it found."""

    name: str
    keys: dict[str, Any]
    finding: Finding

    def to_json(self) -> dict[str, Any]:
        f = self.finding
        return {
            "audit": self.name, "keys": self.keys, "threat_model": f.threat_model, "alarm": f.alarm,
            "results": plain(f.results), "notes": list(f.notes), "figures": [f"{self.name}-{k}.png" for k in f.figures],
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    """All audits of a scenario; `claim` is what its privacy mechanism promises (None: it has none)."""

    scenario: Scenario
    claim: dict[str, Any] | None
    audits: tuple[Audited, ...]

    @property
    def alarms(self) -> list[str]:
        """What was shown to be false."""
        return [f"{a.name}: {a.finding.alarm}" for a in self.audits if a.finding.alarm]

    def to_json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario.name, "seed": self.scenario.seed, "hash": self.scenario.hash(),
            "claim": plain(self.claim), "alarms": self.alarms, "audits": [a.to_json() for a in self.audits],
        }  # fmt: skip


def audit(scenario: Scenario, attacks: Sequence[str] = (), progress: Progress | None = None) -> Report:
    """Attack `scenario`.

    Parameters
    ----------
    attacks : names of audits; default those of the scenario's ``audit:`` section.
    progress : called with a line of text before everything that takes long.

    Raises
    ------
    InputError
        An unknown audit or key, or a scenario without what an audit needs.
    """
    try:
        chosen = choose(scenario, attacks)
        with working(*scenario.run.crew):
            subject = Subject(scenario, progress)
            claim = subject.claim
            for part in chosen.values():
                part.check(subject)
            done = [Audited(name, dump_part(part), part.run(subject)) for name, part in chosen.items()]
    except InputError as error:
        raise scenario.document.locate(error) from None
    return Report(scenario, None if claim is None else claim.to_json(), tuple(done))


def choose(scenario: Scenario, attacks: Sequence[str] = ()) -> dict[str, Audit]:
    """The audits named, with their keys of the ``audit:`` section; all of the section where none is named."""
    names = list(dict.fromkeys(attacks)) or list(scenario.audits)
    if not names:
        from fedsim.core.registry import names as registered

        raise InputError(
            f"missing; allowed: a mapping from audits to their keys, or --attack NAME with one of "
            f"{', '.join(registered('audit'))}",
            key="audit",
        )
    return {name: scenario.audits.get(name) or _with_defaults(name) for name in names}


def _with_defaults(name: str) -> Audit:
    """The audit `name` where the scenario has no keys for it; InputError under ``audit.NAME``."""
    try:
        made: Audit = part_from("audit", "audit", {"audit": name})
    except InputError as error:
        raise error.under(f"audit.{name}") from None
    return made


def write(report: Report, folder: Path) -> Path:
    """Write ``audit.json``, ``audit.html`` and ``figures/`` into `folder`; the page's path.

    Raises
    ------
    InputError
        The folder cannot be written to.
    """
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "audit.json", json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
        write_whole(folder / "scenario.yaml", report.scenario.to_yaml())
        place = folder / "audit.html"
        write_whole(place, _page(report, folder / "figures"))
    except OSError as error:
        raise InputError(f"--out: cannot be written to: {error.strerror}", file=str(folder)) from None
    return place


def rows(results: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested results as lines of a table."""
    lines: list[tuple[str, str]] = []
    for key, value in results.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and set(value) >= {"mean", "std"}:
            std = "" if value["std"] is None else f" \N{PLUS-MINUS SIGN} {_number(value['std'])}"
            more = "".join(
                f", {_number(v)} {k.replace('_', ' ')}" for k, v in value.items() if k not in ("mean", "std")
            )
            lines.append((name, f"{_number(value['mean'])}{std}{more}"))
        elif isinstance(value, Mapping):
            lines += rows(value, f"{name}: ")
        elif isinstance(value, list):
            lines.append((name, ", ".join(map(_number, value))))
        else:
            lines.append((name, _number(value)))
    return lines


def plain(value: Any) -> Any:
    """JSON's types; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _page(report: Report, figures: Path) -> str:
    audits = {done.name: done.finding for done in report.audits}
    body: list[object] = [found(verdict(audits, report.claim))]
    if report.alarms:
        body.append(notes([Markup(" ").join([mark("Alarm."), a]) for a in report.alarms]))
    body += [table(HEADINGS, [one.cells for one in outcomes(audits)], text=(0, 1, 3))]
    if report.claim is None:
        body.append(paragraph("The scenario has no privacy mechanism: no epsilon is claimed.", soft=True))
    else:
        body.append(details("What is claimed", table(["", ""], rows(report.claim), text=(1,))))
    body += _comparison(report, figures)
    told: set[str] = set()
    for done in report.audits:
        finding = done.finding
        body += [heading(2, done.name), notes([finding.alarm] if finding.alarm else [])]
        for name, make in finding.figures.items():
            body.append(_drawn(make, figures / f"{done.name}-{name}.png", f"{done.name}: {name}", name == "images"))
        body += [paragraph(note, soft=True) for note in finding.notes if note not in told]
        told.update(finding.notes)
        body.append(details(f"{done.name}: threat model, keys and all numbers", _folded(done)))
    body += [heading(2, "Scenario"), details("The resolved scenario", pre(report.scenario.to_yaml()))]
    return page(f"Audit of {report.scenario.name}", body)


def _folded(done: Audited) -> Markup:
    parts = [lead("Threat model.", done.finding.threat_model)]
    if done.keys:
        parts.append(paragraph("Keys: " + ", ".join(f"{k} {v}" for k, v in done.keys.items()), soft=True))
    return Markup("\n").join([*parts, table(["", ""], rows(done.finding.results), text=(1,))])


def _comparison(report: Report, figures: Path) -> list[object]:
    """The reconstruction attacks side by side, where there are several."""
    lines, make = compared({done.name: done.finding for done in report.audits})
    if not lines:
        return []
    parts: list[object] = [heading(2, "Reconstructions compared"), table(RECONSTRUCTED, lines, text=(0,))]
    if make is not None:
        parts.append(_drawn(make, figures / "reconstructions.png", "reconstructions compared", photo=True))
    return parts


def _drawn(make: Callable[[], Figure], place: Path, what: str, photo: bool = False) -> object:
    """The figure, also left behind as a file; a `photo` has the same colours on dark pages."""
    buffer = io.BytesIO()
    make().savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    place.write_bytes(buffer.getvalue())
    return image(buffer.getvalue(), what, "photo" if photo else "")
