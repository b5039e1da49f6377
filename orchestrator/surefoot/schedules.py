"""Schedules: when a workflow is started by itself. Pure: the slots are rows, the time is passed in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from . import checks
from .errors import DeclarationError
from .names import checked_name

if TYPE_CHECKING:
    from .declare import Workflow

Overlap: TypeAlias = Literal["skip", "queue", "cancel", "allow"]
OVERLAPS = ("skip", "queue", "cancel", "allow")
QUEUE = "schedules"
SLOTS_MAX = 1_000


@dataclass(frozen=True)
class Schedule:
    """A workflow that is started at certain times. Made by `Workflow.schedule`."""

    name: str
    workflow: Workflow
    cron: str
    zone: str
    input: Any
    catch_up_s: float
    overlap: Overlap
    queue: str
    priority: int

    @property
    def lane(self) -> str:
        """What its runs share."""
        return f"schedule:{self.name}"

    def slots(self, after: float) -> Iterator[float]:
        """Its moments after another one, in seconds since 1970, as cron in its time zone has them."""
        from cronsim import CronSim

        for moment in CronSim(self.cron, datetime.fromtimestamp(after, _zone(self.name, self.zone))):
            if moment.timestamp() > after:  # an hour that comes twice in autumn comes once here
                yield moment.timestamp()

    def due(self, last: float, now: float) -> tuple[list[float], float, float]:
        """(slots to start now, up to when others were missed for good, the next slot after now).

        Those that are older than `catch_up_s` are missed.
        """
        missed = max(last, now - self.catch_up_s)
        slots: list[float] = []
        for slot in self.slots(missed):
            if slot > now or len(slots) == SLOTS_MAX:
                return slots, missed, slot
            slots.append(slot)
        return slots, missed, now + checks.SECONDS_MAX

    def run_id(self, slot: float) -> str:
        """Of the run of a slot."""
        return f"{self.name}-{datetime.fromtimestamp(slot, UTC):%Y%m%dT%H%M%SZ}"


def checked_schedule(
    name: object,
    workflow: Workflow,
    cron: object,
    *,
    zone: object,
    given: Any,
    catch_up_s: object,
    overlap: object,
    queue: object,
    priority: object,
) -> Schedule:
    """A schedule that can work.

    Raises:
        DeclarationError, InputRefused: it cannot: a wrong expression, one that never comes, a wrong zone.
    """
    what, label = "declare schedule", checked_name("schedule", name)
    schedule = Schedule(
        label,
        workflow,
        checks.text(what, label, "cron", cron),
        checks.text(what, label, "zone", zone),
        workflow.parse_input(given),
        checks.seconds(what, label, "catch_up_s", catch_up_s),
        cast("Overlap", checks.choice(what, label, "overlap", overlap, OVERLAPS)),
        checked_name("queue", queue),
        checks.count(what, label, "priority", priority, least=-1_000_000),
    )
    _zone(label, schedule.zone)
    from cronsim import CronSimError

    try:
        first = next(schedule.slots(0.0), None)
    except CronSimError as error:
        raise DeclarationError(
            what, label, expected="five fields of cron: minute hour day month weekday",
            found=f"{schedule.cron!r}: {error}",
        ) from error  # fmt: skip
    if first is None:
        raise DeclarationError(
            what, label, expected="a time that comes", found=f"{schedule.cron!r}, which never does"
        )
    return schedule


def zone_of(name: str) -> tzinfo:
    """A time zone, by the system's own list.

    Raises:
        OSError, ValueError, KeyError: it has none of that name.
    """
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def _zone(name: str, zone: str) -> tzinfo:
    try:
        return zone_of(zone)
    except (OSError, ValueError, KeyError) as error:
        raise DeclarationError(
            "declare schedule", name, expected="a time zone such as Europe/Berlin", found=repr(zone),
            hint="where the system has no time zones: pip install tzdata",
        ) from error  # fmt: skip
