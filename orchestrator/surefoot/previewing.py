"""Looking ahead, and committing exactly what was seen.

A preview runs the due step's body and keeps what it wants in the store, under a digest. Committing by that
digest runs nothing again: a step that asks a language model commits the answer that somebody looked at.
"""

from __future__ import annotations

from typing import Any

from anyio import to_thread

from surefoot_storage import Conflict, FileTransaction, InputError, Sealed

from . import machine, rows
from .clock import Clock
from .declare import Step, Workflow
from .errors import RunRefused, TransitionFailed
from .failures import describe
from .model import Run, TransitionResult
from .opened import OpenEngine
from .preview import Preview, changes_of


class Previews:
    """Of one open engine."""

    def __init__(self, engine: OpenEngine, clock: Clock) -> None:
        self._engine = engine
        self._executor = engine.executor
        self._workspace = engine.workspace
        self._clock = clock

    async def preview(self, run_id: str) -> Preview:
        """What the due step would do, kept under its digest.

        Raises:
            UnknownRun, RunRefused, TransitionFailed: there is nothing to show.
        """
        run = await self._engine.get(run_id)
        step = self._due_step("preview", run)
        workflow = self._engine.workflow_of(run)
        tx = self._executor.begin(run, workflow, step)
        files = tx._files  # noqa: SLF001 - the engine's half of the class
        try:
            given = workflow.parse_input(run.input)
            returned = await self._executor.prepare(run, workflow, step, tx, given, record=False)
            next_step = step.resolve(returned)
        except Exception as error:
            files.fence()
            failure = describe(error, step.name, run.failures + 1, self._clock.now())
            raise TransitionFailed(
                "preview", f"{run_id}/{step.name}", found=f"{failure.error}: {failure.message}",
                hint=failure.hint, result=failure,
            ) from error  # fmt: skip
        try:
            return await to_thread.run_sync(lambda: self._show(run, step, next_step, files))
        finally:
            files.fence()  # what was streamed goes; what is kept lies in the store

    def _show(self, run: Run, step: Step[..., Any], next_step: str | None, files: FileTransaction) -> Preview:
        after = machine.stepped(run, next_step, self._clock.now())
        effects = tuple(effect.name for effect in step.effects)
        files.write_bytes(run.status_path, after.status.encode())
        changes = changes_of(files, self._workspace.plan(files))
        facts = {
            "run": run.id, "revision": run.revision, "step": step.name, "next": next_step,
            "effects": effects,
        }  # fmt: skip
        not_kept, sealing = "", self._workspace.sealing
        try:
            digest = sealing.seal(files, facts, leave_out=run.status_path)
        except InputError as error:  # shown all the same: it says that it cannot be committed
            digest, not_kept = "", str(error)
        return Preview(run.id, step.name, next_step, changes, effects, digest, not_kept)

    async def commit(self, digest: str) -> TransitionResult:
        """The transition that was previewed; no step runs.

        Raises:
            InputError, RunRefused: there is no such preview, or its run has moved since.
            Conflict: a file that the step had read or would change is not what it was.
            WorkspaceBlocked, WorkspaceBusy, CommitError: as any commit. Nothing was changed.
        """
        sealed = await to_thread.run_sync(self._workspace.sealing.find, digest)
        async with self._engine.lock(sealed.owner):
            run = await self._engine.get(sealed.owner)
            step = self._due_step("commit", run)
            self._refuse_other(run, self._engine.workflow_of(run), step, sealed)
            async with self._executor.locks.holding(step.locks):
                result = await self._commit(run, step, sealed)
        self._engine.notify(result)
        return result

    async def _commit(self, run: Run, step: Step[..., Any], sealed: Sealed) -> TransitionResult:
        now = self._clock.now()
        after = machine.stepped(run, sealed.facts["next"], now)

        def prepare() -> FileTransaction:
            files = self._workspace.begin(label=f"{run.id}/{step.name}", owner=run.id)
            try:
                sealed.put_into(files)
                files.statements.append(rows.start_attempt(run, step.name, now))
                return self._executor.prepare_commit(run, after, step, files)
            except BaseException:
                files.fence()
                raise

        try:
            commit = await self._executor.commits.run(prepare)
        except Conflict:
            self._refuse_moved(await self._engine.get(run.id), sealed)
            raise
        return self._executor.report(run, after, step, commit)

    def _due_step(self, operation: str, run: Run) -> Step[..., Any]:
        if run.state.is_over or run.step is None:
            raise RunRefused(operation, run.id, expected="a run with a step to do", found=run.state.value)
        step = self._engine.workflow_of(run).steps.get(run.step)
        if step is None:
            raise RunRefused(
                operation, run.id, expected=f"step {run.step!r}", found="no such step in the workflow"
            )
        return step

    def _refuse_other(self, run: Run, workflow: Workflow, step: Step[..., Any], sealed: Sealed) -> None:
        facts = sealed.facts
        if self._engine.is_in_flight(run):
            raise RunRefused(
                "commit",
                run.id,
                expected="a run that nobody is working on",
                found=f"{run.step}, which is being worked on",
                hint="wait for it: the preview is of no use then",
            )
        self._refuse_moved(run, sealed)
        effects = [effect.name for effect in step.effects]
        unknown = facts["next"] is not None and facts["next"] not in workflow.steps
        if facts["effects"] != effects or unknown:
            raise RunRefused(
                "commit",
                run.id,
                expected=f"the workflow that was previewed: effects {facts['effects']}, then {facts['next']}",
                found=f"another one: effects {effects}, steps {', '.join(workflow.steps)}",
                hint="surefoot preview shows what would be done now",
            )

    def _refuse_moved(self, run: Run, sealed: Sealed) -> None:
        facts = sealed.facts
        if (facts["revision"], facts["step"]) != (run.revision, run.step):
            raise RunRefused(
                "commit",
                run.id,
                expected=f"step {facts['step']} at revision {facts['revision']}, as it was previewed",
                found=f"{run.state.value}, step {run.step} at revision {run.revision}",
                hint="surefoot preview shows what would be done now",
            )
