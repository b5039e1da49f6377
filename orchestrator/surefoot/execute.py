"""One transition, phase by phase: read, prepare, commit. Telling others and going on come after it.

The branches of a run are worked on at the same time, and change it one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from surefoot_storage import (
    Commit,
    CommitOutcomeUnknown,
    Conflict,
    FileTransaction,
    TransactionClosed,
    Workspace,
    WorkspaceBlocked,
    WorkspaceBusy,
    WorkspacePoisoned,
)

from . import launches, machine, rows, waking
from .asking import request
from .bodies import Bodies
from .clock import Clock
from .committing import CONFLICT_RERUNS_MAX, Commits
from .declare import Workflow
from .errors import DeclarationError, LockNotTaken
from .failing import Failing
from .failures import DeadlineExceeded
from .guarding import Passed, pass_guards
from .live import Live
from .locks import Locks
from .log import logger
from .machine import Choice, Decision
from .model import Outcome, Run, TransitionResult, Visit, VisitState
from .reading import Read
from .starting import add_start
from .steps import Step
from .tending import copy_name
from .transaction import Transaction
from .waits import Wait

if TYPE_CHECKING:
    from .guards import Note


class Executor(Failing):
    """Carries out transitions. Needs a task group that outlives every caller, for commits."""

    def __init__(
        self,
        workspace: Workspace,
        clock: Clock,
        random: Callable[[], float],
        tasks: TaskGroup,
        *,
        threads_max: int,
        know: Callable[[Workflow], None],
    ) -> None:
        super().__init__(workspace, clock, random, Commits(workspace, random, tasks, lambda: self._active))
        self._know = know
        self.on_message: Callable[[], None] = lambda: None  # somebody is to be told
        self._active = 0  # transitions between their beginning and their commit
        self.bodies = Bodies(workspace, tasks, threads_max=threads_max)
        self.locks = Locks(workspace, random)

    # --- one transition ---

    async def transition(self, live: Live, number: int, workflow: Workflow) -> TransitionResult | None:
        """Tries a visit once; a conflict with somebody else's change is tried again at once.

        None where it turned out that a parked visit has to wait on.
        """
        if (gone := self._gone(live, number)) is not None:
            return gone
        visit = live.visit(number)
        step = workflow.steps.get(visit.step)
        if step is None:
            known = ", ".join(workflow.steps) or "none"
            error = DeclarationError(
                "follow",
                f"{workflow.name}/{visit.step}",
                expected=f"one of its steps: {known}",
                found="no such step",
                hint="the workflow has changed since; give the step its old name, skip it, or cancel the run",
            )
            return await self.fail(live, number, None, error)
        if late := self._late(live.run, visit):
            return await self.fail(live, number, None, late)
        if visit.state is VisitState.PARKED:
            return await self._end_wait(live, number, workflow, step)
        try:
            async with self.locks.holding(step.locks):
                return await self._until_no_conflict(live, number, workflow, step)
        except LockNotTaken as error:
            return await self.fail(live, number, step, error)

    def _gone(self, live: Live, number: int) -> TransitionResult | None:
        """What is left to say where somebody else has moved the run on, or this visit of it."""
        if not live.lost and live.run.visit(number) is not None:
            return None
        return self.passed_by(live.run, live, number, TransactionClosed("the run has moved on"))

    def _late(self, run: Run, visit: Visit) -> DeadlineExceeded | None:
        now = self._clock.now()
        if run.deadline_at is not None and now >= run.deadline_at:
            return DeadlineExceeded(f"the run's deadline passed {now - run.deadline_at:.1f} s ago")
        if visit.deadline_at is not None and now >= visit.deadline_at:
            return DeadlineExceeded(f"the step's deadline_s passed {now - visit.deadline_at:.1f} s ago")
        return None

    async def _until_no_conflict(
        self, live: Live, number: int, workflow: Workflow, step: Step[..., Any]
    ) -> TransitionResult:
        log = logger(run=live.run.id, step=step.name)
        first = True
        for rerun in range(CONFLICT_RERUNS_MAX + 1):
            if (gone := self._gone(live, number)) is not None:
                return gone
            visit = live.visit(number)
            tx = self.begin(live.run, visit, workflow, step)
            self._active += 1
            try:
                return await self._attempt(live, visit, workflow, step, tx, record=first)
            except Conflict as error:
                if (overtaken := await self.overtaken(live, number, error)) is not None:
                    return overtaken
                if rerun == CONFLICT_RERUNS_MAX:
                    return await self.fail(live, number, step, error)
                log.info("transition.conflict", rerun=rerun + 1, path=error.subject, found=error.found)
                await self.commits.pause(rerun)
            except (WorkspaceBlocked, WorkspaceBusy) as error:
                return self.blocked(live.run, visit, error)
            except (CommitOutcomeUnknown, WorkspacePoisoned):
                raise
            except (Exception, TransactionClosed) as error:  # noqa: BLE001 - whatever a step raises is the run's failure
                return await self.fail(live, number, step, error, part=tx.part)
            except anyio.get_cancelled_exc_class():
                await self.after_cancel(live, number, tx)
                raise
            finally:
                self._active -= 1
            first = False
        raise AssertionError("unreachable")

    def begin(self, run: Run, visit: Visit, workflow: Workflow, step: Step[..., Any]) -> Transaction:
        """A fresh transaction for one attempt."""
        files = self._workspace.begin(label=f"{run.id}/{step.name}", owner=run.id)
        return Transaction(
            self._workspace,
            files,
            run,
            visit,
            templates_dir=workflow.templates,
            is_async=step.is_async,
            now=self._clock.now(),
            find_works=lambda run_id, step: launches.find_works(self._workspace, run_id, step),
            name_of=copy_name,
        )

    async def _attempt(
        self,
        live: Live,
        visit: Visit,
        workflow: Workflow,
        step: Step[..., Any],
        tx: Transaction,
        *,
        record: bool,
    ) -> TransitionResult:
        started_at = self._clock.now() if record else None
        read = Read(live.run, visit, workflow, step, tx, workflow.parse_input(live.run.input), started_at)
        files = tx._files  # noqa: SLF001 - the engine's half of the class
        decision = decision_of(read, await self.bodies.run(read))
        for started, _ in tx.started:
            self._know(started)
        passed = Passed()
        if step.guards and decision.items is None:
            now = self._clock.now()
            passed = await to_thread.run_sync(pass_guards, self._workspace, read.run, step, files, now)
        async with live.gate:
            run = live.run
            if (gone := self._gone(live, visit.number)) is not None:
                tx._end()  # noqa: SLF001 - the engine's half of the class
                return gone
            after = machine.decided(run, visit.number, decision, workflow.graph, self._clock.now())
            commit = await self.commits.run(
                lambda: self.prepare_commit(
                    run, after, visit, step, files, decision, tx.started, passed, tx.taken
                )
            )
            live.run = after
        return self.report(run, after, visit, commit, passed.notes)

    # --- phase 3: commit ---

    def prepare_commit(
        self,
        run: Run,
        after: Run,
        visit: Visit,
        step: Step[..., Any],
        files: FileTransaction,
        decision: Decision,
        started: Sequence[tuple[Workflow, Run]] = (),
        passed: Passed = Passed(),  # noqa: B008 - a frozen value
        taken: Sequence[str] = (),
    ) -> FileTransaction:
        """Files, status, history, effects and the next trigger, through one commit point. In a thread."""
        outcome = decision.choice.outcome
        statements = [
            *rows.save(run, after, outcome),
            rows.append_audit(
                after, "step", step=step.name, visit=visit.number, outcome=outcome, notes=passed.as_json
            ),
            rows.end_attempts(run.id, "committed", after.updated_at, visit=visit.number),
            *passed.statements,
        ]
        for effect in step.effects if decision.items is None else ():
            payload = {"step": step.name, "at": after.updated_at, "files": sorted(files.wants)}
            key = run.key(visit, f"{step.name}/{effect.name}")
            statements.append(rows.enqueue_effect(key, run.id, step.name, effect.name, payload))
        if decision.wait is not None and decision.wait.ask is not None:
            statements += request(
                self._workspace, files, after, after.open[-1], decision.wait.ask, after.updated_at
            )
        if decision.wait is not None and decision.wait.agent is not None:
            visit_after = after.open[-1]
            statements += launches.request(
                self._workspace, files, after, visit_after, decision.wait, after.updated_at
            )
        statements += [rows.mark_taken(agent_id) for agent_id in taken]
        for _, child in started:
            add_start(self._workspace, files, child)
        return self.commits.with_status(run, after, files, statements)

    def report(
        self, run: Run, after: Run, visit: Visit, commit: Commit, notes: Sequence[Note] = ()
    ) -> TransitionResult:
        """What came of a transition that is committed."""
        outcome: Outcome = "committed" if commit.applied else "unapplied"
        following = next((opened.step for opened in after.open if opened.number > run.visits), None)
        log = logger(run=run.id, step=visit.step, txid=commit.txid)
        log.info("transition.committed", files=len(commit.ops), next=following, outcome=outcome)
        for path in commit.foreign:
            log.warning("transition.foreign_edit", path=path)
        return TransitionResult(
            run_id=run.id,
            workflow=run.workflow,
            step=visit.step,
            outcome=outcome,
            state=after.state,
            attempt=visit.failures + 1,
            txid=commit.txid,
            files=tuple(op.path for op in commit.ops),
            next_step=following,
            visit=visit.number,
            unapplied=commit.unapplied,
            foreign=commit.foreign,
            guards=tuple(note.as_dict() for note in notes),
        )

    # --- the end of a wait ---

    async def _end_wait(
        self, live: Live, number: int, workflow: Workflow, step: Step[..., Any]
    ) -> TransitionResult | None:
        """What a parked visit waits for is there, or its time is over: what follows is due. Or it is not."""
        for rerun in range(CONFLICT_RERUNS_MAX + 1):
            try:
                async with live.gate:
                    return await self._end_wait_once(live, number, workflow, step)
            except Conflict as error:
                if (overtaken := await self.overtaken(live, number, error)) is not None:
                    return overtaken
                if rerun == CONFLICT_RERUNS_MAX:
                    return await self.fail(live, number, None, error)
                await self.commits.pause(rerun)
            except (WorkspaceBlocked, WorkspaceBusy) as error:
                return self.blocked(live.run, live.run.visit(number), error)
            except (CommitOutcomeUnknown, WorkspacePoisoned):
                raise
            except Exception as error:  # noqa: BLE001 - an outcome that leads nowhere, say
                return await self.fail(live, number, None, error)
        raise AssertionError("unreachable")

    async def _end_wait_once(
        self, live: Live, number: int, workflow: Workflow, step: Step[..., Any]
    ) -> TransitionResult | None:
        if (gone := self._gone(live, number)) is not None:
            return gone
        run, visit, now = live.run, live.visit(number), self._clock.now()
        ended = await to_thread.run_sync(waking.look, self._workspace, run, visit, workflow.signals, now)
        if ended.outcome is None:
            live.run = machine.still_waiting(run, number, ended.wait)
            still = rows.keep_waiting(live.run, live.visit(number))
            await self.commits.write_rows([*ended.statements, *still])
            if ended.statements:
                self.on_message()
            return None
        choice = step.resolve_wait(Wait.from_json(visit.wait or ""), ended.outcome, ended.why)
        received = machine.received(run, number, ended.payload)
        after = machine.stepped(received, number, choice, workflow.graph, now, transition=False)
        commit = await self.commits.status(
            run, after, "woken", ended.statements, visit=number, outcome=choice.outcome, check=ended.check
        )
        live.run = after
        return self.report(run, after, visit, commit)


def decision_of(read: Read, returned: Any) -> Decision:
    """What a body has returned, checked.

    Raises:
        StepReturnRefused: it is nothing that a run could follow. PathRefused: it wrote what it must not.
    """
    step, tx = read.step, read.tx
    if read.fans_out:
        return Decision(Choice("fanned out", read.workflow.graph.followers[step.name]), items=returned)
    read.refuse_other_writes(tx._files)  # noqa: SLF001 - the engine's half of the class
    tx.check_wait(returned)
    if isinstance(returned, Wait):
        wait = replace(returned, of=read.visit.number, errors="error" in step.outcomes)
        if wait.ask is not None:
            wait = replace(wait, ask=replace(wait.ask, notify=read.workflow.tells is not None))
        return Decision(Choice("parked"), wait=wait)
    return Decision(step.resolve(returned))
