"""What a node says of its failure, as a sentence for logs and records."""

from __future__ import annotations

import re
from typing import Any

from fedsim.deployment.flower.records import shown


def failure(error: Any, longest: int) -> str:
    """What a node's error says: Flower writes an exception as ``<class 'a.b.Name'>:<'its text'>``.

    Of an error of fedsim's own the text says everything.
    """
    text = str(error.reason or f"error {error.code}")
    raised = re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>:<'(.*)'>", text, re.DOTALL)
    if raised is None:
        return shown(text, longest)
    name, said = raised.groups()
    if not said:
        return name
    return shown(said if text.startswith("<class 'fedsim.core.errors.") else f"{name}: {said}", longest)
