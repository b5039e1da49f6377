"""What answers look like, for the OpenAPI: nothing is checked or left out by it; tests hold answers to it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from surefoot.approvals import ApprovalState
from surefoot.model import RunState


class RunStatus(BaseModel):
    """A run's status document, and where it lies."""

    run_id: str
    workflow: str
    state: RunState
    step: str | None
    last_step: str | None
    waits_for: str | None
    transitions: int
    failed_attempts: int
    next_attempt_at: float | None
    transition_error: bool
    error: dict[str, Any] | None
    revision: int
    created_at: float
    updated_at: float


class Attempt(BaseModel):
    """One try at a step."""

    visit: int
    number: int
    step: str
    started_at: float
    ended_at: float | None
    outcome: str | None


class Open(BaseModel):
    """Where a run stands: one of these for each branch."""

    number: int
    step: str
    state: Literal["due", "parked", "joining", "error"]
    due_at: float | None
    topic: str | None


class RunFacts(RunStatus):
    """A run with all that belongs to it."""

    input: Any
    directory: str
    queue: str
    effects_pending: int
    effects_dead: int
    unapplied_transactions: list[dict[str, Any]]
    open: list[Open]
    attempts: list[Attempt]


class Why(BaseModel):
    """Why a run is where it is."""

    run_id: str
    kind: str
    sentence: str
    evidence: list[str]
    remedy: str


class Event(BaseModel):
    """One change of a run's status."""

    sequence: int
    at: float
    run_id: str
    revision: int
    event: str
    step: str | None
    txid: str | None
    outcome: str | None
    failure: dict[str, Any] | None
    status: dict[str, Any]


class Diff(BaseModel):
    """One path's change."""

    path: str
    kind: str
    diff: str


class Preview(BaseModel):
    """What a transition would do."""

    run_id: str
    step: str
    next_step: str | None
    changes: list[Diff]
    effects: list[str]
    digest: str
    not_kept: str
    starts: list[str]


class Result(BaseModel):
    """What came of a transition; fields that say nothing are left out."""

    run_id: str
    workflow: str
    step: str
    outcome: str
    state: RunState
    attempt: int


class Transaction(BaseModel):
    """One committed transaction."""

    txid: str
    sequence: int
    run_id: str
    label: str
    actor: str
    at: float
    event: str
    step: str | None
    undoes: list[str]
    undone_by: str | None
    contents_kept: bool
    changes: list[dict[str, Any]]
    effects: list[dict[str, Any]]


class Undone(BaseModel):
    """What an undo did, or would do."""

    run_id: str
    undone: list[str]
    txid: str | None
    files: list[str]
    state: str
    step: str | None
    sent: list[str]
    withdrawn: list[str]
    changes: list[Diff]


class Approval(BaseModel):
    """A request for approval."""

    id: str
    run_id: str
    step: str
    ask: dict[str, Any]
    digest: str
    asked_at: float
    expires_at: float
    state: ApprovalState
    ended_at: float | None
    seats: list[dict[str, Any]]
    events: list[dict[str, Any]]


class Queue(BaseModel):
    """A queue, and what was measured of it."""

    queue: str
    ready: int
    running: int
    waiting: int
    error: int
    oldest_ready_s: float | None
    paused: bool
    reason: str


class AgentAttempt(BaseModel):
    """One attempt of an agent."""

    id: str
    run_id: str
    step: str
    attempt: int
    kind: str
    directory: str
    state: Literal["wanted", "running", "sealing", "verifying", "over"]
    outcome: str
    why: str
    digest: str
    taken: str
    created_at: float
    started_at: float | None
    ended_at: float | None


class Said(BaseModel):
    """A piece of what an agent has said."""

    text: str
    offset: int
    next_offset: int


class Configuration(BaseModel):
    """A configuration at one revision."""

    name: str
    revision: int
    value: dict[str, Any]


class Finding(BaseModel):
    """Something that somebody may have to do something about."""

    kind: str
    what: str
    evidence: str
    remedy: str
    is_problem: bool


class DeadLetter(BaseModel):
    """A message that could not be delivered."""

    id: int
    key: str
    run_id: str
    effect: str
    attempts: int
    last_error: str | None


def shown(model: Any, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The answer of a route, as it is described."""
    return {status: {"model": model}}
