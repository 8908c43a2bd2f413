"""EF21 (Richtarik et al., arXiv 2106.05203) and EF21-W (arXiv 2402.10774): compressed gradient differences.

Every client keeps an estimate g_i of its gradient and sends ``C(grad f_i(x) - g_i)``; the server adds the changes up to
``g = sum_i p_i g_i`` and steps along it. C is the scenario's ``compression``. In EF21-PP (arXiv 2110.03294) only the
clients of the round change their estimates: the server adds their changes with the weights that they have among all
clients, never with those that they would have among the cohort.

With ``init: zero`` the first round is the papers' ``g_i = C(grad f_i(x_0))``; with ``full`` the first message is the
gradient itself, as in the authors' code. Minibatches are allowed, but the estimates then keep a floor of noise whatever
the step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, Oracle, Positive, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import BatchSize

_FIXED = ("local_steps", "local_epochs", "momentum", "server_lr", "relaxed_init")


@register.algorithm("ef21")
@dataclass(frozen=True, kw_only=True)
class EF21(ServerAlgorithm):
    """``c_i = C(grad f_i(x) - g_i);  g_i = g_i + c_i;  g = g + sum_i p_i c_i;  x = x - lr g``

    Sources: Richtarik et al., arXiv 2106.05203; for cohorts, arXiv 2110.03294.

    Parameters
    ----------
    init : ``zero``, all g_i are 0 before the first round; ``full``, the first message is the whole gradient.
    step_size : ``theory_old``, lr = 1 / (L + L_QM xi), ``theory_new``, 1 / (L + L_AM xi), with the quadratic and the
        arithmetic mean of the clients' L_i and ``xi = (1 + sqrt(1 - alpha)) / alpha - 1``; default: `lr`.
    smoothness : the L_i, a list with one number per client, or ``auto``: from the data, of quadratic problems and of
        linear models with the losses logistic, cross_entropy and mse. With a list L is their mean, unless it is known.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",),
        why="the server adds up changes of what it knows of every client",
        steps="own",
        through_aggregate=False,
        compression="differences",
    )
    batch_size: BatchSize = "full"
    weighting: Literal["samples", "uniform"] = "uniform"
    init_: Literal["zero", "full"] = "zero"
    step_size: Literal["theory_old", "theory_new"] | None = None
    smoothness: list[Positive] | Literal["auto"] = "auto"

    weighs_by_smoothness: ClassVar[bool] = False

    def check(self, num_clients: int) -> None:
        for field in dataclasses.fields(self):
            if field.name in _FIXED and getattr(self, field.name) != field.default:
                raise InputError(
                    f"found {getattr(self, field.name)!r}: a round of {type(self).__name__} is one gradient of each "
                    f"client; allowed: {'no such key' if field.default is None else field.default}",
                    key=field.name,
                )
        if isinstance(self.smoothness, list) and len(self.smoothness) != num_clients:
            message = f"found a list of {len(self.smoothness)} numbers, allowed: {num_clients} (one per client)"
            raise InputError(message, key="smoothness")
        if self._needs_smoothness and self.weighting != "uniform":
            message = "found 'samples', but the theory weighs clients alike; allowed: uniform"
            raise InputError(message, key="weighting")
        if self.step_size is not None and self.clip is not None:
            raise InputError("found it beside step_size, whose theory knows no clipping; allowed: lr", key="clip")
        if self.step_size is not None and self.lr != type(self).lr:
            raise InputError("found it beside step_size, which gives it; allowed: one of the two", key="lr")

    @property
    def _needs_smoothness(self) -> bool:
        return self.step_size is not None or self.weighs_by_smoothness

    def settled(self, task: Task, alpha: float | None) -> Self:
        """The L_i that are to be known, and `lr` where theory gives it."""
        if not self._needs_smoothness:
            return self
        each, whole = self._smoothness_of(task)
        lr = self.lr
        if self.step_size is not None:
            if alpha is None:
                message = f"found '{self.step_size}' with a compressor that does not say its alpha; allowed: lr"
                raise InputError(message, key="step_size")
            mean = math.sqrt((each**2).mean()) if self.step_size == "theory_old" else each.mean()
            lr = 1 / (whole + float(mean) * xi(alpha))
        return replace(self, lr=lr, smoothness=each.tolist())

    def _smoothness_of(self, task: Task) -> tuple[Floats, float]:
        """L_i ``[n]`` and L, the share of `weight_decay` in them."""
        n = task.num_clients
        known = task.smoothness(np.full(n, 1 / n))
        if isinstance(self.smoothness, list):
            given = np.asarray(self.smoothness)
            return given, float(given.mean()) if known is None else known[1] + self.weight_decay
        if known is None:
            raise InputError(
                "found 'auto', but the L_i are not known of this problem; allowed: a list with one number per client, "
                "or auto for a quadratic problem or the model linear with the loss logistic, cross_entropy or mse, "
                "without augmentation",
                key="smoothness",
            )
        return known[0] + self.weight_decay, known[1] + self.weight_decay

    @property
    def compresses(self) -> Mapping[str, Any]:
        return {"whole_first": self.init_ == "full"}

    # --- one round ----------------------------------------------------------------------------------------------------

    def init(self, params: Tensor) -> State:
        return {"x": params, "g": torch.zeros_like(params)}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        g = self.direction(oracle, local["x"], received, client)
        return {**local, "g": torch.add(g, local["x"], alpha=self.weight_decay) if self.weight_decay > 0 else g}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"g": local["g"] if "g" in local else torch.zeros_like(local["x"])}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``g = g + sum_i p_i c_i;  x = x - lr g``"""
        g = state["g"] + (self.importance(round) * messages["g"]).sum(-2)
        return {"x": state["x"] - round.lr[0] * g, "g": g}


@register.algorithm("ef21_w")
@dataclass(frozen=True, kw_only=True)
class EF21W(EF21):
    """EF21 with ``w_i = L_i / sum_j L_j``: client i compresses ``grad f_i / (n w_i) - g_i``, the server adds w_i c_i.

    For compressors that are positively homogeneous (top_k, sign) it is EF21 with the larger step ``theory_new``.

    Source: Richtarik et al., ICLR 2024, arXiv 2402.10774.
    """

    weighs_by_smoothness: ClassVar[bool] = True

    def check_deployed(self) -> None:
        if self.smoothness == "auto":
            message = "found 'auto', but a client does not know the data of the others; allowed: a list"
            raise InputError(message, key="algorithm.smoothness")

    @property
    def compresses(self) -> Mapping[str, Any]:
        if self.smoothness == "auto":
            return super().compresses
        each = np.asarray(self.smoothness)
        return {**super().compresses, "scales": tuple((each / each.mean()).tolist())}


def xi(alpha: float) -> float:
    """sqrt(beta / theta) of EF21's analysis: ``(1 + sqrt(1 - alpha)) / alpha - 1``."""
    return (1 + math.sqrt(1 - alpha)) / alpha - 1
