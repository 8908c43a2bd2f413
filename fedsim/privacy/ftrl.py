"""DP-FTRL (Kairouz et al., arXiv 2103.00039): noise correlated over rounds instead of amplification by sampling.

The sum of all updates so far is released with the noise of a binary tree, or of a banded matrix; a round's step is the
difference of two of them, so most of a round's noise is taken back later. Any server optimiser may follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Round, ServerAlgorithm
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.registry import register
from fedsim.core.types import Aggregate, Count, Message, Positive, State
from fedsim.participation.base import Setting
from fedsim.participation.synchronous import Synchronous
from fedsim.privacy.accounting import Release, calibrate
from fedsim.privacy.base import Bound, Mechanism
from fedsim.privacy.exposure import rounds_of_clients
from fedsim.privacy.ledger import Claim, PrivacyLedger
from fedsim.privacy.matrix_noise import (
    prefix_nodes,
    square_root_bands,
    toeplitz_inverse,
    toeplitz_sensitivity,
    tree_sensitivity,
)
from fedsim.privacy.noise import gaussian
from fedsim.privacy.updates import check_server, clip_update, importance


@register.privacy("dp_ftrl")
@dataclass(frozen=True, kw_only=True)
class DPFTRL(Mechanism):
    """``mean_t = sum_{p in S_t} w_p clip_C(delta_p) + (C^-1 Z)_t``, Z of std ``z * C * max_p w_p * sensitivity``.

    Client level: one client's updates become zero in every round it takes part in. Who takes part when is public and
    does not depend on data, so the sensitivity is the largest |C pattern| over the clients' actual patterns, and the
    whole run is one Gaussian release. Nothing is claimed for sampling.

    Parameters
    ----------
    clip_norm : the bound on each client's update. Without it nothing is clipped, and nothing is private.
    correlation : ``tree``, binary-tree aggregation; ``none``, fresh noise in every round (DP-GD); ``banded``, C^-1 with
        `bands` diagonals, the first coefficients of (1 - s)^(1/2).
    bands : diagonals of ``banded``.
    restart_every : a new tree (or matrix) after that many rounds; its noise starts anew, and a client counts in each.
    """

    personal: ClassVar[bool] = True
    trust: Literal["central"] = "central"
    clip_norm: Positive | None = None
    correlation: Literal["tree", "banded", "none"] = "tree"
    bands: Annotated[int, Field(ge=1)] | None = None
    restart_every: Count | None = None

    def bind(self, setting: Setting) -> Bound:
        self.check_target()
        check_server(setting, "dp_ftrl")
        if self.clip_norm is None and self.noise_multiplier != 0:
            raise InputError("missing; allowed: the bound on each client's update", key="privacy.clip_norm")
        if (self.bands is not None) != (self.correlation == "banded"):
            found = "missing" if self.bands is None else f"found beside correlation {self.correlation}"
            raise InputError(f"{found}; allowed: diagonals, with correlation: banded", key="privacy.bands")
        assert isinstance(setting.participation, Synchronous)
        if setting.participation.sampling == "weighted":
            message = "a client that is drawn twice would count twice, allowed: uniform, bernoulli, poisson"
            raise InputError(message, key="participation.sampling")
        z = self.noise_multiplier
        if z is None:
            assert self.epsilon is not None
            z = calibrate({Release("run", 1.0): 1}, self.epsilon, self.delta)
        claim = Claim(
            "client", "add-remove", "central", "against everybody who sees the models, but not against the server",
            "none is claimed; who takes part when is public",
        )  # fmt: skip
        release = Release("run", z)
        ledger = PrivacyLedger(claim, self.delta, setting.task.num_clients, self.epsilon, {release: 1})
        return _BoundFTRL(self, setting, ledger, release)

    def length(self, rounds: int) -> int:
        """Rounds of one tree or matrix."""
        return min(rounds, self.restart_every or rounds)

    def sensitivity(self, patterns: Mapping[int, Ints], rounds: int) -> float:
        """The largest |C pattern| of any client, over all trees it takes part in."""
        length = self.length(rounds)
        column = self.column(length)
        largest = 0.0
        for numbers in {tuple(p.tolist()) for p in patterns.values()}:
            at = np.array(numbers, dtype=np.int64) - 1
            squares = 0.0
            for epoch in np.unique(at // length):
                within = at[at // length == epoch] % length + 1
                size = min(length, rounds - int(epoch) * length)
                if column is None:
                    squares += tree_sensitivity(within, size) ** 2
                else:
                    squares += toeplitz_sensitivity(within, size, column[:size]) ** 2
            largest = max(largest, squares)
        return float(np.sqrt(largest))

    def column(self, length: int) -> Any:
        """First column of a Toeplitz C (None: a tree)."""
        return None if self.correlation == "tree" else toeplitz_inverse(self.inverse(), length)

    def inverse(self) -> Any:
        """First entries of a Toeplitz C^-1."""
        return square_root_bands(self.bands or 1)


class _BoundFTRL(Bound):
    """DP-FTRL in one run. Noise is keyed by tree node (or round), so nothing has to be kept between rounds."""

    answers_empty = True

    def __init__(self, mechanism: DPFTRL, setting: Setting, ledger: PrivacyLedger, release: Release) -> None:
        super().__init__(mechanism, setting, ledger)
        assert isinstance(setting.algorithm, ServerAlgorithm)
        assert isinstance(setting.participation, Synchronous)
        self.mechanism, self.algorithm, self.release = mechanism, setting.algorithm, release
        self.rate = setting.participation.rate(setting.task.num_clients)
        self.clip = mechanism.clip_norm if mechanism.clip_norm is not None else float("inf")
        self.sensitivity = mechanism.sensitivity(rounds_of_clients(setting), setting.rounds)
        heaviest = float(importance(setting).max()) / self.rate
        self.std = release.z * self.clip * heaviest * self.sensitivity if release.z > 0 else 0.0
        self.length = mechanism.length(setting.rounds)
        self.done = 0
        self.changes: list[tuple[int, int]] = []
        """From which round on which `word` decides the noise that is drawn in it (see `draw_from`)."""

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        if not next(self.ledger.profiles()):  # one release for the whole run, at its beginning
            self.ledger.append(self.release)

    def outgoing(self, messages: Message, job: Job) -> Message:
        return {**messages, "delta": clip_update(messages["delta"], self.clip)[0]}

    def aggregate(self, round: Round, state: State, messages: Message, aggregate: Aggregate) -> Aggregate:
        weights = self.algorithm.importance(round) / self.rate
        mean = weights.squeeze(-1) @ messages["delta"]
        if self.std > 0:
            self.under_noise(round.number, mean)
            mean = mean + self.std * self._noise(round.number, mean)
        self.done = round.number
        return lambda values, weights=None: mean  # noqa: ARG005 - `check_server` made sure that this is all it is

    def save(self) -> dict[str, Any]:
        return {**super().save(), "done": self.done, "changes": self.changes}

    def accepts(self, saved: Mapping[str, Any]) -> None:
        if saved["rounds"] != self.rounds:
            raise InputError(
                f"found {self.rounds}, but the noise so far was made for {saved['rounds']} rounds; allowed: "
                f"{saved['rounds']}",
                key="run.rounds",
            )

    def load(self, saved: Mapping[str, Any]) -> None:
        self.accepts(saved)
        self.done = saved.get("done", 0)
        self.changes = [(number, word) for number, word in saved.get("changes", ())]
        super().load(saved)

    def _diverge(self) -> None:
        """The sums before stay under their noise; those to come are a run of their own, which is counted once more."""
        super()._diverge()
        self.changes.append((self.done + 1, self.seeds[0]))
        self.ledger.append(self.release)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "sensitivity of the worst pattern": f"{self.sensitivity:.6g} clips"}

    def _noise(self, number: int, like: Tensor) -> Tensor:
        """``(C^-1 Z)_t``: for a tree, the noise of the prefix sum up to this round less that up to the one before."""
        epoch, t = divmod(number - 1, self.length)
        if self.mechanism.correlation == "tree":
            now, before = set(prefix_nodes(t + 1)), set(prefix_nodes(t))
            terms = [(1.0, *node) for node in now - before] + [(-1.0, *node) for node in before - now]
        else:
            a = self.mechanism.inverse()
            terms = [(float(a[j]), 0, t - j) for j in range(min(len(a), t + 1))]
        return self._sum(epoch, terms, like)

    def _sum(self, epoch: int, terms: list[tuple[float, int, int]], like: Tensor) -> Tensor:
        total = torch.zeros_like(like)
        for factor, level, index in sorted(terms):
            last = epoch * self.length + ((index + 1) << level)  # the round in which this noise was first drawn
            word = next((word for first, word in reversed(self.changes) if first <= last), self._own_seeds[0])
            seeds = word, self.seeds[1]
            z = gaussian(seeds, "ftrl", epoch, level, index, width=len(like), device=like.device, dtype=like.dtype)
            total.add_(z[0], alpha=factor)
        return total
