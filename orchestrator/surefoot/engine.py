"""The engine: opens a workspace, moves its runs on, and answers for them."""

from __future__ import annotations

import contextlib
import os
import random as randoms
import uuid
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Literal, TypeVar

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from surefoot_storage import (
    FsOps,
    Recovered,
    SurefootError,
    Workspace,
    WorkspaceBlocked,
    WorkspacePoisoned,
)
from surefoot_storage.recipes import RecipeName

from . import machine, rows
from .clock import Clock, SystemClock
from .declare import Workflow, checked_run_id
from .errors import DeclarationError, RunRefused
from .execute import Executor, Moved
from .log import logger
from .model import Failure, Run, RunResult, RunState, TransitionResult
from .outbox import Outbox
from .pending import Pending
from .preview import Preview, changes_of
from .transaction import Transaction

T = TypeVar("T")

EFFECTS_GRACE_S = 10.0


class Engine:
    """Runs workflows over the files of one workspace.

    From async code: `async with Engine(root, [flow]) as engine: await engine.run(flow, {…})`.
    From sync code: `with Engine(root, [flow]) as engine: engine.run(flow, {…}).wait()`.

    Opening finishes whatever a crash had left undone in the files. Unfinished runs of the given
    workflows then go on by themselves while the engine is open (`resume=False` leaves them alone).

    Args:
        root: the workspace: an existing directory.
        workflows: the workflows whose runs this engine moves on.
        resume: go on with unfinished runs at once.
        threads_max: sync step bodies at the same time.
        effects_grace_s: how long closing waits for effects that are due.
        clock, random, new_id, fs, recipe: for tests: time, chance in [0, 1), unique names, the seam
            to the disk, and a filesystem recipe instead of the one found by probing.

    Raises:
        WorkspaceUnusable, WorkspaceBusy: from entering it; nothing was changed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = ".",
        workflows: Iterable[Workflow] = (),
        *,
        resume: bool = True,
        threads_max: int = 32,
        effects_grace_s: float = EFFECTS_GRACE_S,
        clock: Clock | None = None,
        random: Callable[[], float] = randoms.random,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        fs: FsOps | None = None,
        recipe: RecipeName | None = None,
    ) -> None:
        self._root = os.fspath(root)
        self._workflows: dict[str, Workflow] = {}
        for workflow in workflows:
            self._add(workflow)
        self._resume = resume
        self._threads_max = threads_max
        self._effects_grace_s = effects_grace_s
        self._clock = clock or SystemClock()
        self._random = random
        self._new_id = new_id
        self._fs = fs
        self._recipe = recipe
        self._opened: _Opened | None = None
        self._stack = contextlib.AsyncExitStack()
        self._blocking = contextlib.ExitStack()
        self._portal: Any = None

    # --- opening and closing ---

    async def __aenter__(self) -> Engine:
        async with contextlib.AsyncExitStack() as stack:
            workspace = await to_thread.run_sync(self._open_workspace)
            stack.push_async_callback(_shielded, workspace.close)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            self._opened = _Opened(self, workspace, tasks)
            stack.push_async_callback(self._wind_down, tasks)
            await self._opened.catch_up()
            tasks.start_soon(self._opened.outbox.serve)
            if self._resume:
                for run_id in await to_thread.run_sync(rows.due_runs, workspace):
                    tasks.start_soon(self._go_on, run_id)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(None, None, None)

    def __enter__(self) -> Engine:
        from anyio.from_thread import start_blocking_portal

        with contextlib.ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self))
            self._blocking = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._blocking.close()
        finally:
            self._portal = None

    def _open_workspace(self) -> Workspace:
        return Workspace(
            self._root,
            schemas=[rows.SCHEMA],
            fs=self._fs,
            recipe=self._recipe,
            clock=self._clock.now,
            new_id=self._new_id,
            observer=lambda event, facts: logger().warning(f"storage.{event}", **facts),
        )

    async def _wind_down(self, tasks: TaskGroup) -> None:
        opened, self._opened = self._the_open, None
        opened.executor.closing = True
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(SurefootError), anyio.move_on_after(self._effects_grace_s):
                await opened.outbox.deliver_due()
            with contextlib.suppress(SurefootError):
                left = await to_thread.run_sync(rows.count_effects, opened.workspace, "pending")
                if left:
                    logger().warning("effects.undelivered", count=left)
        tasks.cancel_scope.cancel()

    @property
    def _the_open(self) -> _Opened:
        if self._opened is None:
            raise WorkspacePoisoned(
                "use the engine",
                self._root,
                expected="an open engine",
                found="one that is closed or was never opened",
                hint="async with Engine(…) as engine, or with Engine(…) as engine",
            )
        return self._opened

    def _add(self, workflow: Workflow) -> None:
        if self._workflows.setdefault(workflow.name, workflow) is not workflow:
            raise DeclarationError(
                "open the engine", workflow.name, expected="one workflow of that name", found="two different ones"
            )

    def _pending(self, name: str, operation: Callable[[], Awaitable[T]]) -> Pending[T]:
        return Pending(f"engine.{name}()", operation, self._wait)

    def _wait(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        if self._portal is None:
            raise RuntimeError("wait() works inside `with Engine(…) as engine`; in async code, await instead")
        return self._portal.call(operation)

    async def _go_on(self, run_id: str) -> None:
        """A resumed run, in the background: nobody waits for it, so its failure is an event."""
        opened = self._the_open
        try:
            run = await opened.get(run_id)
            if run.workflow not in self._workflows:
                logger(run=run_id).warning("run.left_alone", workflow=run.workflow, why="workflow is not known here")
                return
            logger(run=run_id).info("run.resumed", step=run.step)
            await opened.drive(run_id)
        except SurefootError as error:
            logger(run=run_id).error("run.stopped", error=str(error))

    # --- operations ---

    @property
    def recovered(self) -> Recovered:
        """What opening had to finish after a crash."""
        return self._the_open.workspace.recovered

    def start(
        self,
        workflow: Workflow,
        input: Any = None,  # noqa: A002 - the word that its users would look for
        *,
        run_id: str | None = None,
        adopt: bool = False,
        on_exists: Literal["return", "refuse"] = "return",
        source: str = "",
    ) -> Pending[Run]:
        """Creates a run: its row, directory, status file and first trigger, in one commit.

        With `run_id`, starting twice is idempotent: the same workflow and input return the run that is
        there (or are refused, `on_exists="refuse"`); anything else is refused. A directory that already
        holds files is refused unless `adopt=True`.

        Raises:
            InputRefused, RunRefused, DeclarationError: nothing was changed.
        """
        return self._pending(
            "start",
            lambda: self._the_open.start(
                workflow, input, run_id=run_id, adopt=adopt, on_exists=on_exists, source=source
            ),
        )

    def run(
        self,
        workflow: Workflow,
        input: Any = None,  # noqa: A002 - as in start
        *,
        run_id: str | None = None,
        adopt: bool = False,
        on_exists: Literal["return", "refuse"] = "return",
        source: str = "",
    ) -> Pending[RunResult]:
        """Starts a run (see `start`) and drives it until it is over or in error."""

        async def operation() -> RunResult:
            run = await self._the_open.start(
                workflow, input, run_id=run_id, adopt=adopt, on_exists=on_exists, source=source
            )
            return await self._the_open.drive(run.id)

        return self._pending("run", operation)

    def resume(self, run_id: str) -> Pending[RunResult]:
        """Drives a run on until it is over or in error. One in error stays there: see `retry`.

        Raises:
            UnknownRun, RunRefused: there is none, or its workflow is not known here.
        """
        return self._pending("resume", lambda: self._the_open.drive(run_id))

    def retry(self, run_id: str) -> Pending[RunResult]:
        """Tries the failed step of a run again, with all its attempts, and drives the run on."""

        async def operation() -> RunResult:
            await self._the_open.make_due(run_id)
            return await self._the_open.drive(run_id)

        return self._pending("retry", operation)

    def advance(self, run_id: str) -> Pending[TransitionResult]:
        """Exactly one attempt at the due step, now: also of a run in error, or waiting for its retry.

        Raises:
            UnknownRun, RunRefused: there is none, it is over, or its workflow is not known here.
        """
        return self._pending("advance", lambda: self._the_open.advance(run_id))

    def cancel(self, run_id: str) -> Pending[Run]:
        """Ends a run; a step that is being worked on is stopped, and changes nothing.

        Raises:
            UnknownRun, RunRefused: there is none, or it is over.
        """
        return self._pending("cancel", lambda: self._the_open.cancel(run_id))

    def preview(self, run_id: str) -> Pending[Preview]:
        """Runs the due step's body and shows what it would change. Nothing is changed, no effect is sent.

        Raises:
            UnknownRun, RunRefused: as `advance`; and whatever the body raises.
        """
        return self._pending("preview", lambda: self._the_open.preview(run_id))

    def get(self, run_id: str) -> Pending[Run]:
        """The run as its row says.

        Raises:
            UnknownRun: there is none.
        """
        return self._pending("get", lambda: self._the_open.get(run_id))

    def runs(self) -> Pending[list[Run]]:
        """All runs, the latest change first."""
        return self._pending("runs", lambda: to_thread.run_sync(rows.list_runs, self._the_open.workspace))

    def settle(self) -> Pending[tuple[tuple[str, str], ...]]:
        """Tries again to put committed files in place; returns (path, cause) of what is left."""
        return self._pending("settle", lambda: to_thread.run_sync(self._the_open.workspace.settle))

    def deliver(self) -> Pending[int]:
        """Delivers the effects that are due; returns how many still wait."""

        async def operation() -> int:
            await self._the_open.outbox.deliver_due()
            return await to_thread.run_sync(rows.count_effects, self._the_open.workspace, "pending")

        return self._pending("deliver", operation)


async def _shielded(work: Callable[[], None]) -> None:
    with anyio.CancelScope(shield=True):
        await to_thread.run_sync(work)


class _Opened:
    """What only an open engine has."""

    def __init__(self, engine: Engine, workspace: Workspace, tasks: TaskGroup) -> None:
        self.workspace = workspace
        self._engine = engine
        self._clock = engine._clock  # noqa: SLF001 - two halves of one thing
        self._workflows = engine._workflows  # noqa: SLF001
        self.outbox = Outbox(workspace, self._workflows, self._clock, engine._random)  # noqa: SLF001
        self.executor = Executor(
            workspace,
            self._clock,
            engine._random,  # noqa: SLF001
            tasks,
            threads_max=engine._threads_max,  # noqa: SLF001
        )
        self._locks: dict[str, anyio.Lock] = {}
        self._drivers: dict[str, _Driver] = {}

    async def get(self, run_id: str) -> Run:
        return await to_thread.run_sync(rows.get_run, self.workspace, run_id)

    def _lock(self, run_id: str) -> anyio.Lock:
        return self._locks.setdefault(run_id, anyio.Lock())

    # --- after a crash ---

    async def catch_up(self) -> None:
        """Attempts that a dead process left open are counted; failures it could not record are."""
        for run_id, failure in await to_thread.run_sync(rows.unrecorded_failures, self.workspace):
            run = await self.get(run_id)
            after = machine.failed(run, failure, None, self._clock.now())
            await self.executor.record_failure(run, after, failure)
        for run_id in await to_thread.run_sync(rows.open_attempts, self.workspace):
            await self._count_interruption(await self.get(run_id))

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
        self._engine._add(workflow)  # noqa: SLF001
        model = workflow.parse_input(given)
        run_id = checked_run_id(self._engine._new_id() if run_id is None else run_id)  # noqa: SLF001
        new = machine.created(
            run_id,
            workflow.name,
            model.model_dump_json(),
            workflow.place(workflow.directory, model, run_id, operation="start"),
            workflow.first_step,
            source=source,
            at=self._clock.now(),
        )
        async with self._lock(run_id):
            there = await to_thread.run_sync(rows.find_run, self.workspace, run_id)
            if there is not None:
                return _same_run(there, new, on_exists)
            commit = await self.executor.uninterrupted(lambda: self._create(new, adopt=adopt))
            logger(run=run_id, txid=commit.txid).info("run.started", workflow=new.workflow, directory=new.directory)
        return new

    def _create(self, run: Run, *, adopt: bool) -> Any:
        users = rows.runs_in(self.workspace, run.directory)
        if users:
            raise RunRefused(
                "start",
                run.id,
                expected=f"{run.directory} to itself",
                found=f"run {users[0]}, which uses it and is not over",
                hint="finish or cancel that run first, or use {run_id} in the workflow's directory",
            )
        files = self.workspace.begin(label=f"{run.id}/start")
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
        files.statements += [rows.insert_run(run), rows.append_audit(run, "started", step=None, committed=True)]
        return self.workspace.commit(files)

    # --- moving on ---

    async def drive(self, run_id: str) -> RunResult:
        """Until the run is over or in error; a second caller waits for the first one's result."""
        driver = self._drivers.get(run_id)
        if driver is not None:
            await driver.done.wait()
            if driver.result is not None:
                return driver.result
        driver = self._drivers[run_id] = _Driver()
        try:
            driver.result = await self._drive(run_id, driver.scope)
        finally:
            if self._drivers.get(run_id) is driver:
                del self._drivers[run_id]
            driver.done.set()
        return driver.result

    async def _drive(self, run_id: str, scope: anyio.CancelScope) -> RunResult:
        run = await self.get(run_id)
        results: list[TransitionResult] = []
        with scope:
            while run.state.is_due:
                if run.next_at is not None:
                    await self._clock.sleep_until(run.next_at)
                async with self._lock(run_id):
                    moved = await self._move(await self._fresh(run))
                run = moved.run
                results.append(moved.result)
                self.outbox.notify()
                if moved.result.outcome == "blocked":
                    break
        if scope.cancelled_caught:
            run = await self.get(run_id)
        return await self._result(run, results)

    async def _fresh(self, run: Run) -> Run:
        """The row may have moved while nobody held the run's lock."""
        return await self.get(run.id) if run.next_at is not None else run

    async def _move(self, run: Run) -> Moved:
        if not run.state.is_due:
            result = TransitionResult(run.id, run.workflow, run.step or "", "cancelled", run.state, 0)
            return Moved(run, result)
        return await self.executor.transition(run, self._workflow_of(run))

    def _workflow_of(self, run: Run) -> Workflow:
        workflow = self._workflows.get(run.workflow)
        if workflow is None:
            raise RunRefused(
                "move on",
                run.id,
                expected=f"workflow {run.workflow!r} in this engine",
                found=f"only {', '.join(self._workflows)}" if self._workflows else "no workflow at all",
                hint=f"it was started from {run.source}" if run.source else "pass it to Engine(root, [workflow])",
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
        async with self._lock(run_id):
            return await self._make_due(await self.get(run_id))

    async def _make_due(self, run: Run) -> Run:
        if run.state.is_over:
            raise RunRefused("move on", run.id, expected="a run that is not over", found=run.state.value)
        self._workflow_of(run)
        if run.state is RunState.RUNNING:
            return run
        after = machine.retried(run, self._clock.now())
        await self.executor.commit_status(run, after, "retried", [])
        return after

    async def advance(self, run_id: str) -> TransitionResult:
        async with self._lock(run_id):
            try:
                run = await self._make_due(await self.get(run_id))
            except WorkspaceBlocked as error:
                return self.executor.blocked(await self.get(run_id), error)
            moved = await self.executor.transition(run, self._workflow_of(run))
        self.outbox.notify()
        return moved.result

    async def cancel(self, run_id: str) -> Run:
        run = await self.get(run_id)
        self.executor.cancel_requested.add(run_id)
        try:
            if (driver := self._drivers.get(run_id)) is not None:
                driver.scope.cancel()
            async with self._lock(run_id):
                run = await self.get(run_id)
                if run.state.is_over:
                    raise RunRefused("cancel", run_id, expected="a run that is not over", found=run.state.value)
                after = machine.cancelled(run, self._clock.now())
                await self.executor.commit_status(run, after, "cancelled", [])
        finally:
            self.executor.cancel_requested.discard(run_id)
        logger(run=run_id).info("run.cancelled", step=run.step)
        return after

    # --- looking ahead ---

    async def preview(self, run_id: str) -> Preview:
        run = await self.get(run_id)
        if run.state.is_over or run.step is None:
            raise RunRefused("preview", run_id, expected="a run with a step to do", found=run.state.value)
        workflow = self._workflow_of(run)
        if run.step not in workflow.steps:
            raise RunRefused("preview", run_id, expected=f"step {run.step!r}", found="no such step in the workflow")
        step = workflow.steps[run.step]
        files = self.workspace.begin(label="preview")
        tx = Transaction(
            files,
            run,
            step=step.name,
            attempt=run.failures + 1,
            templates_dir=workflow.templates,
            is_async=step.is_async,
        )
        given = workflow.parse_input(run.input)
        returned = await self.executor.prepare(run, workflow, step, tx, given, record=False)
        next_step = step.resolve(returned)
        after = machine.stepped(run, next_step, self._clock.now())
        files.write_bytes(run.status_path, after.status.encode())
        changes = await to_thread.run_sync(lambda: changes_of(files, self.workspace.plan(files)))
        return Preview(run_id, step.name, next_step, changes, tuple(effect.name for effect in step.effects))


class _Driver:
    """The one task that moves a run on, and what others wait for."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.result: RunResult | None = None


def _same_run(there: Run, new: Run, on_exists: str) -> Run:
    same = (there.workflow, there.input) == (new.workflow, new.input)
    if same and on_exists == "return":
        return there
    raise RunRefused(
        "start",
        new.id,
        expected="a new id" if same else "the workflow and input that the run was started with",
        found=f"a run of {there.workflow} that is {there.state.value}" + ("" if same else ", with other input"),
        hint="choose another id, or drop on_exists='refuse'" if same else "choose another id",
    )

