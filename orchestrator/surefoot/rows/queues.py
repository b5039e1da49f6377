"""Queues, workers, and taking runs: who may move what on, decided inside one statement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surefoot.model import Run
from surefoot.queues import Queue
from surefoot_storage import Statement

from .meters import Meter, measure, meters
from .runs import claimed
from .source import Source

if TYPE_CHECKING:
    from surefoot.guards import Pace

EVERY = "*"
"""The name under which all queues are paused."""

_FIRST_OF_LANE = (
    "NOT EXISTS (SELECT 1 FROM run AS e WHERE e.queue = run.queue AND e.lane = run.lane"
    " AND e.state IN ('running', 'waiting') AND e.ordinal < run.ordinal)"
)


def take_run(run: Run, worker: str, queue: Queue | None, now: float, gone: Sequence[str]) -> list[Statement]:
    """This worker moves a due run on; conflicts where somebody was faster, or its queue's limits say no.

    Counted inside the statement: no two workers can both be the last that fits. What belongs to workers
    that are gone does not count: otherwise a dead one would fill its queue for ever.
    """
    values: dict[str, Any] = {
        "worker": worker, "id": run.id, "epoch": run.epoch, "after": claimed(run, worker).epoch,
        "seen": run.owner, "queue": run.queue, "every": EVERY,
    }  # fmt: skip
    conditions = [
        "id = :id AND epoch = :epoch AND owner IN (:seen, '') AND due_at IS NOT NULL",
        "NOT EXISTS (SELECT 1 FROM queue WHERE name IN (:queue, :every) AND paused)",
    ]
    if run.lane is not None:
        conditions.append(_FIRST_OF_LANE)
    if queue is not None and queue.at_once is not None:
        conditions.append(
            "(SELECT count(*) FROM run AS e WHERE e.owner <> '' AND e.queue = :queue AND e.id <> :id"
            " AND e.owner NOT IN (SELECT value FROM json_each(:gone))) < :at_once"
        )
        values |= {"at_once": queue.at_once, "gone": json.dumps(list(gone))}
    if queue is not None and queue.rate is not None:
        conditions.append("(SELECT count(*) FROM pace WHERE queue = :queue AND at > :since) < :rate")
        values |= {"rate": queue.rate.count, "since": now - queue.rate.per_s}
    sql = f"UPDATE run SET owner = :worker, epoch = :after WHERE {' AND '.join(conditions)}"  # noqa: S608 - only constants are put in
    statements = [Statement(sql, values, 1)]
    if run.queue:
        ready_at = max(run.due_at or 0.0, run.updated_at)
        statements.append(measure(run.queue, "wait_s", max(0.0, now - ready_at)))
    if queue is not None and queue.rate is not None:
        pace = {"queue": run.queue, "now": now, "since": now - queue.rate.per_s}
        statements += [
            Statement("DELETE FROM pace WHERE queue = :queue AND at <= :since", pace),
            Statement("INSERT INTO pace VALUES (:queue, :now)", pace, 1),
        ]
    return statements


@dataclass(frozen=True)
class Taking:
    """What one engine may take."""

    known: Sequence[tuple[str, str | None]]  # workflows, and the version where it must be that one
    queues: Sequence[str] | None  # None: all
    full: Sequence[str]  # queues that have reached a limit
    gone: Sequence[str]  # workers that do not work any more
    adopted: Sequence[str]  # runs in no queue that were there when the engine was opened


_TAKEABLE = (
    "(owner = '' OR owner IN (SELECT value FROM json_each(:gone)))"  # noqa: S608 - only constants are put in
    " AND (:queues IS NULL OR queue = '' OR queue IN (SELECT value FROM json_each(:queues)))"
    " AND queue NOT IN (SELECT value FROM json_each(:full))"
    " AND (queue <> '' OR owner <> '' OR parent IS NOT NULL OR id IN (SELECT value FROM json_each(:adopted))"
    " OR EXISTS (SELECT 1 FROM visit WHERE run_id = run.id AND closed IS NULL AND visit.state = 'parked'))"
    " AND EXISTS (SELECT 1 FROM json_each(:known) AS k WHERE k.value ->> 0 = workflow"
    " AND (k.value ->> 1 IS NULL OR k.value ->> 1 = version))"
    " AND NOT EXISTS (SELECT 1 FROM queue AS q WHERE q.paused AND q.name IN (run.queue, :every))"
    f" AND (lane IS NULL OR {_FIRST_OF_LANE})"
)


def _taking_values(taking: Taking, now: float) -> dict[str, Any]:
    return {
        "now": now, "every": EVERY, "gone": json.dumps(taking.gone), "adopted": json.dumps(taking.adopted),
        "full": json.dumps(taking.full), "known": json.dumps(taking.known),
        "queues": None if taking.queues is None else json.dumps(taking.queues),
    }  # fmt: skip


def ready_runs(source: Source, now: float, taking: Taking, limit: int) -> list[tuple[str, str]]:
    """(id, queue) of runs that an engine may take, the most urgent first.

    Of runs in no queue those whose worker is gone, that wait for something, or that another run has
    started; others belong to whoever starts them.
    """
    return source.query(
        f"SELECT id, queue FROM run WHERE due_at <= :now AND {_TAKEABLE}"  # noqa: S608 - only constants are put in
        " ORDER BY priority, due_at, ordinal LIMIT :limit",
        {**_taking_values(taking, now), "limit": limit},
    )


def next_ready(source: Source, now: float, taking: Taking) -> float | None:
    """The earliest moment after now at which an engine may take one."""
    rows = source.query(
        f"SELECT min(due_at) FROM run WHERE due_at > :now AND {_TAKEABLE}",  # noqa: S608 - only constants are put in
        _taking_values(taking, now),
    )
    return rows[0][0]  # type: ignore[no-any-return]


def woken_visits(source: Source, worker: str) -> list[tuple[str, int]]:
    """(run, visit) whose wait has ended while this worker moves their run on."""
    return source.query(
        "SELECT run.id, visit.number FROM run JOIN visit ON visit.run_id = run.id"
        " WHERE run.owner = ? AND run.owner <> '' AND visit.closed IS NULL AND visit.state = 'parked'"
        " AND visit.due_at = 0",
        (worker,),
    )


def at_limit(source: Source, queues: Sequence[Queue], now: float, gone: Sequence[str]) -> list[str]:
    """Queues of which nothing can be taken now."""
    full = []
    for queue in queues:
        if queue.at_once is not None:
            running = source.query(
                "SELECT count(*) FROM run WHERE owner <> '' AND queue = ?"
                " AND owner NOT IN (SELECT value FROM json_each(?))",
                (queue.name, json.dumps(list(gone))),
            )
            if running[0][0] >= queue.at_once:
                full.append(queue.name)
        if queue.rate is not None:
            since = now - queue.rate.per_s
            taken = source.query("SELECT count(*) FROM pace WHERE queue = ? AND at > ?", (queue.name, since))
            if taken[0][0] >= queue.rate.count:
                full.append(queue.name)
    return full


def owners(source: Source) -> list[str]:
    """Workers that have runs, or watch agents."""
    return [
        row[0]
        for row in source.query(
            "SELECT owner FROM run WHERE owner <> '' UNION"
            " SELECT owner FROM agent WHERE state <> 'over' AND owner <> ''"
        )
    ]


def beat(worker: str) -> Statement:
    """The worker works."""
    return Statement(
        "INSERT INTO worker (id, beat) VALUES (:id, 1) ON CONFLICT (id) DO UPDATE SET beat = beat + 1",
        {"id": worker},
    )


def stop_beating(worker: str) -> Statement:
    """It works no more."""
    return Statement("DELETE FROM worker WHERE id = :id", {"id": worker})


def beats(source: Source) -> dict[str, int]:
    """By worker: how often it has beaten."""
    return dict(source.query("SELECT id, beat FROM worker"))


def pause_queue(name: str, reason: str, now: float) -> Statement:
    """Nothing is taken from it."""
    return Statement(
        "INSERT INTO queue (name, paused, reason, at) VALUES (:name, 1, :reason, :at)"
        " ON CONFLICT (name) DO UPDATE SET paused = 1, reason = :reason, at = :at",
        {"name": name, "reason": reason, "at": now},
    )


def resume_queue(name: str) -> Statement:
    """Things are taken from it again."""
    return Statement("DELETE FROM queue WHERE name = :name", {"name": name})


def paused_queues(source: Source) -> dict[str, str]:
    """By name: why."""
    return dict(source.query("SELECT name, reason FROM queue WHERE paused"))


def queue_facts(source: Source, now: float) -> list[dict[str, Any]]:
    """For each queue that has unfinished runs: how many are ready, running, waiting, in error."""
    names = ("queue", "ready", "running", "waiting", "error", "oldest_ready_s")
    rows = source.query(
        "SELECT queue, sum(owner = '' AND coalesce(due_at <= :now, 0)), sum(owner <> ''),"
        " sum(owner = '' AND state IN ('running', 'waiting') AND NOT coalesce(due_at <= :now, 0)),"
        " sum(state = 'error'),"
        " :now - min(CASE WHEN owner = '' AND due_at <= :now THEN max(due_at, updated_at) END)"
        " FROM run WHERE state IN ('running', 'waiting', 'error', 'paused') GROUP BY queue ORDER BY queue",
        {"now": now},
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def find_dedup(source: Source, queue: str, dedup: str) -> str | None:
    """The unfinished run of a queue that has this deduplication key."""
    rows = source.query(
        "SELECT id FROM run WHERE queue = ? AND dedup = ? AND state NOT IN ('completed', 'cancelled')",
        (queue, dedup),
    )
    return rows[0][0] if rows else None


def ahead_in_lane(source: Source, run: Run) -> list[str]:
    """The runs of its lane that go before it."""
    rows = source.query(
        "SELECT id FROM run WHERE queue = :queue AND lane = :lane AND state IN ('running', 'waiting')"
        " AND ordinal < (SELECT ordinal FROM run WHERE id = :id) ORDER BY ordinal",
        {"queue": run.queue, "lane": run.lane, "id": run.id},
    )
    return [row[0] for row in rows]


def queues_shown(source: Source, now: float) -> list[dict[str, Any]]:
    """All queues that runs were taken from, that have some, or that are paused, with why."""
    paused = paused_queues(source)
    facts = queue_facts(source, now)
    known = {fact["queue"] for fact in facts}
    measured = meters(source, ("wait_s", "run_s", "lock_failures"))
    idle = {*paused, *(subject for subject, _ in measured if subject)} - known
    empty = {"ready": 0, "running": 0, "waiting": 0, "error": 0, "oldest_ready_s": None}
    facts += [{"queue": name, **empty} for name in sorted(idle)]
    return [
        {
            **fact, **_measured(fact["queue"], measured),
            "paused": fact["queue"] in paused, "reason": paused.get(fact["queue"], ""),
        }
        for fact in facts
    ]  # fmt: skip


def _measured(queue: str, measured: dict[tuple[str, str], Meter]) -> dict[str, Any]:
    """Since the store was made: how long runs waited until they were taken, and were worked on then."""
    facts: dict[str, Any] = {}
    for name in ("wait", "run"):
        meter = measured.get((queue, f"{name}_s"), Meter(queue, name))
        facts |= {f"{name}s": meter.count, f"{name}_mean_s": meter.mean, f"{name}_most_s": meter.most}
    return {**facts, "lock_failures": measured.get((queue, "lock_failures"), Meter(queue, "")).count}


def count_pace(source: Source, subject: str, since: float) -> int:
    """How often something was done since then."""
    return int(source.query("SELECT count(*) FROM pace WHERE queue = ? AND at > ?", (subject, since))[0][0])


def note_pace(subject: str, limits: Sequence[Pace], now: float) -> list[Statement]:
    """It is done once more; conflicts where somebody else was faster and a limit is reached."""
    if not limits:
        return []
    values: dict[str, Any] = {"queue": subject, "now": now}
    conditions = []
    for number, limit in enumerate(limits):
        values |= {f"since{number}": now - limit.per_s, f"count{number}": limit.count}
        conditions.append(
            f"(SELECT count(*) FROM pace WHERE queue = :queue AND at > :since{number}) < :count{number}"  # noqa: S608 - only numbers are put in
        )
    oldest = {"queue": subject, "since": now - max(limit.per_s for limit in limits)}
    return [
        Statement("DELETE FROM pace WHERE queue = :queue AND at <= :since", oldest),
        Statement(f"INSERT INTO pace SELECT :queue, :now WHERE {' AND '.join(conditions)}", values, 1),
    ]
