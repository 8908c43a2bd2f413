"""What tests of deployments share: secrets that are the same in every run of the tests."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def secrets_of_the_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment in this process draws its secrets from the test's name: none is unlucky once in a while."""
    drawn = random.Random(request.node.nodeid)
    monkeypatch.setattr("fedsim.deployment.noise.secrets", SimpleNamespace(randbits=drawn.getrandbits))
