"""Canaries: examples made to be seen, and what a white-box attacker reads off the released models.

A canary is an example whose gradient lies in one coordinate that nothing else touches, and is so long that clipping
always cuts it. To this end the model gets one more parameter per canary, theta_j, starting at 1; canary j's loss is
``+-S theta_j``, or for DIFF2 ``+-S theta_j^2 / 2``, whose gradient *differences* are clipped as well, and every other
example's loss does not depend on it. Batching, clipping, weights, sums and noise are the scenario's own code.

A fair coin decides about each canary: plus or minus where examples are replaced, there or without effect where they are
added or removed. Canaries take the places of the last examples of the clients whose examples weigh most, so that all
sizes, and with them the noise, stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.algorithms.base import ServerAlgorithm
from fedsim.algorithms.diff2 import Diff2
from fedsim.assembly import Change, Material
from fedsim.audit.base import Claimed, Outcome, Subject, claimed
from fedsim.audit.scores import Bools, Floats
from fedsim.errors import InputError
from fedsim.simulation import Simulation
from fedsim.task import Ints

_LENGTH = 1e6
"""S: the length of a canary's gradient, far above any clip norm."""


class CanaryModule(nn.Module):
    """A model and one parameter per canary.

    Takes ``[b, D + 2]``: the flattened input, the canary's number (0: an ordinary example) and its sign; gives
    ``[b, k + 1]``: the model's outputs (0 for canaries) and the canary's loss (0 for others).
    """

    def __init__(self, inner: nn.Module, shape: tuple[int, ...], canaries: int, quadratic: bool) -> None:
        super().__init__()
        first = next(inner.parameters())
        self.inner, self.shape, self.quadratic = inner, shape, quadratic
        self.theta = nn.Parameter(torch.ones(canaries, dtype=first.dtype))  # a module's own come first in ``[d]``

    def forward(self, x: Tensor) -> Tensor:
        number, sign = x[:, -2].long(), x[:, -1]
        ordinary = (number == 0).to(x.dtype)
        theta = self.theta.index_select(0, (number - 1).clamp_min(0))
        energy = _LENGTH * sign * (0.5 * theta * theta if self.quadratic else theta) * (1 - ordinary)
        outputs = self.inner(x[:, :-2].reshape(-1, *self.shape)) * ordinary.unsqueeze(1)
        return torch.cat([outputs, energy.unsqueeze(1)], 1)


@dataclass(frozen=True)
class Canaries:
    """Where the canaries of one run are, and their coins.

    `places` ``[m]`` are rows of the training data, `weights` ``[m]`` what the client weighs over its number of examples
    (relative to the largest), `coins` ``[m]``.
    """

    places: list[Ints]
    weights: Floats
    coins: Bools
    signs: Floats

    @property
    def count(self) -> int:
        return len(self.coins)

    def change(self, quadratic: bool) -> Change:
        """The scenario's material with the canaries in it."""

        def make(material: Material) -> Material:
            data = material.data
            width = data.train_x[0].numel()
            extended = torch.cat([data.train_x.flatten(1), data.train_x.new_zeros(len(data.train_x), 2)], 1)
            for j, rows in enumerate(self.places):
                extended[torch.as_tensor(rows)] = 0
                extended[torch.as_tensor(rows), width] = j + 1
                extended[torch.as_tensor(rows), width + 1] = float(self.signs[j])
            test = torch.cat([data.test_x.flatten(1), data.test_x.new_zeros(len(data.test_x), 2)], 1)
            module = CanaryModule(material.module, tuple(data.train_x.shape[1:]), self.count, quadratic)

            # without classes nobody computes accuracies from outputs that are not the model's alone
            changed = replace(data, train_x=extended, test_x=test, num_classes=None)

            def loss(outputs: Tensor, targets: Tensor) -> Tensor:
                return material.loss(outputs[..., :-1], targets) + outputs[..., -1]

            return replace(material, data=changed, module=module, loss=loss)

        return make


def place(subject: Subject, claim: Claimed, count: int, index: int) -> Canaries:
    """At most `count` canaries and their coins for the run number `index`.

    They replace examples from the end of clients' data, the clients whose examples weigh most first; where the claim
    protects clients, each canary is a client's whole data.
    """
    material, algorithm = subject.material, subject.scenario.algorithm
    sizes = np.array([len(rows) for rows in material.rows])
    by_samples = isinstance(algorithm, ServerAlgorithm) and algorithm.weighting == "samples"
    share = sizes / sizes.sum() if by_samples else np.full(len(sizes), 1 / len(sizes))
    each = share if claim.claim.unit == "client" else share / sizes
    places: list[Ints] = []
    weights: list[float] = []
    for client in np.lexsort((sizes, -each)):
        rows = material.rows[client]
        chosen = [rows] if claim.claim.unit == "client" else [rows[[i]] for i in range(len(rows) - 1, -1, -1)]
        chosen = chosen[: count - len(places)]
        places += chosen
        weights += [float(each[client])] * len(chosen)
        if len(places) == count:
            break
    coins = rng.generator(subject.scenario.seed, "audit_canaries", index).random(len(places)) < 0.5
    signs = np.where(coins, 1.0, -1.0 if claim.claim.adjacency == "replace-one" else 0.0)
    return Canaries(places, np.array(weights) / max(weights), coins, signs)


def scored_run(subject: Subject, count: int, index: int = 0) -> tuple[Floats, Bools, Claimed]:
    """Run the scenario with canaries; their scores ``[m]``, larger for coin 1, their coins, and what was claimed.

    Raises
    ------
    InputError
        The scenario has no privacy mechanism, or one without noise.
    """
    claim = needed_claim(subject)
    canaries = place(subject, claim, count, index)
    algorithm = subject.scenario.algorithm
    transcript: Transcript = Differences(algorithm, canaries.count) if isinstance(algorithm, Diff2) else Displacement()
    outcome = subject.train(canaries.change(transcript.quadratic), index, transcript.note)
    audited = claimed(outcome.assembly)
    assert audited is not None
    return transcript.scores(outcome, canaries), canaries.coins, audited


def needed_claim(subject: Subject) -> Claimed:
    """What the scenario claims; InputError where that is nothing."""
    claim = subject.claim
    if claim is None:
        raise InputError("missing; this audit tests a claimed epsilon, which a privacy mechanism makes", "privacy")
    if not np.isfinite(claim.epsilon):
        raise InputError("found no noise: epsilon is infinite, and no audit can refute that", "privacy")
    return claim


class Transcript:
    """What the attacker keeps of a run, and the scores that follow from it."""

    quadratic: bool = False
    note: Callable[[Simulation], None]

    def scores(self, outcome: Outcome, canaries: Canaries) -> Floats:
        raise NotImplementedError


class Displacement(Transcript):
    """``score = a_j (theta_j at the start - at the end)``: how far the canary's coordinate was pushed down.

    On a graph, of the mean model. It uses the final model alone, whatever the algorithm.
    """

    def note(self, simulation: Simulation) -> None:
        """Nothing between the rounds is used."""

    def scores(self, outcome: Outcome, canaries: Canaries) -> Floats:
        moved: Floats = 1.0 - outcome.params[: canaries.count].double().cpu().numpy()
        return moved * canaries.weights


class Differences(Transcript):
    """For DIFF2: the log-likelihood ratio of the coin, from every released v.

    The increment of v_j in round r is ``+-a c_r`` plus noise of variance s_r^2, with c_r the canary's clipped gradient,
    ``clip(S theta_r, C1)``, or in difference rounds ``clip(S (theta_r - theta_{r-1}), C2 D_r)``; so the ratio's
    logarithm is ``sum_r 2 a c_r (v_r - v_{r-1})_j / s_r^2``, up to constants, s_r being C_r times the round's z.
    """

    quadratic = True

    def __init__(self, algorithm: Diff2, count: int) -> None:
        self.algorithm, self.own = algorithm, slice(count)
        self.theta: list[Tensor] = []
        self.steps: list[float] = []
        self.increments: list[Tensor] = []
        self._v: Tensor | None = None
        self._noise: dict[str, float] = {}

    def note(self, simulation: Simulation) -> None:
        state = simulation.state
        self.theta.append(state["x"][self.own].double())
        self.steps.append(float((state["x"].double() - state["previous"].double()).norm()))
        v = state["v"][self.own].double()
        restart = simulation.round == 0 or self.algorithm.restarts(simulation.round)
        if simulation.round > 0:
            self.increments.append(v if restart or self._v is None else v - self._v)
        self._v = v
        privacy = simulation.assembly.privacy
        if privacy is not None and not self._noise:
            self._noise = {release.kind: release.z for release in privacy.ledger.planned}

    def scores(self, outcome: Outcome, canaries: Canaries) -> Floats:
        total = torch.zeros_like(self.theta[0])
        for r, increment in enumerate(self.increments):
            if self.algorithm.restarts(r + 1):
                gradient, radius, z = _LENGTH * self.theta[r], self.algorithm.clip_norm, self._noise.get("restart", 1.0)
            else:
                gradient = _LENGTH * (self.theta[r] - self.theta[r - 1])
                radius = (self.algorithm.difference_clip or np.inf) * self.steps[r]
                z = self._noise.get("difference", 1.0)
            assert radius is not None
            if radius > 0:
                total += gradient.clamp(-radius, radius) * increment / (radius * z) ** 2
        result: Floats = total.cpu().numpy() * canaries.weights
        return result
