"""Counts over all runs, for those who watch: cheap enough to be asked every few seconds."""

from __future__ import annotations

from typing import Any

from .source import Source


def runs_by_state(source: Source) -> list[tuple[str, str, int]]:
    """(workflow, state, how many)."""
    return source.query("SELECT workflow, state, count(*) FROM run GROUP BY workflow, state")


def runs_at_work_since(source: Source, before: float) -> int:
    """Runs whose step is being worked on, or due, since before a moment."""
    return int(
        source.query("SELECT count(*) FROM run WHERE state = 'running' AND updated_at < ?", (before,))[0][0]
    )


def attempts_by_outcome(source: Source) -> list[tuple[str, str, str, int, float]]:
    """(workflow, step, outcome, how many, seconds that they took together)."""
    return source.query(
        "SELECT run.workflow, attempt.step, attempt.outcome, count(*),"
        " coalesce(sum(attempt.ended_at - attempt.started_at), 0)"
        " FROM attempt JOIN run ON run.id = attempt.run_id WHERE attempt.outcome IS NOT NULL"
        " GROUP BY run.workflow, attempt.step, attempt.outcome"
    )


def agents_by_state(source: Source) -> list[tuple[str, str, int]]:
    """(kind, outcome, or state of those that are not over, how many)."""
    return source.query(
        "SELECT kind, CASE state WHEN 'over' THEN outcome ELSE state END AS word, count(*)"
        " FROM agent GROUP BY kind, word"
    )


def working_agents(source: Source, now: float) -> dict[str, Any]:
    """Of those that are not over: looks that failed one after the other, and how long the oldest one runs."""
    errors, oldest = source.query(
        "SELECT coalesce(max(errors), 0), min(started_at) FROM agent WHERE state <> 'over'"
    )[0]
    return {"errors": errors, "oldest_s": 0.0 if oldest is None else max(0.0, now - oldest)}
