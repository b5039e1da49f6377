"""One transition, phase by phase: read, prepare, commit. Telling others and going on come after it.

Sync bodies run in a worker thread that cannot be stopped: on timeout or cancellation their transaction
is fenced, so that whatever they still do can never be committed, and they are counted until they end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup
from pydantic import BaseModel

from surefoot_storage import (
    Commit,
    CommitError,
    CommitOutcomeUnknown,
    Conflict,
    FileTransaction,
    Statement,
    SurefootError,
    TransactionClosed,
    Workspace,
    WorkspaceBlocked,
    WorkspaceBusy,
    WorkspacePoisoned,
)

from . import machine, rows
from .clock import Clock
from .declare import Step, Workflow
from .errors import DeclarationError, LockNotTaken
from .failures import StepCancelled, StepTimedOut, describe
from .locks import Locks
from .log import logger
from .model import Failure, Outcome, Run, RunState, TransitionResult
from .pump import Pump, each
from .reading import Read, read_all
from .transaction import Transaction

T = TypeVar("T")

CONFLICT_RERUNS_MAX = 5
_CONFLICT_WAIT_S = 0.02
ABANDONED_BODIES_MAX = 8


@dataclass(frozen=True)
class Moved:
    """A run after something was done to it."""

    run: Run
    result: TransitionResult


def _call(prepare: Callable[[], FileTransaction]) -> FileTransaction:
    return prepare()


class Executor:
    """Carries out transitions. Needs a task group that outlives every caller, for commits."""

    def __init__(
        self,
        workspace: Workspace,
        clock: Clock,
        random: Callable[[], float],
        tasks: TaskGroup,
        *,
        threads_max: int,
    ) -> None:
        self._workspace = workspace
        self._clock = clock
        self._random = random
        self._tasks = tasks
        self._bodies = CapacityLimiter(threads_max)
        self._abandoned: set[str] = set()
        self.locks = Locks(workspace, random)
        self.commits: Pump[Callable[[], FileTransaction], Commit] = Pump(
            tasks, self._commit_all, expected=lambda: self._active, patience_s=lambda: workspace.flush_s
        )
        self._active = 0  # transitions between their beginning and their commit
        self._reads: Pump[Read, None] = Pump(tasks, lambda reads: read_all(workspace, reads))
        self._jobs: Pump[Callable[[], Any], Any] = Pump(tasks, each(lambda work: work()))
        self.closing = False
        self.cancel_requested: set[str] = set()

    def is_elsewhere(self, run: Run) -> bool:
        """Whether another living worker moves the run on."""
        workspace = self._workspace
        return run.owner not in ("", workspace.worker) and workspace.is_alive(run.owner)

    # --- one transition ---

    async def transition(self, run: Run, workflow: Workflow) -> Moved:
        """Tries the due step once; a conflict with somebody else's change is tried again at once."""
        assert run.step is not None
        step = workflow.steps.get(run.step)
        if step is None:
            known = ", ".join(workflow.steps) or "none"
            error = DeclarationError(
                "follow",
                f"{run.workflow}/{run.step}",
                expected=f"one of its steps: {known}",
                found="no such step",
                hint="the workflow has changed since; give the step its old name back, or cancel the run",
            )
            return await self._fail(run, None, error)
        try:
            async with self.locks.holding(step.locks):
                return await self._until_no_conflict(run, workflow, step)
        except LockNotTaken as error:
            return await self._fail(run, step, error)

    async def _until_no_conflict(self, run: Run, workflow: Workflow, step: Step[..., Any]) -> Moved:
        log = logger(run=run.id, step=step.name)
        first = True
        for rerun in range(CONFLICT_RERUNS_MAX + 1):
            tx = self.begin(run, workflow, step)
            self._active += 1
            try:
                return await self._attempt(run, workflow, step, tx, record=first)
            except Conflict as error:
                fresh = await to_thread.run_sync(rows.get_run, self._workspace, run.id)
                if fresh.revision != run.revision or self.is_elsewhere(fresh):
                    return self.overtaken(fresh, step.name, error)
                if rerun == CONFLICT_RERUNS_MAX:
                    return await self._fail(run, step, error)
                log.info("transition.conflict", rerun=rerun + 1, path=error.subject, found=error.found)
                await anyio.sleep(_CONFLICT_WAIT_S * (rerun + 1) * (0.5 + self._random()))
            except (WorkspaceBlocked, WorkspaceBusy) as error:
                return Moved(run, self.blocked(run, error))
            except (CommitOutcomeUnknown, WorkspacePoisoned):
                raise
            except (Exception, TransactionClosed) as error:  # noqa: BLE001 - whatever a step raises is the run's failure
                return await self._fail(run, step, error)
            except anyio.get_cancelled_exc_class():
                await self._after_cancel(run, tx)
                raise
            finally:
                self._active -= 1
            first = False
        raise AssertionError("unreachable")

    def begin(self, run: Run, workflow: Workflow, step: Step[..., Any]) -> Transaction:
        """A fresh transaction for one attempt."""
        files = self._workspace.begin(label=f"{run.id}/{step.name}", owner=run.id)
        return Transaction(
            self._workspace,
            files,
            run,
            step=step.name,
            attempt=run.failures + 1,
            templates_dir=workflow.templates,
            is_async=step.is_async,
        )

    async def _attempt(
        self, run: Run, workflow: Workflow, step: Step[..., Any], tx: Transaction, *, record: bool
    ) -> Moved:
        given = workflow.parse_input(run.input)
        returned = await self.prepare(run, workflow, step, tx, given, record=record)
        next_step = step.resolve(returned)
        after = machine.stepped(run, next_step, self._clock.now())
        commit = await self.commits.run(lambda: self.prepare_commit(run, after, step, tx._files))  # noqa: SLF001 - the engine's half of the class
        return Moved(after, self.report(run, after, step, commit))

    # --- phases 1 and 2: read, prepare ---

    async def prepare(
        self,
        run: Run,
        workflow: Workflow,
        step: Step[..., Any],
        tx: Transaction,
        given: BaseModel,
        *,
        record: bool,
    ) -> Any:
        """What the body returned; everything it wants is in `tx`, nothing has changed on disk."""
        read = Read(run, workflow, step, tx, given, self._clock.now() if record else None)
        with anyio.move_on_after(math.inf if step.timeout_s is None else step.timeout_s) as scope:
            if step.is_async:
                await self._reads.run(read)
                return await step.function(tx, given)

            def read_and_prepare() -> Any:
                (error,) = read_all(self._workspace, [read])
                if error is not None:
                    raise error
                return step.function(tx, given)

            return await self._in_thread(tx, read_and_prepare)
        assert scope.cancelled_caught
        tx._end()  # noqa: SLF001 - the engine's half of the class
        raise StepTimedOut(f"the attempt took longer than {step.timeout_s} s")

    async def _in_thread(self, tx: Transaction, body: Callable[[], T]) -> T:
        if len(self._abandoned) >= ABANDONED_BODIES_MAX:
            raise SurefootError(
                "start",
                tx.step,
                expected=f"fewer than {ABANDONED_BODIES_MAX} step bodies that run on after their timeout",
                found=str(len(self._abandoned)),
                hint="call tx.check() in long loops, so that a body ends when its attempt does",
            )
        finished = False

        def work() -> T:
            nonlocal finished
            try:
                return body()
            finally:
                finished = True
                self._abandoned.discard(tx.txid)

        try:
            return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._bodies)
        except anyio.get_cancelled_exc_class():
            self._abandoned.add(tx.txid)
            if finished:
                self._abandoned.discard(tx.txid)
            raise

    # --- phase 3: commit ---

    def prepare_commit(
        self, run: Run, after: Run, step: Step[..., Any], files: FileTransaction
    ) -> FileTransaction:
        """Files, status, history, effects and the next trigger, through one commit point."""
        statements = [
            rows.update_run(after),
            rows.append_audit(after, "step", step=step.name, committed=True),
            rows.end_attempts(run.id, "committed", after.updated_at),
        ]
        for effect in step.effects:
            payload = {"step": step.name, "at": after.updated_at, "files": sorted(files.wants)}
            statements.append(
                rows.enqueue_effect(
                    run.key(f"{step.name}/{effect.name}"), run.id, step.name, effect.name, payload
                )
            )
        return self.with_status(run, after, files, statements)

    def with_status(
        self, run: Run, after: Run, files: FileTransaction, statements: list[Statement]
    ) -> FileTransaction:
        """The run's next status, in its file and its row, with the rest of a transaction."""
        base = files.load(run.status_path)
        if run.status and base.data != run.status.encode():
            logger(run=run.id).warning("status.foreign_edit", path=run.status_path, found=str(base.state))
            statements = [*statements, rows.append_audit(
                replace(after, failure=None), f"foreign status edit replaced: {base.state}",
                step=run.step, committed=True,
            )]  # fmt: skip
        files.write_bytes(run.status_path, after.status.encode())
        files.statements.extend(statements)
        return files

    def _commit_all(self, prepares: list[Callable[[], FileTransaction]]) -> list[Commit | BaseException]:
        """In a thread: everything that waits for a commit, with as few barriers as possible."""
        prepared = each(_call)(prepares)
        ready = [result for result in prepared if isinstance(result, FileTransaction)]
        committed = iter(self._workspace.commit_all(ready))
        return [next(committed) if isinstance(r, FileTransaction) else r for r in prepared]

    async def write_rows(self, statements: list[Statement]) -> None:
        """Rows without files, not durable; carried to its end."""
        await self._jobs.run(lambda: self._workspace.write_rows(statements, durable=False))

    async def commit_status(self, run: Run, after: Run, event: str, statements: list[Statement]) -> Commit:
        """A change of status alone: the small transaction that marks errors, retries, cancellations."""

        def work() -> FileTransaction:
            files = self._workspace.begin(label=f"{run.id}/{event}", owner=run.id)
            audit = rows.append_audit(after, event, step=run.step, committed=True)
            return self.with_status(run, after, files, [rows.update_run(after), audit, *statements])

        return await self.commit(work)

    async def commit(self, work: Callable[[], FileTransaction]) -> Commit:
        """A commit that needs no step's body: a conflict with somebody else is simply tried again."""
        for rerun in range(CONFLICT_RERUNS_MAX):
            try:
                return await self.commits.run(work)
            except Conflict:
                await anyio.sleep(_CONFLICT_WAIT_S * (rerun + 1) * (0.5 + self._random()))
        return await self.commits.run(work)

    def report(self, run: Run, after: Run, step: Step[..., Any], commit: Commit) -> TransitionResult:
        outcome: Outcome = "committed" if commit.applied else "unapplied"
        log = logger(run=run.id, step=step.name, txid=commit.txid)
        log.info("transition.committed", files=len(commit.ops), next=after.step, outcome=outcome)
        for path in commit.foreign:
            log.warning("transition.foreign_edit", path=path)
        return TransitionResult(
            run_id=run.id,
            workflow=run.workflow,
            step=step.name,
            outcome=outcome,
            state=after.state,
            attempt=run.failures + 1,
            txid=commit.txid,
            files=tuple(op.path for op in commit.ops),
            next_step=after.step,
            unapplied=commit.unapplied,
            foreign=commit.foreign,
        )

    # --- when it does not work out ---

    async def _fail(
        self, run: Run, step: Step[..., Any] | None, error: Exception | TransactionClosed
    ) -> Moved:
        now = self._clock.now()
        failure = describe(error, run.step or "", run.failures + 1, now)
        failures = run.failures + 1
        retry_at = None
        if step is not None and step.retry.allows(failures, error):
            retry_at = now + step.retry.delay_s(failures, self._random)
        after = machine.failed(run, failure, retry_at, now)
        after = await self.record_failure(run, after, failure)
        log = logger(run=run.id, step=run.step, attempt=failures)
        log.warning("transition.failed", error=failure.error, message=failure.message, retry_at=retry_at)
        outcome: Outcome = "failed" if retry_at is None else "retrying"
        return Moved(
            after,
            TransitionResult(
                run.id, run.workflow, run.step or "", outcome, after.state, failures, failure=failure
            ),
        )

    async def record_failure(self, run: Run, after: Run, failure: Failure) -> Run:
        """Marks the run; where the disk refuses even that, the attempt's row, for the next open."""
        ended = rows.end_attempts(run.id, "failed", failure.at, failure)
        try:
            await self._commit_failure(run, after, ended)
        except (CommitOutcomeUnknown, WorkspacePoisoned):
            raise
        except SurefootError as refused:
            fresh = await to_thread.run_sync(rows.get_run, self._workspace, run.id)
            if isinstance(refused, Conflict) and fresh.revision != run.revision:
                return fresh  # another process has moved it on: the failure is history
            log = logger(run=run.id, step=run.step)
            log.error("transition.error_not_recorded", error=str(refused))  # noqa: TRY400 - structlog, not logging
            unrecorded = rows.end_attempts(run.id, "unrecorded", failure.at, failure)
            with contextlib.suppress(SurefootError):
                await self.write_rows([unrecorded])
            return replace(run, state=RunState.ERROR, failure=failure)
        return after

    async def _commit_failure(self, run: Run, after: Run, ended: Statement) -> None:
        """On a full disk with the room that is kept for it."""
        try:
            await self.commit_status(run, after, "failed", [ended])
        except CommitOutcomeUnknown:
            raise
        except CommitError:
            if not await to_thread.run_sync(self._workspace.make_room):
                raise
            await self.commit_status(run, after, "failed", [ended])

    async def _after_cancel(self, run: Run, tx: Transaction) -> None:
        """A cancelled task is a failure of the run; a shutdown or `engine.cancel` is not."""
        if not tx._end():  # noqa: SLF001 - the engine's half of the class
            return
        if self.closing or run.id in self.cancel_requested:
            outcome = "interrupted" if self.closing else "cancelled"
            ended = rows.end_attempts(run.id, outcome, self._clock.now())
            with contextlib.suppress(SurefootError):
                await self.write_rows([ended])
            return
        with anyio.CancelScope(shield=True):
            await self._fail(run, None, StepCancelled("the task that ran it was cancelled"))

    def overtaken(self, fresh: Run, step: str, error: Conflict) -> Moved:
        """Another process has moved the run on, or ended it: its row says how it goes on."""
        outcome: Outcome = "cancelled" if fresh.state is RunState.CANCELLED else "overtaken"
        logger(run=fresh.id, step=step).info("transition.overtaken", state=fresh.state.value)
        failure = None
        if outcome == "overtaken":
            failure = describe(error, step, fresh.failures + 1, self._clock.now())
        result = TransitionResult(
            fresh.id, fresh.workflow, step, outcome, fresh.state, fresh.failures + 1, failure=failure
        )
        return Moved(fresh, result)

    def blocked(self, run: Run, error: WorkspaceBlocked | WorkspaceBusy) -> TransitionResult:
        """Not tried: an earlier commit still waits for its files, or another process holds the lock."""
        attempt = run.failures + 1
        failure = describe(error, run.step or "", attempt, self._clock.now())
        return TransitionResult(
            run.id, run.workflow, run.step or "", "blocked", run.state, attempt, failure=failure
        )
