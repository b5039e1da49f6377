"""Figures that are added up: how often something happened, what it came to, and the most it ever was."""

from __future__ import annotations

from dataclasses import dataclass

from surefoot_storage import Statement

from .source import Source


@dataclass(frozen=True)
class Meter:
    """One figure since the store was made; `total` and `most` in the unit at the end of its name."""

    subject: str
    name: str
    count: int = 0
    total: float = 0.0
    most: float = 0.0

    @property
    def mean(self) -> float | None:
        """None where nothing was counted."""
        return self.total / self.count if self.count else None


def measure(subject: str, name: str, value: float = 1.0, times: int = 1) -> Statement:
    """It has happened again, and came to this."""
    return Statement(
        "INSERT INTO meter (subject, name, count, total, most)"
        " VALUES (:subject, :name, :times, :value, :value)"
        " ON CONFLICT (subject, name) DO UPDATE SET count = count + :times, total = total + :value,"
        " most = max(most, :value)",
        {"subject": subject, "name": name, "value": value, "times": times},
    )


def meters(source: Source, names: tuple[str, ...]) -> dict[tuple[str, str], Meter]:
    """By subject and name."""
    found = source.query(
        "SELECT subject, name, count, total, most FROM meter"  # noqa: S608 - only question marks are put in
        f" WHERE name IN ({', '.join('?' * len(names))}) ORDER BY subject, name",
        names,
    )
    return {(row[0], row[1]): Meter(*row) for row in found}
