"""Gossip in continuous time: every node and every link has a Poisson clock, and acts by itself when it ticks.

The counterpart of DSpodFL's Bernoulli indicators (arXiv 2402.03448), in the model of Boyd et al., "Randomized gossip
algorithms" (2006). A round is a window of time; its ticks are carried out in their order. Ticks that touch different
nodes commute, so they are taken together in levels: a tick's level is one above that of the last tick at any of its
nodes. Every level touches each node once at most and costs only the rows it touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fedsim.algorithms.base import Algorithm, GossipAlgorithm, Surroundings
from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND, exact, seconds, ticks
from fedsim.core.errors import InputError
from fedsim.core.libraries import sparse
from fedsim.core.registry import register
from fedsim.core.types import Seconds
from fedsim.graphs.mixing_matrix import BaseMixing, MixingMatrix
from fedsim.graphs.network import Network
from fedsim.graphs.presence import There
from fedsim.participation.base import Arrival, Dispatch, Event, Participation, Setting, Tick
from fedsim.participation.coming import check_clocks, check_coming
from fedsim.participation.gossip import all_pairs, check_laws, check_merges, normalised_delays
from fedsim.participation.laws import LinkRateLaw, RateLaw
from fedsim.participation.stretches import FAR, Stretch, Timetable, until_tick
from fedsim.participation.windows import NEVER, Merge

_ONE, _LINK_ONE = RateLaw.model_validate(1.0), LinkRateLaw.model_validate(1.0)
_MOST_RINGS = 10_000_000
"""Ticks of all clocks together that a round may have on average: they are kept in memory."""
_NOBODY = np.empty(0, dtype=np.int64)
_NO_LINKS = np.empty((0, 2), dtype=np.int64)
_IDLE = object()
"""Stands for the mixing of a round without ticks, which nothing is done for."""


class _Ring(NamedTuple):
    """At `time` node `node` does its work number `number` (0, 1, ...), or (node -1) link `link` mixes its two ends."""

    time: int
    node: int
    link: int
    number: int


@register.participation("poisson")
@dataclass(frozen=True, kw_only=True)
class PoissonGossip(Participation):
    """Nodes compute and links mix when their Poisson clocks tick, one at a time, in continuous time.

    A node's tick is its local work, ``x_i = x_i + delta_i``; a link's is the mixing of its two ends with the link's
    weight r, ``x_i = x_i + r (x_j - x_i)`` and ``x_j = x_j + r (x_i - x_j)``, both from the old values. Ticks take no
    time.

    Parameters
    ----------
    compute : rate of each node's clock, ticks per virtual second.
    links : rate of each link's clock.
    window : virtual seconds per round: what is recorded and evaluated; the ticks do not depend on it.
    pair_weight : r is the link's entry of the mixing ``matrix``, or ``half``: the two ends average (Boyd et al.).
        Algorithms that mix pairs in a way of their own have ``own``, by themselves.
    schedule : windows of virtual time in which all links have another rate, or nodes merge; see `Stretch`.
    merge : rounds at the end of whose window all nodes take the mean of all models; see `Merge`.
    """

    setting: ClassVar[Literal["server", "gossip"]] = "gossip"
    continuous: ClassVar[bool] = True
    comes_and_goes: ClassVar[bool] = True
    compute: RateLaw = _ONE
    links: LinkRateLaw = _LINK_ONE
    window: Seconds = 1.0
    pair_weight: Literal["matrix", "half", "own"] = "matrix"
    schedule: list[Stretch] | None = None
    merge: Merge | None = None

    @property
    def merging(self) -> str | None:
        windows = "participation.schedule" if any(window.merge for window in self.schedule or ()) else None
        return "participation.merge" if self.merge is not None and self.merge.ever else windows

    def merges_in(self, rounds: int) -> int:
        return self.timetable(rounds).merges_in(self.merge or NEVER)

    @property
    def merges_at_end(self) -> bool:
        return self.merge is not None and self.merge.final

    @property
    def fixed_rounds(self) -> str | None:
        if not any(window.moves for window in self.schedule or ()):
            return None
        return "windows of participation.schedule that are fractions of the run would move; virtual seconds would not"

    def timetable(self, rounds: int) -> Timetable:
        """The windows of a run of so many rounds.

        Raises
        ------
        InputError
            They do not fit it.
        """
        try:
            return Timetable(self.schedule or (), rounds, self.window_ticks)
        except InputError as error:
            raise error.under("participation.schedule") from None

    def settled(self, setting: Setting) -> tuple[Participation, Algorithm]:
        """With ``links: auto`` resolved, and the algorithm told the constants of the links at their rates."""
        algorithm, network = setting.gossip
        self._check_pairs(algorithm)
        if network.changes:
            check_clocks(self.links.auto, setting)  # says so
        mode = self
        if self.links.auto:
            with _of_links():
                rate = algorithm.link_rate(*network.chi(np.ones(len(network.mixings[0].links))))
                if rate is None:
                    found = f"found auto, the least rate that an algorithm needs; {type(algorithm).__name__} needs none"
                    raise InputError(f"{found}; allowed: a rate")
            mode = replace(self, links=LinkRateLaw.model_validate(rate))
        mode.check_run(setting)
        rates = mode.links.draw(len(network.mixings[0].links), setting.seed, "link", 1)

        def chi() -> tuple[float, float]:
            with _of_links():
                return network.chi(rates)

        return mode, algorithm.placed(Surroundings(setting.task, chi))

    def _check_pairs(self, algorithm: GossipAlgorithm) -> None:
        """Raise InputError where the algorithm and the mode do not agree on who says how pairs mix."""
        if (algorithm.pair is None) == (self.pair_weight != "own"):
            return
        why = "mixes pairs in a way of its own; allowed: no such key"
        if algorithm.pair is None:
            why = "has no weight of its own for pairs; allowed: matrix, half"
        message = f"found '{self.pair_weight}', but {type(algorithm).__name__} {why}"
        raise InputError(message, key="participation.pair_weight")

    def check_run(self, setting: Setting) -> None:
        check_clocks(self.links.auto, setting)
        check_coming(self, setting, (0, setting.rounds * self.window_ticks - 1))
        check_laws(self, setting)
        check_merges(self, self.merge, setting)
        last = setting.rounds * self.window_ticks
        if last >= FAR:
            raise InputError(
                f"{setting.rounds:,} rounds of {self.window:g} seconds are {seconds(last):.4g} virtual seconds, "
                f"allowed: fewer than {seconds(int(FAR)):.4g}, with shorter windows or fewer rounds",
                key="participation.window",
            )
        timetable = self._timed(setting)
        nodes, links = self._rates(setting)
        share = setting.gossip[1].mixings[0].share
        most = share * max(float(links.sum()), timetable.most() * len(links))
        rings = (float(nodes.sum()) + most) * self.window
        if not rings <= _MOST_RINGS:
            raise InputError(
                f"its clocks tick some {rings:.3g} times in a round of {self.window:g} seconds, allowed: at most "
                f"{_MOST_RINGS:,}, with a shorter window or lower rates in compute and links",
                key="participation.window",
            )

    def _timed(self, setting: Setting) -> Timetable:
        """The windows of a run, checked for its algorithm."""
        timetable, (algorithm, _) = self.timetable(setting.rounds), setting.gossip
        for i, window in enumerate(self.schedule or ()):
            why = None if window.links is None else algorithm.other_rates(window.links.ends, self._rates(setting)[1])
            if why is not None:
                raise InputError(why, key=f"participation.schedule.{i}.links")
        return timetable

    @property
    def window_ticks(self) -> int:
        """Ticks of a round."""
        return max(ticks(exact(self.window)), 1)

    def _rates(self, setting: Setting) -> tuple[Floats, Floats]:
        """Ticks per second of the clocks of the nodes ``[n]`` and of the links."""
        links = setting.gossip[1].mixings[0].links
        nodes = self.compute.draw(setting.task.num_clients, setting.seed, "node", 1)
        return nodes, self.links.draw(len(links), setting.seed, "link", 1)

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        (algorithm, network), task, seed = setting.gossip, setting.task, setting.seed
        base, n = network.mixings[0], task.num_clients
        d, b = self._rates(setting)
        slow_nodes, slow_links = np.maximum(d, self.compute.floor), np.maximum(b, self.links.floor)
        timetable, complete = self.timetable(setting.rounds), all_pairs(network)
        clocks = _Clocks(d, b, base, seed, timetable)
        window = self.window_ticks
        touched = self._touched(clocks, network, after)  # a resumed run lets its clocks tick again
        for number in count(after + 1):
            found = _rung(clocks, number * window, network)
            nodes = np.array([t.node for t in found if t.node >= 0], dtype=np.int64)
            rounds = np.array([t.number + 1 for t in found if t.node >= 0], dtype=np.int64)
            links = np.array([t.link for t in found if t.node < 0], dtype=np.int64)
            units, per_unit = algorithm.steps_by_unit(task, nodes, rounds, seed)
            steps = units * per_unit
            delays = normalised_delays(
                base, np.bincount(nodes, units, minlength=n), np.bincount(links, minlength=len(base.links)),
                slow_nodes, slow_links,
            )  # fmt: skip
            merge = self._merges(timetable, number)
            if merge:
                delays = (delays[0], delays[1] + complete)
            ends = [base.links[t.link].tolist() if t.node < 0 else [t.node] for t in found]
            last = Arrival(
                number, seconds(number * window), _NOBODY, _NOBODY, _NOBODY, _NOBODY, 0, mixing=_IDLE, delays=delays,
                compute=_NOBODY, edges=_NO_LINKS, ticks=(), merge=merge, there=self.there(setting, number),
            )  # fmt: skip
            order = iter(zip(rounds.tolist(), steps.tolist(), strict=True))
            jobs = [(t, end, next(order) if t.node >= 0 else (1, 0)) for t, end in zip(found, ends, strict=True)]
            levels = _levels(jobs, n)
            for place, level in enumerate(levels):
                closes = place == len(levels) - 1 and not last.merge
                yield from self._level(level, setting, last, touched, closes)
            if last.merge or not levels:  # an arrival of its own: ticks before it, the merge at the window's end
                yield replace(last, elapsed=_since(touched, number * window))
            if last.merge:  # an event of every node
                touched[:] = number * window

    def idle(self, setting: Setting, number: int) -> Floats | None:
        base = setting.gossip[1].mixings[0]
        clocks = _Clocks(*self._rates(setting), base, setting.seed, self.timetable(setting.rounds))
        touched = self._touched(clocks, setting.gossip[1], number)
        return _since(touched, number * self.window_ticks)

    def there(self, setting: Setting, number: int) -> There | None:
        """Who is there at the last tick of the round's window."""
        presence = setting.gossip[1].topology.presence
        return None if presence is None else presence.at(max(number * self.window_ticks - 1, 0))

    def _touched(self, clocks: _Clocks, network: Network, number: int) -> Ints:
        """The tick of every node's last event up to the end of round `number`; 0 where it had none."""
        base = network.mixings[0]
        touched = np.zeros(base.n, dtype=np.int64)
        for ring in _rung(clocks, number * self.window_ticks, network):
            touched[base.links[ring.link] if ring.node < 0 else ring.node] = ring.time
        merged = next((k for k in range(number, 0, -1) if self._merges(clocks.timetable, k)), 0)
        return np.maximum(touched, merged * self.window_ticks)

    def _merges(self, timetable: Timetable, number: int) -> bool:
        """Whether nodes merge at the end of round `number`."""
        return timetable.merges(number) or (self.merge or NEVER).due(number)

    def _level(self, level: list[Any], setting: Setting, last: Arrival, touched: Ints, closes: bool) -> Iterator[Event]:
        """The work and the mixing of ticks no two of which share a node, as one event on the rows they touch.

        `touched` ``[n]``, the tick of every node's last event, is brought up to date.
        """
        (algorithm, network), until = setting.gossip, last.number * self.window_ticks
        base, now = network.mixings[0], until - self.window_ticks
        nodes = np.array([i for _, end, _ in level for i in end], dtype=np.int64)
        rounds, steps = (np.array([job[k] for _, end, job in level for _ in end], dtype=np.int64) for k in (0, 1))
        order = np.argsort(nodes)
        place = np.argsort(order)
        first = np.cumsum([0, *(len(end) for _, end, _ in level)])
        pairs = [k for k, (_, end, _) in enumerate(level) if len(end) == 2]
        at = np.array([[place[first[k]], place[first[k] + 1]] for k in pairs], dtype=np.int64).reshape(-1, 2)
        links = np.array([level[k][0].link for k in pairs], dtype=np.int64)
        worked = [end[0] for _, end, _ in level if len(end) == 1]
        weights = base.pair_weights[links] if self.pair_weight == "matrix" else np.full(len(links), 0.5)
        if algorithm.pair is not None:
            weights = np.full(len(links), algorithm.pair)
        nodes, rounds, steps = nodes[order], rounds[order], steps[order]
        times = np.array([t.time for t, end, _ in level for _ in end], dtype=np.int64)[order]
        elapsed, touched[nodes] = _since(touched[nodes], times), times
        yield Dispatch(nodes, rounds, steps, [now] * len(nodes), start=now, elapsed=elapsed)
        mixing = MixingMatrix(_pairwise(len(nodes), at, weights), setting.task.device)
        yield Arrival(
            last.number, last.time, nodes, rounds, steps, np.zeros_like(nodes), 2 * len(links), mixing=mixing,
            delays=last.delays if closes else None, closes=closes, compute=np.array(worked, dtype=np.int64),
            edges=base.links[links], ticks=[
                Tick(t.time, t.node if t.node >= 0 else base.n + t.link, t.number, tuple(end), steps)
                for t, end, (_, steps) in level
            ],
            elapsed=_since(touched, until) if closes else None, there=last.there,
        )  # fmt: skip


@contextmanager
def _of_links() -> Iterator[None]:
    """Says of problems with the graph's constants that they are the links'."""
    try:
        yield
    except InputError as error:
        raise error.under("participation.links") from None


def _since(touched: Ints, now: Ints | int) -> Floats:
    """Virtual seconds up to tick `now`: of a difference of whole ticks, so that windows do not change it."""
    return np.asarray((now - touched) / TICKS_PER_SECOND)


class _Clocks:
    """The next tick of every node's and every link's clock: gaps are exponential, keyed by (clock, number)."""

    def __init__(self, compute: Floats, links: Floats, base: BaseMixing, seed: int, timetable: Timetable) -> None:
        self.n, self.timetable, self.share = len(compute), timetable, base.share
        nodes = rng.key(seed, "node_clock", np.arange(self.n))
        self.keys = np.concatenate([nodes, rng.key(seed, "link_clock", *base.links.T)])
        with np.errstate(divide="ignore", over="ignore"):
            self.mean = TICKS_PER_SECOND / np.concatenate([compute, links])
        self.number = np.zeros(len(self.keys), dtype=np.int64)
        self.next = np.zeros(len(self.keys), dtype=np.int64)
        self._wind(np.arange(len(self.keys)))

    def until(self, end: int) -> list[_Ring]:
        """All ticks up to and including `end` that have not been given yet, in their order; ties nodes first."""
        times, clocks, numbers = [np.empty(0, dtype=np.int64)], *([np.empty(0, dtype=np.int64)] for _ in range(2))
        while len(due := np.flatnonzero(self.next <= end)):
            times.append(self.next[due])
            clocks.append(due)
            numbers.append(self.number[due])
            self.number[due] += 1
            self._wind(due)
        time, clock, number = np.concatenate(times), np.concatenate(clocks), np.concatenate(numbers)
        order = np.lexsort((number, clock, time))
        rows = zip(time[order].tolist(), clock[order].tolist(), number[order].tolist(), strict=True)
        return [_Ring(t, c, -1, k) if c < self.n else _Ring(t, -1, c - self.n, k) for t, c, k in rows]

    def _wind(self, clocks: Ints) -> None:
        """Draw the next gaps of `clocks`; a clock of rate 0 never ticks."""
        gap = -np.log1p(-rng.uniform(rng.fold(self.keys[clocks], self.number[clocks])))
        last, mean = self.next[clocks], self.mean[clocks]
        links = np.flatnonzero(clocks >= self.n)
        gap[links] /= self.share
        after = until_tick(last, gap, mean)
        if self.timetable.windows:
            after[links] = self.timetable.after(last[links], gap[links], mean[links])
        self.next[clocks] = np.minimum(after, int(FAR))


def _rung(clocks: _Clocks, end: int, network: Network) -> list[_Ring]:
    """All ticks up to and including `end` of nodes and links that are there at them: the others do nothing."""
    found, presence = clocks.until(end), network.topology.presence
    if presence is None:
        return found
    nodes, links = presence.nodes, presence.links
    return [r for r in found if (links.has(r.link, r.time) if r.node < 0 else nodes.has(r.node, r.time))]


def _levels(jobs: list[Any], n: int) -> list[list[Any]]:
    """Ticks (with their nodes second) in levels: one above the last tick at any of their nodes."""
    reached = [0] * n
    levels: list[list[Any]] = []
    for job in jobs:
        level = max(reached[i] for i in job[1])
        for i in job[1]:
            reached[i] = level + 1
        if level == len(levels):
            levels.append([])
        levels[level].append(job)
    return levels


def _pairwise(m: int, pairs: Ints, weights: Floats) -> sparse.csr_array:
    """``I - sum r_ij (e_i - e_j)(e_i - e_j)^T`` over `pairs` of rows that do not overlap, ``[m, m]``."""
    kept = np.ones(m)
    kept[pairs.reshape(-1)] = 1.0 - np.repeat(weights, 2)
    i, j = pairs.T
    rows, columns = np.concatenate([np.arange(m), i, j]), np.concatenate([np.arange(m), j, i])
    return sparse.csr_array((np.concatenate([kept, weights, weights]), (rows, columns)), shape=(m, m))
