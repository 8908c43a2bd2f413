"""What `fedsim plan` says of evaluations of clients one by one: what is held out, and what an evaluation costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.core.errors import InputError
from fedsim.engine.assembly import Assembly
from fedsim.engine.client_evaluation import client_evaluation, tuning_of
from fedsim.engine.client_rows import FILE, evaluated_rounds
from fedsim.scenario.sections import Scenario


def client_facts(s: Scenario, a: Assembly) -> dict[str, Any]:
    """Facts of a scenario that evaluates clients one by one; none of another.

    Raises
    ------
    InputError
        It asks for more clients than can be evaluated.
    """
    try:
        found = client_evaluation(s, a)
    except InputError as error:
        raise s.document.locate(error) from None
    if found is None:
        return {}
    task, sizes = a.task, found.tests.sizes
    rows, share = sizes[found.candidates], found.count / len(found.candidates)
    samples = round(float(rows.sum()) * share)
    about = "" if found.count == len(found.candidates) else "about "
    facts: dict[str, Any] = {"tested on": _tested_on(s, int(sizes.sum()), found.tests.shared, task.quadratic)}
    if len(found.candidates) < task.num_clients:
        facts["left out"] = f"{task.num_clients - len(found.candidates)} clients: they attack, or have no test rows"
    facts |= {
        "test rows per client": f"{rows.min()} to {rows.max()}, median {int(np.median(rows))}",
        "clients per evaluation": f"{found.count} of {task.num_clients}",
        "models": "each client's own" if found.own_models(s.algorithm) or a.network is not None else "the server's",
        "samples per evaluation": f"{about}{samples:,}",
    }
    if (how := tuning_of(s, s.algorithm, 0)) is not None:
        clients = found.candidates
        steps = np.full(len(clients), how.amount, dtype=np.int64)
        if how.epochs:
            steps *= task.steps_per_epoch(clients, how.batch_size)
        gradients = task.samples_per_step(clients, steps, how.batch_size, how.epochs).sum() * share
        facts["sample gradients of fine-tuning per evaluation"] = f"{about}{gradients:,.0f}"
    facts[FILE] = f"{found.count * len(evaluated_rounds(s, s.run.rounds)):,} rows"
    return facts


def _tested_on(s: Scenario, rows: int, shared: bool, quadratic: bool) -> str:
    if quadratic:
        return "each client's own objective"
    if shared:
        return "the common test data"
    if s.local_test == "natural":
        return f"test rows of clients' own ids, {rows:,} in all"
    return f"{s.local_test:g} of each client's own rows, {rows:,} in all, which do not train"
