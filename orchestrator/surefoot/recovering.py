"""After a crash: attempts that a dead process left open, and failures that it could not record."""

from __future__ import annotations

import contextlib

from anyio import to_thread

from surefoot_storage import WorkspaceBlocked

from . import machine, probing, rows
from .launching import RUN
from .live import Live
from .log import logger
from .model import Failure, Run
from .opened import OpenEngine
from .scratch import PREFIX

APPROVALS_KEPT_S = 90 * 86_400.0
"""How long the records of what has ended are kept."""


class Recovering:
    """Of one open engine."""

    def __init__(self, engine: OpenEngine) -> None:
        self._engine = engine
        self._executor = engine.executor
        self._workspace = engine.workspace
        self._clock = engine.clock
        engine.hold.on_taken_over = self.count_interruptions

    async def catch_up(self) -> None:
        """Attempts that a dead process left open are counted; failures it could not record are."""
        await to_thread.run_sync(self._engine.leases.forget_dead)
        for run_id, number, failure in await to_thread.run_sync(rows.unrecorded_failures, self._workspace):
            run = await self._engine.get(run_id)
            if self._engine.is_elsewhere(run) or run.visit(number) is None:
                continue
            after = machine.failed(run, number, failure, None, self._clock.now())
            await self._executor.record_failure(Live(run), run, after, number, failure)
        for run_id, _ in await to_thread.run_sync(rows.open_attempts, self._workspace):
            run = await self._engine.get(run_id)
            if not self._engine.is_elsewhere(run):
                await self.count_interruptions(run)

    async def count_interruptions(self, run: Run) -> None:
        """Of every visit that was worked on when the process died."""
        numbers = [n for _, n in await to_thread.run_sync(rows.open_attempts, self._workspace, run.id)]
        for number in numbers:
            await self._count_interruption(await self._engine.get(run.id), number)

    async def _count_interruption(self, run: Run, number: int) -> None:
        now, visit = self._clock.now(), run.visit(number)
        ended = rows.end_attempts(run.id, "interrupted", now, visit=number)
        if visit is None or not run.state.is_due:
            await to_thread.run_sync(lambda: self._workspace.write_rows([ended], durable=False))
            return
        failure = Failure(
            step=visit.step,
            attempt=visit.failures + 1,
            error="ProcessDied",
            message=f"the process ended {visit.interruptions + 1} times during this step",
            at=now,
            hint="find out why it dies, then: surefoot advance",
        )
        after = machine.interrupted(run, number, failure, now)
        times = visit.interruptions + 1
        logger(run=run.id, step=visit.step).warning("transition.interrupted", times=times)
        counted = rows.count_interruption(after, number)
        if after.revision == run.revision:
            statements = [*counted, ended]
            await to_thread.run_sync(lambda: self._workspace.write_rows(statements, durable=False))
        else:
            with contextlib.suppress(WorkspaceBlocked):
                await self._executor.commits.status(
                    run, after, "interrupted", [*counted, ended], visit=number, failure=failure
                )


async def clean_approvals(engine: OpenEngine, kept_s: float = APPROVALS_KEPT_S) -> None:
    """What has expired ends; what ended long ago goes."""
    now = engine.clock.now()
    changes = [*rows.expire_approvals(now), *rows.forget_approvals(now - kept_s)]
    if await to_thread.run_sync(rows.has_old_approvals, engine.workspace, now, now - kept_s):
        await to_thread.run_sync(lambda: engine.workspace.write_rows(changes))


def drop_scratch(engine: OpenEngine) -> None:
    """In a thread, at open: copies of commands whose step died with its process; the step is done again."""
    workspace = engine.workspace
    for name in workspace.copies.names():
        if name.startswith(PREFIX) and not workspace.is_alive(name.removeprefix(PREFIX).partition("-")[0]):
            probing.kill_tagged(f"{workspace.uuid}:{name}:{RUN}")
            workspace.copies.remove(name, discard=True)


def report_unclean_ends(engine: OpenEngine) -> None:
    """In a thread, at open: sessions whose process is gone without having said goodbye."""
    workspace = engine.workspace
    for session, worker, counts in rows.open_sessions(workspace):
        if worker != workspace.worker and not workspace.is_alive(worker):
            logger(session=session).warning("records.unclean_end", **counts)
            workspace.write_rows([rows.end_session(session, engine.clock.now(), "unclean")])
