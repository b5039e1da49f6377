"""Queues: how many runs of one kind may be worked on, and how fast. Declared by whoever serves them."""

from __future__ import annotations

from dataclasses import dataclass

from . import checks
from .names import checked_name


@dataclass(frozen=True)
class Rate:
    """At most `count` runs are taken within `per_s` seconds, over all workers."""

    count: int
    per_s: float

    def __post_init__(self) -> None:
        checks.count("declare rate", "Rate", "count", self.count)
        checks.seconds("declare rate", "Rate", "per_s", self.per_s, above=True)


@dataclass(frozen=True)
class Queue:
    """A queue that an engine serves.

    Attributes:
        name: letters, digits, `.`, `_`, `-`.
        at_once: runs of it that all workers together move on at the same time.
        here: runs of it that this engine moves on at the same time.
        rate: how fast they are taken, over all workers.
    """

    name: str
    at_once: int | None = None
    here: int | None = None
    rate: Rate | None = None

    def __post_init__(self) -> None:
        checked_name("queue", self.name)
        for limit in ("at_once", "here"):
            if getattr(self, limit) is not None:
                checks.count("declare queue", self.name, limit, getattr(self, limit))
