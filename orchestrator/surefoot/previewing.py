"""Looking ahead, and committing exactly what was seen.

A preview runs the due step's body and keeps what it wants in the store, under a digest. Committing by that
digest runs nothing again: a step that asks a language model commits the answer that somebody looked at.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from surefoot_storage import Conflict, FileTransaction, InputError, Sealed

from . import machine, rows
from .clock import Clock
from .declare import Workflow
from .errors import RunRefused, TransitionFailed
from .execute import decision_of
from .failures import describe
from .guarding import Passed, pass_guards
from .machine import Choice, Decision
from .model import Run, TransitionResult, Visit, VisitState
from .opened import OpenEngine
from .preview import Preview, changes_of
from .reading import Read
from .steps import Step
from .summary import foremost
from .transaction import Transaction

if TYPE_CHECKING:
    from .guards import Note


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
        visit, step = self._due_step("preview", run)
        workflow = self._engine.workflow_of(run)
        tx = self._executor.begin(run, visit, workflow, step)
        files = tx._files  # noqa: SLF001 - the engine's half of the class
        read = Read(run, visit, workflow, step, tx, workflow.parse_input(run.input), None)
        try:
            decision = decision_of(read, await self._executor.bodies.run(read))
            passed = Passed()
            if decision.items is None:
                now = self._clock.now()
                passed = await to_thread.run_sync(pass_guards, self._workspace, run, step, files, now)
            after = machine.decided(run, visit.number, decision, workflow.graph, self._clock.now())
        except Exception as error:
            files.fence()
            failure = describe(error, step.name, visit.failures + 1, self._clock.now(), part=tx.part)
            raise TransitionFailed(
                "preview", f"{run_id}/{step.name}", found=f"{failure.error}: {failure.message}",
                hint=failure.hint, result=failure,
            ) from error  # fmt: skip
        try:
            return await to_thread.run_sync(lambda: self._show(run, visit, step, decision, after, tx, passed))
        finally:
            files.fence()  # what was streamed goes; what is kept lies in the store

    def _show(
        self,
        run: Run,
        visit: Visit,
        step: Step[..., Any],
        decision: Decision,
        after: Run,
        tx: Transaction,
        passed: Passed,
    ) -> Preview:
        files = tx._files  # noqa: SLF001 - the engine's half of the class
        effects = tuple(effect.name for effect in step.effects)
        starts = tuple(child.id for _, child in tx.started)
        files.write_bytes(run.status_path, after.status.encode())
        changes = changes_of(files, self._workspace.plan(files))
        facts = {
            "run": run.id, "revision": run.revision, "step": step.name, "visit": visit.number,
            "decision": decision.as_facts(), "effects": effects, "notes": passed.as_json, "taken": tx.taken,
        }  # fmt: skip
        digest, not_kept = (
            "",
            f"it starts runs: {', '.join(starts)}; surefoot advance does it" if starts else "",
        )
        if not not_kept:
            try:
                digest = self._workspace.sealing.seal(files, facts, leave_out=run.status_path)
            except InputError as error:  # shown all the same: it says that it cannot be committed
                not_kept = str(error)
        next_step = next((opened.step for opened in after.open if opened.number > run.visits), None)
        return Preview(run.id, step.name, next_step, changes, effects, digest, not_kept, starts,
            tuple(note.as_dict() for note in passed.notes),
        )  # fmt: skip

    async def commit(self, digest: str) -> TransitionResult:
        """The transition that was previewed; no step runs.

        Raises:
            InputError, RunRefused: there is no such preview, or its run has moved since.
            GuardDenied: a guard allowed it then, and does not now.
            Conflict: a file that the step had read or would change is not what it was.
            WorkspaceBlocked, WorkspaceBusy, CommitError: as any commit. Nothing was changed.
        """
        sealed = await to_thread.run_sync(self._workspace.sealing.find, digest)
        async with self._engine.lock(sealed.owner):
            run = await self._engine.get(sealed.owner)
            visit, step = self._due_step("commit", run)
            workflow = self._engine.workflow_of(run)
            self._refuse_other(run, workflow, step, sealed)
            async with self._executor.locks.holding(step.locks):
                result = await self._commit(run, visit, workflow, step, sealed)
        self._engine.notify(result)
        return result

    async def _commit(
        self, run: Run, visit: Visit, workflow: Workflow, step: Step[..., Any], sealed: Sealed
    ) -> TransitionResult:
        now, decision = self._clock.now(), _decision(sealed)
        after = machine.decided(run, visit.number, decision, workflow.graph, now)

        def prepare() -> FileTransaction:
            files = self._workspace.begin(label=f"{run.id}/{step.name}", owner=run.id)
            try:
                sealed.put_into(files)
                passed = pass_guards(self._workspace, run, step, files, now)  # a time, a rate: as of now
                files.statements.append(rows.start_attempt(run, visit, now))
                return self._executor.prepare_commit(
                    run,
                    after,
                    visit,
                    step,
                    files,
                    decision,
                    passed=replace(passed, notes=_notes(sealed)),
                    taken=sealed.facts.get("taken", ()),
                )
            except BaseException:
                files.fence()
                raise

        try:
            commit = await self._executor.commits.run(prepare)
        except Conflict:
            self._refuse_moved(await self._engine.get(run.id), sealed)
            raise
        return self._executor.report(run, after, visit, commit, _notes(sealed))

    def _due_step(self, operation: str, run: Run) -> tuple[Visit, Step[..., Any]]:
        visit = foremost(run)
        if run.state.is_over or visit is None:
            raise RunRefused(operation, run.id, expected="a run with a step to do", found=run.state.value)
        if visit.wait is not None or visit.state is VisitState.JOINING:
            raise RunRefused(
                operation,
                run.id,
                expected="a step to do",
                found=f"{visit.step}, which waits",
                hint="surefoot why",
            )
        step = self._engine.workflow_of(run).steps.get(visit.step)
        if step is None:
            raise RunRefused(
                operation, run.id, expected=f"step {visit.step!r}", found="no such step in the workflow"
            )
        return visit, step

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
        steps = _decision(sealed).choice.steps
        unknown = any(name not in workflow.steps for name in steps)
        if facts["effects"] != effects or unknown:
            raise RunRefused(
                "commit",
                run.id,
                expected=f"the workflow that was previewed: effects {facts['effects']},"
                f" then {', '.join(steps) or 'the end'}",
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


def _notes(sealed: Sealed) -> tuple[Note, ...]:
    """What guards had done to what was previewed."""
    text = sealed.facts.get("notes")
    if not text:
        return ()
    from .guards import Note

    return tuple(Note(**note) for note in json.loads(text))


def _decision(sealed: Sealed) -> Decision:
    """What was decided when it was previewed; before branches there was one next step, or none."""
    if "decision" in sealed.facts:
        return Decision.from_facts(sealed.facts["decision"])
    following = sealed.facts["next"]
    return Decision(Choice("committed", (following,) if following else ()))
