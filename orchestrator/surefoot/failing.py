"""What becomes of a run when an attempt does not work out: failed, retried, overtaken, cancelled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import anyio
from anyio import to_thread

from surefoot_storage import (
    CommitOutcomeUnknown,
    Conflict,
    SurefootError,
    TransactionClosed,
    Workspace,
    WorkspacePoisoned,
)

from . import machine, rows
from .clock import Clock
from .committing import Commits
from .errors import LockNotTaken
from .failures import DeadlineExceeded, StepCancelled, describe
from .live import Live
from .log import logger
from .model import Failure, Outcome, Run, RunState, TransitionResult, Visit
from .steps import Step
from .transaction import Transaction


class Failing:
    """Of one engine's transitions."""

    def __init__(
        self, workspace: Workspace, clock: Clock, random: Callable[[], float], commits: Commits
    ) -> None:
        self._workspace = workspace
        self._clock = clock
        self._random = random
        self.commits = commits
        self.closing = False
        self.cancel_requested: set[str] = set()

    async def fail(
        self,
        live: Live,
        number: int,
        step: Step[..., Any] | None,
        error: Exception | TransactionClosed,
        *,
        part: str = "",
    ) -> TransitionResult:
        async with live.gate:
            run, visit = live.run, live.run.visit(number)
            if visit is None or live.lost:
                return self.passed_by(run, live, number, error)
            now, failures = self._clock.now(), visit.failures + 1
            failure = describe(error, visit.step, failures, now, part=part)
            retry_at = self._retry_at(visit, step, error, now)
            after = machine.failed(run, number, failure, retry_at, now)
            live.run = after = await self.record_failure(live, run, after, number, failure)
        log = logger(run=run.id, step=visit.step, attempt=failures)
        log.warning("transition.failed", error=failure.error, message=failure.message, retry_at=retry_at)
        return TransitionResult(
            run.id, run.workflow, visit.step, "failed" if retry_at is None else "retrying", after.state,
            failures, failure=failure, visit=number,
        )  # fmt: skip

    def _retry_at(
        self, visit: Visit, step: Step[..., Any] | None, error: BaseException, now: float
    ) -> float | None:
        failures = visit.failures + 1
        if step is None or isinstance(error, DeadlineExceeded) or not step.retry.allows(failures, error):
            return None
        retry_at = now + step.retry.delay_s(failures, self._random)
        return None if visit.deadline_at is not None and retry_at >= visit.deadline_at else retry_at

    async def record_failure(self, live: Live, run: Run, after: Run, number: int, failure: Failure) -> Run:
        """Marks the run; where the disk refuses even that, the attempt's row, for the next open."""
        ended = rows.end_attempts(run.id, "failed", failure.at, failure, visit=number)
        counted = [rows.measure(run.queue, "lock_failures")] if failure.error == LockNotTaken.__name__ else []
        try:
            await self.commits.failure(run, after, failure, [ended, *counted], visit=number)
        except (CommitOutcomeUnknown, WorkspacePoisoned):
            raise
        except SurefootError as refused:
            fresh = await to_thread.run_sync(rows.get_run, self._workspace, run.id)
            if isinstance(refused, Conflict) and fresh.revision != run.revision:
                live.lost = live.lost or fresh.epoch != run.epoch
                return fresh  # another process has moved it on: the failure is history
            log = logger(run=run.id, step=failure.step)
            log.error("transition.error_not_recorded", error=str(refused))  # noqa: TRY400 - structlog, not logging
            unrecorded = rows.end_attempts(run.id, "unrecorded", failure.at, failure, visit=number)
            with contextlib.suppress(SurefootError):
                await self.commits.write_rows([unrecorded])
            return machine.failed(run, number, failure, None, failure.at)
        return after

    async def after_cancel(self, live: Live, number: int, tx: Transaction) -> None:
        """A cancelled task is a failure of the run; a shutdown or `engine.cancel` is not."""
        if not tx._end():  # noqa: SLF001 - the engine's half of the class
            return
        run_id = live.run.id
        if self.closing or run_id in self.cancel_requested:
            outcome = "interrupted" if self.closing else "cancelled"
            ended = rows.end_attempts(run_id, outcome, self._clock.now(), visit=number)
            with contextlib.suppress(SurefootError):
                await self.commits.write_rows([ended])
            return
        with anyio.CancelScope(shield=True):
            await self.fail(live, number, None, StepCancelled("the task that ran it was cancelled"))

    async def overtaken(self, live: Live, number: int, error: Conflict) -> TransitionResult | None:
        """Whether somebody else has moved the run on, or ended it: its row says how it goes on."""
        fresh = await to_thread.run_sync(rows.get_run, self._workspace, live.run.id)
        if (fresh.revision, fresh.epoch) == (live.run.revision, live.run.epoch):
            return None
        async with live.gate:
            live.lost = live.lost or fresh.epoch != live.run.epoch
            run, live.run = live.run, fresh
            if not live.lost and fresh.visit(number) is not None:
                return None  # somebody has paused it, say: the visit is finished all the same
            return self.passed_by(run, live, number, error)

    def passed_by(
        self, run: Run, live: Live, number: int, error: Exception | TransactionClosed
    ) -> TransitionResult:
        visit, fresh = run.visit(number), live.run
        step, attempt = (visit.step, visit.failures + 1) if visit else (fresh.last_step or "", 1)
        outcome: Outcome = "cancelled" if fresh.state is RunState.CANCELLED else "overtaken"
        logger(run=fresh.id, step=step).info("transition.overtaken", state=fresh.state.value)
        failure = None
        if outcome == "overtaken":
            failure = describe(error, step, attempt, self._clock.now())
        return TransitionResult(
            fresh.id, fresh.workflow, step, outcome, fresh.state, attempt, failure=failure, visit=number
        )

    def blocked(self, run: Run, visit: Visit | None, error: SurefootError) -> TransitionResult:
        """Not tried: an earlier commit still waits for its files, or another process holds the lock."""
        step, number = (visit.step, visit.number) if visit else (run.step or "", 0)
        attempt = visit.failures + 1 if visit else 1
        failure = describe(error, step, attempt, self._clock.now())
        return TransitionResult(
            run.id, run.workflow, step, "blocked", run.state, attempt, failure=failure, visit=number
        )
