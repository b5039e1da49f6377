"""The open engine: starting runs, moving them on one transition at a time, and ending them.

Nothing is held while a run waits but its row. A run is moved by one task at a time: its lock is taken
for each transition, and a second caller of `drive` waits for the first one's result.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from surefoot_storage import (
    CommitFailed,
    Conflict,
    FileTransaction,
    Workspace,
    WorkspaceBlocked,
    WorkspaceBusy,
)

from . import machine, rows
from .clock import Clock
from .declare import Workflow, checked_run_id
from .driving import Driver, same_run
from .errors import DeclarationError, RunRefused
from .execute import Executor, Moved
from .log import logger
from .model import Failure, Run, RunResult, RunState, TransitionResult
from .outbox import Outbox

ELSEWHERE_PAUSE_S = 0.5  # between looks at a run that another process moves on


@dataclass
class Settings:
    """What an engine was made with."""

    clock: Clock
    random: Callable[[], float]
    new_id: Callable[[], str]
    threads_max: int
    on_transition: Callable[[TransitionResult], None]
    workflows: dict[str, Workflow] = field(default_factory=dict)

    def add(self, workflow: Workflow) -> None:
        """One more workflow.

        Raises:
            DeclarationError: there is another one of its name.
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
        self._settings = settings
        self._clock = settings.clock
        self._workflows = settings.workflows
        self.outbox = Outbox(workspace, settings.workflows, settings.clock, settings.random)
        self.executor = Executor(
            workspace, settings.clock, settings.random, tasks, threads_max=settings.threads_max
        )
        self._locks: dict[str, anyio.Lock] = {}
        self._drivers: dict[str, Driver] = {}

    async def get(self, run_id: str) -> Run:
        return await to_thread.run_sync(rows.get_run, self.workspace, run_id)

    def lock(self, run_id: str) -> anyio.Lock:
        return self._locks.setdefault(run_id, anyio.Lock())

    # --- after a crash ---

    async def catch_up(self) -> None:
        """Attempts that a dead process left open are counted; failures it could not record are."""
        for run_id, failure in await to_thread.run_sync(rows.unrecorded_failures, self.workspace):
            run = await self.get(run_id)
            if self.executor.is_elsewhere(run):
                continue
            after = machine.failed(run, failure, None, self._clock.now())
            await self.executor.record_failure(run, after, failure)
        for run_id in await to_thread.run_sync(rows.open_attempts, self.workspace):
            run = await self.get(run_id)
            if not self.executor.is_elsewhere(run):
                await self._count_interruption(run)

    async def _count_interruption(self, run: Run) -> None:
        now = self._clock.now()
        ended = rows.end_attempts(run.id, "interrupted", now)
        if not run.state.is_due:
            await to_thread.run_sync(lambda: self.workspace.write_rows([ended], durable=False))
            return
        failure = Failure(
            step=run.step or "",
            attempt=run.failures + 1,
            error="ProcessDied",
            message=f"the process ended {run.interruptions + 1} times during this step",
            at=now,
            hint="find out why it dies, then: surefoot advance",
        )
        after = machine.interrupted(run, failure, now)
        logger(run=run.id, step=run.step).warning("transition.interrupted", times=after.interruptions)
        if after.revision == run.revision:
            statements = [rows.count_interruption(after), ended]
            await to_thread.run_sync(lambda: self.workspace.write_rows(statements, durable=False))
        else:
            count = rows.count_interruption(after)
            with contextlib.suppress(WorkspaceBlocked):
                await self.executor.commit_status(run, after, "interrupted", [count, ended])

    # --- starting ---

    async def start(
        self,
        workflow: Workflow,
        given: Any,
        *,
        run_id: str | None,
        adopt: bool,
        on_exists: str,
        source: str,
    ) -> Run:
        self._settings.add(workflow)
        model = workflow.parse_input(given)
        run_id = checked_run_id(self._settings.new_id() if run_id is None else run_id)
        new = machine.created(
            run_id,
            workflow.name,
            model.model_dump_json(),
            workflow.place(workflow.directory, model, run_id, operation="start"),
            workflow.first_step,
            source=source,
            at=self._clock.now(),
        )
        async with self.lock(run_id):
            there = await to_thread.run_sync(rows.find_run, self.workspace, run_id)
            if there is not None:
                return same_run(there, new, on_exists)
            try:
                commit = await self.executor.commit(lambda: self._create(new, adopt=adopt))
            except (Conflict, CommitFailed, RunRefused):  # another process may have started it meanwhile
                there = await to_thread.run_sync(rows.find_run, self.workspace, run_id)
                if there is None:
                    raise
                return same_run(there, new, on_exists)
            logger(run=run_id, txid=commit.txid).info(
                "run.started", workflow=new.workflow, directory=new.directory
            )
        return new

    def _create(self, run: Run, *, adopt: bool) -> FileTransaction:
        users = rows.runs_in(self.workspace, run.directory)
        if users:
            raise RunRefused(
                "start",
                run.id,
                expected=f"{run.directory} to itself",
                found=f"run {users[0]}, which uses it and is not over",
                hint="finish or cancel that run first, or use {run_id} in the workflow's directory",
            )
        files = self.workspace.begin(label=f"{run.id}/start", owner=run.id)
        if files.exists(run.directory) and files.is_dir(run.directory) and not adopt:
            names = files.list_dir(run.directory)
            if names:
                raise RunRefused(
                    "start",
                    run.id,
                    expected=f"{run.directory} to be empty or missing",
                    found=f"{len(names)} name(s) in it, {names[0]!r} among them",
                    hint="adopt=True (--adopt) takes the directory over with what is in it",
                )
        files.mkdir(run.directory)
        files.write_bytes(run.status_path, run.status.encode())
        files.statements += [
            rows.insert_run(run),
            rows.append_audit(run, "started", step=None, committed=True),
        ]
        return files

    # --- moving on ---

    async def drive(self, run_id: str) -> RunResult:
        """Until the run is over or in error; a second caller waits for the first one's result."""
        driver = self._drivers.get(run_id)
        if driver is not None:
            await driver.done.wait()
            if driver.result is not None:
                return driver.result
        driver = self._drivers[run_id] = Driver()
        try:
            driver.result = await self._drive(run_id, driver)
        finally:
            if self._drivers.get(run_id) is driver:
                del self._drivers[run_id]
            driver.done.set()
        return driver.result

    async def _drive(self, run_id: str, driver: Driver) -> RunResult:
        run = await self.get(run_id)
        results: list[TransitionResult] = []
        with driver.scope:
            while (run := await self._due_here(run)).state.is_due:
                async with self.lock(run_id):
                    moved = await self._move(await self._fresh(run))
                run = moved.run
                results.append(moved.result)
                self._settings.on_transition(moved.result)
                self.notify(moved.result)
                if moved.result.outcome == "blocked":
                    break
        if driver.scope.cancelled_caught:
            await driver.cancelled.wait()
        run = await self._release(run_id)
        return await self._result(run, results)

    async def _due_here(self, run: Run) -> Run:
        """Once it is due, and no other living process moves it on; a dead one's attempt is counted."""
        told = False
        while run.state.is_due:
            if self.executor.is_elsewhere(run):
                if not told:
                    told = True
                    who = self.workspace.describe_worker(run.owner)
                    logger(run=run.id).info("run.driven_elsewhere", worker=run.owner, who=who)
                await self._clock.sleep_until(self._clock.now() + ELSEWHERE_PAUSE_S)
            elif run.owner not in ("", self.workspace.worker):
                if await to_thread.run_sync(rows.open_attempts, self.workspace, run.id):
                    await self._count_interruption(run)
                return await self.get(run.id)
            elif run.next_at is not None and run.next_at > self._clock.now():
                await self._clock.sleep_until(run.next_at)
            else:
                return run
            run = await self.get(run.id)
        return run

    async def _release(self, run_id: str) -> Run:
        """Others may move it on now."""
        run = await self.get(run_id)
        if run.owner == self.workspace.worker:
            released = rows.release_run(self.workspace.worker, run_id)
            await self.executor.write_rows([released])
        return run

    async def _fresh(self, run: Run) -> Run:
        """The row may have moved while nobody held the run's lock."""
        return await self.get(run.id) if run.next_at is not None else run

    async def _move(self, run: Run) -> Moved:
        if not run.state.is_due:
            result = TransitionResult(run.id, run.workflow, run.step or "", "cancelled", run.state, 0)
            return Moved(run, result)
        return await self.executor.transition(run, self.workflow_of(run))

    def workflow_of(self, run: Run) -> Workflow:
        workflow = self._workflows.get(run.workflow)
        if workflow is None:
            raise RunRefused(
                "move on",
                run.id,
                expected=f"workflow {run.workflow!r} in this engine",
                found=f"only {', '.join(self._workflows)}" if self._workflows else "no workflow at all",
                hint=f"it was started from {run.source}"
                if run.source
                else "pass it to Engine(root, [workflow])",
            )
        return workflow

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

    async def make_due(self, run_id: str) -> Run:
        """A run in error or waiting is due now."""
        async with self.lock(run_id):
            return await self._make_due(await self.get(run_id))

    async def _make_due(self, run: Run) -> Run:
        if run.state.is_over:
            raise RunRefused("move on", run.id, expected="a run that is not over", found=run.state.value)
        if self.executor.is_elsewhere(run):
            raise RunRefused(
                "move on",
                run.id,
                expected="a run that nobody else is working on",
                found=f"{self.workspace.describe_worker(run.owner)}, which is",
                hint="wait for it to end, or cancel the run: surefoot cancel",
            )
        self.workflow_of(run)
        if run.state is RunState.RUNNING:
            return run
        after = machine.retried(run, self._clock.now())
        await self.executor.commit_status(run, after, "retried", [])
        return after

    async def advance(self, run_id: str) -> TransitionResult:
        async with self.lock(run_id):
            try:
                run = await self._make_due(await self.get(run_id))
            except (WorkspaceBlocked, WorkspaceBusy) as error:
                return self.executor.blocked(await self.get(run_id), error)
            moved = await self.executor.transition(run, self.workflow_of(run))
            await self._release(run_id)
        self.notify(moved.result)
        return moved.result

    def notify(self, result: TransitionResult) -> None:
        """Wakes the outbox where the transition has put something into it."""
        workflow = self._workflows[result.workflow]
        if result.ok and workflow.steps[result.step].effects:
            self.outbox.notify()

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

    def is_in_flight(self, run: Run) -> bool:
        """Whether somebody, here or elsewhere, is moving it on."""
        return run.id in self._drivers or self.executor.is_elsewhere(run)

    async def cancel(self, run_id: str) -> Run:
        await self.get(run_id)
        async with self.interrupted(run_id):
            run = await self.get(run_id)
            if run.state.is_over:
                raise RunRefused("cancel", run_id, expected="a run that is not over", found=run.state.value)
            after = machine.cancelled(run, self._clock.now())
            await self.executor.commit_status(run, after, "cancelled", [])
        logger(run=run_id).info("run.cancelled", step=run.step)
        return after
