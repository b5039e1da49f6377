"""Records that are written behind, and the sessions that wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from surefoot_storage import Statement

from .source import Source

COUNTERS = ("submitted", "appended", "failed", "retried", "dumped", "rejected")


@dataclass(frozen=True)
class Record:
    """One of them: known by its session and its number there."""

    session: str
    number: int
    kind: str
    run_id: str
    at: float
    data: Any

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def insert_records(records: Sequence[Record]) -> Statement:
    """In their order; what is there already stays as it is."""
    packed = [[r.session, r.number, r.kind, r.run_id, r.at, json.dumps(r.data)] for r in records]
    return Statement(
        "INSERT INTO record (session, number, kind, run_id, at, data)"
        " SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5"
        " FROM json_each(:records) WHERE true ON CONFLICT DO NOTHING",
        {"records": json.dumps(packed)},
    )


def save_session(session: str, worker: str, now: float, counts: Mapping[str, int]) -> Statement:
    """It is at work, and this is how far it has got."""
    return Statement(
        "INSERT INTO record_session (id, worker, started_at, counts) VALUES (:id, :worker, :now, :counts)"
        " ON CONFLICT (id) DO UPDATE SET counts = :counts",
        {"id": session, "worker": worker, "now": now, "counts": json.dumps(dict(counts))},
    )


def end_session(session: str, now: float, how: str) -> Statement:
    """It has ended: `clean`, or `unclean` as others have found."""
    return Statement(
        "UPDATE record_session SET ended_at = :now, how = :how WHERE id = :id AND ended_at IS NULL",
        {"id": session, "now": now, "how": how},
    )


def open_sessions(source: Source) -> list[tuple[str, str, dict[str, int]]]:
    """(session, worker, counters as they were last) of those that have not ended."""
    rows = source.query("SELECT id, worker, counts FROM record_session WHERE ended_at IS NULL")
    return [(row[0], row[1], json.loads(row[2])) for row in rows]


def sessions(source: Source) -> list[dict[str, Any]]:
    """All of them, the latest first."""
    names = ("session", "worker", "started_at", "ended_at", "how", "counts")
    rows = source.query(
        "SELECT id, worker, started_at, ended_at, how, counts FROM record_session"
        " ORDER BY started_at DESC, id"
    )
    found = [dict(zip(names, row, strict=True)) for row in rows]
    return [{**session, "counts": json.loads(session["counts"])} for session in found]


def find_records(
    source: Source, *, kind: str | None, run_id: str | None, after: float, limit: int
) -> list[Record]:
    """Those that were stored, in the order of their submission."""
    rows = source.query(
        "SELECT session, number, kind, run_id, at, data FROM record WHERE at >= :after"
        " AND (:kind IS NULL OR kind = :kind) AND (:run_id IS NULL OR run_id = :run_id)"
        " ORDER BY at, session, number LIMIT :limit",
        {"kind": kind, "run_id": run_id, "after": after, "limit": limit},
    )
    return [Record(row[0], row[1], row[2], row[3], row[4], json.loads(row[5])) for row in rows]


def count_known(source: Source, records: Sequence[Record]) -> int:
    """How many of these are stored already."""
    keys = json.dumps([[record.session, record.number] for record in records])
    return int(
        source.query(
            "SELECT count(*) FROM json_each(?) AS k JOIN record"
            " ON record.session = k.value ->> 0 AND record.number = k.value ->> 1",
            (keys,),
        )[0][0]
    )


def forget_records(before: float) -> Statement:
    """Those from before a moment go."""
    return Statement("DELETE FROM record WHERE at < :before", {"before": before})
