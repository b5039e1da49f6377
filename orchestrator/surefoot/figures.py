"""What is worth watching, as figures with names and labels: for Prometheus, or whatever else draws them.

All of it comes from the store, so that any process of the workspace tells the same, restarts included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import rows
from .dumping import REPLAYED

LONG_S = 3_600.0
Kind = Literal["gauge", "counter"]


@dataclass
class Figure:
    """One figure, by labels. Seconds and bytes are in the name.

    Attributes:
        name: without a prefix; a counter's without `_total`.
        kind: a counter only grows.
        help: what it says, in one sentence.
        labels: their names.
        values: by the labels' values.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[Any, float] = field(default_factory=dict)


def figures(source: rows.Source, *, dumps: list[str], now: float) -> list[Figure]:
    """All of them, now."""
    parts: tuple[Callable[[], Iterator[Figure]], ...] = (
        lambda: _runs(source, now), lambda: _queues(source, now), lambda: _outbox(source),
        lambda: _approvals(source, now), lambda: _agents(source, now), lambda: _records(source, dumps),
        lambda: _caches(source, now),
    )  # fmt: skip
    return [figure for part in parts for figure in part()]


def _runs(source: rows.Source, now: float) -> Iterator[Figure]:
    runs = rows.runs_by_state(source)
    yield Figure(
        "runs", "gauge", "Runs in each state.", ("workflow", "state"),
        {(flow, state): float(count) for flow, state, count in runs},
    )  # fmt: skip
    yield Figure(
        "runs_long_at_work", "gauge", "Runs whose step is due or being worked on for over an hour.", (),
        {(): float(rows.runs_at_work_since(source, now - LONG_S))},
    )  # fmt: skip
    attempts = rows.attempts_by_outcome(source)
    labels = ("workflow", "step", "outcome")
    yield Figure(
        "attempts", "counter", "Tries at steps; all outcomes but committed changed nothing (rollbacks).",
        labels, {(flow, step, outcome): float(count) for flow, step, outcome, count, _ in attempts},
    )  # fmt: skip
    yield Figure(
        "attempts_seconds", "counter", "What these tries took together, in seconds.", labels,
        {(flow, step, outcome): took_s for flow, step, outcome, _, took_s in attempts},
    )  # fmt: skip


def _queues(source: rows.Source, now: float) -> Iterator[Figure]:
    shown = rows.queues_shown(source, now)
    states = ("ready", "running", "waiting", "error")
    yield Figure(
        "queue_runs", "gauge", "Runs of each queue: ready is its depth.", ("queue", "state"),
        {(q["queue"], state): float(q[state]) for q in shown for state in states},
    )  # fmt: skip
    gauges = {
        "queue_oldest_ready_seconds": ("oldest_ready_s", "Age of the oldest run that waits for a worker."),
        "queue_paused": ("paused", "1 where nothing is taken from the queue."),
    }
    for name, (key, text) in gauges.items():
        values = {(q["queue"],): float(q[key] or 0) for q in shown}
        yield Figure(name, "gauge", text, ("queue",), values)
    measured = rows.meters(source, ("wait_s", "run_s", "lock_failures"))
    for meter, name, text in (
        ("wait_s", "queue_wait_seconds", "What runs waited until they were taken, in seconds together."),
        ("run_s", "queue_run_seconds", "What runs were worked on, in seconds together."),
        ("lock_failures", "lock_failures", "Named locks that a step did not get."),
    ):
        found = {(subject,): m.total for (subject, of), m in measured.items() if of == meter}
        yield Figure(name, "counter", text, ("queue",), found)
    taken = {(subject,): float(m.count) for (subject, of), m in measured.items() if of == "wait_s"}
    yield Figure("queue_taken", "counter", "Runs that were taken from the queue.", ("queue",), taken)


def _outbox(source: rows.Source) -> Iterator[Figure]:
    counts = rows.outbox_figures(source)
    values = {(s,): float(counts.get(s, 0)) for s in ("pending", "delivered", "dead", "withdrawn")}
    yield Figure("messages", "gauge", "Messages to others; dead ones were set aside.", ("state",), values)
    yield Figure(
        "transactions_unapplied", "gauge", "Committed transactions whose files are not all in place.", (),
        {(): float(len(rows.blocked_transactions(source)))},
    )  # fmt: skip


def _approvals(source: rows.Source, now: float) -> Iterator[Figure]:
    found = rows.approval_figures(source)
    states = {"open": 0, **found["states"]}
    yield Figure(
        "approvals", "gauge", "Requests for approval in each state; open ones wait for people.", ("state",),
        {(state,): float(count) for state, count in states.items()},
    )  # fmt: skip
    oldest = found["oldest_open_at"]
    yield Figure(
        "approval_oldest_open_seconds", "gauge", "Age of the oldest request that waits for people.", (),
        {(): 0.0 if oldest is None else max(0.0, now - oldest)},
    )  # fmt: skip
    size = {(): float(found["size_bytes"])}
    yield Figure("approvals_size_bytes", "gauge", "Room that stored approvals take.", (), size)


def _agents(source: rows.Source, now: float) -> Iterator[Figure]:
    yield Figure(
        "agents", "gauge", "Attempts of agents: by outcome, or by state while they are not over.",
        ("kind", "state"),
        {(kind, word): float(count) for kind, word, count in rows.agents_by_state(source)},
    )  # fmt: skip
    working = rows.working_agents(source, now)
    yield Figure(
        "agent_polling_errors", "gauge", "Looks at one agent that failed, one after another: at most 5.", (),
        {(): float(working["errors"])},
    )  # fmt: skip
    yield Figure(
        "agent_oldest_seconds", "gauge", "How long the oldest agent that is not over has been running.", (),
        {(): working["oldest_s"]},
    )  # fmt: skip


def _records(source: rows.Source, dumps: list[str]) -> Iterator[Figure]:
    totals = dict.fromkeys(rows.COUNTERS, 0.0)
    for session in rows.sessions(source):
        for name in totals:
            totals[name] += session["counts"].get(name, 0)
    yield Figure(
        "records", "counter", "Records that were written behind: what became of them, of all sessions.",
        ("result",), {(name,): count for name, count in totals.items()},
    )  # fmt: skip
    waiting = {(): float(sum(not name.endswith(REPLAYED) for name in dumps))}
    yield Figure("dumps_waiting", "gauge", "Dumps of records that nobody has replayed yet.", (), waiting)


def _caches(source: rows.Source, now: float) -> Iterator[Figure]:
    names = ("fresh", "loaded", "source_failed", "stale_used", "nothing")
    yield Figure(
        "cache_reads", "counter", "Reads of slow sources; stale_used had to stand in, fresh come late.",
        ("cache", "result"),
        {(cache, name): float(m.count) for (cache, name), m in rows.meters(source, names).items()},
    )  # fmt: skip
    ages: dict[tuple[str, ...], float] = {}
    for one in rows.list_cached(source, now):
        ages[one["cache"],] = max(ages.get((one["cache"],), 0.0), one["age_s"])
    text = "Age of the oldest answer that is kept of each source."
    yield Figure("cache_age_seconds", "gauge", text, ("cache",), ages)
