"""What a data set promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from fedsim.contract.tools import UNSEEDED, LawBrokenError, compare, global_seed, same_from_yaml
from fedsim.core.errors import InputError
from fedsim.core.types import State
from fedsim.data.form import in_form, with_owners
from fedsim.data.sets import Dataset, DatasetPart, Quadratic

CLIENTS = 5


def dataset_laws(part: DatasetPart) -> Mapping[str, Callable[[], str]]:
    """Laws of one data set."""
    return {
        "form of rows and labels": partial(_form, part),
        "clients have rows of their own": partial(_clients, part),
        "same seed, same numbers": partial(_seed, part),
        "files do not depend on the seed": partial(_fixed, part),
        "YAML round trip": partial(same_from_yaml, part),
    }


def _load(part: DatasetPart, seed: int = 0) -> Dataset | Quadratic:
    data = part.load(CLIENTS, seed, Path.cwd())
    with _lawful():
        return in_form(data)


@contextmanager
def _lawful() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise LawBrokenError(error.problems[0].message) from None


def _tensors(data: Dataset | Quadratic) -> State:
    names = ("A", "b", "x0", "p") if isinstance(data, Quadratic) else ("train_x", "train_y", "test_x", "test_y")
    return {name: getattr(data, name) for name in names}


def _form(part: DatasetPart) -> str:
    data = _load(part)
    if isinstance(data, Quadratic):
        return f"{len(data.b)} quadratics of {data.b.shape[1]} parameters"
    what = "regression" if data.num_classes is None else f"{data.num_classes} classes"
    return f"{len(data.train_x)} + {len(data.test_x)} rows, {what}"


def _clients(part: DatasetPart) -> str:
    data = _load(part)
    if isinstance(data, Quadratic) or data.clients is None:
        return "not divided by the set itself"
    with _lawful():
        with_owners(data)
    return f"{len(data.clients)} clients"


def _seed(part: DatasetPart) -> str:
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            found.append(_tensors(_load(part)))
    hint = f"{UNSEEDED}; draw from keys (fedsim.rng) and the seed that load gets"
    compare("loaded twice with one seed: ", found[0], found[1], 0.0, hint)
    return "bit for bit"


def _fixed(part: DatasetPart) -> str:
    """Rows of a set that does not come divided are the same for all seeds."""
    one, other = _load(part, 0), _load(part, 1)
    same = all(torch.equal(v, _tensors(other).get(k, v)) for k, v in _tensors(one).items())
    if not same and not isinstance(one, Quadratic) and one.clients is None:
        raise LawBrokenError(
            "another seed gives other rows, and the set does not come divided: seeds are for what a run draws, and "
            "runs of different seeds could not be compared"
        )
    return "the same rows for all seeds" if same else "made from the seed"
