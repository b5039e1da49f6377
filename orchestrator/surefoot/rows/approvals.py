"""Requests for approval: one row each, a row for everybody who is asked, and a history that only grows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from surefoot.approvals import Approval, ApprovalState, Ask, Event, Seat
from surefoot_storage import InputError, Statement

from .source import Source

_APPROVAL = "id, run_id, visit, step, ask, digest, asked_at, expires_at, state, ended_at"
_SEATS = (
    "(SELECT json_group_array(json_array(person, state, token_hash, since, via)) FROM"
    " (SELECT * FROM approval_seat WHERE approval_id = approval.id ORDER BY rowid))"
)
_EVENTS = (
    "(SELECT json_group_array(json_array(at, event, person, by, comment)) FROM"
    " (SELECT * FROM approval_event WHERE approval_id = approval.id ORDER BY id))"
)


@dataclass(frozen=True)
class DamagedApproval:
    """A record that cannot be read."""

    id: str
    run_id: str
    visit: int
    problem: str
    reissued: bool  # another request has taken its place


# --- changes ---


def insert_approval(approval: Approval) -> list[Statement]:
    """A request, and everybody who is asked."""
    values = {
        "id": approval.id, "run_id": approval.run_id, "visit": approval.visit, "step": approval.step,
        "ask": approval.ask.to_json(), "digest": approval.digest, "asked_at": approval.asked_at,
        "expires_at": approval.expires_at, "state": approval.state.value,
    }  # fmt: skip
    return [
        Statement(
            f"INSERT INTO approval ({_APPROVAL}) VALUES (:id, :run_id, :visit, :step, :ask,"  # noqa: S608 - a constant is put in
            " :digest, :asked_at, :expires_at, :state, NULL)",
            values,
            1,
        ),
        *(insert_seat(approval.id, seat) for seat in approval.seats),
        *(append_event(approval.id, event) for event in approval.events),
    ]


def insert_seat(approval_id: str, seat: Seat) -> Statement:
    """Somebody is asked."""
    return Statement(
        "INSERT INTO approval_seat (approval_id, person, state, token_hash, since, via)"
        " VALUES (:approval_id, :person, :state, :token_hash, :since, :via)",
        {"approval_id": approval_id, **vars_of(seat)},
        1,
    )


def vars_of(seat: Seat) -> dict[str, Any]:
    """The columns of a seat."""
    return {
        "person": seat.person, "state": seat.state, "token_hash": seat.token_hash, "since": seat.since,
        "via": seat.via,
    }  # fmt: skip


def change_seat(approval_id: str, person: str, state: str) -> Statement:
    """Its holder has answered, or given it away; conflicts where that has happened already."""
    return Statement(
        "UPDATE approval_seat SET state = :state WHERE approval_id = :id AND person = :person"
        " AND state = 'open'",
        {"id": approval_id, "person": person, "state": state},
        1,
    )


def append_event(approval_id: str, event: Event) -> Statement:
    """One line of its history."""
    return Statement(
        "INSERT INTO approval_event (approval_id, at, event, person, by, comment)"
        " VALUES (:id, :at, :event, :person, :by, :comment)",
        {
            "id": approval_id, "at": event.at, "event": event.event, "person": event.person, "by": event.by,
            "comment": event.comment,
        },
        1,
    )  # fmt: skip


def end_approval(approval_id: str, state: ApprovalState, now: float) -> Statement:
    """It is not open any more; conflicts where it was not."""
    return Statement(
        "UPDATE approval SET state = :state, ended_at = :now WHERE id = :id AND state = 'open'",
        {"id": approval_id, "state": state.value, "now": now},
        1,
    )


def still_open(approval_id: str, events: int) -> Statement:
    """Conflicts where somebody else has answered, or anything else has happened, since it was read."""
    return Statement(
        "UPDATE approval SET state = state WHERE id = :id AND state = 'open'"
        " AND (SELECT count(*) FROM approval_event WHERE approval_id = :id) = :events",
        {"id": approval_id, "events": events},
        1,
    )


def consume_approval(approval_id: str) -> Statement:
    """Its outcome has moved its run on: whoever waits once more asks once more."""
    return Statement("UPDATE approval SET consumed = 1 WHERE id = :id", {"id": approval_id}, 1)


def set_aside(approval_id: str, problem: str, now: float) -> list[Statement]:
    """A record that cannot be read does not stop the others."""
    return [
        Statement(
            "UPDATE approval SET state = 'damaged', ended_at = :now, problem = :problem WHERE id = :id",
            {"id": approval_id, "now": now, "problem": problem},
        ),
        append_event(approval_id, Event(now, "damaged", "", "", problem)),
    ]


def expire_approvals(now: float) -> list[Statement]:
    """Those that nobody has answered in time."""
    values = {"now": now}
    return [
        Statement(
            "UPDATE visit SET due_at = 0 WHERE closed IS NULL AND state = 'parked' AND (run_id, number) IN"
            " (SELECT run_id, visit FROM approval WHERE state = 'open' AND expires_at <= :now)",
            values,
        ),
        Statement(
            "INSERT INTO approval_event (approval_id, at, event, person, by, comment)"
            " SELECT id, :now, 'expired', '', '', '' FROM approval"
            " WHERE state = 'open' AND expires_at <= :now",
            values,
        ),
        Statement(
            "UPDATE approval SET state = 'expired', ended_at = :now"
            " WHERE state = 'open' AND expires_at <= :now",
            values,
        ),
    ]


def forget_approvals(before: float) -> list[Statement]:
    """Those that ended before a moment go, with their history."""
    values = {"before": before}
    return [
        Statement(
            "DELETE FROM approval_event WHERE approval_id IN"
            " (SELECT id FROM approval WHERE ended_at < :before)",
            values,
        ),
        Statement(
            "DELETE FROM approval_seat WHERE approval_id IN"
            " (SELECT id FROM approval WHERE ended_at < :before)",
            values,
        ),
        Statement("DELETE FROM approval WHERE ended_at < :before", values),
    ]


# --- questions ---


def approvals(
    source: Source, *, states: tuple[str, ...] = (), run_id: str | None = None, approval_id: str | None = None
) -> tuple[list[Approval], list[DamagedApproval]]:
    """Requests, the latest first, and those that cannot be read."""
    found: list[Approval] = []
    damaged: list[DamagedApproval] = []
    rows = source.query(
        f"SELECT {_APPROVAL}, {_SEATS}, {_EVENTS}, problem, consumed FROM approval"  # noqa: S608 - only constants are put in
        " WHERE (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))"
        " AND (:run_id IS NULL OR run_id = :run_id) AND (:id IS NULL OR id = :id)"
        " ORDER BY asked_at DESC, id DESC",
        {"states": json.dumps(states) if states else None, "run_id": run_id, "id": approval_id},
    )
    for row in rows:
        try:
            found.append(_approval(row[:-1]))
        except (ValueError, TypeError, KeyError, InputError) as error:
            problem = row[-2] or f"{type(error).__name__}: {error}"
            damaged.append(DamagedApproval(str(row[0]), str(row[1]), int(row[2]), problem, bool(row[-1])))
    return found, damaged


def latest_approval(
    source: Source, run_id: str, visit: int
) -> tuple[Approval | DamagedApproval, bool] | None:
    """What a visit has asked for last, and whether its outcome has moved the run on already."""
    rows = source.query(
        "SELECT id, consumed FROM approval WHERE run_id = ? AND visit = ? ORDER BY rowid DESC LIMIT 1",
        (run_id, visit),
    )
    if not rows:
        return None
    found, damaged = approvals(source, approval_id=rows[0][0])
    approval = found[0] if found else damaged[0]
    return approval, bool(rows[0][1])


def approval_with_token(source: Source, token_hash: str) -> tuple[str, str] | None:
    """(approval, person) of a token."""
    rows = source.query(
        "SELECT approval_id, person FROM approval_seat WHERE token_hash = ?",
        (token_hash,),
    )
    return (rows[0][0], rows[0][1]) if rows else None


def has_old_approvals(source: Source, now: float, before: float) -> bool:
    """Whether any has expired, or ended before a moment."""
    return bool(
        source.query(
            "SELECT EXISTS (SELECT 1 FROM approval WHERE state = 'open' AND expires_at <= ? OR ended_at < ?)",
            (now, before),
        )[0][0]
    )


def is_set_aside(source: Source, approval_id: str) -> bool:
    """Whether a record is known to be damaged."""
    return bool(source.query("SELECT 1 FROM approval WHERE id = ? AND state = 'damaged'", (approval_id,)))


def count_requests(source: Source, run_id: str, visit: int) -> int:
    """How often a visit has asked."""
    return int(
        source.query("SELECT count(*) FROM approval WHERE run_id = ? AND visit = ?", (run_id, visit))[0][0]
    )


def approval_figures(source: Source) -> dict[str, Any]:
    """How many there are in each state, how much room they take in bytes, and the oldest open one's age."""
    states = dict(source.query("SELECT state, count(*) FROM approval GROUP BY state"))
    size = source.query(
        "SELECT (SELECT coalesce(sum(length(ask) + length(digest) + length(id)), 0) FROM approval)"
        " + (SELECT coalesce(sum(length(token_hash) + length(person)), 0) FROM approval_seat)"
        " + (SELECT coalesce(sum(length(comment) + length(person) + length(by)), 0) FROM approval_event)"
    )[0][0]
    oldest = source.query("SELECT min(asked_at) FROM approval WHERE state = 'open'")[0][0]
    return {"states": states, "count": sum(states.values()), "size_bytes": size, "oldest_open_at": oldest}


def _approval(row: tuple[Any, ...]) -> Approval:
    """From its row.

    Raises:
        ValueError, TypeError, KeyError, InputError: it is damaged.
    """
    *columns, state, ended_at, seats, events, problem = row
    number, run_id, visit, step, ask, digest, asked_at, expires_at = columns
    if state == ApprovalState.DAMAGED:
        raise ValueError(problem)
    moments = [asked_at, expires_at, *(e[0] for e in json.loads(events)), *(s[3] for s in json.loads(seats))]
    if not all(isinstance(moment, float) for moment in moments) or len(str(digest)) != 64:  # noqa: PLR2004 - a sha256
        raise ValueError("its times or its digest are not what was written")
    parsed = Ask.from_dict(json.loads(ask)).check(str(number))
    return Approval(
        number, run_id, visit, step, parsed, digest, asked_at, expires_at, ApprovalState(state), ended_at,
        tuple(Seat(*seat) for seat in json.loads(seats)),
        tuple(Event(*event) for event in json.loads(events)),
    )  # fmt: skip
