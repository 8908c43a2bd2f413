"""What audits found, in one sentence and one table: bounds on epsilon, membership, reconstructions, and anything else.

Findings are told apart by what their results have (``lower_bound``, ``auc``, ``psnr_db``), so that somebody's own
audits are told like the built-in ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.audit.base import Finding

HEADINGS = ("attack", "measured", "found", "to compare")
_SEEN = 12.0
"""dB of PSNR below which nothing is to be seen."""


@dataclass(frozen=True)
class Outcome:
    """The number that says most about one attack of an audit: its `kind`, `value`, that as text, and its measure."""

    audit: str
    attack: str
    kind: str
    measured: str
    value: float
    found: str
    compare: str

    @property
    def cells(self) -> tuple[str, ...]:
        """A row under `HEADINGS`."""
        return self.name, self.measured, self.found, self.compare

    @property
    def name(self) -> str:
        """Of the attack, and of its audit where that has another one."""
        same = self.attack in ("", self.audit)
        return self.audit if same else f"{self.attack.replace('_', ' ')} of {self.audit}"


def outcomes(found: Mapping[str, Finding]) -> list[Outcome]:
    """A row for each attack of each audit."""
    return [one for name, finding in found.items() for one in _of(name, finding.results)]


def verdict(found: Mapping[str, Finding], claim: Mapping[str, Any] | None) -> str:
    """One sentence: whether the claim stands, and how far the best attack of each kind came."""
    every = outcomes(found)
    said = [_claim(found, claim, [one for one in every if one.kind == "bound"])]
    members = [one for one in every if one.kind == "membership"]
    if members:
        best = max(members, key=lambda one: one.value)
        said.append(f"the best attack on membership, {best.name}, has an AUC of {best.found} (guessing: 0.5)")
    pictures = [one for one in every if one.kind == "reconstruction"]
    if pictures:
        best = max(pictures, key=lambda one: one.value)
        seen = "above" if best.value >= _SEEN else "below"
        said.append(
            f"the best reconstruction, by {best.name}, has a median PSNR of {best.found}, {seen} the {_SEEN:g} dB "
            "or so from which something is to be seen"
        )
    return "; ".join(said) + "."


def _claim(found: Mapping[str, Finding], claim: Mapping[str, Any] | None, bounds: Sequence[Outcome]) -> str:
    alarms = [f"{name}: {finding.alarm.rstrip('.')}" for name, finding in found.items() if finding.alarm]
    if alarms:
        return f"Alarm: what is claimed was shown to be false ({', '.join(alarms)})"
    if claim is None:
        return "No epsilon is claimed"
    claimed = f"the claimed epsilon of {claim['epsilon']:.4g}"
    if not bounds:
        return f"{claimed[0].upper()}{claimed[1:]} was not tested, as no audit here bounds it from below"
    largest = max(bounds, key=lambda one: one.value)
    return f"No audit shows {claimed} to be false (the largest lower bound, of {largest.name}, is {largest.found})"


def _of(name: str, results: Mapping[str, Any]) -> Iterator[Outcome]:
    low, db = _number(results.get("lower_bound")), _number(results.get("psnr_db"), "median")
    if low is not None:
        yield _bound(name, results, low)
    elif db is not None:
        best = _number(results["psnr_db"], "best")
        about = ("" if best is None else f"best {best:.1f} dB; ") + f"below some {_SEEN:g} dB nothing is to be seen"
        yield Outcome(name, "", "reconstruction", "PSNR, median", db, f"{db:.1f} dB", about)
    elif "psnr_db" in results:  # of an attack that came to no numbers
        yield Outcome(name, "", "other", "PSNR, median", 0.0, "\N{EN DASH}", "")
    else:
        variants = {key: value for key, value in results.items() if isinstance(value, Mapping)}
        for attack, told in variants.items():
            auc, rate = _number(told.get("auc")), _number(told.get("tpr_at_fpr_0.01"))
            if auc is not None:
                low_rate = "" if rate is None else f"; true positives {rate:.1%} at 1 % false ones"
                about = f"guessing: 0.5{low_rate}"
                yield Outcome(name, attack, "membership", "AUC", auc, _spread(told["auc"], auc), about)
        if all(_number(told.get("auc")) is None for told in variants.values()):
            yield _other(name, results)


def _bound(name: str, results: Mapping[str, Any], low: float) -> Outcome:
    """The largest bound on epsilon, with the claim and with the most that the audit could have shown."""
    levels = (results, *(v for v in results.values() if isinstance(v, Mapping)))
    ceilings = [v for v in (_number(level.get("most_it_could_show")) for level in levels) if v is not None]
    claimed, confidence = _number(results.get("claimed_epsilon")), _number(results.get("confidence"))
    compare = [] if claimed is None else [f"claimed: {claimed:.4g}"]
    compare += [f"the most that it could show: {max(ceilings):.4g}"] if ceilings else []
    sure = "" if confidence is None else f", confidence {confidence:.0%}"
    return Outcome(name, "", "bound", f"lower bound on epsilon{sure}", low, f"{low:.4g}", "; ".join(compare))


def _other(name: str, results: Mapping[str, Any]) -> Outcome:
    """The first number of results of any other form."""
    for key, value in results.items():
        found = None if isinstance(value, Mapping) else _number(value)
        if found is not None:
            return Outcome(name, "", "other", key.replace("_", " "), found, f"{value:.4g}", "")
    return Outcome(name, "", "other", "", 0.0, "", "see below")


def _number(told: object, key: str = "mean") -> float | None:
    """A number, or the one that a spread has under `key`; None where there is none."""
    value = told.get(key) if isinstance(told, Mapping) else told
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def _spread(told: object, mean: float) -> str:
    std = _number(told, "std") if isinstance(told, Mapping) else None
    return f"{mean:.3f}" + ("" if std is None else f" \N{PLUS-MINUS SIGN} {std:.3f}")
