"""The effect outbox: messages to external systems, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surefoot_storage import Statement

from .source import Source

VIEW = "@view/"
"""What the effects of messages to views begin with."""

ASK = "@ask"
"""The effect of a message that tells somebody of a request for approval."""


@dataclass(frozen=True)
class Message:
    """One effect that waits for its delivery."""

    id: int
    key: str
    run_id: str
    workflow: str
    step: str
    effect: str
    payload: dict[str, Any]
    attempts: int
    next_at: float
    owner: str


def claim_effect(message: Message, worker: str) -> Statement:
    """This worker delivers the message; conflicts where somebody else was faster."""
    return Statement(
        "UPDATE outbox SET owner = :worker WHERE id = :id AND state = 'pending'"
        " AND attempts = :attempts AND owner = :seen",
        {"worker": worker, "id": message.id, "attempts": message.attempts, "seen": message.owner},
        1,
    )


def enqueue_effect(key: str, run_id: str, step: str, effect: str, payload: dict[str, Any]) -> Statement:
    """An effect to deliver, in the same commit as what it tells of."""
    return Statement(
        "INSERT INTO outbox (key, run_id, step, effect, payload, state, attempts, next_at)"
        " VALUES (:key, :run_id, :step, :effect, json_set(:payload, '$.txid', :txid), 'pending', 0, 0)",
        {"key": key, "run_id": run_id, "step": step, "effect": effect, "payload": json.dumps(payload)},
        1,
    )


def settle_effect(message: Message, state: str, error: str = "", next_at: float = 0.0) -> Statement:
    """What came of a delivery."""
    return Statement(
        "UPDATE outbox SET state = :state, attempts = :attempts, last_error = :error, next_at = :next_at,"
        " owner = ''"
        " WHERE id = :id",
        {
            "id": message.id,
            "state": state,
            "attempts": message.attempts + 1,
            "error": error,
            "next_at": next_at,
        },
        1,
    )


def withdraw_effect(key: str, seen: str) -> Statement:
    """Nobody is told of it any more; conflicts where somebody has begun to send it meanwhile."""
    return Statement(
        "UPDATE outbox SET state = 'withdrawn', owner = '' WHERE key = :key AND state = 'pending'"
        " AND owner = :seen",
        {"key": key, "seen": seen},
        1,
    )


def renew_effects(txids: Sequence[str]) -> Statement:
    """They stand again: what was withdrawn is told after all."""
    return Statement(
        "UPDATE outbox SET state = 'pending', next_at = 0 WHERE state = 'withdrawn'"
        " AND json_extract(payload, '$.txid') IN (SELECT value FROM json_each(:txids))",
        {"txids": json.dumps(list(txids))},
    )


def next_messages(source: Source, run_id: str | None = None) -> list[Message]:
    """The oldest undelivered effect of each run: later ones wait for it."""
    rows = source.query(
        "SELECT o.id, o.key, o.run_id, run.workflow, o.step, o.effect, o.payload, o.attempts, o.next_at,"
        " o.owner"
        " FROM outbox AS o JOIN run ON run.id = o.run_id WHERE o.id IN"
        " (SELECT min(id) FROM outbox WHERE state = 'pending'"
        " GROUP BY run_id, CASE WHEN effect LIKE '@%/%' THEN effect END)"  # views, webhooks: alone
        " AND (:run_id IS NULL OR o.run_id = :run_id) ORDER BY o.next_at, o.id",
        {"run_id": run_id},
    )
    return [
        Message(id_, key, run, workflow, step, effect, json.loads(payload), attempts, next_at, owner)
        for id_, key, run, workflow, step, effect, payload, attempts, next_at, owner in rows
    ]


def effects_of(source: Source, txids: Sequence[str]) -> list[dict[str, Any]]:
    """What these transactions told, or want to tell."""
    names = ("key", "effect", "state", "attempts", "owner")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM outbox"  # noqa: S608 - only constants are put in
        " WHERE json_extract(payload, '$.txid') IN (SELECT value FROM json_each(?)) ORDER BY id",
        (json.dumps(list(txids)),),
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def count_effects(source: Source, state: str, run_id: str | None = None) -> int:
    """How many effects are in a state."""
    rows = source.query(
        "SELECT count(*) FROM outbox WHERE state = :state AND (:run_id IS NULL OR run_id = :run_id)"
        " AND effect NOT LIKE '@%/%'",
        {"state": state, "run_id": run_id},
    )
    return int(rows[0][0])


def dead_letters(source: Source, *, run_id: str | None = None, limit: int = 1_000) -> list[dict[str, Any]]:
    """Messages that could not be delivered and were set aside, the latest first."""
    names = ("id", "key", "run_id", "step", "effect", "attempts", "last_error")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM outbox WHERE state = 'dead'"  # noqa: S608 - only constants are put in
        " AND (:run_id IS NULL OR run_id = :run_id) ORDER BY id DESC LIMIT :limit",
        {"run_id": run_id, "limit": limit},
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def renew_dead(message_id: int) -> Statement:
    """It is tried again, with all its attempts; conflicts where it is not dead."""
    return Statement(
        "UPDATE outbox SET state = 'pending', attempts = 0, next_at = 0, owner = ''"
        " WHERE id = :id AND state = 'dead'",
        {"id": message_id},
        1,
    )


def outbox_figures(source: Source) -> dict[str, int]:
    """How many messages are in each state, those to views and webhooks included."""
    return dict(source.query("SELECT state, count(*) FROM outbox GROUP BY state"))
