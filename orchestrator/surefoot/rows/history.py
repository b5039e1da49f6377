"""History: the audit log, attempts, and what people are shown of transactions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from surefoot.model import Failure, Run, Visit
from surefoot_storage import Statement

from .source import Source

_EVENT_FIELDS = ("txid", "seq", "event", "step", "undoes", "status", "visit")


def append_audit(
    run: Run,
    event: str,
    *,
    step: str | None,
    visit: int | None = None,
    outcome: str | None = None,
    failure: Failure | None = None,
    undoes: Sequence[str] = (),
    notes: str | None = None,
) -> Statement:
    """One line of history, of the transaction that it is committed with."""
    return Statement(
        "INSERT INTO audit (run_id, revision, at, event, step, txid, seq, failure, status, undoes, visit,"
        " outcome, notes) VALUES (:run_id, :revision, :updated_at, :event, :step, :txid, :seq, :failure,"
        " :status, :undoes, :visit, :outcome, :notes)",
        {
            "run_id": run.id,
            "revision": run.revision,
            "updated_at": run.updated_at,
            "event": event,
            "step": step,
            "failure": json.dumps(asdict(failure)) if failure else None,
            "status": run.status,
            "undoes": " ".join(undoes),
            "visit": visit,
            "outcome": outcome,
            "notes": notes,
        },
        1,
    )


def start_attempt(run: Run, visit: Visit, at: float) -> Statement:
    """Before the body runs; conflicts where another worker has taken the run meanwhile."""
    return Statement(
        "INSERT INTO attempt (run_id, visit, number, step, started_at) SELECT :run_id, :visit,"
        " (SELECT coalesce(max(number), 0) + 1 FROM attempt WHERE run_id = :run_id AND visit = :visit),"
        " :step, :started_at FROM run WHERE id = :run_id AND epoch = :epoch",
        {
            "run_id": run.id, "visit": visit.number, "step": visit.step, "started_at": at, "epoch": run.epoch,
        },
        1,
    )  # fmt: skip


def end_attempts(
    run_id: str, outcome: str, at: float, failure: Failure | None = None, *, visit: int | None = None
) -> Statement:
    """Whatever is open of this run, or of one visit, has ended like this."""
    one = "" if visit is None else " AND visit = :visit"
    return Statement(
        "UPDATE attempt SET ended_at = :ended_at, outcome = :outcome, failure = :failure"  # noqa: S608 - only constants are put in
        f" WHERE run_id = :run_id AND (ended_at IS NULL OR outcome = 'unrecorded'){one}",
        {
            "run_id": run_id,
            "outcome": outcome,
            "ended_at": at,
            "failure": json.dumps(asdict(failure)) if failure else None,
            "visit": visit,
        },
    )


def open_attempts(source: Source, run_id: str | None = None) -> list[tuple[str, int]]:
    """(run id, visit) of attempts that never ended."""
    one = "" if run_id is None else " AND run_id = :run_id"
    return source.query(
        f"SELECT DISTINCT run_id, visit FROM attempt WHERE ended_at IS NULL{one}",  # noqa: S608 - only constants are put in
        {"run_id": run_id},
    )


def unrecorded_failures(source: Source) -> list[tuple[str, int, Failure]]:
    """(run id, visit, failure) of attempts whose failure could not be written into the run at once."""
    rows = source.query("SELECT run_id, visit, failure FROM attempt WHERE outcome = 'unrecorded'")
    return [(run_id, visit, Failure(**json.loads(failure))) for run_id, visit, failure in rows]


def audit_log(source: Source, run_id: str | None = None) -> list[dict[str, Any]]:
    """History, oldest first."""
    names = (
        "at", "run_id", "revision", "event", "step", "txid", "seq", "failure", "status", "undoes", "visit",
        "outcome", "notes",
    )  # fmt: skip
    rows = source.query(
        f"SELECT {', '.join(names)} FROM audit WHERE :run_id IS NULL OR run_id = :run_id ORDER BY id",  # noqa: S608 - only constants are put in
        {"run_id": run_id},
    )
    entries = [dict(zip(names, row, strict=True)) for row in rows]
    for entry in entries:
        entry["failure"] = json.loads(entry["failure"]) if entry["failure"] else None
        entry["status"] = json.loads(entry["status"])
        entry["undoes"] = entry["undoes"].split()
        entry["notes"] = json.loads(entry["notes"] or "[]")
    return entries


def seq_before(source: Source, run_id: str, step: str) -> int | None:
    """The transaction with which the last visit of a step was due; None where the run never came to it."""
    rows = source.query(
        "SELECT max(seq) FROM audit WHERE run_id = :run_id AND revision ="
        " (SELECT max(opened) FROM visit WHERE run_id = :run_id AND step = :step AND wait IS NULL"
        " AND item IS NULL)",
        {"run_id": run_id, "step": step},
    )
    return rows[0][0]  # type: ignore[no-any-return]


def events_of(source: Source, run_id: str) -> list[dict[str, Any]]:
    """The lines of a run's history that belong to a transaction, oldest first."""
    return [
        {name: tuple(line[name]) if name == "undoes" else line[name] for name in _EVENT_FIELDS}
        for line in audit_log(source, run_id)
        if line["txid"]
    ]


def changed_files(source: Source, run_id: str) -> dict[int, list[str]]:
    """What each transaction of a run did to files: by sequence, `+ new`, `~ changed`, `- gone`."""
    rows = source.query(
        "SELECT seq, path, old_kind, new_kind FROM file_op"
        " WHERE seq IN (SELECT seq FROM audit WHERE run_id = ?) ORDER BY seq, idx",
        (run_id,),
    )
    found: dict[int, list[str]] = {}
    for seq, path, old, new in rows:
        mark = "+" if old == "absent" else "-" if new == "absent" else "~"
        found.setdefault(seq, []).append(f"{mark} {path.decode(errors='surrogateescape')}")
    return found


def attempts_of(source: Source, run_id: str) -> list[dict[str, Any]]:
    """Every try at every step, oldest first."""
    names = ("visit", "number", "step", "started_at", "ended_at", "outcome")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM attempt WHERE run_id = ? ORDER BY visit, number",  # noqa: S608 - only constants are put in
        (run_id,),
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def foreign_edits(source: Source) -> list[dict[str, Any]]:
    """Edits by others that met a commit, and where they are kept."""
    names = ("seq", "path", "kept_as", "found", "at")
    rows = source.query(f"SELECT {', '.join(names)} FROM foreign_edit ORDER BY id")  # noqa: S608 - only constants are put in
    return [
        {**dict(zip(names, row, strict=True)), "path": row[1].decode(errors="surrogateescape")}
        for row in rows
    ]


def blocked_transactions(source: Source) -> list[dict[str, Any]]:
    """Committed transactions whose files are not all in place."""
    rows = source.query("SELECT seq, txid, label, cause FROM txn WHERE status = 4 ORDER BY seq")
    return [dict(zip(("seq", "txid", "label", "cause"), row, strict=True)) for row in rows]


def transaction_facts(source: Source, count: int) -> list[dict[str, Any]]:
    """The latest transactions, newest first: how large, how durable, whether in place; no names of files."""
    names = ("seq", "batch", "status", "owner", "level", "at", "files", "size_bytes")
    rows = source.query(
        "SELECT seq, batch, status, owner, level, at, count(idx), coalesce(sum(new_size), 0)"
        " FROM txn LEFT JOIN file_op USING (seq) GROUP BY seq ORDER BY seq DESC LIMIT ?",
        (count,),
    )
    return [dict(zip(names, row, strict=True)) for row in rows]
