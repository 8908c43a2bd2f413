"""What a deployment's app asks first: whether the fedsim on this machine is the one that it was made with."""

from __future__ import annotations

import logging

from fedsim import __version__
from fedsim.core.about import DISTRIBUTION

LOG = logging.getLogger("flwr.fedsim")


def made_by(version: str) -> None:
    """Warn where the app was made by another version than this machine has.

    Whether the two understand each other is not decided here: records say which protocol they speak, and machines of
    different protocols refuse each other.
    """
    if version != __version__:
        LOG.warning(
            "this app was made by %s %s, this machine has %s; install the same version on all machines",
            DISTRIBUTION, version, __version__,
        )  # fmt: skip
