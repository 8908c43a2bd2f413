"""FSGLD (Mesquita, Blomstedt and Kaski, arXiv 2004.11231, UAI 2021): Langevin chains that walk from client to client.

A chain is a token: a client takes `local_steps` from the state that it is sent and hands it on to one drawn with
probability f_s. `chains` of them walk at the same time, each by itself. With one client at a time the chain leans
towards what that client has; a conducive gradient, made of surrogates of what all clients have, takes that back.
The prior is not divided by f_s, and the variance of the noise is h, for the drift is h / 2 (section 2 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, Oracle, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.posterior import PosteriorOracle, PosteriorTask
from fedsim.algorithms.round import Before, Sampling
from fedsim.algorithms.surrogates import Laplace, Local, SurrogateKey, spectrum
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.job import VISIT
from fedsim.core.limits import check_room
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import Count, NonNegative, Positive


@register.algorithm("fsgld")
@dataclass(frozen=True, kw_only=True)
class FSGLD(ServerAlgorithm):
    """``x = x + (h / 2) (v_s + exploration g_s) + sqrt(h temperature) N(0, I)``,  h = `lr`

    ``v_s = -prior_precision x + N_s / (f_s m) sum_j grad log p(x_j | x)``,
    ``g_s = grad log q - (1 / f_s) grad log q_s``; a sample's loss is ``-log p(x_j | x)``.

    Parameters
    ----------
    surrogate : q_s: ``none`` (this is DSGLD), ``exact`` (quadratic problems), ``laplace``, ``sgld``; by name, or with
        keys of its own.
    temperature : of the noise; 0 is none.
    chains : how many walk at the same time.
    exploration : factor of the conducive gradient.
    prior_precision : of the Gaussian prior N(0, 1 / prior_precision); 0 is a flat one.
    burn_in, thin : rounds before the first sample is kept, and from one that is kept to the next. A sample is a chain's
        state when a visit ends.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",),
        why="a chain is at one client at a time, and waits for it",
        steps="own",
        alone="a chain's next state is what one client sends",
    )
    lr: Positive = 1e-4
    surrogate: SurrogateKey = Laplace()  # noqa: RUF009 - frozen
    temperature: NonNegative = 1.0
    chains: Count = 1
    exploration: NonNegative = 1.0
    prior_precision: NonNegative = 1.0
    burn_in: Annotated[int, Field(ge=0)] = 0
    thin: Count = 1

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.server_lr != 1.0:
            message = f"found {self.server_lr}, but a chain's next state is the one that its client sends; allowed: 1"
            raise InputError(message, key="server_lr")
        if self.weight_decay > 0:
            raise InputError(f"found {self.weight_decay}, allowed: 0, and prior_precision", key="weight_decay")
        for name in ("momentum", "clip", "relaxed_init"):
            if getattr(self, name):
                message = f"found {getattr(self, name)}, with which chains would sample something else; allowed: none"
                raise InputError(message, key=name)

    # --- the run around it --------------------------------------------------------------------------------------------

    def settled(self, task: Task, alpha: float | None) -> Self:
        item = torch.empty((), dtype=task.dtype).element_size()
        check_room(
            self.chains * task.dim * item, f"a state of {self.chains:,} chains of {task.dim:,} numbers", "chains"
        )
        return super().settled(task, alpha)

    def objective(self, task: Task, picked: Floats) -> Task:
        if not (picked > 0).all():
            client = int(np.flatnonzero(picked <= 0)[0])
            message = f"client {client} has importance 0 and is never visited, so that its data would not count"
            raise InputError(f"{message}; allowed: uniform, or importances above 0", key="participation.sampling")
        try:
            self.surrogate.check(task)
        except InputError as error:
            raise error.under("algorithm.surrogate") from None
        largest = spectrum(task, self.surrogate, picked, self.prior_precision, self.exploration)
        if largest is not None and not self.lr * largest < 4:
            message = f"found {self.lr:g}, with which chains diverge: lr times the largest precision {largest:.6g} is"
            raise InputError(f"{message} {self.lr * largest:.4g}; allowed: below {4 / largest:.6g}", key="algorithm.lr")
        return PosteriorTask(task, self.surrogate, picked, self._local, self.temperature > 0)

    def before(self, task: Task) -> Before:
        """The surrogates: each client sends its own, and is sent their product."""
        item = torch.empty((), dtype=task.dtype).element_size()
        sent = 2 * task.num_clients * self.surrogate.numbers(task.dim) * item
        return Before(self.surrogate.gradients(task, self._local), sent)

    @property
    def _local(self) -> Local:
        return Local(self.lr, self.batch_size, self.prior_precision)

    @property
    def sampling(self) -> Sampling | None:
        return Sampling(self.burn_in, self.thin)

    @property
    def tokens(self) -> int | None:
        return self.chains

    def lr_at(self, rounds: Ints) -> Floats:
        return super().lr_at(rounds % VISIT)

    def check_deployed(self) -> None:
        message = "chains are rows of one computation, and surrogates are made where all data are"
        raise InputError(f"found 'fsgld': {message}; allowed: fedsim run", key="algorithm.name")

    # --- the arithmetic -----------------------------------------------------------------------------------------------

    def init(self, params: Tensor) -> State:
        return {"x": params if self.chains == 1 else params.expand(self.chains, -1).clone()}

    def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
        """``-(v_s + exploration g_s) / 2``"""
        of = PosteriorOracle.of(oracle)
        v, g = torch.add(of.likelihood(x), x, alpha=-self.prior_precision), of.conducive(x)
        return -0.5 * (v if g is None else torch.add(v, g, alpha=self.exploration))

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        x = local["x"]
        after = torch.addcmul(x, self.direction(oracle, x, received, client), oracle.lr, value=-1.0)
        noise = PosteriorOracle.of(oracle).noise
        return {"x": after if noise is None else torch.addcmul(after, noise, (oracle.lr * self.temperature).sqrt())}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"x": local["x"]}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """One chain takes what its client sent; of several each takes its own row."""
        return {"x": aggregate(messages["x"]) if self.chains == 1 else messages["x"] + 0.0}

    def centre(self, state: State) -> Tensor:
        """The chain's state, or the mean of all chains'."""
        return state["x"] if self.chains == 1 else state["x"].mean(0)
