"""What an algorithm goes together with whose own compressor is what the section ``compression`` says."""

from __future__ import annotations

from collections.abc import Iterator

from fedsim.core.errors import Problem
from fedsim.messages.compressor import Compressor
from fedsim.scenario.sections import Scenario


def own_compressor_problems(s: Scenario) -> Iterator[Problem]:
    """Rules about such an algorithm."""
    name, part, remembers = s.names["algorithm"], s.compression, s.algorithm.needs.compression
    if remembers is None:
        return
    if part is not None and not isinstance(part, Compressor):
        yield Problem(f"'{s.names['compression']}' is no compressor, as '{name}' needs one", "compression.name")
    elif isinstance(part, Compressor):
        if part.feedback != "none":
            found = f"found '{part.feedback}', but '{name}' has its own memory of what was sent"
            yield Problem(f"{found}; allowed: no such key", "compression.feedback")
        if part.keys is not None:
            yield Problem(f"'{name}' compresses all vectors that it sends; allowed: no such key", "compression.keys")
    if remembers == "copies" and s.backend.client_errors == "drop":
        message = f"found 'drop', but with '{name}' neighbours keep copies of each other, which would differ"
        yield Problem(f"{message}; allowed: fail", "backend.client_errors")
