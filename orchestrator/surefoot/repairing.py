"""What people do with runs: one attempt by hand, retry, skip, pause, cancel, fork; also with many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio
from anyio import to_thread

from surefoot_storage import InputError, SurefootError, UnknownId, WorkspaceBlocked, WorkspaceBusy

from . import checks, machine, rows
from .errors import RunRefused
from .forking import fork_files
from .log import logger
from .model import Run, RunState, TransitionResult, Visit, VisitState
from .opened import OpenEngine
from .requests import requested
from .summary import foremost, waits_for

ACTIONS = {
    "retry": ("error",),
    "cancel": ("running", "waiting", "error", "paused"),
    "pause": ("running", "waiting", "error"),
    "unpause": ("paused",),
    "skip": ("error",),
}
"""What can be done to many runs, and to which of them where nobody says."""


@dataclass(frozen=True)
class Bulk:
    """What came of an operation on many runs."""

    done: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]  # (run, why)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"done": list(self.done), "refused": [{"run_id": r, "why": why} for r, why in self.refused]}


class Repairing:
    """Of one open engine."""

    def __init__(self, engine: OpenEngine) -> None:
        self._engine = engine

    async def make_due(self, run_id: str) -> Run:
        """What failed of a run, or waits to be tried again, is due now."""
        async with self._engine.lock(run_id):
            return await self._make_due(run_id)

    async def _make_due(self, run_id: str) -> Run:
        run = await self._engine.get(run_id)
        if run.state.is_over:
            raise RunRefused("move on", run.id, expected="a run that is not over", found=run.state.value)
        self._refuse_elsewhere(run)
        self._engine.workflow_of(run)
        if run.state is RunState.RUNNING:
            return run
        return await self._engine.change(run_id, "retried", machine.retried)

    def _refuse_elsewhere(self, run: Run) -> None:
        if self._engine.is_elsewhere(run):
            raise RunRefused(
                "move on",
                run.id,
                expected="a run that nobody else is working on",
                found=f"{self._engine.workspace.describe_worker(run.owner)}, which is",
                hint="wait for it to end, or cancel the run: surefoot cancel",
            )

    async def advance(self, run_id: str) -> TransitionResult:
        """Exactly one attempt."""
        async with self._engine.lock(run_id):
            try:
                run = await self._make_due(run_id)
            except (WorkspaceBlocked, WorkspaceBusy) as error:
                return self._engine.blocked(await self._engine.get(run_id), error)
            result = await self._advance(run)
            await self._engine.hold.release(run_id)
        self._engine.notify(result)
        return result

    async def _advance(self, run: Run) -> TransitionResult:
        front = foremost(run)
        assert front is not None
        try:
            live = await self._engine.hold.take(run)
        except (WorkspaceBlocked, WorkspaceBusy) as error:
            return self._engine.blocked(run, error)
        result = None
        if live is not None and live.run.visit(front.number) is not None:
            result = await self._engine.executor.transition(live, front.number, self._engine.workflow_of(run))
        if result is None:
            raise RunRefused(
                "move on", run.id, expected="a step that is due",
                found=f"{front.step}, which waits for {waits_for(front) or 'other branches'}",
                hint="surefoot send, or surefoot skip",
            )  # fmt: skip
        return result

    # --- changes of status ---

    async def pause(self, run_id: str) -> Run:
        """Nothing of it begins any more."""
        return await self._engine.change(run_id, "paused", _unless_over("pause", machine.paused))

    async def unpause(self, run_id: str) -> Run:
        """A paused run may go on."""
        run = await self._engine.get(run_id)
        if run.state is RunState.PAUSED:
            return await self._engine.change(run_id, "unpaused", machine.resumed)
        return run

    async def cancel(self, run_id: str) -> Run:
        """Ends a run, and those that it has started and that are not over."""
        await self._engine.get(run_id)
        end = _unless_over("cancel", machine.cancelled)
        async with self._engine.interrupted(run_id):
            after = await self._engine.change(run_id, "cancelled", end)
        logger(run=run_id).info("run.cancelled", step=after.last_step)
        for child in await to_thread.run_sync(rows.children_of, self._engine.workspace, run_id):
            if not RunState(child["state"]).is_over:
                await self.cancel(child["id"])
        return after

    async def skip(self, run_id: str, step: str | None, outcome: str | None) -> Run:
        """A visit that failed, waits or is due is over without its body, with a given outcome."""
        run = await self._engine.get(run_id)
        if run.state.is_over:
            raise RunRefused("skip", run_id, expected="a run that is not over", found=run.state.value)
        visit = _chosen(run, step)
        workflow = self._engine.workflow_of(run)
        if visit.step in workflow.steps:
            choice = workflow.steps[visit.step].choice(outcome)
        elif outcome in workflow.steps:  # a step that the workflow has lost: somebody says where it leads
            choice = machine.Choice(f"next:{outcome}", (str(outcome),))
        else:
            raise InputError(
                "skip", f"{run_id}/{visit.step}",
                expected=f"the step that follows: {', '.join(workflow.steps)}",
                found=repr(outcome), hint="--outcome STEP",
            )  # fmt: skip

        def change(now: Run, at: float) -> Run:
            if now.visit(visit.number) is None:
                raise RunRefused(
                    "skip", run_id, expected=f"{visit.step} to be open", found="a run that has moved"
                )
            after = machine.stepped(now, visit.number, choice, workflow.graph, at, transition=False)
            return machine.unpaused(after)

        async with self._engine.interrupted(run_id):
            return await self._engine.change(
                run_id, "skipped", change, visit=visit.number, outcome=choice.outcome
            )

    async def fork(
        self, run_id: str, step: str, new_id: str | None, given: Any, placing: dict[str, Any]
    ) -> Run:
        """A new run that begins at a step of this one, with the files as they were when it began there."""
        run = await self._engine.get(run_id)
        workflow = self._engine.workflow_of(run)
        if step not in workflow.steps:
            raise UnknownId(
                "fork",
                f"{run_id}/{step}",
                expected=f"one of {', '.join(workflow.steps)}",
                found=repr(step),
            )
        new = requested(
            workflow, run.input if given is None else given,
            run_id=self._engine.new_id() if new_id is None else new_id,
            now=self._engine.clock.now(), source=run.source, **placing,
        )  # fmt: skip
        new = machine.begun_at(new, step, workflow.graph)
        await self._engine.executor.commits.repeat(lambda: fork_files(self._engine.workspace, run, step, new))
        logger(run=new.id).info("run.forked", of=run_id, step=step)
        if new.queue:
            self._engine.on_due()
        return new

    # --- many ---

    async def choose_and_do(
        self,
        action: str,
        states: Sequence[str],
        workflow: str | None,
        queue: str | None,
        limit: int,
        per_s: float | None,
        *,
        dry_run: bool,
    ) -> Bulk:
        """The action, for every run that was meant, no faster than the rate; a refused one stops no other."""
        checks.choice("bulk", "", "action", action, ACTIONS, error=InputError)
        checks.choices("bulk", action, "states", states, list(RunState), error=InputError)
        checks.count("bulk", action, "limit", limit, error=InputError)
        if not states and workflow is None and queue is None:
            raise InputError(
                "bulk", action, expected="which runs: states, workflow or queue", found="nothing",
                hint="states=['error'] for all that failed",
            )  # fmt: skip
        pause_s = 0.0
        if per_s is not None:
            pause_s = 1 / checks.seconds("bulk", action, "per_s", per_s, above=True, error=InputError)
        meant = await to_thread.run_sync(
            lambda: rows.list_runs(
                self._engine.workspace,
                states=states or ACTIONS[action],
                workflow=workflow,
                queue=queue,
                limit=limit,
            )
        )
        if dry_run:
            return Bulk(tuple(run.id for run in meant), ())
        done, refused = [], []
        for number, run in enumerate(meant):
            if number and pause_s:
                await anyio.sleep(pause_s)
            try:
                await self._do(action, run.id)
                done.append(run.id)
            except SurefootError as error:
                refused.append((run.id, str(error).splitlines()[0]))
        return Bulk(tuple(done), tuple(refused))

    async def _do(self, action: str, run_id: str) -> None:
        if action == "retry":
            await self.make_due(run_id)
        elif action == "cancel":
            await self.cancel(run_id)
        elif action == "pause":
            await self.pause(run_id)
        elif action == "unpause":
            await self.unpause(run_id)
        else:
            await self.skip(run_id, None, None)


def _chosen(run: Run, step: str | None) -> Visit:
    """The visit to skip: the only one of that step, or the foremost that failed, waits or is due.

    Raises:
        InputError: there is none, or there are several.
    """
    found = [visit for visit in run.open if step is None or visit.step == step]
    if step is None:
        failed = [visit for visit in found if visit.state is VisitState.ERROR]
        front = foremost(replace(run, open=tuple(failed or found)))
        assert front is not None
        return front
    if not found:
        known = ", ".join(dict.fromkeys(visit.step for visit in run.open))
        raise InputError("skip", f"{run.id}/{step}", expected=f"an open step: {known}", found=repr(step))
    failed = [visit for visit in found if visit.state is VisitState.ERROR]
    return (failed or found)[0]


def _unless_over(operation: str, change: Callable[[Run, float], Run]) -> Callable[[Run, float], Run]:
    def checked(run: Run, at: float) -> Run:
        if run.state.is_over:
            raise RunRefused(operation, run.id, expected="a run that is not over", found=run.state.value)
        return change(run, at)

    return checked
