"""Messages to runs: kept when they arrive, received by the first visit that waits for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from surefoot_storage import Statement

from .source import Source

_NAMES = ("id", "topic", "key", "payload", "at", "sender", "visit", "refused")


@dataclass(frozen=True)
class Arrived:
    """A message that nobody has received yet."""

    id: int
    payload: str  # JSON


def insert_message(run_id: str, topic: str, payload: str, *, key: str | None, sender: str) -> Statement:
    """It has arrived. With a key that is there already, nothing happens."""
    return Statement(
        "INSERT INTO message (run_id, topic, key, payload, at, sender)"
        " SELECT :run_id, :topic, :key, :payload, :at, :sender"
        " WHERE EXISTS (SELECT 1 FROM run WHERE id = :run_id AND state NOT IN ('completed', 'cancelled'))"
        " ON CONFLICT DO NOTHING",
        {"run_id": run_id, "topic": topic, "key": key, "payload": payload, "sender": sender},
    )


def waiting_messages(source: Source, run_id: str, topic: str) -> list[Arrived]:
    """Those that nobody has received, the oldest first."""
    rows = source.query(
        "SELECT id, payload FROM message WHERE run_id = ? AND topic = ? AND visit IS NULL AND refused IS NULL"
        " ORDER BY id LIMIT 100",
        (run_id, topic),
    )
    return [Arrived(*row) for row in rows]


def messages_with_key(source: Source, run_id: str, topic: str, key: str) -> list[dict[str, Any]]:
    """The message that was sent with a key, if any."""
    sent = messages_of(source, run_id)
    return [message for message in sent if (message["topic"], message["key"]) == (topic, key)]


def consume(message: Arrived, visit: int) -> Statement:
    """A visit receives it; conflicts where another one was faster."""
    return Statement(
        "UPDATE message SET visit = :visit WHERE id = :id AND visit IS NULL",
        {"id": message.id, "visit": visit},
        1,
    )


def refuse_message(message: Arrived, why: str) -> Statement:
    """Its payload is not what the signal carries: it stays as history, and nobody receives it."""
    return Statement(
        "UPDATE message SET refused = :why WHERE id = :id AND visit IS NULL",
        {"id": message.id, "why": why},
        1,
    )


def release_messages(run_id: str, visits: list[int]) -> Statement:
    """What was received is taken back: it can be received again."""
    return Statement(
        "UPDATE message SET visit = NULL WHERE run_id = :run_id"
        " AND visit IN (SELECT value FROM json_each(:visits))",
        {"run_id": run_id, "visits": json.dumps(visits)},
    )


def messages_of(source: Source, run_id: str) -> list[dict[str, Any]]:
    """Everything that was sent to a run, oldest first."""
    rows = source.query(f"SELECT {', '.join(_NAMES)} FROM message WHERE run_id = ? ORDER BY id", (run_id,))  # noqa: S608 - only constants are put in
    found = [dict(zip(_NAMES, row, strict=True)) for row in rows]
    return [{**message, "payload": json.loads(message["payload"])} for message in found]
