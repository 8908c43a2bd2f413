"""What a module returns, as the outputs ``[b, k]`` that losses take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(returned: Any) -> Any:
    """The tensor that a module returned, or the `logits` of the object or mapping that it returned.

    Classifiers of Hugging Face return such objects, and some of torchvision while they train. What has no logits comes
    back as it is.
    """
    if isinstance(returned, Tensor):
        return returned
    found = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    return found if isinstance(found, Tensor) else returned
