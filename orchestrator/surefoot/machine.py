"""How a run moves. Pure: `(run, what happened, when) -> run`; the engine carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import to_json  # writes the same text as json, a dozen times faster

from .model import STATUS_FORMAT, Failure, Run, RunState

INTERRUPTIONS_MAX = 5
"""A step during which the process died this often is not started again by itself."""


def created(
    run_id: str, workflow: str, payload: str, directory: str, first_step: str, *, source: str, at: float
) -> Run:
    """A new run, its first step due."""
    return with_status(
        Run(
            id=run_id,
            workflow=workflow,
            input=payload,
            directory=directory,
            state=RunState.RUNNING,
            step=first_step,
            position=0,
            failures=0,
            interruptions=0,
            next_at=None,
            revision=1,
            created_at=at,
            updated_at=at,
            source=source,
        )
    )


def stepped(run: Run, next_step: str | None, at: float) -> Run:
    """The due step is committed; `next_step` is due now, None ends the run."""
    return _moved(
        run,
        at,
        state=RunState.RUNNING if next_step else RunState.COMPLETED,
        step=next_step,
        last_step=run.step,
        position=run.position + 1,
        failures=0,
        interruptions=0,
        next_at=None,
        failure=None,
    )


def failed(run: Run, failure: Failure, retry_at: float | None, at: float) -> Run:
    """An attempt failed; tried again at `retry_at`, or not by itself."""
    return _moved(
        run,
        at,
        state=RunState.ERROR if retry_at is None else RunState.WAITING,
        failures=run.failures + 1,
        next_at=retry_at,
        failure=failure,
    )


def interrupted(run: Run, failure: Failure, at: float) -> Run:
    """The process died during an attempt. It is simply done again, unless that keeps happening."""
    count = run.interruptions + 1
    if count < INTERRUPTIONS_MAX:
        return replace(run, interruptions=count)  # not a change of status
    return _moved(run, at, state=RunState.ERROR, interruptions=count, next_at=None, failure=failure)


def retried(run: Run, at: float) -> Run:
    """Somebody wants the due step tried now, with all its attempts before it."""
    return _moved(run, at, state=RunState.RUNNING, failures=0, interruptions=0, next_at=None)


def cancelled(run: Run, at: float) -> Run:
    """The run ends here."""
    return _moved(run, at, state=RunState.CANCELLED, step=None, last_step=run.step, next_at=None)


def undone(run: Run, earlier: Mapping[str, Any], at: float) -> Run:
    """Back to an earlier status. What would go on by itself waits: or the step would simply be done again.

    `position` does not go back: it makes the keys of effects, and what is done again tells of it anew.
    """
    state = RunState(earlier["state"])
    return _moved(
        run,
        at,
        state=RunState.PAUSED if state.is_due else state,
        step=earlier["step"],
        last_step=earlier["last_step"],
        failures=0,
        interruptions=0,
        next_at=None,
        failure=Failure(**earlier["error"]) if state is RunState.ERROR and earlier["error"] else None,
    )


def noted(run: Run, at: float) -> Run:
    """Nothing about it has changed but its files."""
    return _moved(run, at)


def _moved(run: Run, at: float, **changes: object) -> Run:
    return with_status(replace(run, revision=run.revision + 1, updated_at=at, **changes))  # type: ignore[arg-type]


def with_status(run: Run) -> Run:
    """With the status document that belongs to it."""
    document = {
        "format": STATUS_FORMAT,
        "run_id": run.id,
        "workflow": run.workflow,
        "state": run.state.value,
        "step": run.step,
        "last_step": run.last_step,
        "transitions": run.position,
        "failed_attempts": run.failures,
        "next_attempt_at": run.next_at,
        "transition_error": run.failure is not None,
        "error": run.failure.as_dict(traceback=False) if run.failure else None,
        "revision": run.revision,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
    }
    return replace(run, status=to_json(document, indent=2).decode() + "\n")
