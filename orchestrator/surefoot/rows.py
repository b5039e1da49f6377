"""The engine's tables. The only module of the engine that speaks SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from surefoot_storage import Statement

from .errors import UnknownRun
from .model import Failure, Run, RunState

_EVENT_FIELDS = ("txid", "seq", "event", "step", "undoes", "status")
_RUN_COLUMNS = (
    "id, workflow, input, directory, state, step, position, failures, interruptions, next_at, revision,"
    " created_at, updated_at, last_step, failure, source, status, owner"
)


class Source(Protocol):
    """Anything that answers a SELECT: an open workspace, or a read-only view of one."""

    def query(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows."""


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


# --- changes ---


def _run_values(run: Run) -> dict[str, Any]:
    values = dict(vars(run))  # flat: copying it deep would cost more than the statement
    values["state"] = run.state.value
    values["failure"] = json.dumps(asdict(run.failure)) if run.failure else None
    return values


def insert_run(run: Run) -> Statement:
    """A run that did not exist."""
    names = _RUN_COLUMNS.split(", ")
    marks = ", ".join(f":{name.strip()}" for name in names)
    return Statement(f"INSERT INTO run ({_RUN_COLUMNS}) VALUES ({marks})", _run_values(run), 1)  # noqa: S608 - only constants are put in


def update_run(run: Run) -> Statement:
    """The run's next status; conflicts unless its row is exactly one revision behind."""
    return Statement(
        "UPDATE run SET state = :state, step = :step, position = :position, failures = :failures,"
        " interruptions = :interruptions, next_at = :next_at, revision = :revision, updated_at = :updated_at,"
        " last_step = :last_step, failure = :failure, status = :status,"
        " owner = CASE WHEN :state = 'running' THEN owner ELSE '' END"
        " WHERE id = :id AND revision = :revision - 1",
        _run_values(run),
        1,
    )


def claim_run(run: Run, worker: str) -> Statement:
    """This worker moves the run on; conflicts where somebody else was faster."""
    return Statement(
        "UPDATE run SET owner = :worker WHERE id = :id AND revision = :revision"
        " AND owner IN (:seen, :worker)",
        {"worker": worker, "id": run.id, "revision": run.revision, "seen": run.owner},
        1,
    )


def release_run(worker: str, run_id: str) -> Statement:
    """The worker moves this run on no more: others may."""
    return Statement(
        "UPDATE run SET owner = '' WHERE owner = :worker AND id = :run_id",
        {"worker": worker, "run_id": run_id},
    )


def claim_effect(message: Message, worker: str) -> Statement:
    """This worker delivers the message; conflicts where somebody else was faster."""
    return Statement(
        "UPDATE outbox SET owner = :worker WHERE id = :id AND state = 'pending'"
        " AND attempts = :attempts AND owner = :seen",
        {"worker": worker, "id": message.id, "attempts": message.attempts, "seen": message.owner},
        1,
    )


def count_interruption(run: Run) -> Statement:
    """Of the step that is due; the status stays as it is."""
    return Statement(
        "UPDATE run SET interruptions = :count WHERE id = :id", {"id": run.id, "count": run.interruptions}, 1
    )


def append_audit(
    run: Run, event: str, *, step: str | None, committed: bool, undoes: Sequence[str] = ()
) -> Statement:
    """One line of history."""
    return Statement(
        "INSERT INTO audit (run_id, revision, at, event, step, txid, seq, failure, status, undoes) VALUES"
        " (:run_id, :revision, :updated_at, :event, :step, "
        + (":txid, :seq" if committed else "NULL, NULL")
        + ", :failure, :status, :undoes)",
        {
            "run_id": run.id,
            "revision": run.revision,
            "updated_at": run.updated_at,
            "event": event,
            "step": step,
            "failure": json.dumps(asdict(run.failure)) if run.failure else None,
            "status": run.status,
            "undoes": " ".join(undoes),
        },
        1,
    )


def start_attempt(run: Run, step: str, at: float) -> Statement:
    """Before the body runs."""
    return Statement(
        "INSERT INTO attempt (run_id, position, number, step, started_at) VALUES (:run_id, :position,"
        " (SELECT coalesce(max(number), 0) + 1 FROM attempt WHERE run_id = :run_id AND position = :position),"
        " :step, :started_at)",
        {"run_id": run.id, "position": run.position + 1, "step": step, "started_at": at},
    )


def end_attempts(run_id: str, outcome: str, at: float, failure: Failure | None = None) -> Statement:
    """Whatever is open of this run has ended like this."""
    return Statement(
        "UPDATE attempt SET ended_at = :ended_at, outcome = :outcome, failure = :failure"
        " WHERE run_id = :run_id AND (ended_at IS NULL OR outcome = 'unrecorded')",
        {
            "run_id": run_id,
            "outcome": outcome,
            "ended_at": at,
            "failure": json.dumps(asdict(failure)) if failure else None,
        },
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


# --- questions ---


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip((name.strip() for name in _RUN_COLUMNS.split(",")), row, strict=True))
    values["state"] = RunState(values["state"])
    values["failure"] = Failure(**json.loads(values["failure"])) if values["failure"] else None
    return Run(**values)


def find_run(source: Source, run_id: str) -> Run | None:
    """The run, None where there is none."""
    rows = source.query(f"SELECT {_RUN_COLUMNS} FROM run WHERE id = ?", (run_id,))  # noqa: S608 - only constants are put in
    return _run(rows[0]) if rows else None


def get_run(source: Source, run_id: str) -> Run:
    """The run.

    Raises:
        UnknownRun: there is none.
    """
    run = find_run(source, run_id)
    if run is None:
        known = [row[0] for row in source.query("SELECT id FROM run ORDER BY updated_at DESC LIMIT 5")]
        raise UnknownRun(
            "find run",
            run_id,
            expected="a run of this workspace",
            found=f"none; the latest are {', '.join(known)}" if known else "none; there are no runs yet",
            hint="surefoot list shows them all",
        )
    return run


def list_runs(source: Source) -> list[Run]:
    """All runs, the latest change first."""
    rows = source.query(f"SELECT {_RUN_COLUMNS} FROM run ORDER BY updated_at DESC, id")  # noqa: S608 - only constants are put in
    return [_run(row) for row in rows]


def due_runs(source: Source) -> list[str]:
    """Ids of runs that go on by themselves."""
    rows = source.query("SELECT id FROM run WHERE state IN ('running', 'waiting') ORDER BY created_at, id")
    return [row[0] for row in rows]


def open_attempts(source: Source, run_id: str | None = None) -> list[str]:
    """Ids of runs with an attempt that never ended."""
    rows = source.query(
        "SELECT DISTINCT run_id FROM attempt WHERE ended_at IS NULL"
        " AND (:run_id IS NULL OR run_id = :run_id)",
        {"run_id": run_id},
    )
    return [row[0] for row in rows]


def unrecorded_failures(source: Source) -> list[tuple[str, Failure]]:
    """(run id, failure) of attempts whose failure could not be written into the run when it happened."""
    rows = source.query("SELECT run_id, failure FROM attempt WHERE outcome = 'unrecorded'")
    return [(run_id, Failure(**json.loads(failure))) for run_id, failure in rows]


def runs_in(source: Source, directory: str) -> list[str]:
    """Ids of unfinished runs that use a directory."""
    rows = source.query(
        "SELECT id FROM run WHERE directory = ? AND state NOT IN ('completed', 'cancelled')", (directory,)
    )
    return [row[0] for row in rows]


def audit_log(source: Source, run_id: str | None = None) -> list[dict[str, Any]]:
    """History, oldest first."""
    names = ("at", "run_id", "revision", "event", "step", "txid", "seq", "failure", "status", "undoes")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM audit WHERE :run_id IS NULL OR run_id = :run_id ORDER BY id",  # noqa: S608 - only constants are put in
        {"run_id": run_id},
    )
    entries = [dict(zip(names, row, strict=True)) for row in rows]
    for entry in entries:
        entry["failure"] = json.loads(entry["failure"]) if entry["failure"] else None
        entry["status"] = json.loads(entry["status"])
        entry["undoes"] = entry["undoes"].split()
    return entries


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
    names = ("position", "number", "step", "started_at", "ended_at", "outcome")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM attempt WHERE run_id = ? ORDER BY position, number",  # noqa: S608 - only constants are put in
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


def next_messages(source: Source, run_id: str | None = None) -> list[Message]:
    """The oldest undelivered effect of each run: later ones wait for it."""
    rows = source.query(
        "SELECT o.id, o.key, o.run_id, run.workflow, o.step, o.effect, o.payload, o.attempts, o.next_at,"
        " o.owner"
        " FROM outbox AS o JOIN run ON run.id = o.run_id WHERE o.id IN"
        " (SELECT min(id) FROM outbox WHERE state = 'pending' GROUP BY run_id)"
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
        "SELECT count(*) FROM outbox WHERE state = :state AND (:run_id IS NULL OR run_id = :run_id)",
        {"state": state, "run_id": run_id},
    )
    return int(rows[0][0])
