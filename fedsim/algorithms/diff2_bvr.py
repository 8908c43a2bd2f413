"""DIFF2 with local steps: DIFF2-BVR-L-SGD (arXiv 2302.03884), its local loop made private by a construction of our own.

BVR-L-SGD (Murata & Suzuki, arXiv 2102.03198) lets one client take K variance-reduced steps from the global gradient v
and hands its last point to everybody. These steps look at data again, so DIFF2 needs noise in them too. How the paper
places and scales it could not be confirmed; here every minibatch difference is clipped per example and noised, with
Poisson batches and public denominators, and accounted for as such. Do not take numbers of this class for the paper's.

A round of the method is two rounds of a run: in the first everybody's gradients or differences give v, as in `diff2`;
in the second the client whose turn it is walks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, Oracle, Positive, Report, Round, State
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.work import Work
from fedsim.core.arrays import Ints
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import Count, norm


@register.algorithm("diff2_bvr")
@dataclass(frozen=True, kw_only=True)
class Diff2Bvr(Diff2):
    """``v`` as in diff2; then one client: ``v_k = v_{k-1} + clipped difference of y_{k-1}, y_{k-2}``; ``y_k = y_{k-1} - lr v_k``.

    v_1 = v and y_0 = x; the client's y_K is the next x. Clients take turns.

    Sources: Murata and Suzuki, arXiv 2302.03884, and arXiv 2102.03198 for the local loop without noise.

    Parameters
    ----------
    inner_steps : K.
    inner_batch : b, the expected number of a client's examples in a step (each with probability b / n_p).
    inner_clip : C3, the bound on each example's difference over the distance of y_{k-1} and y_{k-2} (default: none).
    """  # noqa: E501

    needs: ClassVar[Needs] = replace(Diff2.needs, through_aggregate=False)
    inner_steps: Count = 5
    inner_batch: Count = 32
    inner_clip: Positive | None = None

    def work(self) -> tuple[Work, bool]:
        return Work.model_validate(self.inner_steps), False

    def init(self, params: Tensor) -> State:
        return {**super().init(params), "walks": params.new_zeros(1), "turn": params.new_zeros(1)}

    def broadcast(self, state: State) -> Message:
        return {k: state[k] for k in ("x", "previous", "age", "v", "walks")}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        if "mean" in local:
            return local
        if "v" not in local and not bool(received["walks"].any()):  # asked once: a GPU would be waited for
            return super().local_step(oracle, local, received, client)
        y = local["x"]
        if "v" not in local:  # the first step needs no data
            v = received["v"].expand_as(y)
        else:
            apart = norm(y - local["before"])
            bound = apart * self.inner_clip if self.inner_clip else torch.full_like(apart, math.inf)
            difference = oracle.clipped_sum(y, bound, local["before"], torch.float64)
            v = local["v"] + difference / oracle.samples.clamp_min(1e-12)
        return {"x": y - oracle.lr * v, "v": v, "before": y}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"mean": local["mean"] if "mean" in local else local["x"] - received["x"]}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``v = mean`` or ``v + mean``; in the other rounds ``x = y_K`` of the client whose turn it is"""
        if not self.walks(round.number):
            mean = aggregate(messages["mean"])
            v = torch.where(state["age"] == 0, mean, state["v"] + mean)
            return {**state, "v": v, "walks": torch.ones_like(state["walks"])}
        x = state["x"] + messages["mean"].index_select(0, state["turn"].long())[0]
        age, turn = (state["age"] + 1) % self.restart_every, (state["turn"] + 1) % round.num_clients
        return {**state, "x": x, "previous": state["x"], "age": age, "turn": turn, "walks": state["walks"] * 0}

    def gradients(self, task: Task, clients: Ints, rounds: Ints, steps: Ints) -> int:
        """In a walk what is expected: b at two points in every step but the first."""
        if not self.walks(int(rounds[0])):
            return super().gradients(task, clients, rounds, np.ones_like(steps))
        return 2 * task.passes * self.inner_batch * (self.inner_steps - 1)

    @staticmethod
    def walks(number: int) -> bool:
        """Whether round `number` (1, 2, ...) of a run is one of local steps."""
        return number % 2 == 0

    def restarts(self, number: int) -> bool:
        return (number - 1) // 2 % self.restart_every == 0
