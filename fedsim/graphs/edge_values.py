"""Where an edge's latency, bandwidth and mixing weight come from: the keys of a graph file that say it."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from fedsim.core.errors import InputError
from fedsim.core.libraries import nx
from fedsim.core.types import NonNegative, Positive

FIBRE = 199_861.6
"""Kilometres per second of light in a fibre, 2/3 of the speed in a vacuum."""

_EARTH = 6371.0  # km, the mean radius


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    attribute: str | None = None

    @property
    def factor(self) -> float:
        """What a number of the file is multiplied with."""
        return 1.0

    @property
    def from_positions(self) -> bool:
        return False

    @model_serializer
    def _given(self) -> dict[str, Any]:
        """The keys as they are written, without those that are unset."""
        fields = type(self).model_fields
        values = {(f.alias or name): getattr(self, name) for name, f in fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class Latency(_Source):
    """``{attribute: rtt, unit: ms}``, or ``{from: positions}``: great-circle distances at light's speed in a fibre.

    `missing` is the latency of edges without (in `unit`; ms with positions); without it every edge must have one.
    """

    unit: Literal["s", "ms", "us"] | None = Field(None, description="of the attribute and of `missing`")
    from_: Literal["positions"] | None = Field(None, alias="from")
    km_per_second: Positive | None = Field(None, description=f"with positions; default {FIBRE:,} km/s, 2/3 of light's")
    extra_ms: NonNegative | None = Field(None, description="with positions: added to every edge's latency")
    missing: NonNegative | None = Field(None, description="the latency of edges that have none")

    @model_validator(mode="after")
    def _one(self) -> Latency:
        if (self.attribute is None) == (self.from_ is None):
            raise ValueError("allowed: {attribute: NAME, unit: s, ms or us} or {from: positions}")
        if (self.attribute is None) != (self.unit is None):
            raise ValueError("'attribute' and 'unit' go together; allowed: {attribute: NAME, unit: s, ms or us}")
        if self.from_ is None and (self.km_per_second is not None or self.extra_ms is not None):
            raise ValueError("'km_per_second' and 'extra_ms' go with from: positions")
        return self

    @property
    def factor(self) -> float:
        return {"s": 1e3, "ms": 1.0, "us": 1e-3, None: 1.0}[self.unit]

    @property
    def from_positions(self) -> bool:
        return self.from_ is not None

    def place(self, graph: nx.Graph[Any]) -> None:
        """``latency_ms`` of every edge whose two ends have a position.

        Raises
        ------
        InputError
            No node has one, or one is off the globe.
        """
        places: dict[Any, tuple[float, float]] = {}
        for node, data in graph.nodes(data=True):
            if "latitude" in data and "longitude" in data:
                places[node] = data["latitude"], data["longitude"]
                if abs(data["latitude"]) > 90 or abs(data["longitude"]) > 360:
                    message = f"node {data['label']!r}: found latitude {data['latitude']:g}, longitude "
                    message += f"{data['longitude']:g}; allowed: -90 to 90, -180 to 180 degrees"
                    raise InputError(message, key="latency.from")
        if not places:
            message = (
                "found positions, but no node has a latitude and a longitude; allowed: {attribute: NAME, unit: ms}"
            )
            raise InputError(message, key="latency.from")
        speed = FIBRE if self.km_per_second is None else self.km_per_second
        for u, v, data in graph.edges(data=True):
            data.pop("latency_ms", None)
            if u in places and v in places:
                data["latency_ms"] = 1e3 * great_circle(*places[u], *places[v]) / speed + (self.extra_ms or 0.0)


class Bandwidth(_Source):
    """``{attribute: LinkSpeedRaw, unit: bps}``; `missing` is the bandwidth of edges without, in `unit`."""

    unit: Literal["bps", "kbps", "mbps", "gbps"] = Field(description="bits per second, thousands, millions, billions")
    missing: Positive | None = Field(None, description="the bandwidth of edges that have none")

    @model_validator(mode="after")
    def _named(self) -> Bandwidth:
        if self.attribute is None:
            raise ValueError("allowed: {attribute: NAME, unit: bps, kbps, mbps or gbps}")
        return self

    _factors: ClassVar[dict[str, float]] = {"bps": 1e-6, "kbps": 1e-3, "mbps": 1.0, "gbps": 1e3}

    @property
    def factor(self) -> float:
        return self._factors[self.unit]


class Weight(_Source):
    """``{attribute: weight}``: the edge attribute with the mixing weight, for ``weights: file``."""

    attribute: str = "weight"


def great_circle(latitude: float, longitude: float, latitude_2: float, longitude_2: float) -> float:
    """Kilometres between two places on the globe, given in degrees (haversine formula)."""
    a, b = math.radians(latitude), math.radians(latitude_2)
    h = math.sin((b - a) / 2) ** 2
    h += math.cos(a) * math.cos(b) * math.sin(math.radians(longitude_2 - longitude) / 2) ** 2
    return 2 * _EARTH * math.asin(min(1.0, math.sqrt(h)))


_PLACES = {"latitude": r"lat(itude)?", "longitude": r"(lon|lng|longitude)"}


def position(data: dict[str, Any], node: str) -> dict[str, Any]:
    """A node's attributes with ``latitude``, ``longitude``, ``x`` and ``y`` as numbers.

    Raises
    ------
    InputError
        One of them is not a finite number.
    """
    data = dict(data)
    for ours, pattern in _PLACES.items():  # the Internet Topology Zoo capitalises them
        theirs = next((key for key in data if re.fullmatch(pattern, key.lower())), None)
        if theirs is not None and ours not in data and (theirs.lower() == ours or _is_number(data[theirs])):
            data[ours] = data.pop(theirs)
    for key in ("latitude", "longitude", "x", "y"):
        if key in data:
            try:
                data[key] = float(data[key])
            except ValueError:
                raise InputError(f"node {node}: found {key} {data[key]!r}, allowed: a number") from None
            if not math.isfinite(data[key]):
                raise InputError(f"node {node}: found {key} {data[key]}, allowed: a finite number")
    return data


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
