"""Data sets and how they are divided among clients.

`sets` names data sets and loads them, `files` reads what people bring, `partition` divides rows by flwr-datasets'
schemes, `splits` holds test rows back, `augment` changes images during training. They may import `core` alone. `all`
registers every data set. Start with `sets`.

For programs, `from_arrays` makes the section ``data`` of a scenario of arrays.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module `typing` takes longer to import than this one
if TYPE_CHECKING:
    from typing import Any

    from fedsim.data.in_memory import from_arrays as from_arrays


def __getattr__(name: str) -> Any:
    if name != "from_arrays":
        raise AttributeError(f"module 'fedsim.data' has no attribute '{name}'")
    from fedsim.data.in_memory import from_arrays

    globals()[name] = from_arrays
    return from_arrays
