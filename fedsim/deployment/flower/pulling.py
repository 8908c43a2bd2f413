"""Answers are taken from the Grid, whatever some of them look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.deployment.flower.records import shown
from fedsim.deployment.flower.roster import LOG

NODE_UNAVAILABLE = 5
"""Of flwr.common.constant.ErrorCode: no heartbeat of the SuperNode, or a message for nobody."""


def pulled(grid: Any, ids: Sequence[str]) -> list[Any]:
    """Answers that are there. Flower reads them all before it gives any: one that it cannot read must not end all.

    Asked for one by one the others come through; what cannot be read counts as not answered.
    """
    if not ids:
        return []
    try:
        return list(grid.pull_messages(ids))
    except (ConnectionError, TimeoutError, OSError):
        raise
    except Exception as error:
        LOG.warning("an answer cannot be read: %s", shown(error))
    found: list[Any] = []
    for one in ids:
        try:
            found += grid.pull_messages([one])
        except Exception as error:
            LOG.warning("the answer to message %s cannot be read: %s", one, shown(error))
    return found
