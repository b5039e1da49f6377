"""Moving one run on: everything of it that is due, its branches at the same time, until nothing is due now.

Nothing is held while a run waits but its rows. One task moves a run at a time: it holds the run's lock in
this engine, and the run's row says which worker it belongs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import anyio
from anyio import to_thread

from surefoot_storage import Workspace

from . import machine, rows
from .clock import Clock
from .declare import Workflow
from .execute import Executor
from .live import Live
from .model import RunResult, RunState, TransitionResult, VisitState

POLL_S = 0.5  # between looks at what other processes may have done


class Driver:
    """The one task that moves a run on, and what others wait for."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.cancelled = anyio.Event()  # whoever cancelled the scope has settled the run
        self.done = anyio.Event()
        self.result: RunResult | None = None
        self._wake = anyio.Event()

    def wake(self) -> None:
        """Something may have happened to the run."""
        self._wake.set()

    async def woken(self) -> None:
        """Until then."""
        await self._wake.wait()
        self._wake = anyio.Event()


class Round:
    """One run, moved on until nothing of it is due now."""

    def __init__(
        self,
        live: Live,
        workflow: Workflow,
        *,
        executor: Executor,
        workspace: Workspace,
        clock: Clock,
        tell: Callable[[TransitionResult], None],
        driver: Driver,
    ) -> None:
        self._live = live
        self._workflow = workflow
        self._executor = executor
        self._workspace = workspace
        self._clock = clock
        self._tell = tell
        self._driver = driver
        self._busy: dict[int, int | None] = {}  # visits that are worked on, and the fan-out they belong to
        self._taken_at = live.run.revision
        self.is_blocked = False

    async def run(self) -> None:
        """Until nothing is due now, or nothing can be committed."""
        while (ready := self._ready()) and len(self._live.run.open) == 1:
            await self._visit(ready[0])  # the most common case needs no task
        if not ready:
            return
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    for number in self._ready():
                        self._busy[number] = self._live.visit(number).group
                        tasks.start_soon(self._visit_beside, number)
                    if not self._busy:
                        break
                    await self._something_happens()
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _visit_beside(self, number: int) -> None:
        try:
            await self._visit(number)
        finally:
            del self._busy[number]
            self._driver.wake()

    async def _visit(self, number: int) -> None:
        result = await self._executor.transition(self._live, number, self._workflow)
        if result is None:
            return
        self.is_blocked = self.is_blocked or result.outcome == "blocked"
        self._tell(result)

    def _ready(self) -> list[int]:
        """The visits that may begin now, in the order of their numbers."""
        run = self._live.run
        given_back = run.revision != self._taken_at and run.state is not RunState.RUNNING  # see rows.save
        if self._live.lost or self.is_blocked or given_back or not run.state.is_due:
            return []
        now = self._clock.now()
        self._live.run = run = machine.due_now(run, now)
        late = run.deadline_at is not None and now >= run.deadline_at
        busy = Counter(group for group in self._busy.values() if group is not None)
        ready = []
        for visit in run.open:
            due = visit.is_ready and visit.due_at is not None and visit.due_at <= now
            if visit.number in self._busy or not (due or (late and visit.state is not VisitState.ERROR)):
                continue
            if visit.group is not None:
                step = self._workflow.steps.get(visit.step)
                if step is not None and busy[visit.group] >= step.at_once:
                    continue
                busy[visit.group] += 1
            ready.append(visit.number)
        return ready

    async def _something_happens(self) -> None:
        """A branch comes to its end, a wait ends, or a moment comes."""
        await wait_for(self._driver, self._clock, self._live.run.due_at_after(self._clock.now()))
        woken = await to_thread.run_sync(rows.woken_visits, self._workspace, self._workspace.worker)
        mine = [number for run_id, number in woken if run_id == self._live.run.id]
        self._live.run = machine.woken(self._live.run, mine)


async def wait_for(driver: Driver, clock: Clock, moment: float | None) -> None:
    """Until the driver is woken, the moment has come, or it is time to look what others have done."""
    async with anyio.create_task_group() as tasks:

        async def until_then() -> None:
            assert moment is not None
            await clock.sleep_until(moment)
            tasks.cancel_scope.cancel()

        if moment is not None:
            tasks.start_soon(until_then)
        with anyio.move_on_after(POLL_S):
            await driver.woken()
        tasks.cancel_scope.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a round: the others are its consequences."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
