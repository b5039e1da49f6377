"""Runs and their open visits: how a change of a run becomes rows, and questions about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from surefoot.errors import UnknownRun
from surefoot.model import Failure, Run, RunState, Visit, VisitState
from surefoot_storage import Statement

from .source import Source

_RUN = (
    "id", "workflow", "input", "directory", "state", "step", "position", "failures", "interruptions",
    "next_at",
    "revision", "created_at", "updated_at", "last_step", "failure", "source", "status", "owner", "epoch",
    "visits",
    "due_at", "paused", "laps", "version", "queue", "priority", "lane", "dedup", "deadline_at", "parent",
    "parent_visit",
)  # fmt: skip
_CHANGING = (
    "state", "step", "position", "failures", "interruptions", "next_at", "revision", "updated_at",
    "last_step",
    "failure", "status", "visits", "due_at", "paused", "laps", "deadline_at",
)  # fmt: skip
_VISIT = (
    "number", "step", "state", "due_at", "failures", "interruptions", "failure", "wait", "topic", "payload",
    "item", "idx", "grp", "deadline_at", "joins", "opened",
)  # fmt: skip
_COLUMNS = ", ".join(_RUN)
_VISIT_COLUMNS = ", ".join(_VISIT)
_VISIT_MARKS = ", ".join(f":{name}" for name in _VISIT)
_INSERT_VISIT = f"INSERT INTO visit (run_id, {_VISIT_COLUMNS}) VALUES (:run_id, {_VISIT_MARKS})"  # noqa: S608 - only constants are put in
MANY = 8  # visits that come or go together; more are one statement

# --- changes ---


def _failure_json(failure: Failure | None) -> str | None:
    return json.dumps(asdict(failure)) if failure else None


def _run_values(run: Run) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in _RUN}
    values["state"] = run.state.value
    values["failure"] = _failure_json(run.failure)
    return values


def _visit_values(visit: Visit) -> dict[str, Any]:
    return {
        **{name: getattr(visit, name, None) for name in _VISIT},
        "state": visit.state.value,
        "failure": _failure_json(visit.failure),
        "idx": visit.index,
        "grp": visit.group,
    }


def insert_run(run: Run) -> list[Statement]:
    """A run that did not exist, with its first visits."""
    marks = ", ".join(f":{name}" for name in _RUN)
    insert = f"INSERT INTO run ({_COLUMNS}, ordinal) SELECT {marks}, coalesce(max(ordinal), 0) + 1 FROM run"  # noqa: S608 - only constants are put in
    return [Statement(insert, _run_values(run), 1), *_open_visits(run.id, run.open)]


_UPDATE = (
    f"UPDATE run SET {', '.join(f'{name} = :{name}' for name in _CHANGING)},"  # noqa: S608 - only constants are put in
    " owner = CASE WHEN :state = 'running' THEN owner ELSE '' END"
    " WHERE id = :id AND revision = :revision - 1 AND epoch = :epoch"
)


def save(before: Run, after: Run, outcome: str | None = None) -> list[Statement]:
    """The run's next status and what became of its visits.

    Conflicts unless its row is exactly one revision behind, and nobody else has taken it meanwhile.
    `outcome` is of the visits that are over.
    """
    values = {name: getattr(after, name) for name in _CHANGING}
    values |= {
        "id": after.id, "epoch": after.epoch, "state": after.state.value,
        "failure": _failure_json(after.failure),
    }  # fmt: skip
    statements = [Statement(_UPDATE, values, 1), *_save_visits(before, after, outcome)]
    if after.parent is not None and (after.state.is_over or after.state is RunState.ERROR):
        statements += wake(after.parent)
    return statements


def _save_visits(before: Run, after: Run, outcome: str | None) -> list[Statement]:
    old = {visit.number: visit for visit in before.open}
    new = {visit.number: visit for visit in after.open}
    gone = [number for number in old if number not in new]
    opened = [visit for number, visit in new.items() if number not in old]
    changed = [visit for number, visit in new.items() if number in old and old[number] is not visit]
    statements = _close_visits(after, gone, outcome)
    statements += _open_visits(after.id, opened)
    statements += [_change_visit(after.id, visit) for visit in changed]
    if any(visit.state is VisitState.PARKED for visit in after.open):
        statements += wake(after.id)
    return statements


def _close_visits(run: Run, numbers: Sequence[int], outcome: str | None) -> list[Statement]:
    values = {"run_id": run.id, "revision": run.revision, "outcome": outcome}
    if len(numbers) <= MANY:
        return [
            Statement(
                "UPDATE visit SET closed = :revision, outcome = :outcome"
                " WHERE run_id = :run_id AND number = :number AND closed IS NULL",
                {**values, "number": number},
                1,
            )
            for number in numbers
        ]
    return [
        Statement(
            "UPDATE visit SET closed = :revision, outcome = :outcome WHERE run_id = :run_id"
            " AND closed IS NULL AND number IN (SELECT value FROM json_each(:numbers))",
            {**values, "numbers": json.dumps(list(numbers))},
            len(numbers),
        )
    ]


def _open_visits(run_id: str, visits: Sequence[Visit]) -> list[Statement]:
    if len(visits) <= MANY:
        return [Statement(_INSERT_VISIT, {"run_id": run_id, **_visit_values(visit)}, 1) for visit in visits]
    fields = ", ".join(f"value ->> '$.{name}'" for name in _VISIT)  # true becomes 1
    sql = f"INSERT INTO visit (run_id, {_VISIT_COLUMNS}) SELECT :run_id, {fields} FROM json_each(:visits)"  # noqa: S608 - only constants are put in
    packed = json.dumps([_visit_values(visit) for visit in visits])
    return [Statement(sql, {"run_id": run_id, "visits": packed}, len(visits))]


def _change_visit(run_id: str, visit: Visit) -> Statement:
    return Statement(
        "UPDATE visit SET state = :state, due_at = :due_at, failures = :failures, payload = :payload,"
        " interruptions = :interruptions, failure = :failure, wait = :wait,"
        " deadline_at = :deadline_at"
        " WHERE run_id = :run_id AND number = :number AND closed IS NULL",
        {"run_id": run_id, **_visit_values(visit)},
        1,
    )


def wake(run_id: str) -> list[Statement]:
    """What a run's parked visits wait for may be there: decided inside the commit, so that nothing is missed.

    Everything that can end a wait adds these to its own commit, and so does the commit that parks.
    """
    values = {"run_id": run_id}
    return [
        Statement(
            "UPDATE visit SET due_at = 0 WHERE run_id = :run_id AND closed IS NULL AND state = 'parked'"
            " AND topic IS NOT NULL AND EXISTS (SELECT 1 FROM message AS m WHERE m.run_id = :run_id"
            " AND m.topic = visit.topic AND m.visit IS NULL AND m.refused IS NULL)",
            values,
        ),
        Statement(
            "UPDATE visit SET due_at = 0 WHERE run_id = :run_id AND closed IS NULL AND state = 'parked'"
            " AND wait ->> '$.kind' = 'runs' AND (NOT EXISTS (SELECT 1 FROM run AS c WHERE c.parent = :run_id"
            " AND c.parent_visit = visit.wait ->> '$.of' AND c.state NOT IN ('completed', 'cancelled'))"
            " OR (wait ->> '$.errors' AND EXISTS (SELECT 1 FROM run AS c WHERE c.parent = :run_id"
            " AND c.parent_visit = visit.wait ->> '$.of' AND c.state = 'error')))",
            values,
        ),
        Statement(
            "UPDATE visit SET due_at = 0 WHERE run_id = :run_id AND closed IS NULL AND state = 'parked'"
            " AND wait ->> '$.kind' = 'approval' AND EXISTS (SELECT 1 FROM approval AS a"
            " WHERE a.run_id = :run_id AND a.visit = visit.number AND NOT a.consumed"
            " AND a.state IN ('approved', 'rejected', 'expired', 'changed'))",
            values,
        ),
        Statement(
            "UPDATE visit SET due_at = 0 WHERE run_id = :run_id AND closed IS NULL AND state = 'parked'"
            " AND wait ->> '$.kind' = 'agent' AND (SELECT state FROM agent AS a WHERE a.run_id = :run_id"
            " AND a.visit = visit.number ORDER BY attempt DESC LIMIT 1) = 'over'",
            values,
        ),
        Statement(
            "UPDATE run SET due_at = 0 WHERE id = :run_id AND state IN ('running', 'waiting') AND EXISTS"
            " (SELECT 1 FROM visit WHERE run_id = :run_id AND closed IS NULL AND state = 'parked'"
            " AND due_at = 0)",
            values,
        ),
    ]


def wake_visit(run_id: str, number: int) -> list[Statement]:
    """One parked visit is to look again."""
    due = Statement(
        "UPDATE visit SET due_at = 0 WHERE run_id = :run_id AND number = :number AND closed IS NULL"
        " AND state = 'parked'",
        {"run_id": run_id, "number": number},
    )
    return [due, *wake(run_id)]


def keep_waiting(run: Run, visit: Visit) -> list[Statement]:
    """A parked visit was woken for nothing."""
    due_at = Statement("UPDATE run SET due_at = :due_at WHERE id = :id", {"id": run.id, "due_at": run.due_at})
    return [_change_visit(run.id, visit), due_at, *wake(run.id)]


def claim_run(run: Run, worker: str) -> Statement:
    """This worker moves the run on; conflicts where somebody else was faster. See `claimed`."""
    return Statement(
        "UPDATE run SET owner = :worker, epoch = :after WHERE id = :id AND revision = :revision"
        " AND epoch = :epoch AND owner IN (:seen, '')",
        {
            "worker": worker, "id": run.id, "revision": run.revision, "seen": run.owner,
            "epoch": run.epoch, "after": claimed(run, worker).epoch,
        },
        1,
    )  # fmt: skip


def claimed(run: Run, worker: str) -> Run:
    """The run as its claim leaves it: each time that it changes hands has a number of its own."""
    return replace(run, owner=worker, epoch=run.epoch + (run.owner != worker))


def release_run(worker: str, run_id: str) -> Statement:
    """The worker moves this run on no more: others may."""
    return Statement(
        "UPDATE run SET owner = '' WHERE owner = :worker AND id = :run_id",
        {"worker": worker, "run_id": run_id},
    )


def count_interruption(run: Run, number: int) -> list[Statement]:
    """Of the visit that was worked on; the status stays as it is."""
    visit = run.visit(number)
    values = {"id": run.id, "number": number, "count": visit.interruptions if visit else 0}
    return [
        Statement("UPDATE run SET interruptions = :count WHERE id = :id", values, 1),
        Statement("UPDATE visit SET interruptions = :count WHERE run_id = :id AND number = :number", values),
    ]


# --- questions ---


def _run(row: Sequence[Any], visits: tuple[Visit, ...] = ()) -> Run:
    values = dict(zip(_RUN, row, strict=True))
    values["state"] = RunState(values["state"])
    values["failure"] = Failure(**json.loads(values["failure"])) if values["failure"] else None
    values["paused"] = bool(values["paused"])
    return Run(**values, open=visits)


def _visit(row: Sequence[Any]) -> Visit:
    values = dict(zip(_VISIT, row, strict=True))
    values["state"] = VisitState(values["state"])
    values["failure"] = Failure(**json.loads(values["failure"])) if values["failure"] else None
    values["joins"] = bool(values["joins"])
    values["index"], values["group"] = values.pop("idx"), values.pop("grp")
    return Visit(**values)


def visits_at(source: Source, run_id: str, revision: int) -> list[Visit] | None:
    """What was open when the run had that revision; None where that was before visits were kept."""
    first = source.query("SELECT min(opened) FROM visit WHERE run_id = ?", (run_id,))[0][0]
    if first is None or first > revision:
        return None
    rows = source.query(
        f"SELECT {_VISIT_COLUMNS} FROM visit WHERE run_id = :run_id AND opened <= :revision"  # noqa: S608 - only constants are put in
        " AND (closed IS NULL OR closed > :revision) ORDER BY number",
        {"run_id": run_id, "revision": revision},
    )
    return [_visit(row) for row in rows]


def visits_of(source: Source, run_id: str) -> list[dict[str, Any]]:
    """Every visit that a run ever had, in order."""
    names = (*_VISIT, "closed", "outcome")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM visit WHERE run_id = ? ORDER BY number",  # noqa: S608 - only constants are put in
        (run_id,),
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def find_run(source: Source, run_id: str) -> Run | None:
    """The run with its open visits, None where there is none. One question: of one moment."""
    rows = source.query(
        f"SELECT {_COLUMNS}, (SELECT json_group_array(json_array({_VISIT_COLUMNS})) FROM"  # noqa: S608 - only constants are put in
        " (SELECT * FROM visit WHERE run_id = run.id AND closed IS NULL ORDER BY number))"
        " FROM run WHERE id = ?",
        (run_id,),
    )
    if not rows:
        return None
    *columns, visits = rows[0]
    return _run(columns, tuple(_visit(row) for row in json.loads(visits)))


def get_run(source: Source, run_id: str) -> Run:
    """The run with its open visits.

    Raises:
        UnknownRun: there is none.
    """
    run = find_run(source, run_id)
    if run is None:
        known = [row[0] for row in source.query("SELECT id FROM run ORDER BY ordinal DESC LIMIT 5")]
        raise UnknownRun(
            "find run",
            run_id,
            expected="a run of this workspace",
            found=f"none; the latest are {', '.join(known)}" if known else "none; there are no runs yet",
            hint="surefoot list shows them all",
        )
    return run


def list_runs(
    source: Source,
    *,
    states: Sequence[str] = (),
    workflow: str | None = None,
    queue: str | None = None,
    limit: int = -1,
) -> list[Run]:
    """Runs without their visits, the latest change first.

    State by state, because each of them lies in order in an index: however many others there are, a page
    costs what it holds.
    """
    values = {"workflow": workflow, "queue": queue, "limit": limit}
    more = "".join(f" AND {name} = :{name}" for name in ("workflow", "queue") if values[name] is not None)
    wanted = [RunState(state).value for state in dict.fromkeys(states or RunState)]
    pages = " UNION ALL ".join(
        f"SELECT * FROM (SELECT id FROM run WHERE state = '{state}'{more}"  # noqa: S608 - only constants are put in
        " ORDER BY updated_at DESC, id LIMIT :limit)"
        for state in wanted
    )
    rows = source.query(
        f"SELECT {_COLUMNS} FROM run WHERE id IN ({pages}) ORDER BY updated_at DESC, id LIMIT :limit",  # noqa: S608 - only constants are put in
        values,
    )
    return [_run(row) for row in rows]


def count_runs(source: Source) -> dict[str, int]:
    """How many there are in each state."""
    return dict(source.query("SELECT state, count(*) FROM run GROUP BY state"))


def unqueued_runs(source: Source) -> list[str]:
    """Ids of runs in no queue that go on by themselves, and that nobody moves on."""
    rows = source.query(
        "SELECT id FROM run WHERE due_at IS NOT NULL AND queue = '' AND owner = '' ORDER BY ordinal"
    )
    return [row[0] for row in rows]


def unknown_workflows(source: Source, known: Sequence[tuple[str, str | None]]) -> list[tuple[str, int]]:
    """(workflow, runs that are not over) of those that are not known here, or not in this version."""
    return source.query(
        "SELECT workflow, count(*) FROM run WHERE state IN ('running', 'waiting', 'error', 'paused')"
        " AND NOT EXISTS (SELECT 1 FROM json_each(?) AS k WHERE k.value ->> 0 = workflow"
        " AND (k.value ->> 1 IS NULL OR k.value ->> 1 = version)) GROUP BY workflow",
        (json.dumps(known),),
    )


def runs_in(source: Source, directory: str) -> list[str]:
    """Ids of unfinished runs that use a directory."""
    rows = source.query(
        "SELECT id FROM run WHERE directory = ? AND state NOT IN ('completed', 'cancelled')", (directory,)
    )
    return [row[0] for row in rows]


def children_of(source: Source, run_id: str, visit: int | None = None) -> list[dict[str, Any]]:
    """The runs that a run has started, or that one visit of it has."""
    names = ("id", "workflow", "state", "step", "directory")
    rows = source.query(
        f"SELECT {', '.join(names)} FROM run WHERE parent = :run_id"  # noqa: S608 - only constants are put in
        " AND (:visit IS NULL OR parent_visit = :visit) ORDER BY created_at, id",
        {"run_id": run_id, "visit": visit},
    )
    return [dict(zip(names, row, strict=True)) for row in rows]
