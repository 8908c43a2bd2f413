"""What a server and the clients that bring data of their own agree on before the first round.

It goes to every node with the greeting: the server's lists of classes, columns and categories, by which the node
numbers and orders its rows. Where that is not enough, it goes twice: first the nodes say how many rows they have, and
what `Moments` says of them; then they are told the scaling of the pooled rows, and all clients' sizes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.disk import write_whole
from fedsim.core.errors import RunError
from fedsim.deployment.flower.records import Arrays, BadRecord

FILE = "agreed.json"
_NAME = "agreed"


@dataclass(frozen=True)
class Agreement:
    """What travels with a greeting.

    Parameters
    ----------
    lists : the server's classes, columns and categories (`fedsim.data.agreed.lists_of`).
    final : whether nothing else will be said, so that rows may be kept as they are now.
    own : which clients bring data of their own; known in the end.
    sizes : samples of every client; known in the end.
    scaling : ``shift`` and ``scale`` of the pooled rows as nested lists, where statistics scale.
    """

    lists: Mapping[str, Any] = field(default_factory=dict)
    final: bool = True
    own: tuple[int, ...] = ()
    sizes: tuple[int, ...] | None = None
    scaling: Mapping[str, Any] | None = None

    @cached_property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """Tells one from another."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def arrays(self) -> Arrays:
        """As it travels: one array of bytes."""
        return {_NAME: np.frombuffer(self.text.encode(), dtype=np.uint8)}

    @classmethod
    def read(cls, arrays: Arrays) -> Agreement:
        """From what `arrays` gave; of nothing, an agreement on nothing.

        Raises
        ------
        BadRecord
            It is something else.
        """
        if not arrays:
            return cls()
        try:
            return cls.parse(arrays[_NAME].tobytes().decode())
        except (KeyError, ValueError, TypeError) as error:
            raise BadRecord(f"the server's lists cannot be read ({type(error).__name__}: {error})") from None

    @classmethod
    def parse(cls, text: str) -> Agreement:
        """From JSON; raise ValueError or TypeError where it is something else."""
        found = json.loads(text)
        sizes = found.pop("sizes")
        return cls(**{**found, "own": tuple(found["own"])}, sizes=None if sizes is None else tuple(sizes))

    def write(self, folder: Path) -> None:
        """Keep it in a run directory, for when the run goes on; whole, or as it was before."""
        write_whole(folder / FILE, self.text + "\n")

    @classmethod
    def of(cls, folder: Path) -> Agreement | None:
        """What was agreed on in the run of `folder`; None where nothing had to be."""
        if not (folder / FILE).exists():
            return None
        try:
            return cls.parse((folder / FILE).read_text(encoding="utf-8"))
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise RunError(f"{folder / FILE} is damaged ({type(error).__name__}: {error})") from None
