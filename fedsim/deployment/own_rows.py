"""A client's own rows at its machine: read, numbered and ordered by the server's lists, scaled as all agreed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import fedsim
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError, RunError
from fedsim.data.agreed import Lists, Moments, categories_of, mapped
from fedsim.data.division import column_of
from fedsim.data.labels import FOUND, shown
from fedsim.data.local_test import hold_out
from fedsim.data.sets import Dataset, finished
from fedsim.data.splits import Scaling, rows_of
from fedsim.deployment.agreement import Agreement
from fedsim.deployment.flower.records import Arrays, Greeting
from fedsim.deployment.node_config import NodeConfig
from fedsim.engine.elsewhere import Held, load_data
from fedsim.scenario.sections import Scenario

_WHERE = "--node-config: own-data"


@dataclass(frozen=True)
class OwnRows:
    """The rows of one client, and what is said of them where scaling follows from all clients' rows."""

    held: Held
    moments: Moments | None = None


def own_rows(scenario: Scenario, node: NodeConfig, agreement: Agreement) -> OwnRows:
    """The rows at the node's `own-data`, where `scenario` finds its data.

    All training rows train, but for those that `test-fraction` or the scenario's ``data.local_test`` hold out.

    Raises
    ------
    InputError
        They cannot be read, or are not what the server's lists say.
    RunError
        They are others than those that the client said it had.
    """
    try:
        found, moments = _read(scenario, node, agreement)
    except InputError as error:
        raise error.under(_WHERE) from None
    sizes = np.zeros(node.clients, dtype=np.int64)
    sizes[node.client] = len(found.train_x)
    if agreement.sizes is not None:
        if agreement.sizes[node.client] not in (0, len(found.train_x)):  # 0: it comes when the others have begun
            said = f"this client said that it has {agreement.sizes[node.client]} samples, now it has"
            raise RunError(f"{said} {len(found.train_x)}: its data changed during the run")
        sizes = np.array(agreement.sizes, dtype=np.int64)
        sizes[node.client] = len(found.train_x)
    return OwnRows(Held(found, node.client, sizes), moments)


def introduced(scenario: Scenario, here: Scenario, node: NodeConfig, agreement: Agreement) -> tuple[Greeting, Arrays]:
    """What a client says of its own rows before all are agreed, with their statistics where they are asked for.

    `here` is the scenario that finds its data where the node has them.
    """
    own = own_rows(here, node, agreement)
    data = own.held.data
    greeting = Greeting(
        node.client, node.clients, len(data.train_x), len(data.test_x) if scenario.tests_clients else 0, True,
        "x".join(map(str, data.train_x.shape[1:])), data.num_classes or 0, scenario.hash(), fedsim.__version__,
    )  # fmt: skip
    return greeting, {} if own.moments is None else own.moments.arrays()


def _read(scenario: Scenario, node: NodeConfig, agreement: Agreement) -> tuple[Dataset, Moments | None]:
    fraction = node.test_fraction or 0.0
    if fraction and isinstance(scenario.local_test, float):
        message = f"found {fraction:g} beside data.local_test = {scenario.local_test:g}; allowed: one of the two"
        raise InputError(message, key="test-fraction")
    lists = agreement.lists
    known = categories_of(lists) if lists else {}
    rows = scenario.dataset.rows(scenario.base, column_of(scenario.partition), known)
    if rows is not None and not lists:
        raise RunError("the server has not said how this client's rows are numbered, and what it said is not kept here")
    if rows is None:
        return _as_they_are(scenario, node, fraction, lists), None
    _numbered_by_none(rows.about_input)
    mine = mapped(rows, lists, fraction)
    train, test = mine.train, mine.test
    if isinstance(scenario.local_test, float):
        train, test = (rows_of(train, r) for r in _divided(scenario, node, len(train.x)))
    elif not scenario.tests_clients:
        test = rows_of(test, slice(0, 0))
    mine = replace(mine, train=train, test=test)
    learns = rows.learns_scaling
    moments = Moments.of(mine) if learns and not agreement.final else None
    data = finished(rows, train, test, _scaling(agreement) if learns else None)
    kind, wanted = data.about["input"]["kind"], lists["input"]["kind"]
    if kind != wanted:
        raise InputError(f"found {kind} where the server's data have {wanted}; allowed: data of one kind", key="path")
    return data, moments


def _scaling(agreement: Agreement) -> Scaling | None:
    if agreement.scaling is None:
        if agreement.final:
            raise RunError("these rows are scaled by statistics, the server's are not: are they of another type?")
        return None
    shift, scale = (np.asarray(agreement.scaling[k], dtype=np.float64) for k in ("shift", "scale"))
    return Scaling(None, shift, scale)


def _divided(scenario: Scenario, node: NodeConfig, rows: int) -> tuple[Ints, Ints]:
    """Rows that are trained on, and the share of them that the client is tested on instead."""
    assert isinstance(scenario.local_test, float)
    number = np.array([node.client])
    (trained,), (tested,) = hold_out([np.arange(rows)], scenario.local_test, scenario.seed, number)
    return trained, tested


def _as_they_are(scenario: Scenario, node: NodeConfig, fraction: float, lists: Lists) -> Dataset:
    """Of a set that tells no rows apart from what it makes of them: its training rows, numbered as the server's."""
    if fraction:
        raise InputError(f"found {fraction:g}, but this data set divides its rows by itself", key="test-fraction")
    data = load_data(replace(scenario, clients=1))
    if not isinstance(data, Dataset):
        raise InputError("a quadratic problem is not data of one's own", key="path")
    target = data.about.get("target", {})
    mine, theirs = list(target.get("labels", ())), list(lists.get("target", {}).get("labels", ()))
    if target.get("numbering") == FOUND and mine != theirs:
        raise InputError(
            f"found labels {shown(mine)}; allowed for this data set: all of {shown(theirs)}", key="classes"
        )
    _numbered_by_none(data.about.get("input", {}))
    if isinstance(scenario.local_test, float):
        train, test = (torch.from_numpy(r) for r in _divided(scenario, node, len(data.train_x)))
        x, y = data.train_x, data.train_y
        return replace(data, train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])
    return data if scenario.tests_clients else replace(data, test_x=data.train_x[:0], test_y=data.train_y[:0])


def _numbered_by_none(inputs: Mapping[str, Any]) -> None:
    """Raise InputError where tokens are numbered as found in this client's texts, as nobody else's are."""
    if inputs.get("tokenizer", {}).get("found"):
        raise InputError(
            "found tokens of this client's own texts, which others may number otherwise; list "
            "them all in the scenario's data.tokens (or take the tokenizer byte)",
            key="data.tokens",
        )
