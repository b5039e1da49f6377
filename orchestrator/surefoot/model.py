"""The values that the engine passes around: runs, errors, results. All frozen, all without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from .errors import TransitionFailed

STATUS_FILE = "demo.status.json"
STATUS_FORMAT = 1


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"  # a step is due, or being worked on
    WAITING = "waiting"  # for a retry, a time, a message or another run; costs nothing but its rows
    ERROR = "error"  # a step failed for good, and nothing else can go on; retry or skip it, or cancel the run
    PAUSED = "paused"  # by somebody, or because a transition was undone: it goes on when somebody says so
    COMPLETED = "completed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Nothing will ever happen to it again."""
        return self in (RunState.COMPLETED, RunState.CANCELLED)

    @property
    def is_due(self) -> bool:
        """The engine moves it on by itself."""
        return self in (RunState.RUNNING, RunState.WAITING)


@dataclass(frozen=True)
class Failure:
    """Why a transition did not happen."""

    step: str
    attempt: int
    error: str  # the exception's type
    message: str
    at: float  # seconds since 1970
    hint: str = ""
    traceback: str = ""

    def as_dict(self, *, traceback: bool = True) -> dict[str, Any]:
        """For JSON; the traceback only where somebody asked for it."""
        facts = asdict(self)
        return facts if traceback else {key: value for key, value in facts.items() if key != "traceback"}


class VisitState(StrEnum):
    """Where one visit of a step stands."""

    DUE = "due"  # its body runs as soon as `due_at` has come
    PARKED = "parked"  # its body is committed; it waits for something
    JOINING = "joining"  # it waits for branches that can still lead to it
    ERROR = "error"  # it failed for good


@dataclass(frozen=True)
class Visit:
    """One time that a run comes by a step. Branches and the items of a fan-out are visits of their own."""

    number: int  # of its run, from 1; never used again
    step: str
    state: VisitState = VisitState.DUE
    due_at: float | None = 0.0  # when it goes on by itself; None: only when something happens
    failures: int = 0
    interruptions: int = 0
    failure: Failure | None = None
    wait: str | None = None  # JSON: what it is parked for
    topic: str | None = None  # of the message that it is parked for
    payload: str | None = None  # JSON: what the wait before it has brought
    item: str | None = None  # JSON: its item of a fan-out
    index: int | None = None  # of that item in its list, from 0
    group: int | None = None  # the visit that fanned out
    deadline_at: float | None = None
    joins: bool = False  # it began by waiting for other branches
    opened: int = 0  # the run's revision that brought it

    @property
    def is_ready(self) -> bool:
        """It goes on by itself, now or later."""
        return self.due_at is not None and self.state in (VisitState.DUE, VisitState.PARKED)


@dataclass(frozen=True)
class Placing:
    """Where a run waits for its turn."""

    queue: str = ""  # "": none; whoever starts it moves it on
    priority: int = 0  # lower goes first
    lane: str | None = None  # runs of one queue that share it go one at a time, in the order of their start
    dedup: str | None = None  # no two unfinished runs of a queue share it
    not_before: float = 0.0
    deadline_at: float | None = None
    parent: str | None = None  # the run that started it
    parent_visit: int = 0


@dataclass(frozen=True)
class Run:
    """One execution of a workflow, as its row says, with its open visits where it was asked for alone."""

    id: str
    workflow: str
    input: str  # JSON
    directory: str
    state: RunState
    step: str | None  # due next, or what it waits at; with several branches the one that says most
    position: int  # transitions committed so far
    failures: int  # of that step
    interruptions: int  # times that the process died during it
    next_at: float | None
    revision: int  # grows with every status change
    created_at: float
    updated_at: float
    last_step: str | None = None
    failure: Failure | None = None
    source: str = ""  # FILE.py:WORKFLOW, where it is known
    status: str = ""  # the status document, byte for byte as in its file
    owner: str = ""  # the worker that moves it on at the moment
    epoch: int = 0  # grows each time that another worker takes it: what an earlier one commits is refused
    visits: int = 0  # the highest number given to a visit
    due_at: float | None = None  # when it goes on by itself; None: not by itself
    paused: bool = False
    laps: str = "{}"  # JSON: how often the steps of its loops were visited
    version: str = ""  # of the workflow that it was started with
    queue: str = ""
    priority: int = 0
    lane: str | None = None
    dedup: str | None = None
    deadline_at: float | None = None
    parent: str | None = None
    parent_visit: int = 0
    open: tuple[Visit, ...] = ()

    def visit(self, number: int) -> Visit | None:
        """The open visit of that number."""
        return next((visit for visit in self.open if visit.number == number), None)

    def due_at_after(self, now: float) -> float | None:
        """The next moment at which something of it is due by itself."""
        moments = [visit.due_at for visit in self.open if visit.is_ready]
        later = [moment for moment in (*moments, self.deadline_at) if moment is not None and moment > now]
        return min(later, default=None)

    @property
    def status_path(self) -> str:
        """The status file, relative to the workspace."""
        return f"{self.directory}/{STATUS_FILE}"

    def key(self, visit: Visit, name: str) -> str:
        """A stable name for something that a visit does, the same in every attempt."""
        return f"{self.id}/{visit.number}/{name}"


Outcome: TypeAlias = Literal[
    "committed", "unapplied", "failed", "retrying", "cancelled", "blocked", "overtaken"
]


@dataclass(frozen=True)
class TransitionResult:
    """What came of one transition.

    `committed`: done, and every file in its place. `unapplied`: done, but files wait for their place
    (`unapplied` says which and why); they are put there when the cause is gone. `failed` and `retrying`:
    nothing has changed, `failure` says why. `cancelled`: nothing has changed. `blocked`: not tried,
    because an earlier transition still waits for its files, or another process keeps the workspace busy.
    `overtaken`: another process has moved the run on meanwhile; this attempt changed nothing.
    """

    run_id: str
    workflow: str
    step: str
    outcome: Outcome
    state: RunState
    attempt: int
    txid: str | None = None
    files: tuple[str, ...] = ()
    next_step: str | None = None  # the first of those that follow
    failure: Failure | None = None
    visit: int = 0
    unapplied: tuple[tuple[str, str], ...] = ()
    foreign: tuple[str, ...] = ()
    guards: tuple[Mapping[str, Any], ...] = ()  # what guards have done to it

    @property
    def ok(self) -> bool:
        """Whether the transition is committed."""
        return self.outcome in ("committed", "unapplied")

    def or_raise(self) -> TransitionResult:
        """Itself, or an exception.

        Raises:
            TransitionFailed: it is not committed.
        """
        if self.ok:
            return self
        failure = self.failure
        found = f"{failure.error}: {failure.message}" if failure else self.outcome
        raise TransitionFailed(
            "transition",
            f"{self.run_id}/{self.step}",
            found=found,
            hint=failure.hint if failure else "",
            result=self,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {key: value for key, value in asdict(self).items() if value not in (None, (), "")}
        facts["state"] = self.state.value
        if self.failure:
            facts["failure"] = self.failure.as_dict()
            facts["transition_error"] = True
        return facts


@dataclass(frozen=True)
class RunResult:
    """What came of driving a run until it is over, in error, or blocked."""

    run_id: str
    workflow: str
    directory: str
    state: RunState
    step: str | None
    transitions: tuple[TransitionResult, ...] = ()
    failure: Failure | None = None
    undelivered: int = 0  # effects that still wait for their delivery
    transition_error: bool = field(default=False)

    @property
    def ok(self) -> bool:
        """Whether the run has completed."""
        return self.state is RunState.COMPLETED

    def or_raise(self) -> RunResult:
        """Itself, or an exception.

        Raises:
            TransitionFailed: the run has not completed.
        """
        if self.ok:
            return self
        failure = self.failure
        found = f"{failure.error}: {failure.message}" if failure else self.state.value
        hint = (failure.hint if failure else "") or f"look at it with: surefoot log {self.run_id}"
        raise TransitionFailed("run", self.run_id, found=found, hint=hint, result=self)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts: dict[str, Any] = {
            "run_id": self.run_id,
            "workflow": self.workflow,
            "directory": self.directory,
            "state": self.state.value,
            "step": self.step,
            "transition_error": self.transition_error,
            "transitions": [result.as_dict() for result in self.transitions],
            "undelivered_effects": self.undelivered,
        }
        if self.failure:
            facts["failure"] = self.failure.as_dict()
        return facts


@dataclass(frozen=True)
class StatusChange:
    """What a view is told."""

    run_id: str
    workflow: str
    revision: int
    event: str
    status: dict[str, Any]
    key: str  # the same for each attempt at telling it


@dataclass(frozen=True)
class Committed:
    """What an effect is told: a transition that has happened.

    `key` is the same in every delivery of this effect: receivers deduplicate by it, because delivery
    is at least once.
    """

    run_id: str
    workflow: str
    step: str
    txid: str
    key: str
    files: tuple[str, ...]  # paths that changed, relative to the workspace
    directory: str
    input: Any  # the workflow's input model
    at: float  # seconds since 1970
    attempt: int = 1  # of this delivery
