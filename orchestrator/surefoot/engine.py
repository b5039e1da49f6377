"""The engine: opens a workspace, moves its runs on, and answers for them."""

from __future__ import annotations

import contextlib
import os
import random as randoms
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from surefoot_storage import (
    FsOps,
    History,
    Policy,
    Recovered,
    Retention,
    SurefootError,
    Upkeep,
    Workspace,
    WorkspacePoisoned,
)
from surefoot_storage.hardening import Durability
from surefoot_storage.locking import WAIT_S
from surefoot_storage.recipes import RecipeName
from surefoot_storage.workspace import DEFAULT_POLICY, DEFAULT_RETENTION

from . import rows
from .clock import Clock, SystemClock
from .declare import Workflow
from .log import logger
from .model import Run, RunResult, TransitionResult
from .opened import OpenEngine, Settings
from .pending import Pending
from .preview import Preview
from .previewing import Previews
from .schema import SCHEMA
from .undo import Request, Undoing, Undone

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
        on_transition: is shown each transition's result as it happens.
        policy: choices where more than one answer is right: metadata, hard links, foreign edits.
        durability: `full`, `batched` or `none`: what an acknowledged transition survives.
        retention: how long old versions are kept.
        lock_wait_s: how long a commit waits for another process before it says whom it waited for.
        clock, random, new_id, fs, recipe: for tests: time, chance in [0, 1), names, the seam, a recipe.

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
        on_transition: Callable[[TransitionResult], None] = lambda _result: None,
        policy: Policy = DEFAULT_POLICY,
        durability: Durability = "full",
        retention: Retention = DEFAULT_RETENTION,
        lock_wait_s: float = WAIT_S,
        clock: Clock | None = None,
        random: Callable[[], float] = randoms.random,
        new_id: Callable[[], str] = lambda: os.urandom(16).hex(),
        fs: FsOps | None = None,
        recipe: RecipeName | None = None,
    ) -> None:
        self._root = os.fspath(root)
        self._settings = Settings(clock or SystemClock(), random, new_id, threads_max, on_transition)
        for workflow in workflows:
            self._settings.add(workflow)
        self._resume = resume
        self._effects_grace_s = effects_grace_s
        self._storage: dict[str, Any] = {
            "policy": policy,
            "durability": durability,
            "retention": retention,
            "lock_wait_s": lock_wait_s,
            "fs": fs,
            "recipe": recipe,
        }
        self._opened: OpenEngine | None = None
        self._stack = contextlib.AsyncExitStack()
        self._blocking = contextlib.ExitStack()
        self._portal: Any = None

    # --- opening and closing ---

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            workspace = await to_thread.run_sync(self._open_workspace)
            stack.push_async_callback(_shielded, workspace.close)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            self._opened = OpenEngine(self._settings, workspace, tasks)
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

    def __enter__(self) -> Self:
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
            schemas=[SCHEMA],
            **self._storage,
            clock=self._settings.clock.now,
            new_id=self._settings.new_id,
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
    def _the_open(self) -> OpenEngine:
        if self._opened is None:
            raise WorkspacePoisoned(
                "use the engine",
                self._root,
                expected="an open engine",
                found="one that is closed or was never opened",
                hint="async with Engine(…) as engine, or with Engine(…) as engine",
            )
        return self._opened

    def _pending(self, name: str, operation: Callable[[], Awaitable[T]]) -> Pending[T]:
        return Pending(f"engine.{name}()", operation, self._wait)

    def _wait(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        if self._portal is None:
            raise RuntimeError("wait() works inside `with Engine(…) as engine`; in async code, await instead")
        future = self._portal.start_task_soon(operation)
        try:
            return future.result()
        except BaseException:
            if not future.done():  # Ctrl-C: like a shutdown, the run goes on where it was when opened again
                if self._opened is not None:
                    self._opened.executor.closing = True
                future.cancel()
            raise

    async def _go_on(self, run_id: str) -> None:
        """A resumed run, in the background: nobody waits for it, so its failure is an event."""
        opened = self._the_open
        try:
            run = await opened.get(run_id)
            if run.workflow not in self._settings.workflows:
                logger(run=run_id).warning(
                    "run.left_alone", workflow=run.workflow, why="workflow is not known here"
                )
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

    @property
    def upkeep(self) -> Upkeep:
        """Backups, disk usage, retention, decisions about foreign edits. Synchronous: call it in a thread."""
        return self._the_open.workspace.upkeep

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
        input: Any = None,  # noqa: A002 - the word that its users would look for
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
        """Runs the due step's body, shows what it would change, and keeps that for `commit`. Sends nothing.

        Raises:
            UnknownRun, RunRefused: as `advance`; TransitionFailed: the body raised.
        """
        return self._pending(
            "preview", lambda: Previews(self._the_open, self._settings.clock).preview(run_id)
        )

    def commit(self, digest: str) -> Pending[TransitionResult]:
        """Commits a preview by its digest, or the beginning of it: what was seen; no step runs again.

        Raises:
            InputError, RunRefused, Conflict: none is kept, or its run or its files are not what they were.
        """
        return self._pending("commit", lambda: Previews(self._the_open, self._settings.clock).commit(digest))

    def undo(
        self, txid: str, *, force: bool = False, paths: Sequence[str] = (), dry_run: bool = False
    ) -> Pending[Undone]:
        """Undoes a committed transaction by a new one: files, run state and unsent effects, or nothing.

        The last transition of a run that stands, an undo, or a transaction that belongs to no run; a
        few characters of its id are enough. `force` also where files were changed since: what is there
        now becomes an old version. `paths` takes back only these files and leaves the run where it is.

        Raises:
            UndoRefused: something has happened since, or old contents are gone; nothing was changed.
        """
        return self._undo("undo", Request(txid, False, force, tuple(paths)), dry_run=dry_run)

    def revert(
        self, to: str, *, force: bool = False, paths: Sequence[str] = (), dry_run: bool = False
    ) -> Pending[Undone]:
        """Undoes everything that stands after a transition (or after the start) of a run, as one.

        A step that is being worked on is stopped first, and changes nothing.

        Raises:
            UndoRefused: as `undo`.
        """
        return self._undo("revert", Request(to, True, force, tuple(paths)), dry_run=dry_run)

    def _undo(self, name: str, request: Request, *, dry_run: bool) -> Pending[Undone]:
        async def operation() -> Undone:
            undoing = Undoing(self._the_open, self._settings.clock, request)
            return await (undoing.plan() if dry_run else undoing.carry_out())

        return self._pending(name, operation)

    @property
    def history(self) -> History:
        """What was committed. Synchronous: call it in a thread."""
        return self._the_open.workspace.history

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

    def flush(self) -> Pending[None]:
        """Everything that was committed before is durable when this returns, whatever the level.

        Raises:
            CommitFailed: it could not be flushed.
        """
        return self._pending("flush", lambda: to_thread.run_sync(self._the_open.workspace.flush))

    def deliver(self, run_id: str | None = None) -> Pending[int]:
        """Delivers the effects that are due, of one run or of all; returns how many still wait."""

        async def operation() -> int:
            await self._the_open.outbox.deliver_due(run_id)
            return await to_thread.run_sync(rows.count_effects, self._the_open.workspace, "pending", run_id)

        return self._pending("deliver", operation)


async def _shielded(work: Callable[[], None]) -> None:
    with anyio.CancelScope(shield=True):
        await to_thread.run_sync(work)
