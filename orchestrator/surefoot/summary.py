"""What a person sees of a run: one state, one step, one status document, summed up from its visits. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic_core import to_json  # writes the same text as json, a dozen times faster

from .model import STATUS_FORMAT, Failure, Run, RunState, Visit, VisitState
from .waits import Wait

BRANCHES_SHOWN_MAX = 20
_ORDER = {VisitState.DUE: 0, VisitState.PARKED: 2, VisitState.ERROR: 3, VisitState.JOINING: 4}


def summed(run: Run, *, state: RunState | None = None, **changes: Any) -> Run:
    """With its state, the fields of its foremost visit, and the status document that belongs to them."""
    front = foremost(run)
    state = state or _state(run)
    fresh = replace(
        run,
        state=state,
        step=front.step if front else None,
        failures=front.failures if front else 0,
        interruptions=front.interruptions if front else 0,
        next_at=_later(front.due_at) if front else None,
        failure=_failure(run),
        due_at=_due_at(run, state),
        **changes,
    )
    # nobody else has seen it yet: a second copy of forty fields would cost more than the document
    object.__setattr__(fresh, "status", _document(fresh, front))
    return fresh


def with_due_at(run: Run) -> Run:
    """With the moment at which it goes on by itself; nothing that people see changes."""
    return replace(run, due_at=_due_at(run, run.state))


def foremost(run: Run) -> Visit | None:
    """The visit that says most about where the run stands."""
    return min(run.open, key=lambda v: (_rank(v), v.number), default=None)


def _rank(visit: Visit) -> int:
    """Due now, to be retried, parked, in error, joining."""
    late = visit.state is VisitState.DUE and bool(visit.due_at)
    return 1 if late else _ORDER[visit.state]


def _state(run: Run) -> RunState:
    if not run.open:
        return RunState.COMPLETED
    if run.paused:
        return RunState.PAUSED
    states = [visit.state for visit in run.open]
    if any(visit.state is VisitState.DUE and not visit.due_at for visit in run.open):
        return RunState.RUNNING
    if VisitState.DUE in states or VisitState.PARKED in states:
        return RunState.WAITING
    return RunState.ERROR


def _due_at(run: Run, state: RunState) -> float | None:
    if not state.is_due:
        return None
    moments = [visit.due_at for visit in run.open if visit.is_ready and visit.due_at is not None]
    if run.deadline_at is not None:
        moments.append(run.deadline_at)
    return min(moments, default=None)


def _later(moment: float | None) -> float | None:
    return moment or None


def _failure(run: Run) -> Failure | None:
    failures = [visit.failure for visit in run.open if visit.failure is not None]
    return max(failures, key=lambda failure: failure.at, default=None)


def waits_for(visit: Visit) -> str | None:
    """What a parked visit waits for, for people."""
    return str(Wait.from_json(visit.wait)) if visit.wait else None


def _document(run: Run, front: Visit | None) -> str:
    document: dict[str, Any] = {
        "format": STATUS_FORMAT,
        "run_id": run.id,
        "workflow": run.workflow,
        "state": run.state.value,
        "step": run.step,
        "last_step": run.last_step,
        "waits_for": waits_for(front) if front else None,
        "transitions": run.position,
        "failed_attempts": run.failures,
        "next_attempt_at": run.next_at,
        "transition_error": run.failure is not None,
        "error": run.failure.as_dict(traceback=False) if run.failure else None,
        "revision": run.revision,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
    }
    if len(run.open) > 1:
        shown = sorted(run.open, key=lambda v: (_rank(v), v.number))[:BRANCHES_SHOWN_MAX]
        document["open"] = len(run.open)
        document["branches"] = [_branch(visit) for visit in shown]
    return to_json(document, indent=2).decode() + "\n"


def _branch(visit: Visit) -> dict[str, Any]:
    facts: dict[str, Any] = {"visit": visit.number, "step": visit.step, "state": visit.state.value}
    if visit.index is not None:
        facts["item"] = visit.index
    if visit.due_at:
        facts["next_at"] = visit.due_at
    if visit.wait:
        facts["waits_for"] = waits_for(visit)
    return facts
