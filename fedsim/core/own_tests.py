"""What models say of clients' own test rows: the question as it travels to where models are, and the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedsim.core.arrays import Array, Bools, Floats, Ints
from fedsim.core.types import BatchSize


@dataclass(frozen=True)
class Tuning:
    """Local SGD before an evaluation.

    Parameters
    ----------
    amount, epochs : how many steps, or passes over a client's training rows.
    lr, batch_size : of the steps.
    """

    amount: int
    epochs: bool
    lr: float
    batch_size: BatchSize


@dataclass(frozen=True)
class Asked:
    """How clients are evaluated.

    Parameters
    ----------
    round : after which it is asked.
    personal : whether each client's own model is asked (`ClientHalf.personal_model`), not the common one.
    tuning : what is done to a model before, of which nothing is kept.
    whole : whether outputs are wanted, too.
    """

    round: int
    personal: bool = False
    tuning: Tuning | None = None
    whole: bool = False


@dataclass(frozen=True)
class Told:
    """What m clients say themselves that they measured, on machines of their own.

    Parameters
    ----------
    answered : ``[m]`` which of them said something; of the others nothing is known.
    targets : ``[m]`` targets of their test rows.
    values : ``[m]`` of each metric, and of each of an algorithm's `choices`.
    """

    answered: Bools
    targets: Ints
    values: Mapping[str, Floats]


@dataclass(frozen=True)
class OwnAnswers:
    """Of m clients, in the order in which they were asked.

    Parameters
    ----------
    losses : ``[m]`` sums of the losses of each client's targets.
    right : ``[m]`` how many guesses are right; None where there are no classes.
    outputs : ``[N, ...]`` of all rows, client after client; None unless they were asked for.
    told : what clients measured themselves, instead of all that; None where they did not.
    choices : ``[m]`` of each of an algorithm's `choices`, whole numbers.
    """

    losses: Floats
    right: Ints | None
    outputs: Array | None = None
    told: Told | None = None
    choices: Mapping[str, Floats] = field(default_factory=dict)


def joined(parts: list[OwnAnswers]) -> OwnAnswers:
    """The answers of some clients, and then of others."""
    if len(parts) == 1:
        return parts[0]
    right = [p.right for p in parts if p.right is not None]
    outputs = [p.outputs for p in parts if p.outputs is not None]
    return OwnAnswers(
        np.concatenate([p.losses for p in parts]),
        np.concatenate(right) if len(right) == len(parts) else None,
        np.concatenate(outputs) if len(outputs) == len(parts) else None,
        choices={name: np.concatenate([p.choices[name] for p in parts]) for name in parts[0].choices},
    )
