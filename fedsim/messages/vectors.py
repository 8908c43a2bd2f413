"""Which tensors of a message are vectors, and which are numbers of one per client.

Attackers replace vectors, compressors compress them and robust rules compare them; a number per client, such as how
much its work counts for, stays as it is. A tensor that is wider than one number is a vector. Where nothing is wider the
model has one parameter, and the widths do not tell: `RunFacts.numbers` then says what is a number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

SEPARATOR = "."
"""Between a link's number and the name of a row that it keeps at a client: algorithms' own names have none."""


def vectors(message: Mapping[str, Tensor], numbers: Collection[str] = ()) -> list[str]:
    """The names of the vectors of a message of rows ``[m, d]`` or one ``[d]``, in its order; `numbers` are none."""
    wide = [k for k, v in message.items() if v.shape[-1] > 1]
    return wide or [k for k in message if k not in numbers and SEPARATOR not in k]


def is_vector(values: Tensor, message: Mapping[str, Tensor], names: Collection[str]) -> bool:
    """Whether `values`, made of a message whose vectors are called `names`, has rows of a vector."""
    if values.shape[-1] > 1 or len(names) == len(message):
        return True
    if any(message[k].shape[-1] > 1 for k in names):
        return False
    return not any(values is v for k, v in message.items() if k not in names)


__all__ = ["SEPARATOR", "is_vector", "vectors"]
