"""Configuration and cached answers: documents by name, each with a revision or a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surefoot_storage import Statement

from .source import Source


@dataclass(frozen=True)
class ConfigRow:
    """One revision of a configuration."""

    name: str
    revision: int
    document: str | None  # JSON; None where the caller has it already
    at: float
    by: str


def insert_config(name: str, revision: int, document: str, now: float, by: str) -> Statement:
    """The next revision; conflicts where somebody else was faster."""
    return Statement(
        "INSERT INTO config (name, revision, document, at, by)"
        " SELECT :name, :revision, :document, :now, :by WHERE :revision = 1 +"
        " (SELECT coalesce(max(revision), 0) FROM config WHERE name = :name)",
        {"name": name, "revision": revision, "document": document, "now": now, "by": by},
        1,
    )


def latest_config(source: Source, name: str, known: int = -1) -> ConfigRow | None:
    """The newest revision; without its document where it is the one that is known."""
    rows = source.query(
        "SELECT name, revision, CASE WHEN revision = ? THEN NULL ELSE document END, at, by FROM config"
        " WHERE name = ? ORDER BY revision DESC LIMIT 1",
        (known, name),
    )
    return ConfigRow(*rows[0]) if rows else None


def config_history(source: Source, name: str) -> list[ConfigRow]:
    """All revisions, the newest first."""
    rows = source.query(
        "SELECT name, revision, document, at, by FROM config WHERE name = ? ORDER BY revision DESC", (name,)
    )
    return [ConfigRow(*row) for row in rows]


def config_names(source: Source) -> list[tuple[str, int]]:
    """(name, newest revision) of every configuration."""
    return source.query("SELECT name, max(revision) FROM config GROUP BY name ORDER BY name")


def find_cached(source: Source, cache: str, key: str) -> tuple[str, float] | None:
    """(JSON, when it was loaded) of the last answer of a source."""
    rows = source.query("SELECT data, at FROM cached WHERE cache = ? AND key = ?", (cache, key))
    return (rows[0][0], rows[0][1]) if rows else None


def keep_cached(cache: str, key: str, data: str, now: float) -> Statement:
    """A source has answered. It is never deleted by time."""
    values: dict[str, Any] = {"cache": cache, "key": key, "data": data, "now": now}
    return Statement(
        "INSERT INTO cached (cache, key, data, at) VALUES (:cache, :key, :data, :now)"
        " ON CONFLICT (cache, key) DO UPDATE SET data = :data, at = :now",
        values,
    )


def list_cached(source: Source, now: float) -> list[dict[str, Any]]:
    """What is kept of all sources."""
    names = ("cache", "key", "age_s", "size_bytes")
    rows = source.query(
        "SELECT cache, key, :now - at, length(data) FROM cached ORDER BY cache, key", {"now": now}
    )
    return [dict(zip(names, row, strict=True)) for row in rows]
