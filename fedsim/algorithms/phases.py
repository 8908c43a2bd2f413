"""Local work in phases that train different parameters: the key ``algorithm.train``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from fedsim.core.types import Count


class Phase(BaseModel):
    """A part of every client's local work.

    Parameters
    ----------
    parameters : which train: ``personal``, those that stay with clients; ``shared``, the others; ``all``; or patterns
        of their names, as in ``model.freeze``. The others are as if they were frozen.
    steps, epochs : for how long, one of the two.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    parameters: Literal["personal", "shared", "all"] | Annotated[list[str], Field(min_length=1)]
    steps: Count | None = None
    epochs: Count | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Phase:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a phase has steps or epochs, allowed: one of the two")
        return self

    @model_serializer
    def _written(self) -> dict[str, Any]:
        found = {"parameters": self.parameters, "steps": self.steps, "epochs": self.epochs}
        return {k: v for k, v in found.items() if v is not None}

    @property
    def units(self) -> int:
        """How many steps or epochs it has."""
        return self.epochs or self.steps or 0


Phases = Annotated[list[Phase], Field(min_length=1)]
"""Phases in their order."""
