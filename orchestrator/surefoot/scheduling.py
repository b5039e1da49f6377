"""Starting what schedules say: the slot and its run in one commit, so that each slot has one run or none."""

from __future__ import annotations

from anyio import to_thread

from surefoot_storage import Conflict, FileTransaction

from . import rows
from .errors import RunRefused
from .log import logger
from .opened import OpenEngine
from .repairing import Repairing
from .requests import requested
from .schedules import Schedule
from .starting import add_start


class Scheduling:
    """Of one open engine: the schedules of its workflows."""

    def __init__(self, engine: OpenEngine) -> None:
        self._engine = engine

    def _schedules(self) -> list[Schedule]:
        return [s for workflow in self._engine.workflows.values() for s in workflow.schedules.values()]

    async def fire_due(self) -> float | None:
        """Starts what is due; returns when the next slot comes."""
        moments = [await self._fire(schedule) for schedule in self._schedules()]
        return min((moment for moment in moments if moment is not None), default=None)

    async def _fire(self, schedule: Schedule) -> float | None:
        now = self._engine.clock.now()
        known = await to_thread.run_sync(rows.known_schedule, self._engine.workspace, schedule, now)
        if known is None or known.paused:
            return None
        last = known.last_slot
        slots, missed, next_slot = schedule.due(last, now)
        if missed > last and next(schedule.slots(last)) <= missed:
            logger(schedule=schedule.name).warning("schedule.missed", older_than_s=schedule.catch_up_s)
        for slot in slots:
            if not await self._start(schedule, last, slot):
                return slot  # another worker is at it: look again
            last = slot
        return next_slot

    async def _start(self, schedule: Schedule, last: float, slot: float) -> bool:
        engine, workspace = self._engine, self._engine.workspace
        moved = rows.move_schedule(schedule.name, last, slot)
        log = logger(schedule=schedule.name, run=schedule.run_id(slot))
        unfinished = await to_thread.run_sync(
            rows.unfinished_in_lane, workspace, schedule.queue, schedule.lane
        )
        if unfinished and schedule.overlap == "skip":
            try:
                await to_thread.run_sync(lambda: workspace.write_rows([moved]))
            except Conflict:
                return False
            log.info("schedule.skipped", because_of=unfinished[0])
            return True
        if schedule.overlap == "cancel":
            for run_id in unfinished:
                await Repairing(engine).cancel(run_id)
        new = requested(
            schedule.workflow, schedule.input, run_id=schedule.run_id(slot), now=engine.clock.now(),
            queue=schedule.queue, priority=schedule.priority,
            lane=None if schedule.overlap == "allow" else schedule.lane,
        )  # fmt: skip

        def start() -> FileTransaction:
            files = workspace.begin(label=f"{new.id}/start", owner=new.id)
            add_start(workspace, files, new)
            files.statements.append(moved)
            return files

        try:
            await engine.executor.commits.run(start)
        except Conflict:
            return False
        except RunRefused as error:  # its directory is taken, say: the slot is not tried again and again
            log.error("schedule.not_started", error=str(error))  # noqa: TRY400 - structlog, not logging
            await to_thread.run_sync(lambda: workspace.write_rows([moved]))
            return True
        log.info("schedule.started", slot=slot)
        return True
