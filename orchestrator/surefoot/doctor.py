"""What a person on call wants to know: what is wrong, how one sees it, and which command mends it."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from typing import Any

from surefoot_storage import Checkup, Finding

from . import rows
from .dumping import REPLAYED
from .model import Run, RunState
from .schema import SCHEMA

UNFINISHED = ("running", "waiting", "error", "paused")
LATE_S = 60.0  # a retry or message that is due for longer, with nobody at it


def findings(source: rows.Source, checkup: Checkup, *, now: float, deep: bool = False) -> list[Finding]:
    """Everything that can be seen without a lock; problems first."""
    living = {worker.id for worker in checkup.workers() if worker.pid is not None}
    found = [
        *checkup.findings(deep=deep),
        *(
            finding
            for run in rows.list_runs(source, states=UNFINISHED)
            for finding in _of_run(run, living, now)
        ),
        *_of_effects(source, living, now),
        *_of_records(source, checkup.dumps()),
        *_of_approvals(source),
    ]
    return sorted(found, key=lambda finding: not finding.is_problem)


def _of_run(run: Run, living: set[str], now: float) -> Iterator[Finding]:
    if run.state is RunState.ERROR and run.failure is not None:
        text = f"{run.failure.error}: {run.failure.message} (attempt {run.failure.attempt})"
        yield Finding(
            "run-in-error",
            f"run {run.id} is in error at {run.step}",
            text,
            run.failure.hint or f"surefoot advance {run.id} tries again; surefoot cancel {run.id} ends it",
        )
    if run.state is RunState.PAUSED:
        remedy = f"surefoot advance {run.id} does it again"
        yield Finding(
            "run-paused",
            f"run {run.id} is paused at {run.step}",
            "a transition was undone",
            remedy,
            is_problem=False,
        )
    if run.interruptions:
        text = f"{run.interruptions} time(s) during {run.step}"
        yield Finding(
            "process-died", f"the process died while it worked on run {run.id}", text, is_problem=False
        )
    due_since = run.due_at or run.updated_at
    is_due = run.state.is_due and run.due_at is not None
    if is_due and run.owner not in living and now - due_since > LATE_S:
        text = f"{run.step} is due since {_moment(due_since)}"
        remedy = f"surefoot advance {run.id} --all, or an engine that knows workflow {run.workflow!r}"
        yield Finding("run-abandoned", f"nobody moves run {run.id} on", text, remedy)


def _of_effects(source: rows.Source, living: set[str], now: float) -> Iterator[Finding]:
    dead = rows.count_effects(source, "dead")
    if dead:
        yield Finding(
            "effects-dead",
            f"{dead} message(s) could not be delivered and were set aside",
            "surefoot status RUN names them",
        )
    late = [m for m in rows.next_messages(source) if m.owner not in living and now - m.next_at > LATE_S]
    if late and not living:
        text = ", ".join(message.key for message in late[:5])
        remedy = "they are sent by the next engine that has the workspace open"
        yield Finding(
            "effects-late",
            f"messages of {len(late)} run(s) wait, and no engine is there",
            text,
            remedy,
            is_problem=False,
        )


def _of_records(source: rows.Source, dumps: list[str]) -> Iterator[Finding]:
    waiting = [name for name in dumps if not name.endswith(REPLAYED)]
    if waiting:
        yield Finding(
            "dumps-waiting", f"{len(waiting)} dump(s) of records wait to be replayed", ", ".join(waiting[:5]),
            "surefoot dumps replay --all",
        )  # fmt: skip
    unclean = [session for session in rows.sessions(source) if session["how"] == "unclean"]
    if unclean:
        yield Finding(
            "records-unclean", f"{len(unclean)} session(s) of records did not end cleanly",
            "what was queued then is lost; what was flushed is not", is_problem=False,
        )  # fmt: skip


def _of_approvals(source: rows.Source) -> Iterator[Finding]:
    for damaged in rows.approvals(source)[1]:
        if damaged.reissued:
            continue
        yield Finding(
            "approval-damaged", f"the request for approval {damaged.id} cannot be read", damaged.problem,
            f"surefoot approvals reissue {damaged.id}",
        )  # fmt: skip


def bundle(source: rows.Source, checkup: Checkup, *, version: str, now: float) -> dict[str, Any]:
    """Facts for somebody who cannot log in here. No contents, inputs, messages or names of files.

    Of a failure only its type and place, of a path only a number: what a step said may hold a secret.
    """
    return {
        "at": now,
        "versions": {
            "surefoot": version,
            "schema": SCHEMA.version,
            "python": sys.version.split()[0],
            "system": platform.platform(),
        },
        "findings": [finding.kind for finding in findings(source, checkup, now=now)],
        "facts": checkup.facts(),
        "runs": [_run_facts(run) for run in rows.list_runs(source, limit=1000)],
        "transactions": rows.transaction_facts(source, 500),
        "effects": {s: rows.count_effects(source, s) for s in ("pending", "delivered", "dead", "withdrawn")},
    }


def _run_facts(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "workflow": run.workflow,
        "state": run.state.value,
        "step": run.step,
        "position": run.position,
        "failures": run.failures,
        "interruptions": run.interruptions,
        "error": run.failure.error if run.failure else None,
        "revision": run.revision,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "next_at": run.next_at,
        "owner": run.owner,
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
