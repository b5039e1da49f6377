"""Watching agents: each worker takes attempts that nobody watches, and looks at them until they are over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup
from pydantic import BaseModel

from surefoot_storage import Conflict, CopyRefused, SurefootError, WorkspacePoisoned

from . import rows
from .log import logger
from .opened import OpenEngine
from .rows import AgentRow
from .tending import Tending, agent_of, copy_name

AT_ONCE = 4
"""Agents of one kind that run at the same time, unless it is said otherwise."""
LOOK_S = 1.0
SWEEP_S = 3_600.0
KEPT_S = 7 * 86_400.0
"""How long the working copy of what is over is kept; what was sealed of it goes with its row."""
THREADS_MAX = 16


class Supervisor:
    """Of one engine. What it knows is in rows: another one goes on where this one was."""

    def __init__(
        self, engine: OpenEngine, tasks: TaskGroup, limits: int | Mapping[str, int], *, everything: bool
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._limits = limits
        self._everything = everything  # or only what its engine drives, or was told to launch
        self.own: set[str] = set()
        self._tended: dict[str, anyio.Event] = {}
        self._threads = CapacityLimiter(THREADS_MAX)
        self._more = anyio.Event()
        self._swept = -SWEEP_S

    def notify(self) -> None:
        """Something may be wanted, or is to be stopped."""
        self._more.set()
        for event in self._tended.values():
            event.set()

    async def serve(self) -> None:
        """Until cancelled. What runs goes on running: its shim does not need anybody."""
        while True:
            self._more = anyio.Event()
            try:
                await self._take_all()
                await self._sweep()
            except WorkspacePoisoned:
                return  # everybody else is told by their own calls
            except (SurefootError, OSError) as error:  # a full disk, say: the rows are still there
                logger().error("supervisor.stopped_for_now", error=str(error))
            with anyio.move_on_after(LOOK_S):
                await self._more.wait()

    async def _take_all(self) -> None:
        for row in await to_thread.run_sync(self._look):
            if not self._everything and row.id not in self.own and not self._engine.is_driven(row.run_id):
                continue
            if row.id not in self._tended and await to_thread.run_sync(self._take, row):
                self._engine.note_work()
                self._tended[row.id] = anyio.Event()
                self._tasks.start_soon(self._tend, row)

    def _look(self) -> list[AgentRow]:
        engine = self._engine
        known = [(w.name, w.version if w.pinned else None) for w in engine.workflows.values()]
        gone, workspace = engine.leases.gone(), engine.workspace
        found = rows.open_agents(workspace, known, workspace.worker, gone, engine.clock.now())
        if not found:
            return []
        held = rows.STOPPED in rows.paused_queues(workspace)
        at_work = rows.agents_at_work(workspace)
        return [row for row in found if self._has_room(row, at_work, held=held)]

    def _has_room(self, row: AgentRow, at_work: dict[str, int], *, held: bool) -> bool:
        """Whether it is worth trying: the statement that takes it decides, and costs a commit each time."""
        if row.state != "wanted" or row.stop:
            return True
        at_work[row.kind] = at_work.get(row.kind, 0) + 1
        return not held and at_work[row.kind] <= self._limit(row.kind)

    def _limit(self, kind: str) -> int:
        return self._limits if isinstance(self._limits, int) else self._limits.get(kind, AT_ONCE)

    def _take(self, row: AgentRow) -> bool:
        limit, workspace = self._limit(row.kind), self._engine.workspace
        gone = self._engine.leases.gone()
        try:
            workspace.write_rows([rows.take_agent(row, workspace.worker, limit, gone)])
        except Conflict:
            return False
        return True

    async def _tend(self, row: AgentRow) -> None:
        """One attempt, until it is over or somebody else watches it."""
        engine = self._engine
        tending = Tending(engine.workspace, row.id, engine.clock.now, self._model_of(row))
        try:
            while True:
                wait_s = await to_thread.run_sync(tending.look, limiter=self._threads)
                if wait_s is None:
                    break
                engine.note_work()
                self._tended[row.id] = anyio.Event()
                with anyio.move_on_after(wait_s):
                    await self._tended[row.id].wait()
        except Conflict:
            logger(run=row.run_id, agent=row.id).info("agent.watched_elsewhere")
        except WorkspacePoisoned:
            pass
        except SurefootError as error:
            logger(run=row.run_id, agent=row.id).error("agent.left_for_now", error=str(error))
        finally:
            del self._tended[row.id]
        self._more.set()
        engine.wake(row.run_id)

    def _model_of(self, row: AgentRow) -> type[BaseModel] | None:
        if not row.run_id:
            return None
        run = rows.get_run(self._engine.workspace, row.run_id)
        workflow = self._engine.workflows.get(run.workflow)
        step = workflow.steps.get(row.step) if workflow is not None else None
        return step.result if step is not None else None

    # --- what is long over ---

    async def _sweep(self) -> None:
        if time.monotonic() - self._swept < SWEEP_S:
            return
        self._swept = time.monotonic()
        await to_thread.run_sync(partial(sweep, self._engine, KEPT_S))


def sweep(engine: OpenEngine, kept_s: float) -> list[str]:
    """In a thread: removes copies of attempts that are long over; returns their ids.

    Only what is sealed, unchanged or given up goes: the copy itself is looked at before.
    """
    workspace, removed = engine.workspace, []
    workspace.copies.sweep()
    for name in workspace.copies.names():
        row = next(iter(rows.agents(workspace, agent_id=agent_of(name), states=["over"])), None)
        if row is None or row.ended_at is None:
            continue
        if engine.clock.now() - row.ended_at < kept_s or (row.digest and not row.taken):
            continue  # what nobody has decided about is kept, however old
        try:
            workspace.copies.remove(copy_name(row.id))
        except CopyRefused as error:
            logger(run=row.run_id, agent=row.id).warning("agent.copy_kept", found=error.found)
            continue
        removed.append(row.id)
    return removed
