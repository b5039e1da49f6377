"""Whom to tell of changes by HTTP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from surefoot_storage import Statement

from .source import Source

HOOK = "@hook/"
"""What the effects of messages to webhooks begin with."""


@dataclass(frozen=True)
class Webhook:
    """Somebody who is told of every change of status that they want to know of."""

    id: str
    url: str
    events: tuple[str, ...]  # (): every one
    workflow: str  # "": of every workflow
    created_at: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def insert_webhook(hook: Webhook) -> Statement:
    """From now on it is told."""
    return Statement(
        "INSERT INTO webhook (id, url, events, workflow, created_at)"
        " VALUES (:id, :url, :events, :workflow, :created_at)",
        {**asdict(hook), "events": " ".join(hook.events)},
        1,
    )


def delete_webhook(hook_id: str) -> list[Statement]:
    """It is told nothing more; what waits for it is withdrawn."""
    return [
        Statement("DELETE FROM webhook WHERE id = :id", {"id": hook_id}, 1),
        Statement(
            "UPDATE outbox SET state = 'withdrawn', owner = '' WHERE effect = :effect AND state = 'pending'",
            {"effect": HOOK + hook_id},
        ),
    ]


def webhooks(source: Source) -> list[Webhook]:
    """All of them, the oldest first."""
    rows = source.query("SELECT id, url, events, workflow, created_at FROM webhook ORDER BY created_at, id")
    return [Webhook(id_, url, tuple(events.split()), flow, at) for id_, url, events, flow, at in rows]


def find_webhook(source: Source, hook_id: str) -> Webhook | None:
    """One of them."""
    return next((hook for hook in webhooks(source) if hook.id == hook_id), None)
