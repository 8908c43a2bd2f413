"""The first sentences of a report: what the runs found, in words, and no more than their seeds support.

Groups are compared by mean and spread over their seeds. Where the spreads overlap nobody is called first or best, and
with one seed each the page says that chance is not ruled out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsim.core.metrics import TABLE, Metric
from fedsim.reports.groups import Group, mean_std
from fedsim.reports.numbers import number, spread
from fedsim.reports.pace import Pace, pace_of, when

_LEVELS = (*(k / 20 for k in range(1, 20)), 0.98, 0.99)
"""Shares whose first round is compared."""
_MOST_NAMED = 4
_SPREAD = "mean \N{PLUS-MINUS SIGN} standard deviation"
_ONE_SEED = "one seed each, so that this may be chance"


@dataclass(frozen=True)
class _Measured:
    """One number per seed of a group."""

    group: Group
    values: Sequence[float]

    @property
    def mean(self) -> float:
        return mean_std(self.values)[0]

    @property
    def std(self) -> float:
        return mean_std(self.values)[1]

    @property
    def ends(self) -> tuple[float, float]:
        """The spread: all seeds, and mean plus and minus the sample standard deviation."""
        std = 0.0 if math.isnan(self.std) else self.std
        return min(*self.values, self.mean - std), max(*self.values, self.mean + std)

    def overlaps(self, other: _Measured) -> bool:
        (low, high), (bottom, top) = self.ends, other.ends
        return low <= top and bottom <= high


def findings(groups: Sequence[Group], shown: Sequence[Metric]) -> str:
    """Sentences about `groups`; empty where there is no metric with a direction to speak of."""
    chosen = telling(groups, shown)
    if chosen is None:
        return ""
    if len(groups) == 1:
        return _alone(groups[0], chosen) + _whose(groups, chosen)
    if len({group.settings.get("data.dataset") for group in groups}) > 1:
        return "The groups have different data, so that their numbers are not compared."
    finished = [group for group in groups if all(run.finished for run in group.counted)]
    sound = [_Measured(g, [run.final(chosen.name) for run in g.counted]) for g in finished]
    compared = [one for one in sound if all(map(math.isfinite, one.values))]
    said = [*_first(compared, chosen), *_best(compared, chosen), *_ended(compared)]
    left = (
        [f"{len(groups) - len(finished)} of {len(groups)} groups are unfinished"] if len(finished) < len(groups) else []
    )
    broken = [one.group.label for one in sound if one not in compared]
    left += [f"{_listed(broken)} ended without a finite {chosen.words}"] if broken else []
    return " ".join([*said, *(f"Left out here: {one}." for one in left)]) + _whose(groups, chosen)


def telling(groups: Sequence[Group], shown: Sequence[Metric]) -> Metric | None:
    """The first metric of quality with a direction that all groups have."""
    directed = (m for m in shown if m.kind == "quality" and m.larger_is_better is not None)
    return next((m for m in directed if all(group.has(m.name) for group in groups)), None)


def _alone(group: Group, of: Metric) -> str:
    finals = [run.final(of.name) for run in group.counted]
    rounds = group.counted[0].round
    if not all(map(math.isfinite, finals)):
        return f"{group.label} ended in round {rounds:,} without a finite {of.words}."
    mean, std = mean_std(finals)
    ended = "ended with" if all(run.finished for run in group.counted) else "is unfinished, so far with"
    seeds = f" over {len(finals)} seeds ({_ends(finals, of)})" if len(finals) > 1 else ""
    value = f"{group.label} {ended} {_article(of)} {of.words} of {spread(mean, std, of)}{seeds} after {rounds:,} rounds"
    if len(finals) > 1:
        return f"{value}."
    best, where = group.counted[0].best(of.name)
    if best != finals[0]:
        return f"{value}; the best was {number(best, of)} in round {where:,}."
    return f"{value}, its best." if where == rounds else f"{value}, its best, which it first had in round {where:,}."


def _whose(groups: Sequence[Group], of: Metric) -> str:
    """On graphs it is tested what no node has: the mean of all nodes' models. It is often better than any of them."""
    if not of.name.startswith("test_") or not all(group.has("node_accuracy") for group in groups):
        return ""
    attacked = any(run.value("attack") for group in groups for run in group.counted)
    text = f" On a graph the {of.words} is that of the mean of all {'honest ' * attacked}nodes' models"
    if len(groups) > 1:
        return f"{text}; the node accuracy is that of models that nodes have."
    mean, std = mean_std([run.final("node_accuracy") for run in groups[0].counted])
    return f"{text}; the nodes' own have a node accuracy of {spread(mean, std, TABLE['node_accuracy'])}, on average."


def _article(of: Metric) -> str:
    return "an" if of.words[0].lower() in "aeio" else "a"


def _ends(values: Sequence[float], of: Metric) -> str:
    return f"{number(min(values), of)} to {number(max(values), of)}"


# --- who was first ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arrived:
    """When the seeds of a group reached a level: in rounds, and in the seconds of their clock."""

    rounds: _Measured
    seconds: _Measured

    @property
    def label(self) -> str:
        return self.rounds.group.label

    def on(self, pace: Pace) -> _Measured:
        return self.seconds if pace.column == "time" else self.rounds

    def said(self, pace: Pace) -> str:
        rounds = f"round {_counted(self.rounds)}"
        return f"{_counted(self.seconds, 2)} virtual seconds ({rounds})" if pace.column == "time" else rounds


def _first(compared: Sequence[_Measured], of: Metric) -> Iterator[str]:
    """Who reached a share first; nothing for other metrics, or where no two groups reached one."""
    if of.unit != "share" or not of.larger_is_better:
        return
    found = _level([one.group for one in compared], of)
    if found is None:
        return
    level, reached = found
    pace = pace_of([one.group for one in compared])
    order = sorted(reached, key=lambda one: one.on(pace).mean) if pace.column else reached
    first, others = order[0], order[1:]
    tied = [one for one in others if one.on(pace).overlaps(first.on(pace))] if pace.column else others
    later = [one for one in others if one not in tied]
    there = [one.rounds.group for one in reached]
    missing = [one.group.label for one in compared if one.group not in there]
    words = f"{level:g} {of.words}"
    by = {one.label: f"{one.label} by {one.said(pace)}" for one in order}
    named = _listed([by[one.label] for one in (first, *tied)])
    measured = [one.on(pace) for one in order]
    if not pace.column:
        text = f"{words} was reached by these: {named}{_seeds(measured, _SPREAD)}"
    elif tied:
        text = f"No group was clearly the first to reach {words}: {named}{_seeds(measured[: 1 + len(tied)], 'overlap')}"
    else:
        text = f"{first.label} reached {words} first, by {first.said(pace)}"
    if later:
        text += f"; {_listed([by[one.label] for one in later])}"
    text += "" if tied else _seeds(measured, _SPREAD)
    yield text + (f"; not reached by {_listed(missing)}." if missing else ".") + pace.said


def _level(groups: Sequence[Group], of: Metric) -> tuple[float, list[_Arrived]] | None:
    """The highest level that two groups reached with every seed and none began with, and when they did."""
    begun = [run.series("round", of.name)[1][:1] for group in groups for run in group.counted]
    highest = max((float(values[0]) for values in begun if len(values)), default=math.nan)
    for level in reversed(_LEVELS):
        reached = []
        for group in groups:
            rounds, seconds = zip(*(when(run, of.name, level) for run in group.counted), strict=True)
            if all(map(math.isfinite, rounds)):
                reached.append(_Arrived(_Measured(group, rounds), _Measured(group, seconds)))
        if len(reached) >= 2:
            return (level, reached) if level > highest else None
    return None


def _counted(one: _Measured, places: int = 1) -> str:
    """Mean and standard deviation; whole numbers as such, others with so many places."""
    mean = f"{one.mean:,.0f}" if one.mean.is_integer() else f"{one.mean:,.{places}f}"
    return mean if math.isnan(one.std) or one.std == 0 else f"{mean} \N{PLUS-MINUS SIGN} {one.std:.2g}"


# --- who was best -----------------------------------------------------------------------------------------------------


def _best(compared: Sequence[_Measured], of: Metric) -> Iterator[str]:
    """Who ended best."""
    if len(compared) < 2:
        return
    order = sorted(compared, key=lambda one: one.mean, reverse=bool(of.larger_is_better))
    first, others = order[0], order[1:]
    tied = [one for one in others if one.overlaps(first)]
    best = f"{'highest' if of.larger_is_better else 'lowest'} {of.words}"
    if tied:
        named = _listed([_value(one, of) for one in (first, *tied)])
        yield f"At the end no group has clearly the {best}: {named}{_seeds((first, *tied), 'overlap')}."
    else:
        text = f"At the end {first.group.label} has the {best}, {spread(first.mean, first.std, of)}"
        yield f"{text}; next is {_value(others[0], of)}{_seeds((first, others[0]), '')}."


def _ended(compared: Sequence[_Measured]) -> Iterator[str]:
    """How long the groups went on, where virtual time is compared and one had clearly more of it than another."""
    if len(compared) < 2 or pace_of([one.group for one in compared]).column != "time":
        return
    ends = [mean_std([run.final("time") for run in one.group.counted])[0] for one in compared]
    if min(ends) < 0.95 * max(ends):
        yield f"They ended after {number(min(ends))} to {number(max(ends))} virtual seconds."


def _value(one: _Measured, of: Metric) -> str:
    return f"{one.group.label} with {spread(one.mean, one.std, of)}"


def _seeds(compared: Sequence[_Measured], what: str) -> str:
    """What is to be known about seeds: that there is one each, or how many there are and what is done with them."""
    counts = {len(one.values) for one in compared}
    if counts == {1}:
        return f" ({_ONE_SEED})"
    if 1 in counts:
        return " (some have one seed, whose spread is not known)"
    over = f"{min(counts)} seeds" if len(counts) == 1 else f"{min(counts)} to {max(counts)} seeds"
    return f" ({'spreads ' if what == 'overlap' else ''}{what}{' ' if what else ''}over {over})"


def _listed(names: Sequence[str]) -> str:
    """Names in a row, of many the first ones and how many more there are."""
    if len(names) > _MOST_NAMED:
        return f"{', '.join(names[: _MOST_NAMED - 1])} and {len(names) - _MOST_NAMED + 1} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
