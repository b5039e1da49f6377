"""Schedules: up to which slot each has been started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surefoot.schedules import Schedule
from surefoot_storage import Statement, Workspace

from .source import Source


@dataclass(frozen=True)
class Known:
    """A schedule's row."""

    last_slot: float
    paused: bool


def known_schedule(workspace: Workspace, schedule: Schedule, now: float) -> Known | None:
    """Its row; made now where there is none: its first slot is the next one."""
    values = {
        "name": schedule.name, "workflow": schedule.workflow.name, "cron": schedule.cron,
        "zone": schedule.zone,
    }  # fmt: skip
    found = workspace.query(
        "SELECT last_slot, paused, workflow, cron, zone FROM schedule WHERE name = ?", (schedule.name,)
    )
    if found and tuple(found[0][2:]) == (values["workflow"], values["cron"], values["zone"]):
        return Known(found[0][0], bool(found[0][1]))
    workspace.write_rows(
        [
            Statement(
                "INSERT INTO schedule (name, workflow, cron, zone, last_slot, paused)"
                " VALUES (:name, :workflow, :cron, :zone, :now, 0) ON CONFLICT (name) DO UPDATE"
                " SET workflow = :workflow, cron = :cron, zone = :zone, last_slot = max(last_slot, :now)",
                {**values, "now": now},
            )
        ]
    )
    found = workspace.query("SELECT last_slot, paused FROM schedule WHERE name = ?", (schedule.name,))
    return Known(found[0][0], bool(found[0][1])) if found else None


def move_schedule(name: str, last: float, slot: float) -> Statement:
    """The slot is dealt with; conflicts where another worker was faster."""
    return Statement(
        "UPDATE schedule SET last_slot = :slot WHERE name = :name AND last_slot = :last AND NOT paused",
        {"name": name, "last": last, "slot": slot},
        1,
    )


def pause_schedule(name: str) -> Statement:
    """Nothing is started any more."""
    return Statement("UPDATE schedule SET paused = 1 WHERE name = :name", {"name": name}, 1)


def resume_schedule(name: str, now: float) -> Statement:
    """From now on again; what came meanwhile is not made up for."""
    return Statement(
        "UPDATE schedule SET paused = 0, last_slot = max(last_slot, :now) WHERE name = :name",
        {"name": name, "now": now},
        1,
    )


def list_schedules(source: Source) -> list[dict[str, Any]]:
    """All that were ever declared."""
    names = ("name", "workflow", "cron", "zone", "last_slot", "paused")
    found = source.query(f"SELECT {', '.join(names)} FROM schedule ORDER BY name")  # noqa: S608 - only constants are put in
    return [{**dict(zip(names, row, strict=True)), "paused": bool(row[5])} for row in found]


def unfinished_in_lane(source: Source, queue: str, lane: str) -> list[str]:
    """Runs of a lane that still go on by themselves, or are paused."""
    found = source.query(
        "SELECT id FROM run WHERE queue = ? AND lane = ? AND state IN ('running', 'waiting', 'paused')"
        " ORDER BY ordinal",
        (queue, lane),
    )
    return [row[0] for row in found]
