"""How libraries are imported quickly: those that few runs need when they are used, all others without interruptions.

Modules that have graphs or matrices in their signatures take networkx and scipy.sparse from here, so that importing
those modules imports neither: runs of a server need none.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Later(ModuleType):
    """Stands for the module of that name, which is imported when something of it is first used."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)  # found without this method from now on
        return value


if TYPE_CHECKING:
    import networkx as nx
    from scipy import sparse
else:
    nx, sparse = _Later("networkx"), _Later("scipy.sparse")


@contextmanager
def imported_together() -> Iterator[None]:
    """While it lasts, nothing looks for garbage; where torch is among what is imported, it is never looked through.

    Imports make hundreds of thousands of objects that stay, and the collector would go through them again and again.
    """
    collects, known = gc.isenabled(), "torch" in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if not known and "torch" in sys.modules:
            gc.freeze()
        if collects:
            gc.enable()


__all__ = ["imported_together", "nx", "sparse"]
