"""Commits of the engine: a run's rows, its status file and what else belongs to them, at one point."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import anyio
from anyio.abc import TaskGroup

from surefoot_storage import (
    Commit,
    CommitError,
    CommitOutcomeUnknown,
    Conflict,
    FileTransaction,
    Statement,
    Workspace,
)

from . import rows
from .log import logger
from .model import Failure, Run
from .pump import Pump, each

CONFLICT_RERUNS_MAX = 5
CONFLICT_WAIT_S = 0.02


def _call(prepare: Callable[[], FileTransaction]) -> FileTransaction:
    return prepare()


class Commits:
    """All commits of one engine. `expected` says how many are about to come, so that they share a flush."""

    def __init__(
        self,
        workspace: Workspace,
        random: Callable[[], float],
        tasks: TaskGroup,
        expected: Callable[[], int],
    ) -> None:
        self._workspace = workspace
        self._random = random
        self._pump: Pump[Callable[[], FileTransaction], Commit] = Pump(
            tasks, self._commit_all, expected=expected, patience_s=lambda: workspace.flush_s
        )
        self._jobs: Pump[Callable[[], Any], Any] = Pump(tasks, each(lambda work: work()))

    async def run(self, prepare: Callable[[], FileTransaction]) -> Commit:
        """One commit, carried to its end whatever is cancelled; `prepare` makes it in a thread."""
        context = copy_context()  # who asks: the thread serves many
        return await self._pump.run(lambda: context.run(prepare))

    async def repeat(self, prepare: Callable[[], FileTransaction]) -> Commit:
        """A commit that needs no step's body: a conflict with somebody else is simply tried again."""
        for rerun in range(CONFLICT_RERUNS_MAX):
            try:
                return await self.run(prepare)
            except Conflict:
                await self.pause(rerun)
        return await self.run(prepare)

    async def pause(self, rerun: int) -> None:
        """Before something is tried again that met somebody else's change."""
        await anyio.sleep(CONFLICT_WAIT_S * (rerun + 1) * (0.5 + self._random()))

    async def write_rows(self, statements: list[Statement]) -> None:
        """Rows without files, not durable; carried to its end."""
        await self._jobs.run(lambda: self._workspace.write_rows(statements, durable=False))

    async def status(
        self,
        run: Run,
        after: Run,
        event: str,
        statements: list[Statement],
        *,
        visit: int | None = None,
        outcome: str | None = None,
        failure: Failure | None = None,
        check: Callable[[FileTransaction], None] = lambda _files: None,
    ) -> Commit:
        """A change of status alone: the small transaction that marks errors, retries, cancellations.

        `check` may look at files, which the commit then checks, too; what it raises ends the change.

        Raises:
            Conflict: somebody else has changed the run since `run` was read.
        """

        def work() -> FileTransaction:
            files = self._workspace.begin(label=f"{run.id}/{event}", owner=run.id)
            check(files)
            audit = rows.append_audit(
                after, event, step=_step_of(run, visit), visit=visit, outcome=outcome, failure=failure
            )
            changes = [*statements, *rows.save(run, after, outcome or event), audit]  # see approval_left
            return self.with_status(run, after, files, changes)

        for rerun in range(CONFLICT_RERUNS_MAX):
            try:
                return await self._pump.run(work)
            except Conflict as error:
                if error.subject == "rows":
                    raise
                await self.pause(rerun)
        return await self._pump.run(work)

    def with_status(
        self, run: Run, after: Run, files: FileTransaction, statements: list[Statement]
    ) -> FileTransaction:
        """The run's next status, in its file and its row, with the rest of a transaction. For threads."""
        base = files.load(run.status_path)
        if run.status and base.data != run.status.encode():
            logger(run=run.id).warning("status.foreign_edit", path=run.status_path, found=str(base.state))
            edited = f"foreign status edit replaced: {base.state}"
            statements = [*statements, rows.append_audit(after, edited, step=run.step)]
        files.write_bytes(run.status_path, after.status.encode())
        files.statements.extend(statements)
        return files

    async def failure(
        self, run: Run, after: Run, failure: Failure, also: list[Statement], *, visit: int
    ) -> None:
        """Marks a run that failed, on a full disk with the room that is kept for it."""
        try:
            await self.status(run, after, "failed", also, visit=visit, failure=failure)
        except CommitOutcomeUnknown:
            raise
        except CommitError:
            if not await anyio.to_thread.run_sync(self._workspace.make_room):
                raise
            await self.status(run, after, "failed", also, visit=visit, failure=failure)

    def _commit_all(self, prepares: list[Callable[[], FileTransaction]]) -> list[Commit | BaseException]:
        """In a thread: everything that waits for a commit, with as few barriers as possible."""
        prepared = each(_call)(prepares)
        ready = [result for result in prepared if isinstance(result, FileTransaction)]
        committed = iter(self._workspace.commit_all(ready))
        return [next(committed) if isinstance(r, FileTransaction) else r for r in prepared]


def _step_of(run: Run, visit: int | None) -> str | None:
    found = run.visit(visit) if visit is not None else None
    return found.step if found else run.step
