"""The values that the engine passes around: runs, errors, results. All frozen, all without I/O."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from .errors import TransitionFailed

STATUS_FILE = "demo.status.json"
STATUS_FORMAT = 1


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"  # a step is due, or being worked on
    WAITING = "waiting"  # a step failed and will be tried again at `next_at`
    ERROR = "error"  # a step failed for good; retry it, or cancel the run
    PAUSED = "paused"  # a transition was undone: the step is not done again before somebody says so
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


@dataclass(frozen=True)
class Run:
    """One execution of a workflow, as its row says."""

    id: str
    workflow: str
    input: str  # JSON
    directory: str
    state: RunState
    step: str | None  # due next
    position: int  # transitions committed so far
    failures: int  # of the step that is due
    interruptions: int  # times that the process died during the step that is due
    next_at: float | None
    revision: int  # grows with every status change
    created_at: float
    updated_at: float
    last_step: str | None = None
    failure: Failure | None = None
    source: str = ""  # FILE.py:WORKFLOW, where it is known
    status: str = ""  # the status document, byte for byte as in its file
    owner: str = ""  # the worker that moves it on at the moment

    @property
    def status_path(self) -> str:
        """The status file, relative to the workspace."""
        return f"{self.directory}/{STATUS_FILE}"

    def key(self, name: str) -> str:
        """A stable name for something that the due step does, the same in every attempt."""
        return f"{self.id}/{self.position + 1}/{name}"


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
    next_step: str | None = None
    failure: Failure | None = None
    unapplied: tuple[tuple[str, str], ...] = ()
    foreign: tuple[str, ...] = ()

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
