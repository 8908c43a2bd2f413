"""The client's half of an algorithm: the keys of its local work, and what one local step does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from fedsim.algorithms.phases import Phases
from fedsim.algorithms.round import Effort, Report
from fedsim.algorithms.solvers import SGD, LocalSolver, Solver
from fedsim.algorithms.work import LrDecay, Work
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Oracle
from fedsim.core.registry import Part
from fedsim.core.returned import affine, affine_beside, like, same_form
from fedsim.core.rules import Affine, Rule
from fedsim.core.types import BatchSize, Decay, Message, NonNegative, Positive, State, clip_norm

_Message = TypeVar("_Message", bound=Callable[..., Report])
_Directions = TypeVar("_Directions", bound=Callable[..., Affine | None])
_ONE_STEP = Work.model_validate(1)
_CHANGE = "engine:change"  # in the place of x in `local`, for messages that ask for no more than how far it moved
_SOLVER = "solver:"  # before the names of what a solver remembers, so that they are no name of an algorithm's own


def change(local: State, received: Message) -> Tensor:
    """``x_local - x_received``, ``[m, d]``, for a `message` that is marked with `reads_change`."""
    return local[_CHANGE] if _CHANGE in local else local["x"] - received["x"]


def changed(by: Tensor) -> State:
    """What local work ended with where that is known as how far x moved, ``[m, d]``."""
    return {_CHANGE: by}


def reads_change(message: _Message) -> _Message:
    """Mark a `message` that reads nothing of `local` but its `change`: of one plain step the engine then computes
    ``-lr g`` alone, and neither x after it nor the difference. A `message` that overrides it has no mark."""
    message.reads_change = message  # type: ignore[attr-defined] # itself: wrappers take attributes over
    return message


def sends_received(message: _Message) -> _Message:
    """Mark a `message` whose x is the one that was received: nodes of a graph may mix it while they compute."""
    message.sends_received = message  # type: ignore[attr-defined]
    return message


def adds_to_next(affine_direction: _Directions) -> _Directions:
    """Mark an `affine_direction` of a mixin, which says what its own class makes of those of whatever comes after it:
    the one that it calls, if any, has to know of the classes beside it."""
    affine_direction.adds_to_next = affine_direction  # type: ignore[attr-defined]
    return affine_direction


def _has(method: Callable[..., object], mark: str) -> bool:
    return getattr(method, mark, None) is method


def of_solver(rows: State, model: str = "x") -> State:
    """What the solver remembers of x, or of another `model` that it moves, by its own names."""
    before = _before(model)
    return {k.removeprefix(before): v for k, v in rows.items() if k.startswith(before)}


def of_algorithm(rows: State) -> State:
    """The rest."""
    return {k: v for k, v in rows.items() if not k.startswith(_SOLVER)}


def for_solver(rows: State, model: str = "x") -> State:
    """What the solver remembers, under the names that keep it apart."""
    return {_before(model) + k: v for k, v in rows.items()}


def _before(model: str) -> str:
    return _SOLVER if model == "x" else f"{model}:"


def directions_of(
    algorithm: ClientHalf, local: State, received: Message, client: State
) -> dict[str, tuple[Affine, float]] | None:
    """The affine directions of all models in `local` that steps move, and their rates in times of x's; None: there are
    none for x, or `local` has something else, of which nobody says what steps make of it.

    Raises
    ------
    WrongFormError
        What the algorithm says of them has another form.
    """
    found = algorithm.affine_direction(received, client)
    directions = affine(found, local["x"], algorithm, "affine_direction")
    if directions is None:
        return None
    beside = affine_beside(algorithm.affine_beside(received, client), local, algorithm, "affine_beside")
    return None if standing(local, ("x", *beside)) else {"x": (directions, 1.0), **beside}


def standing(local: State, models: Sequence[str]) -> list[str]:
    """What is in `local` besides these models and what the solver remembers of them: steps of the solver alone leave it
    as it was."""
    solvers = tuple(_before(name) for name in models)
    return [name for name in local if name not in models and not name.startswith(solvers)]


@dataclass(frozen=True, kw_only=True)
class ClientHalf(Part, ABC):
    """What clients do; its fields are the YAML keys of local work.

    Parameters
    ----------
    lr : local learning rate.
    local_steps, local_epochs : local work per round, one of the two (default: one step). A number, a list (one per
        client), or ``{model: uniform, low: 1, high: 5}``.
    train : local work in phases that train different parameters, in the place of `local_steps` and `local_epochs`.
    batch_size : samples per local step, or ``full`` for the client's whole data.
    momentum : heavy-ball momentum of the solver ``sgd``, reset every round.
    weight_decay : L2 coefficient of the solver ``sgd``.
    solver : another local solver, with keys of its own.
    clip : bound on the norm of each minibatch gradient.
    lr_decay : factor per round, or a schedule (see `LrDecay`).
    """

    lr: Positive = 0.1
    local_steps: Work | None = None
    local_epochs: Work | None = None
    train: Phases | None = None
    batch_size: BatchSize = 32
    momentum: Decay = 0.0
    weight_decay: NonNegative = 0.0
    solver: Solver | None = None
    clip: Positive | None = None
    lr_decay: LrDecay = LrDecay.model_validate(1.0)  # noqa: RUF009 - frozen

    stepping: ClassVar[tuple[str, ...]] = (
        "start", "clips_gradient", "clipped", "gradient", "direction", "step", "local_step",
    )  # fmt: skip
    """What local steps are made of: whoever overrides one has steps of its own, see `affine_direction`."""

    # --- what an algorithm may define ---------------------------------------------------------------------------------

    def init_client(self, params: Tensor) -> State:
        """What a client keeps between rounds, as rows ``[m, d]`` (or ``[m, 1]``).

        `params` ``[m, d]`` gives shape and device.
        """
        return {}

    def start(self, received: Message, client: State) -> State:
        """What local work starts from."""
        return {"x": received["x"]}

    def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
        """The descent direction of one local step (what most papers change): the minibatch gradient."""
        return self.gradient(oracle, x)

    @property
    def clips_gradient(self) -> bool:
        """Whether `clip` bounds the minibatch gradient, before anything is made of it."""
        return True

    def affine_direction(self, received: Message, client: State) -> Affine | None:
        """`direction` in numbers, where it is ``scale g + pull x + shift`` with the same three in all steps of a round.

        With them the engine may take all steps of SGD at once; g is the clipped gradient where `clip` bounds it. None:
        it is not. It is not asked where a class that it does not derive from has a hand in steps, by one of the methods
        named in `stepping`: a subclass that does not override this as well, or a mixin; see `adds_to_next`.
        """
        return Affine()

    def affine_beside(self, received: Message, client: State) -> dict[str, tuple[Affine, float]]:
        """Models in `local` that steps move besides x, by name: along which directions, at which rate in times of x's.

        It is asked where there is an `affine_direction`. What the solver remembers of them lies in `local` under the
        names of `for_solver`. Where `local` has anything else, steps are taken one by one.
        """
        return {}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        """One step of the solver along `direction`: ``x = x - lr b,  b = momentum b + direction + weight_decay x``."""
        return self.step(oracle, local, self.direction(oracle, local["x"], received, client))

    def step(self, oracle: Oracle, local: State, v: Tensor) -> State:
        """One step of the local solver along the direction `v`; what the solver remembers lies apart in `local`."""
        x, solver = local["x"], self.local_solver
        v = like(v, x, self, "direction", "local_step")
        before = of_solver(local) or solver.start(x)
        after, state = solver.step(x, v, oracle.lr, before)
        same_form(state, before, solver, "step")
        return {**local, "x": like(after, x, solver, "step"), **for_solver(state)}

    @abstractmethod
    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        """What comes of a client's local work: what it sends, what stays with it, what it keeps for its next round.

        What is sent crosses the network and is what bytes count. What stays reaches `combine` without crossing it: only
        a node of a graph has it, which combines for itself. Under a server it is empty. Names are in one of the two.
        """

    @property
    def evaluates_on(self) -> BatchSize | None:
        """Samples on which a client evaluates the model that it receives, for `Effort.loss`; None: it does not."""
        return None

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the models, among what a client receives, that `evaluates_on` is about; of several it chooses."""
        return ("x",)

    def choose(self, received: Message, losses: Tensor) -> Message:
        """What a client works from, by what the `candidates` lose on its data: ``[m, k]``. It has its model as x."""
        return received

    @property
    def choices(self) -> tuple[str, ...]:
        """Names, in what `choose` gives, of whole numbers ``[m, 1]`` that say what clients chose.

        They are columns of ``clients.parquet``.
        """
        return ()

    def personal_model(self, received: Message, client: State) -> Tensor:
        """The model that each client would use itself, rows ``[m, d]``, of what it receives and what it keeps.

        Clients are evaluated with it (`data.local_test`). It is the common model unless they train one of their own.
        """
        return received["x"]

    # --- for its methods ----------------------------------------------------------------------------------------------

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        """The minibatch gradient at `x`, clipped where `clip` says so."""
        return self.clipped(oracle.grad(x))

    def clipped(self, g: Tensor) -> Tensor:
        """`g`, shortened to the norm `clip` where there is one."""
        return g if self.clip is None else clip_norm(g, self.clip)

    def step_weight_sum(self, steps: Tensor) -> Tensor:
        """||a_i||_1: the sum of the weights with which a round's directions enter ``(x - y_K) / lr``.

        The solver knows it: without momentum it is the number of steps.

        Raises
        ------
        InputError
            With this solver a round's change is no such sum.
        """
        found = self.local_solver.weight_sum(steps)
        if found is None:
            raise InputError("a round's change is no weighted sum of its directions with this solver", key="solver")
        return found

    @cached_property
    def local_solver(self) -> LocalSolver:
        """`solver`, or what `momentum` and `weight_decay` say."""
        return self.solver or SGD(momentum=self.momentum, weight_decay=self.weight_decay)

    # --- for the engine -----------------------------------------------------------------------------------------------

    @cached_property
    def is_plain_sgd(self) -> bool:
        """Whether a local step is ``x - lr g(x)`` and nothing else, so that the engine may take it in place."""
        return self._follows_gradients and self.local_solver.in_place

    @cached_property
    def rule(self) -> Rule | None:
        """By which rule local steps go along `affine_direction`, so that the engine may take several at once; None:
        they do something else."""
        clipped = self.clip is None or self.clips_gradient
        rule = self.local_solver.rule if clipped and self._directions_are_whole() else None
        return None if rule is None else replace(rule, clip=self.clip)

    @property
    def _follows_gradients(self) -> bool:
        plain = (*ClientHalf.stepping, "affine_direction")
        return self.clip is None and all(getattr(type(self), name) is getattr(ClientHalf, name) for name in plain)

    @classmethod
    def _directions_are_whole(cls) -> bool:
        """Whether all classes that have a hand in steps are known to those that say `affine_direction`: to the first of
        them, and to the next one where it adds to that. Those before an `affine_beside` have to have one as well."""
        saying = []
        for base in cls.__mro__:
            if "affine_direction" in vars(base):
                saying.append(base)
                if not _has(vars(base)["affine_direction"], "adds_to_next"):
                    break
        parts = {name for base in cls.__mro__ for name in vars(base).get("stepping", ())}
        stepping = [base for base in cls.__mro__ if not parts.isdisjoint(vars(base))]
        beside = [base for base in cls.__mro__ if "affine_beside" in vars(base) and base is not ClientHalf]
        before = cls.__mro__[: cls.__mro__.index(beside[-1])] if beside else ()
        alike = all(base in beside for base in saying if base in before)
        return alike and all(any(issubclass(one, base) for one in saying) for base in stepping)

    @cached_property
    def sends_change(self) -> bool:
        """Whether a client's work is one plain step, of which its `change` is all that is asked for."""
        work, epochs = self.work()
        return self.is_plain_sgd and work.single and not epochs and _has(type(self).message, "reads_change")

    @cached_property
    def mixes_received(self) -> bool:
        """Whether the x that a node of a graph sends is the one that it had before its local work."""
        return _has(type(self).message, "sends_received")

    def work(self) -> tuple[Work, bool]:
        """The local work and whether it counts epochs."""
        if self.train is not None:
            return Work.model_validate(sum(phase.units for phase in self.train)), self.train[0].epochs is not None
        if self.local_epochs is not None:
            return self.local_epochs, True
        return self.local_steps or _ONE_STEP, False

    def lr_at(self, rounds: Ints) -> Floats:
        """Local learning rate of rounds 1, 2, ..."""
        return self.lr * self.lr_decay.factor(np.asarray(rounds) - 1)
