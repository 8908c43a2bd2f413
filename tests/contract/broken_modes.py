"""Participation modes that break one law each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedsim.participation.base import Arrival, Dispatch, Event, Setting
from fedsim.participation.clocked import Asynchronous
from fedsim.participation.gossip import Gossip
from fedsim.participation.synchronous import Synchronous


@dataclass(frozen=True, kw_only=True)
class SkipsNumbers(Synchronous):
    """Counts rounds by two."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            yield replace(event, number=2 * event.number) if isinstance(event, Arrival) else event


@dataclass(frozen=True, kw_only=True)
class GoesBack(Synchronous):
    """Every fifth round ends before it began."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            early = isinstance(event, Arrival) and event.number % 5 == 0
            yield replace(event, time=event.time / 2) if isinstance(event, Arrival) and early else event


@dataclass(frozen=True, kw_only=True)
class ArrivesTwice(Synchronous):
    """Its first client delivers again."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            yield event.of(np.array([0, 0, 1])) if isinstance(event, Arrival) else event


@dataclass(frozen=True, kw_only=True)
class TooEarly(Synchronous):
    """Does not wait for its slowest client."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            late = [event.start + 10 * (e - event.start) for e in event.ends] if isinstance(event, Dispatch) else []
            yield replace(event, ends=late) if isinstance(event, Dispatch) else event


@dataclass(frozen=True, kw_only=True)
class NotANumber(Synchronous):
    """Divides by nothing."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            yield replace(event, weights=event.steps * np.nan) if isinstance(event, Arrival) else event


@dataclass(frozen=True, kw_only=True)
class Unknown(Asynchronous):
    """Asks a client that is not there."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            yield replace(event, clients=event.clients + 1) if isinstance(event, (Dispatch, Arrival)) else event


@dataclass(frozen=True, kw_only=True)
class BeginsAnew(Synchronous):
    """After a resume its rounds are those of the beginning under another number."""

    fraction: float = 0.5

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting):
            yield replace(event, number=event.number + after) if isinstance(event, Arrival) else event


@dataclass(frozen=True, kw_only=True)
class Rolls(Gossip):
    """Draws who computes from Python's generator."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            yield replace(event, steps=event.steps * random.randrange(2)) if isinstance(event, Dispatch) else event
