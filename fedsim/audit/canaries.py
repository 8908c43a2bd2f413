"""Canaries: examples made to be seen, and what a white-box attacker reads off the released models.

A canary is an example whose gradient lies in one coordinate that nothing else touches, and is so long that clipping
always cuts it. To this end the model gets one more parameter per canary, theta_j, starting at 0; canary j's loss is
``+-S theta_j``, or for DIFF2 ``+-S theta_j^2 / 2`` from a theta_j above 0, whose gradient *differences* are clipped as
well, and every other example's loss does not depend on it. Batching, clipping, weights, sums and noise are the
scenario's own code.

A fair coin decides about each canary: plus or minus where examples are replaced, there or without effect where they are
added or removed. Canaries take the places of the last examples of the clients whose examples weigh most, so that all
sizes, and with them the noise, stay what they are, and a last chunk that is treated differently shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.algorithms.diff2 import Diff2
from fedsim.audit.base import Claimed, Outcome, Subject, claimed
from fedsim.core import rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.metrics import View
from fedsim.core.types import Message
from fedsim.data.pixels import PixelRange
from fedsim.engine.assembly import Change, Material
from fedsim.engine.watch import Row, Watched, Watcher
from fedsim.models.outputs import logits_of

_LENGTH = 1e6
"""S: the length of a canary's gradient, far above any clip norm."""
_ALIKE = 1.05  # clients whose examples' weights differ by less than that take turns
_PIXEL = 1e-12  # from black to white of a canary's number and sign, which an adversary has to leave as they are
_START = 0.01  # near 0, where float32 tells small moves apart, and S times it is still long


class CanaryModule(nn.Module):
    """A model and one parameter per canary.

    Takes ``[b, D + 2]``: the flattened input, the canary's number (0: an ordinary example) and its sign; gives
    ``[b, k + 1]``: the model's outputs (0 for canaries) and the canary's loss (0 for others).
    """

    def __init__(self, inner: nn.Module, shape: tuple[int, ...], canaries: int, quadratic: bool) -> None:
        super().__init__()
        first = next(inner.parameters())
        self.inner, self.shape, self.quadratic = inner, shape, quadratic
        start = torch.full((canaries,), _START if quadratic else 0.0, dtype=first.dtype)
        self.theta = nn.Parameter(start)  # a module's own parameters come first in ``[d]``

    def forward(self, x: Tensor) -> Tensor:
        number, sign = x[:, -2].round().long(), x[:, -1]
        ordinary = (number == 0).to(x.dtype)
        theta = self.theta.index_select(0, (number - 1).clamp_min(0))
        energy = _LENGTH * sign * (0.5 * theta * theta if self.quadratic else theta) * (1 - ordinary)
        outputs = logits_of(self.inner(x[:, :-2].reshape(-1, *self.shape))) * ordinary.unsqueeze(1)
        return torch.cat([outputs, energy.unsqueeze(1)], 1)


@dataclass(frozen=True)
class Canaries:
    """Where the canaries of one run are, and their coins.

    `places` ``[m]`` are rows of the training data, `clients` ``[m]`` who holds them, `weights` ``[m]`` what a canary
    weighs in the average over clients (relative to the largest) and `own_weights` ``[m]`` in its client's message.
    """

    places: list[Ints]
    clients: Ints
    weights: Floats
    own_weights: Floats
    coins: Bools
    signs: Floats

    @property
    def count(self) -> int:
        return len(self.coins)

    def change(self, quadratic: bool) -> Change:
        """The scenario's material with the canaries in it."""

        def make(material: Material) -> Material:
            data = material.data
            if not data.train_x.is_floating_point():
                raise InputError("canaries need inputs that are real numbers, found integers", key="data.dataset")
            width = data.train_x[0].numel()
            extended = torch.cat([data.train_x.flatten(1), data.train_x.new_zeros(len(data.train_x), 2)], 1)
            for j, rows in enumerate(self.places):
                extended[torch.as_tensor(rows)] = 0
                extended[torch.as_tensor(rows), width] = j + 1
                extended[torch.as_tensor(rows), width + 1] = float(self.signs[j])
            test = torch.cat([data.test_x.flatten(1), data.test_x.new_zeros(len(data.test_x), 2)], 1)
            module = CanaryModule(material.module, tuple(data.train_x.shape[1:]), self.count, quadratic)

            # without classes nobody computes accuracies from outputs that are not the model's alone
            pixels = None if data.pixels is None else _extended(data.pixels, data.train_x.shape[1:])
            changed = replace(data, train_x=extended, test_x=test, num_classes=None, pixels=pixels)

            def loss(outputs: Tensor, targets: Tensor) -> Tensor:
                return material.loss(outputs[..., :-1], targets) + outputs[..., -1]

            return replace(material, data=changed, module=module, loss=loss)

        return make


def _extended(pixels: PixelRange, shape: torch.Size) -> PixelRange:
    """The range of flattened inputs, and of a canary's number and sign behind them."""
    low, high = (v.expand(shape).flatten() for v in (pixels.low, pixels.high))
    return PixelRange(torch.cat([low, low.new_zeros(2)]), torch.cat([high, high.new_full((2,), _PIXEL)]))


class Scored(NamedTuple):
    """Canaries' scores ``[m]``, larger for coin 1, their coins, what was claimed, and what the attacker saw."""

    scores: Floats
    coins: Bools
    claim: Claimed
    sees: str


def place(subject: Subject, claim: Claimed, count: int, index: int) -> Canaries:
    """At most `count` canaries and their coins for the run number `index`.

    They replace examples from the end of clients' data, of the clients whose examples weigh most first, and taking
    turns where clients weigh alike, so that the last chunk of each has some; where the claim protects clients, each
    canary is a client's whole data.
    """
    material, algorithm = subject.material, subject.scenario.algorithm
    sizes = np.array([len(rows) for rows in material.rows])
    by_samples = isinstance(algorithm, ServerAlgorithm) and algorithm.weighting == "samples"
    share = sizes / sizes.sum() if by_samples else np.full(len(sizes), 1 / len(sizes))
    each = share if claim.claim.unit == "client" else share / sizes
    spots = [(c, rows) for c, rows in enumerate(material.rows)]
    if claim.claim.unit == "example":
        spots = [(c, rows[[i]]) for c, rows in enumerate(material.rows) for i in range(len(rows) - 1, -1, -1)]
    owners = np.array([c for c, _ in spots])
    depth = np.concatenate([np.arange(n) for n in (np.bincount(owners, minlength=len(sizes)))])
    alike = np.floor(np.log(each.max() / each) / np.log(_ALIKE) + 1e-9)[owners]
    chosen = np.lexsort((owners, depth, alike))[:count]
    places, clients = [spots[i][1] for i in chosen], owners[chosen]
    coins = rng.generator(subject.scenario.seed, "audit_canaries", index).random(len(places)) < 0.5
    signs = np.where(coins, 1.0, -1.0 if claim.claim.adjacency == "replace-one" else 0.0)
    own = np.ones(len(places)) if claim.claim.unit == "client" else 1.0 / sizes[clients]
    return Canaries(places, clients, each[clients] / each[clients].max(), own / own.max(), coins, signs)


def scored_run(subject: Subject, count: int, index: int = 0) -> Scored:
    """Run the scenario with canaries.

    Raises
    ------
    InputError
        The scenario has no privacy mechanism, or one without noise.
    """
    claim = needed_claim(subject)
    canaries = place(subject, claim, count, index)
    algorithm = subject.scenario.algorithm
    local = claim.claim.trust == "local" and subject.scenario.topology is None
    transcript: Transcript
    if isinstance(algorithm, Diff2):
        transcript = Differences(algorithm, canaries, local)
    else:
        transcript = Messages(canaries) if local else Displacement(canaries)
    hear = transcript.hear if local else None
    outcome = subject.train(canaries.change(transcript.quadratic), index, transcript, hear)
    audited = claimed(outcome.assembly)
    assert audited is not None
    return Scored(transcript.scores(outcome), canaries.coins, audited, transcript.sees)


def needed_claim(subject: Subject) -> Claimed:
    """What the scenario claims; InputError where that is nothing."""
    claim = subject.claim
    if claim is None:
        raise InputError("missing; this audit tests a claimed epsilon, which a privacy mechanism makes", "privacy")
    if not np.isfinite(claim.epsilon):
        raise InputError("found no noise: epsilon is infinite, and no audit can refute that", "privacy")
    return claim


class Transcript(Watcher, ABC):
    """What the attacker keeps of a run, and the scores that follow from it."""

    quadratic: bool = False
    sees: str = "every released model"

    def __init__(self, canaries: Canaries) -> None:
        self.canaries = canaries

    def began(self, run: Watched) -> None:
        self._now = run.now

    def round(self, number: int, row: Row | None) -> None:
        self.note(number, self._now())

    def note(self, number: int, view: View) -> None:
        """After every round, and once before the first."""

    def hear(self, clients: Ints, messages: Message) -> None:
        """Every message, where the claim is that each is private by itself."""

    @abstractmethod
    def scores(self, outcome: Outcome) -> Floats:
        """``[m]``, larger for coin 1."""

    def entries(self, clients: Ints, values: Tensor) -> Tensor:
        """Each canary's coordinate of its own client's message, ``[k, d] -> [m]`` in float64; 0 where there is none."""
        rows = np.full(int(max(clients.max(), self.canaries.clients.max())) + 1, -1)
        rows[clients] = np.arange(len(clients))
        row = torch.as_tensor(rows[self.canaries.clients], device=values.device)
        own = values[row.clamp_min(0), torch.arange(self.canaries.count, device=values.device)].double()
        return own * (row >= 0)


class Displacement(Transcript):
    """``score = -a_j theta_j`` at the end: how far the canary's coordinate was pushed down.

    On a graph, of the mean model. It uses the final model alone, whatever the algorithm.
    """

    sees = "the final model (on a graph: the mean model)"

    def scores(self, outcome: Outcome) -> Floats:
        moved: Floats = -outcome.params[: self.canaries.count].double().cpu().numpy()
        return moved * self.canaries.weights


class Messages(Transcript):
    """``score = -1 / b_j sum_r delta_{r, j}`` over the messages of the canary's own client, for claims about messages.

    b_j is the canary's weight in its client's message, which the noise in there is proportional to.
    """

    sees = "every message of every client"

    def __init__(self, canaries: Canaries) -> None:
        super().__init__(canaries)
        self._total: Tensor | float = 0.0

    def hear(self, clients: Ints, messages: Message) -> None:
        if "delta" not in messages:
            raise InputError(f"found messages of {', '.join(messages)}; this audit needs updates", "algorithm.name")
        self._total = self._total - self.entries(clients, messages["delta"])

    def scores(self, outcome: Outcome) -> Floats:
        assert isinstance(self._total, Tensor)
        total: Floats = self._total.cpu().numpy()
        return total / self.canaries.own_weights


class Differences(Transcript):
    """For DIFF2: the log-likelihood ratio of the coin, from every released v, or from every message.

    The increment of v_j in round r is ``+-a c_r`` plus noise of variance s_r^2, with c_r the canary's clipped gradient,
    ``clip(S theta_r, C1)``, or in difference rounds ``clip(S (theta_r - theta_{r-1}), C2 D_r)``; so the ratio's
    logarithm is ``sum_r 2 a c_r (v_r - v_{r-1})_j / s_r^2``, up to constants, s_r being C_r times the round's z.
    A message of the canary's own client is its increment by itself; noise there is proportional to a canary's weight.
    """

    quadratic = True

    def __init__(self, algorithm: Diff2, canaries: Canaries, local: bool) -> None:
        super().__init__(canaries)
        self.algorithm, self.local = algorithm, local
        if local:
            self.sees = Messages.sees
        self.theta: list[Tensor] = []
        self.steps: list[float] = []
        self.increments: list[Tensor] = []
        self._v: Tensor | None = None

    def note(self, number: int, view: View) -> None:
        x, own = view.state("x"), slice(self.canaries.count)
        self.theta.append(x[own].double())
        self.steps.append(float((x.double() - view.state("previous").double()).norm()))
        v = view.state("v")[own].double()
        if number > 0 and not self.local:
            fresh = self._v is None or self.algorithm.restarts(number)
            self.increments.append(v if fresh or self._v is None else v - self._v)
        self._v = v

    def hear(self, clients: Ints, messages: Message) -> None:
        self.increments.append(self.entries(clients, messages["mean"]))

    def scores(self, outcome: Outcome) -> Floats:
        privacy = outcome.assembly.privacy
        noise = {release.kind: release.z for release in privacy.ledger.planned} if privacy.claims else {}
        total = torch.zeros_like(self.theta[0])
        for r, increment in enumerate(self.increments):
            if self.algorithm.restarts(r + 1):
                gradient, radius, z = _LENGTH * self.theta[r], self.algorithm.clip_norm, noise.get("restart", 1.0)
            else:
                gradient = _LENGTH * (self.theta[r] - self.theta[r - 1])
                radius = (self.algorithm.difference_clip or np.inf) * self.steps[r]
                z = noise.get("difference", 1.0)
            assert radius is not None
            if radius > 0:
                total += gradient.clamp(-radius, radius) * increment / (radius * z) ** 2
        result: Floats = total.cpu().numpy()
        return result / self.canaries.own_weights if self.local else result * self.canaries.weights
