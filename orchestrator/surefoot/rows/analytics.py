"""What the log says about many runs: counts and durations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from surefoot_storage import Statement

from .source import Source


def analytics(source: Source, *, since: float, workflow: str | None) -> dict[str, Any]:
    """Counts of runs by workflow, and of attempts by step, since a moment; durations in seconds."""
    values = {"since": since, "workflow": workflow}
    return {"workflows": _workflows(source, values), "steps": _steps(source, values)}


def _workflows(source: Source, values: dict[str, Any]) -> list[dict[str, Any]]:
    counted = source.query(
        "SELECT run.workflow, sum(audit.event = 'started'),"
        " sum(audit.status ->> '$.state' = 'completed'), sum(audit.status ->> '$.state' = 'cancelled'),"
        " sum(audit.status ->> '$.state' = 'error') FROM audit JOIN run ON run.id = audit.run_id"
        " WHERE audit.at >= :since AND (:workflow IS NULL OR run.workflow = :workflow)"
        " GROUP BY run.workflow ORDER BY run.workflow",
        values,
    )
    took: dict[str, list[float]] = {}
    for name, length in source.query(
        "SELECT workflow, updated_at - created_at FROM run WHERE state = 'completed'"
        " AND updated_at >= :since AND (:workflow IS NULL OR workflow = :workflow)",
        values,
    ):
        took.setdefault(name, []).append(length)
    names = ("workflow", "created", "finished", "cancelled", "failed")
    return [{**dict(zip(names, row, strict=True)), **_lengths(took.get(row[0], []))} for row in counted]


def _steps(source: Source, values: dict[str, Any]) -> list[dict[str, Any]]:
    took: dict[tuple[str, str], list[float]] = {}
    outcomes: dict[tuple[str, str], dict[str, int]] = {}
    for workflow, step, outcome, length in source.query(
        "SELECT run.workflow, attempt.step, coalesce(attempt.outcome, 'running'),"
        " attempt.ended_at - attempt.started_at FROM attempt JOIN run ON run.id = attempt.run_id"
        " WHERE attempt.started_at >= :since AND (:workflow IS NULL OR run.workflow = :workflow)",
        values,
    ):
        counts = outcomes.setdefault((workflow, step), {})
        counts[outcome] = counts.get(outcome, 0) + 1
        if length is not None:
            took.setdefault((workflow, step), []).append(length)
    return [
        {"workflow": key[0], "step": key[1], "attempts": outcomes[key], **_lengths(took.get(key, []))}
        for key in sorted(outcomes)
    ]


def _lengths(seconds: list[float]) -> dict[str, float | None]:
    if not seconds:
        return {"mean_s": None, "p50_s": None, "p95_s": None, "most_s": None}
    seconds = sorted(seconds)

    def at(share: float) -> float:
        return seconds[min(len(seconds) - 1, int(share * len(seconds)))]

    return {"mean_s": sum(seconds) / len(seconds), "p50_s": at(0.5), "p95_s": at(0.95), "most_s": seconds[-1]}


def audit_lines(source: Source, *, run_id: str | None, after: int, limit: int) -> list[dict[str, Any]]:
    """Lines of the audit log behind a cursor, oldest first; `id` is the next cursor."""
    names = ("id", "at", "run_id", "revision", "event", "step", "txid", "seq", "outcome", "failure", "status")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM audit WHERE id > :after"  # noqa: S608 - only constants are put in
        " AND (:run_id IS NULL OR run_id = :run_id) ORDER BY id LIMIT :limit",
        {"run_id": run_id, "after": after, "limit": limit},
    )
    lines = [dict(zip(names, row, strict=True)) for row in rows]
    for line in lines:
        line["failure"] = json.loads(line["failure"]) if line["failure"] else None
        line["status"] = json.loads(line["status"])
    return lines


def declare_views(workflow: str, names: Sequence[str]) -> list[Statement]:
    """Who is told of each change of status of a workflow's runs, whichever process makes it."""
    values = {"workflow": workflow, "names": json.dumps(list(names))}
    return [
        Statement(
            "DELETE FROM status_view WHERE workflow = :workflow"
            " AND name NOT IN (SELECT value FROM json_each(:names))",
            values,
        ),
        Statement(
            "INSERT INTO status_view (workflow, name)"
            " SELECT :workflow, value FROM json_each(:names) WHERE true ON CONFLICT DO NOTHING",
            values,
        ),
    ]


def declared_views(source: Source, workflow: str) -> list[str]:
    """Their names."""
    rows = source.query("SELECT name FROM status_view WHERE workflow = ? ORDER BY name", (workflow,))
    return [row[0] for row in rows]


def checkpointed_seq(source: Source) -> int:
    """Up to which transaction everything is durable in its own place."""
    return int(source.query("SELECT checkpointed_seq FROM workspace")[0][0])


def activity(source: Source, *, since: float, bucket_s: float) -> list[dict[str, Any]]:
    """Changes of status over time, in equal pieces: `at` is where each piece begins."""
    names = ("at", "started", "steps", "failed", "finished")
    rows = source.query(
        "SELECT :since + CAST((at - :since) / :bucket_s AS INTEGER) * :bucket_s AS piece,"
        " sum(event = 'started'), sum(event = 'step'), sum(failure IS NOT NULL),"
        " sum(status ->> '$.state' = 'completed')"
        " FROM audit WHERE at >= :since GROUP BY piece ORDER BY piece",
        {"since": since, "bucket_s": bucket_s},
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def last_line(source: Source) -> int:
    """The cursor behind the last line of the audit log."""
    return int(source.query("SELECT coalesce(max(id), 0) FROM audit")[0][0])
