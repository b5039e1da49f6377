"""Agents: one row for each attempt, from the commit that wants it to the commit that settles it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surefoot.agentspec import Agent
from surefoot_storage import InputError, Statement, UnknownId

from .source import Source

STOPPED = "@agents"
"""The name under which all launches are held, among the queues."""

_COLUMNS = (
    "id", "run_id", "visit", "step", "attempt", "kind", "directory", "spec", "reads_digest", "state",
    "next_at", "owner", "epoch", "errors", "stop", "outcome", "why", "result", "evidence", "digest", "taken",
    "created_at", "started_at", "ended_at",
)  # fmt: skip
_ALL = ", ".join(_COLUMNS)
_KNOWN = (
    "(run_id = '' OR EXISTS (SELECT 1 FROM run AS r, json_each(:known) AS k WHERE r.id = agent.run_id"
    " AND k.value ->> 0 = r.workflow AND (k.value ->> 1 IS NULL OR k.value ->> 1 = r.version)))"
)


@dataclass(frozen=True)
class AgentRow:
    """One attempt of an agent."""

    id: str
    run_id: str  # "" where no run waits for it
    visit: int
    step: str
    attempt: int
    kind: str
    directory: str
    spec: Agent
    reads_digest: str
    state: str  # wanted, running, sealing, verifying, over
    next_at: float
    owner: str = ""
    epoch: int = 0
    errors: int = 0
    stop: str = ""
    outcome: str = ""
    why: str = ""
    result: Any = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    taken: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {name: getattr(self, name) for name in _COLUMNS}
        return {**facts, "spec": self.spec.model_dump(mode="json", exclude_defaults=True)}


def _row(values: Sequence[Any]) -> AgentRow:
    facts = dict(zip(_COLUMNS, values, strict=True))
    facts["spec"] = Agent.model_validate_json(facts["spec"])
    facts["evidence"] = json.loads(facts["evidence"])
    facts["result"] = None if facts["result"] is None else json.loads(facts["result"])
    return AgentRow(**facts)


# --- changes ---


def insert_agent(row: AgentRow) -> Statement:
    """An attempt that nobody has begun yet."""
    names = ("id", "run_id", "visit", "step", "attempt", "kind", "directory", "reads_digest", "state",
             "next_at", "created_at")  # fmt: skip
    values = {name: getattr(row, name) for name in names}
    values["spec"] = row.spec.model_dump_json(exclude_defaults=True)
    sql = f"INSERT INTO agent ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"  # noqa: S608 - only constants are put in
    return Statement(sql, values, 1)


def take_agent(row: AgentRow, worker: str, limit: int, gone: Sequence[str]) -> Statement:
    """This worker watches it now; conflicts where somebody was faster, or its kind is at its limit.

    Counted inside the statement, as with queues: no two workers can both start the last that fits.
    """
    return Statement(
        "UPDATE agent SET owner = :worker, epoch = epoch + 1,"
        " state = CASE state WHEN 'wanted' THEN 'running' ELSE state END"
        " WHERE id = :id AND epoch = :epoch AND (owner IN ('', :worker) OR owner IN"
        " (SELECT value FROM json_each(:gone))) AND (state <> 'wanted' OR stop <> '' OR ("
        " (SELECT count(*) FROM agent AS a WHERE a.kind = :kind AND a.state <> 'over'"
        " AND a.state <> 'wanted') < :limit"
        " AND NOT EXISTS (SELECT 1 FROM queue WHERE name = :stopped AND paused)))",
        {
            "worker": worker, "id": row.id, "epoch": row.epoch, "gone": json.dumps(list(gone)),
            "kind": row.kind, "limit": limit, "stopped": STOPPED,
        },
        1,
    )  # fmt: skip


def change_agent(row: AgentRow, **columns: Any) -> Statement:
    """What its watcher has found; conflicts where that is somebody else by now."""
    values = {
        name: json.dumps(value) if name in ("result", "evidence") and value is not None else value
        for name, value in columns.items()
    }
    sets = ", ".join(f"{name} = :{name}" for name in values)
    sql = f"UPDATE agent SET {sets} WHERE id = :key_id AND epoch = :key_epoch"  # noqa: S608 - only names of columns are put in
    return Statement(sql, {**values, "key_id": row.id, "key_epoch": row.epoch}, 1)


def stop_agent(agent_id: str, why: str) -> Statement:
    """Whoever watches it is to end it."""
    return Statement(
        "UPDATE agent SET stop = :why, next_at = 0 WHERE id = :id AND state <> 'over' AND stop = ''",
        {"id": agent_id, "why": why},
    )


def stop_agents(why: str) -> Statement:
    """All that are not over."""
    return Statement(
        "UPDATE agent SET stop = :why, next_at = 0 WHERE state <> 'over' AND stop = ''", {"why": why}
    )


def mark_taken(agent_id: str) -> Statement:
    """The transaction that it is a part of commits the agent's changes."""
    return Statement("UPDATE agent SET taken = :txid WHERE id = :id", {"id": agent_id})


def mark_discarded(agent_id: str) -> Statement:
    """Somebody has given its changes up; conflicts where they are committed."""
    return Statement(
        "UPDATE agent SET taken = 'discarded' WHERE id = :id AND taken IN ('', 'discarded')",
        {"id": agent_id},
        1,
    )


# --- questions ---


def agents(
    source: Source,
    *,
    agent_id: str | None = None,
    run_id: str | None = None,
    visit: int | None = None,
    step: str | None = None,
    states: Sequence[str] = (),
    limit: int = -1,
) -> list[AgentRow]:
    """Attempts, the latest first."""
    values = {"id": agent_id, "run_id": run_id, "visit": visit, "step": step}
    conditions = [f"{name} = :{name}" for name, value in values.items() if value is not None]
    if states:
        conditions.append("state IN (SELECT value FROM json_each(:states))")
    where = " AND ".join(conditions) or "true"
    sql = f"SELECT {_ALL} FROM agent WHERE {where} ORDER BY created_at DESC, attempt DESC LIMIT :limit"  # noqa: S608 - only constants are put in
    rows = source.query(sql, {**values, "states": json.dumps(list(states)), "limit": limit})
    return [_row(row) for row in rows]


def get_agent(source: Source, agent_id: str) -> AgentRow:
    """One attempt, by its id or the beginning of it.

    Raises:
        InputError: there is none, or more than one.
    """
    found = agents(source, agent_id=agent_id)
    if not found:
        rows = source.query(
            f"SELECT {_ALL} FROM agent WHERE substr(id, 1, length(:id)) = :id LIMIT 2",  # noqa: S608 - only constants are put in
            {"id": agent_id},
        )
        found = [_row(row) for row in rows] if agent_id else []
    if len(found) != 1:
        raise (InputError if found else UnknownId)(
            "find agent", agent_id, expected="an agent, by its id or the beginning of it",
            found="several that begin like this" if found else "none", hint="surefoot agent list",
        )  # fmt: skip
    return found[0]


def open_agents(
    source: Source, known: Sequence[tuple[str, str | None]], worker: str, gone: Sequence[str], now: float
) -> list[AgentRow]:
    """Those that are not over, and that this worker may watch."""
    rows = source.query(
        f"SELECT {_ALL} FROM agent WHERE state <> 'over' AND (owner IN ('', :worker) OR owner IN"  # noqa: S608 - only constants are put in
        f" (SELECT value FROM json_each(:gone))) AND (state <> 'wanted' OR stop <> '' OR next_at <= :now)"
        f" AND {_KNOWN} ORDER BY created_at LIMIT 1000",
        {"known": json.dumps(list(known)), "worker": worker, "gone": json.dumps(list(gone)), "now": now},
    )
    return [_row(row) for row in rows]


def agents_at_work(source: Source) -> dict[str, int]:
    """How many of each kind are being worked on."""
    return dict(
        source.query(
            "SELECT kind, count(*) FROM agent WHERE state <> 'over' AND state <> 'wanted' GROUP BY kind"
        )
    )
