"""Gossip participation: sporadic computation and links on a graph, and DSpodFL's delay metric.

Source of both: arXiv 2402.03448 (the metric: section 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from fedsim.core import rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND, seconds
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.graphs.mixing import is_symmetric
from fedsim.graphs.mixing_matrix import BaseMixing, MixingMatrix
from fedsim.graphs.network import Network
from fedsim.graphs.presence import There
from fedsim.participation.base import Arrival, Dispatch, Event, Participation, Setting
from fedsim.participation.coming import among, check_coming, here, rounds_span
from fedsim.participation.laws import Law
from fedsim.participation.windows import NEVER, Merge, Schedule, Window

_ONE = Law.model_validate(1.0)
_DRIFTS = (
    "found link probabilities below 1 with asymmetric mixing weights (a directed graph): while a link is idle the "
    "columns do not sum to 1 and the network average drifts"
)


class _Round(NamedTuple):
    """The graph in force, d ``[n]`` and b ``[links]``, who computes, which links fire, the local work of the nodes, who
    is there (None: everybody) and who joins."""

    which: int
    d: Floats
    b: Floats
    computes: Bools
    fires: Bools
    units: Ints
    steps: Ints
    there: There | None
    joins: Bools


@register.participation("gossip")
@dataclass(frozen=True, kw_only=True)
class Gossip(Participation):
    """Every round every node mixes over the links that fire, and the nodes whose turn it is compute.

    Parameters
    ----------
    compute : probability d_i that node i computes in a round.
    links : probability b_ij that a link is used in a round, both ways at once (a directed edge by itself).
    schedule : windows of rounds in which all links have another probability, or nodes merge; see `Window`. Draws stay
        those of the link and the round, so that a window changes nothing outside it.
    merge : rounds after which all nodes take the mean of all models, a step of its own; see `Merge`.

    Algorithms that always compute or always communicate (DGD, randomized gossip, ...) use these for the delay metric
    only. In virtual time a round lasts until the slowest node that computes is done, and then until the slowest link
    that fires has carried its message (see `system` and the latencies of graph files); without either, 1 second.
    """

    setting: ClassVar[Literal["server", "gossip"]] = "gossip"
    comes_and_goes: ClassVar[bool] = True
    compute: Law = _ONE
    links: Law = _ONE
    schedule: list[Window] | None = None
    merge: Merge | None = None

    @property
    def merging(self) -> str | None:
        windows = "participation.schedule" if any(window.merge for window in self.schedule or ()) else None
        return "participation.merge" if self.merge is not None and self.merge.ever else windows

    def merges_in(self, rounds: int) -> int:
        return Schedule(self.schedule or (), rounds).merges_in(self.merge or NEVER)

    @property
    def merges_at_end(self) -> bool:
        return self.merge is not None and self.merge.final

    @property
    def fixed_rounds(self) -> str | None:
        if not any(window.moves for window in self.schedule or ()):
            return None
        return "windows of participation.schedule that are fractions of the run would move; round numbers would not"

    def check_run(self, setting: Setting) -> None:
        check_laws(self, setting)
        check_merges(self, self.merge, setting)
        check_pulls(setting)
        check_coming(self, setting, rounds_span(setting))
        self._scheduled(setting)

    def _scheduled(self, setting: Setting) -> Schedule:
        """The windows of this run.

        Raises
        ------
        InputError
            They do not fit its rounds, its algorithm or its graph.
        """
        algorithm, network = setting.gossip
        try:
            schedule = Schedule(self.schedule or (), setting.rounds)
        except InputError as error:
            raise error.under("participation.schedule") from None
        for i, window in enumerate(self.schedule or ()):
            key = f"participation.schedule.{i}.links"
            if window.links is not None and algorithm.needs.links == "always":
                raise InputError(
                    f"{type(algorithm).__name__} uses every link in every round; allowed: no links", key=key
                )
            drifts = not algorithm.needs.columns and not all(is_symmetric(m.matrix) for m in network.mixings)
            if window.links is not None and not window.links.constant(1.0) and drifts:
                raise InputError(f"{_DRIFTS}; allowed: 1, or an undirected graph", key=key)
        return schedule

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        (algorithm, network), task, seed, durations = setting.gossip, setting.task, setting.seed, setting.durations
        n = task.num_clients
        nodes, stale = np.arange(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        schedule, complete = self._scheduled(setting), all_pairs(network)
        whole = [MixingMatrix(m.matrix, task.device) for m in network.mixings]
        draws: dict[Any, Floats] = {}

        def realise(number: int, now: int, before: int) -> _Round:
            """What a round is that begins at tick `now`, and the one before it at tick `before`."""
            which = network.topology.at(number - 1)
            links = network.mixings[which].links
            d, b = self._probabilities(draws, network.mixings[which], n, seed, number, which)
            if algorithm.needs.compute == "always":
                computes = np.ones(n, dtype=bool)
            else:
                computes = np.asarray(rng.uniform(rng.key(seed, "compute", nodes, number)) < d)
            level = schedule.links(number)
            chance = b if level is None else np.full(len(links), level)
            mixing = network.mixings[which]
            fires = mixing.fires(np.ones(len(links)) if algorithm.needs.links == "always" else chance, seed, number)
            if number % algorithm.period(d):
                fires = np.zeros_like(fires)
            there, joins = here(network, number, now, before)
            if there is not None:
                fires, computes = fires & there.links, computes & there.nodes & ~joins
                fires &= ~joins[links].all(-1)  # two that join have nothing for each other
            units, per_unit = algorithm.steps_by_unit(task, nodes, np.full(n, number, dtype=np.int64), seed)
            units = computes * units
            return _Round(which, d, b, computes, fires, units, units * per_unit, there, joins)

        def length(number: int, which: int, fires: Bools, steps: Ints) -> int:
            """Ticks of a round: the slowest computation, then the slowest link."""
            if durations is None:
                return TICKS_PER_SECOND
            slowest_link = int(durations.links[which][fires].max(initial=0)) if durations.links else 0
            return max(durations.longest(np.flatnonzero(steps), number - 1, steps) + slowest_link, 1)

        def ends(number: int, now: int, steps: Ints) -> list[int]:
            """Ticks at which nodes are done with their local work."""
            if durations is None:
                return (now + TICKS_PER_SECOND * (steps > 0)).tolist()  # type: ignore[no-any-return]
            return [now + durations.of(i, number - 1, k) if k else now for i, k in enumerate(steps.tolist())]

        now, before = 0, -TICKS_PER_SECOND
        for number in range(1, after + 1) if durations is not None else ():
            found = realise(number, now, before)
            now, before = now + length(number, found.which, found.fires, found.steps), now
        if durations is None:
            now, before = after * TICKS_PER_SECOND, (after - 1) * TICKS_PER_SECOND
        for number in count(after + 1):
            which, d, b, computes, fires, units, steps, there, joins = realise(number, now, before)
            base, rounds = network.mixings[which], np.full(n, number, dtype=np.int64)
            mixes = among(network, which, there, fires, joins)
            who = nodes if there is None else nodes[there.nodes]
            until = ends(number, now, steps)
            until = until if there is None else [until[i] for i in who.tolist()]
            yield Dispatch(who, rounds[who], steps[who], until, start=now)
            mixing = whole[which] if mixes.matrix is base.matrix else MixingMatrix(mixes.matrix, task.device)
            now, before = now + length(number, which, fires, steps), now
            delays = normalised_delays(
                base, units, fires, np.maximum(d, self.compute.floor), np.maximum(b, self.links.floor)
            )
            merge = schedule.merges(number) or (self.merge or NEVER).due(number)
            if merge:
                delays = (delays[0], delays[1] + complete)
            yield Arrival(
                number, seconds(now), who, rounds[who], steps[who], stale[who], mixes.sends, mixing=mixing,
                delays=delays, compute=np.flatnonzero(computes), edges=base.links[fires], merge=merge, there=there,
            )  # fmt: skip

    def there(self, setting: Setting, number: int) -> There | None:
        if setting.gossip[1].topology.presence is None:
            return None
        return next(e.there for e in self.events(setting, max(number - 1, 0)) if isinstance(e, Arrival))

    def _probabilities(
        self, draws: dict[Any, Floats], base: BaseMixing, n: int, seed: int, number: int, which: int
    ) -> tuple[Floats, Floats]:
        """d ``[n]`` and b ``[links]`` in force in this round; drawn when they change, kept in `draws`."""
        nodes_key, links_key = ("compute", self.compute.epoch(number)), ("links", which, self.links.epoch(number))
        if nodes_key not in draws:
            draws[nodes_key] = self.compute.draw(n, seed, "node", number)
        if links_key not in draws:
            draws[links_key] = self.links.draw(len(base.links), seed, "link", number)
        return draws[nodes_key], draws[links_key]


def normalised_delays(base: BaseMixing, units: Any, fires: Any, d: Floats, b: Floats) -> tuple[float, float]:
    """(tau_proc, tau_trans) of one round, normalised: one in which everybody computes once and every link fires once
    costs 1 + 1.

    `units` ``[n]`` computations and `fires` ``[links]`` uses, each costing one over its `d` and `b` (above 0). Several
    local steps count as that many computations.
    """
    processing = float((units / d).sum() / (1.0 / d).sum())
    per_entry = (1.0 / b)[base.entry_links] / base.degrees[base.entry_rows]
    if len(per_entry) == 0:
        return processing, 0.0
    return processing, float((per_entry * fires[base.entry_links]).sum() / per_entry.sum())


class Laws(Protocol):
    """A mode with a law for its nodes and one for its links."""

    @property
    def compute(self) -> Law: ...

    @property
    def links(self) -> Law: ...


def check_laws(mode: Laws, setting: Setting) -> None:
    """Raise InputError where lists have a wrong length, or links that fire sporadically move the network average."""
    algorithm, network = setting.gossip
    for key, purpose, counts in (
        ("compute", "node", [setting.task.num_clients]),
        ("links", "link", [len(m.links) for m in network.mixings]),
    ):
        for items in counts:
            try:
                getattr(mode, key).draw(items, setting.seed, purpose, 1)
            except InputError as error:
                raise error.under(f"participation.{key}") from None
    if algorithm.needs.compression == "copies":
        _check_copies(mode, setting)
    needs = algorithm.needs
    if needs.links == "always" or needs.columns or all(is_symmetric(m.matrix) for m in network.mixings):
        return
    if any((mode.links.draw(len(m.links), setting.seed, "link", 1) < 1).any() for m in network.mixings):
        raise InputError(f"{_DRIFTS}; allowed: 1, or an undirected graph", key="participation.links")


def check_merges(mode: Participation, merge: Merge | None, setting: Setting) -> None:
    """Raise InputError where nodes are to merge and cannot, or never would."""
    why = setting.gossip[0].needs.no_merge
    if mode.merging is not None and why is not None:
        raise InputError(f"found a merge, but {why}; allowed: never, and windows without merge", key=mode.merging)
    (merge or NEVER).check(setting.rounds)


def check_pulls(setting: Setting) -> None:
    """Raise InputError where the mean of all models moves and the algorithm lives of that it does not."""
    algorithm, network = setting.gossip
    why = algorithm.needs.linear_mixing
    if why is not None and any(m.moves_mean for m in network.mixings):
        message = f"found pulls, which move the mean of all models, but {why}; allowed: symmetric: true"
        raise InputError(message, key="topology.symmetric")


def all_pairs(network: Network) -> float:
    """What a merge adds to the normalised transmission delay: 1 where the graph has a link for every pair of nodes."""
    n = network.topology.num_nodes
    pairs = n * (n - 1) // (1 if network.topology.directed else 2)
    return float(all(len(m.links) == pairs for m in network.mixings))


def _check_copies(mode: Laws, setting: Setting) -> None:
    """Raise InputError where a link does not fire in every round: copies of one node at its neighbours would differ."""
    algorithm, network = setting.gossip
    why = f"{type(algorithm).__name__}'s nodes keep copies of all neighbours, which move with every message"
    if network.changes:
        raise InputError(f"found neighbours that change with the round, but {why}; allowed: one graph", key="topology")
    if (mode.links.draw(len(network.mixings[0].links), setting.seed, "link", 1) < 1).any():
        raise InputError(f"found probabilities below 1, but {why}; allowed: 1", key="participation.links")
