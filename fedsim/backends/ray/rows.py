"""Messages that stay where they were computed: linear reductions happen there, everything else fetches the rows.

An algorithm's `combine` and an aggregator see `Rows` where they expect a tensor ``[m, d]``. ``weights @ rows`` and
``(column * rows).sum(-2)``, which is what a weighted mean is made of, cost one vector per place; any other operation of
torch (a sort, a median, an index) first fetches all rows, in client order, and goes on with an ordinary tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_PRODUCT = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_MATMUL = {torch.matmul, torch.Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__}


class Rows:
    """``[m, d]`` kept elsewhere, times an optional column of weights ``[m, 1]``.

    Parameters
    ----------
    shape : ``(m, d)``.
    like : a tensor of the dtype and on the device that results have.
    reduce : weights ``[m]`` to ``sum_i w_i row_i``, ``[d]``.
    fetch : all rows, ``[m, d]``.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        like: Tensor,
        reduce: Callable[[Tensor], Tensor],
        fetch: Callable[[], Tensor],
        column: Tensor | None = None,
    ) -> None:
        self.shape = torch.Size(shape)
        self.dtype, self.device = like.dtype, like.device
        self._like, self._reduce, self._fetch, self._column = like, reduce, fetch, column
        self._whole: Tensor | None = None

    def tensor(self) -> Tensor:
        """The rows as an ordinary tensor, fetched once."""
        if self._whole is None:
            rows = self._fetch()
            self._whole = rows if self._column is None else rows * self._column
        return self._whole

    def reduced(self, weights: Tensor) -> Tensor:
        """``weights [m] @ rows``: ``[d]``."""
        if self._whole is not None:
            return weights @ self._whole
        return self._reduce(weights if self._column is None else weights * self._column.squeeze(-1))

    def sum(self, *arguments: Any, **keywords: Any) -> Tensor:
        dim = keywords.get("dim", arguments[0] if arguments else None)
        if set(keywords) <= {"dim"} and len(arguments) <= 1 and dim in (0, -2):
            return self.reduced(torch.ones(self.shape[0], dtype=self.dtype, device=self.device))
        return self.tensor().sum(*arguments, **keywords)

    def scaled(self, column: Tensor) -> Rows:
        """Each row times its own number, ``[m, 1]``."""
        column = column if self._column is None else column * self._column
        return Rows((self.shape[0], self.shape[1]), self._like, self._reduce, self._fetch, column)

    def element_size(self) -> int:
        return self._like.element_size()

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Tensor) and tuple(other.shape) == (self.shape[0], 1):
            return self.scaled(other)
        return self.tensor() * other

    __rmul__ = __mul__

    def __rmatmul__(self, other: Any) -> Tensor:
        if isinstance(other, Tensor) and other.dim() == 1:
            return self.reduced(other)
        result: Tensor = other @ self.tensor()
        return result

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        """Whatever else a tensor has: of the fetched rows, but for what makes a tensor like them (`new_zeros`)."""
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("new_"):
            return getattr(self._like, name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        if len(arguments) == 2 and not keywords:
            left, right = arguments
            if function in _MATMUL and isinstance(right, Rows) and isinstance(left, Tensor):
                return right.__rmatmul__(left)
            if function in _PRODUCT:
                return right * left if isinstance(right, Rows) else left * right
        if function in (torch.sum, Tensor.sum) and isinstance(arguments[0], Rows):
            return arguments[0].sum(*arguments[1:], **(keywords or {}))
        return function(*_fetched(arguments), **_fetched(keywords or {}))


def _arithmetic(name: str) -> Callable[..., Any]:
    def method(self: Rows, *others: Any) -> Any:
        return getattr(self.tensor(), name)(*_fetched(others))

    return method


for _name in (
    "__add__", "__radd__", "__sub__", "__rsub__", "__truediv__", "__rtruediv__", "__neg__", "__pow__", "__abs__",
    "__matmul__", "__lt__", "__le__", "__gt__", "__ge__",
):  # fmt: skip
    setattr(Rows, _name, _arithmetic(_name))


def _fetched(value: Any) -> Any:
    """`value` with the rows in it fetched."""
    if isinstance(value, Rows):
        return value.tensor()
    if isinstance(value, (list, tuple)):
        return type(value)(_fetched(v) for v in value)
    if isinstance(value, dict):
        return {k: _fetched(v) for k, v in value.items()}
    return value
