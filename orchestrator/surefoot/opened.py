"""The open engine: starting runs, moving them on, and ending them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from surefoot_storage import (
    CommitFailed,
    Conflict,
    FileTransaction,
    InputError,
    SurefootError,
    Workspace,
    WorkspaceBlocked,
    WorkspaceBusy,
)

from . import checks, rows
from .clock import Clock
from .committing import CONFLICT_RERUNS_MAX
from .declare import Workflow
from .errors import DeclarationError, RunRefused
from .execute import Executor
from .holding import Hold
from .leases import Leases
from .log import logger
from .model import Run, RunResult, TransitionResult, VisitState
from .moving import Driver, Round, wait_for
from .outbox import Outbox
from .queues import Queue
from .records import RecordWriter
from .requests import requested
from .starting import add_start, same_run
from .statuses import Statuses
from .summary import foremost


@dataclass
class Settings:
    """What an engine was made with."""

    clock: Clock
    random: Callable[[], float]
    new_id: Callable[[], str]
    threads_max: int
    lease_s: float
    on_transition: Callable[[TransitionResult], None]
    records_max: int
    workflows: dict[str, Workflow] = field(default_factory=dict)

    def add(self, workflow: Workflow) -> None:
        """One more workflow.

        Raises:
            DeclarationError: there is another one of its name, or it can never work.
        """
        if self.workflows.setdefault(workflow.name, workflow) is not workflow:
            raise DeclarationError(
                "open the engine",
                workflow.name,
                expected="one workflow of that name",
                found="two different ones",
            )


class OpenEngine:
    """What only an open engine has: its workspace, and the tasks that move runs on."""

    def __init__(self, settings: Settings, workspace: Workspace, tasks: TaskGroup) -> None:
        self.workspace = workspace
        self.clock = settings.clock
        self.workflows = settings.workflows
        self._settings = settings
        self.statuses = Statuses(workspace)
        self.outbox = Outbox(workspace, settings.workflows, settings.clock, settings.random)
        self.records = RecordWriter(
            workspace, settings.clock, settings.new_id(), queue_max=settings.records_max
        )
        self.leases = Leases(workspace, settings.lease_s)
        self.executor = Executor(
            workspace,
            settings.clock,
            settings.random,
            tasks,
            threads_max=settings.threads_max,
            know=settings.add,
        )
        self.on_due: Callable[[], None] = lambda: None
        self.on_agent: Callable[[], None] = lambda: None
        self.executor.on_message = self.outbox.notify
        self.hold = Hold(workspace, settings.clock, self.leases, self.executor.commits)
        self.subscribers: dict[str, list[tuple[Any, float]]] = {}  # of configurations, by name
        self._locks: dict[str, anyio.Lock] = {}
        self._drivers: dict[str, Driver] = {}
        self._worked = False  # since the last beat

    def new_id(self) -> str:
        """A name for something new."""
        return self._settings.new_id()

    async def get(self, run_id: str) -> Run:
        """The run as its row says."""
        return await to_thread.run_sync(rows.get_run, self.workspace, run_id)

    def lock(self, run_id: str) -> anyio.Lock:
        """Of one run: whoever has it changes the run."""
        return self._locks.setdefault(run_id, anyio.Lock())

    def is_elsewhere(self, run: Run) -> bool:
        """Whether another worker moves the run on."""
        return run.owner != self.workspace.worker and self.leases.is_working(run.owner)

    def is_driven(self, run_id: str) -> bool:
        """Whether a task of this engine moves the run on, or waits with it."""
        return run_id in self._drivers

    def is_in_flight(self, run: Run) -> bool:
        """Whether somebody, here or elsewhere, is moving it on."""
        return run.id in self._drivers or self.is_elsewhere(run)

    def wake(self, run_id: str) -> None:
        """Something has happened to a run."""
        if run_id in self._drivers:
            self._drivers[run_id].wake()
        self.outbox.notify()
        self.on_due()

    def workflow_of(self, run: Run) -> Workflow:
        """The run's workflow.

        Raises:
            RunRefused: it is not known here, or has another version than the one it is pinned to.
        """
        workflow = self.workflows.get(run.workflow)
        if workflow is None:
            raise RunRefused(
                "move on",
                run.id,
                expected=f"workflow {run.workflow!r} in this engine",
                found=f"only {', '.join(self.workflows)}" if self.workflows else "no workflow at all",
                hint=f"it was started from {run.source}"
                if run.source
                else "pass it to Engine(root, [workflow])",
            )
        if workflow.pinned and workflow.version != run.version:
            raise RunRefused(
                "move on",
                run.id,
                expected=f"workflow {run.workflow!r} in version {run.version!r}, which it was started with",
                found=f"version {workflow.version!r}",
                hint="open an engine with that version, or drop pinned=True: runs then go on with new code",
            )
        return workflow

    # --- starting ---

    async def start(
        self, workflow: Workflow, given: Any, *, run_id: str | None, adopt: bool, on_exists: str, source: str,
        **placing: Any,
    ) -> Run:  # fmt: skip
        """Creates a run, or finds the one that is there."""
        checks.choice("start", str(run_id), "on_exists", on_exists, ("return", "refuse"), error=InputError)
        chosen = self._settings.new_id() if run_id is None else run_id
        new = requested(workflow, given, run_id=chosen, now=self.clock.now(), source=source, **placing)
        self._settings.add(workflow)

        def create() -> FileTransaction:
            files = self.workspace.begin(label=f"{new.id}/start", owner=new.id)
            files.statements += rows.declare_views(workflow.name, list(workflow.views))
            add_start(self.workspace, files, new, adopt=adopt)
            return files

        async with self.lock(new.id):
            there = await to_thread.run_sync(self._there, new)
            if there is not None:
                return same_run(there, new, on_exists)
            try:
                commit = await self.executor.commits.repeat(create)
            except (Conflict, CommitFailed, RunRefused):  # another process may have started it meanwhile
                there = await to_thread.run_sync(self._there, new)
                if there is None:
                    raise
                return same_run(there, new, on_exists)
        logger(run=new.id, txid=commit.txid).info(
            "run.started", workflow=new.workflow, directory=new.directory
        )
        if workflow.tells_others:
            self.outbox.notify()
        if new.queue:
            self.on_due()
        return new

    def _there(self, new: Run) -> Run | None:
        """In a thread: the run of that id, or the unfinished one with its deduplication key."""
        there = rows.find_run(self.workspace, new.id)
        if there is None and new.dedup is not None:
            same = rows.find_dedup(self.workspace, new.queue, new.dedup)
            there = rows.find_run(self.workspace, same) if same else None
        return there

    # --- moving on ---

    async def drive(self, run_id: str, *, through_waits: bool = True) -> RunResult:
        """Until the run is over or in error, or waits; a second caller waits for the first one's result."""
        while (driver := self._drivers.get(run_id)) is not None:
            await driver.done.wait()
            if driver.result is not None:
                return driver.result
        with self._driving(run_id) as driver:
            driver.result = await self._drive(run_id, driver, through_waits=through_waits)
        return driver.result

    @contextlib.contextmanager
    def _driving(self, run_id: str) -> Iterator[Driver]:
        self._worked = True
        driver = self._drivers[run_id] = Driver()
        try:
            yield driver
        finally:
            if self._drivers.get(run_id) is driver:
                del self._drivers[run_id]
            driver.done.set()

    async def _drive(self, run_id: str, driver: Driver, *, through_waits: bool) -> RunResult:
        results: list[TransitionResult] = []
        blocked = False
        with driver.scope:
            while not blocked and await self._due_here(run_id, driver, through_waits=through_waits):
                async with self.lock(run_id):
                    blocked = await self._round(run_id, driver, results.append) or False
        if driver.scope.cancelled_caught:
            await driver.cancelled.wait()
        return await self._result(await self.hold.release(run_id), results)

    async def work(self, run_id: str, queues: Mapping[str, Queue]) -> Run | None:
        """What is due of a run, where it can be taken; None where it cannot."""
        if run_id in self._drivers:
            self._drivers[run_id].wake()
            return None
        moved, since = True, self.clock.now()  # a run that is cancelled meanwhile was taken before
        with self._driving(run_id) as driver:
            with driver.scope:
                async with self.lock(run_id):
                    moved = await self._round(run_id, driver, lambda _result: None, queues) is not None
            if driver.scope.cancelled_caught:
                await driver.cancelled.wait()
            left = await self.hold.release(run_id)
        if not moved:
            return None
        await self.hold.measure(left, since)
        return left

    async def _due_here(self, run_id: str, driver: Driver, *, through_waits: bool) -> bool:
        """True once something of the run is due and nobody else moves it on; False where nothing will be."""
        told = False
        while True:
            run = await self.get(run_id)
            if not run.state.is_due:
                return False
            self.workflow_of(run)
            moment = run.due_at
            if self.is_elsewhere(run):
                if not told:
                    told = True
                    who = self.workspace.describe_worker(run.owner)
                    logger(run=run.id).info("run.driven_elsewhere", worker=run.owner, who=who)
                await to_thread.run_sync(self.leases.look)
                moment = None
            elif moment is not None and moment <= self.clock.now():
                return True
            elif not through_waits and not any(visit.state is VisitState.DUE for visit in run.open):
                return False
            await wait_for(driver, self.clock, moment)

    async def _round(
        self,
        run_id: str,
        driver: Driver,
        tell: Callable[[TransitionResult], None],
        queues: Mapping[str, Queue] | None = None,
    ) -> bool | None:
        """Takes the run and moves it on until nothing is due. True: it is blocked; None: it was not taken."""
        run = await self.get(run_id)
        if not run.state.is_due or self.is_elsewhere(run):
            return None
        workflow = self.workflow_of(run)

        def told(result: TransitionResult) -> None:
            tell(result)
            self._settings.on_transition(result)
            self.notify(result)

        try:
            live = await self.hold.take(run, queues)
        except (WorkspaceBlocked, WorkspaceBusy) as error:
            told(self.blocked(run, error))
            return True
        if live is None:
            return None

        moving = Round(
            live, workflow, executor=self.executor, workspace=self.workspace, clock=self.clock, tell=told,
            driver=driver,
        )  # fmt: skip
        await moving.run()
        if live.run.revision == run.revision:  # nothing came of it: no commit has given the run back
            await self.hold.give_back(run_id)
        return moving.is_blocked

    def note_work(self) -> None:
        """Something is being done here: the next beat tells the other workers."""
        self._worked = True

    async def beat(self) -> None:
        """Until cancelled: shows the other workers that this one is not frozen, as long as it has runs."""
        while True:
            if self._worked:
                with contextlib.suppress(SurefootError):  # the next one says it as well
                    await to_thread.run_sync(self.leases.beat)
            self._worked = bool(self._drivers)
            await anyio.sleep(self.leases.lease_s / 3)

    async def _result(self, run: Run, results: list[TransitionResult]) -> RunResult:
        undelivered = await to_thread.run_sync(rows.count_effects, self.workspace, "pending", run.id)
        last = results[-1].failure if results else None
        return RunResult(
            run_id=run.id,
            workflow=run.workflow,
            directory=run.directory,
            state=run.state,
            step=run.step,
            transitions=tuple(results),
            failure=run.failure or last,
            undelivered=undelivered,
            transition_error=run.failure is not None,
        )

    def notify(self, result: TransitionResult) -> None:
        """Wakes whoever may have something to do after a transition."""
        workflow = self.workflows[result.workflow]
        step = workflow.steps.get(result.step)
        if workflow.tells_others or (step is not None and step.effects):
            self.outbox.notify()
        if result.ok:
            self.on_due()
            self.on_agent()

    def blocked(self, run: Run, error: WorkspaceBlocked | WorkspaceBusy) -> TransitionResult:
        """What could not be tried."""
        front = foremost(run)
        assert front is not None
        return self.executor.blocked(run, front, error)

    # --- changes of status ---

    async def change(self, run_id: str, event: str, change: Callable[[Run, float], Run], **facts: Any) -> Run:
        """A change of a run's status by itself; somebody else's change in between is built upon."""
        for rerun in range(CONFLICT_RERUNS_MAX + 1):
            run = await self.get(run_id)
            after = change(run, self.clock.now())
            try:
                await self.executor.commits.status(run, after, event, [], **facts)
            except Conflict:
                if rerun == CONFLICT_RERUNS_MAX:
                    raise
                await self.executor.commits.pause(rerun)
                continue
            self.wake(run_id)
            return after
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def interrupted(self, run_id: str) -> AsyncIterator[None]:
        """The run's lock; a step that is being worked on here is stopped, and changes nothing."""
        driver = self._drivers.get(run_id)
        self.executor.cancel_requested.add(run_id)
        try:
            if driver is not None:
                driver.scope.cancel()
            async with self.lock(run_id):
                yield
        finally:
            self.executor.cancel_requested.discard(run_id)
            if driver is not None:
                driver.cancelled.set()
