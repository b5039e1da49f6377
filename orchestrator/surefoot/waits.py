"""What a step may wait for once its files are committed: a time, a message, the runs that it has started.

A step returns a wait. The run is parked as rows then: no task, thread or lock is held.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from surefoot_storage import FileTransaction, InputError, Statement

from . import checks
from .approvals import Ask
from .errors import InputRefused

M = TypeVar("M", bound=BaseModel)
Kind: TypeAlias = Literal["time", "message", "runs", "approval"]

GOOD = {"time": "elapsed", "message": "received", "runs": "completed", "approval": "approved"}
"""The outcome that each wait hopes for: without declared outcomes, the run goes on after it alone."""

OUTCOMES = {
    "time": ("elapsed",),
    "message": ("received", "timeout"),
    "runs": ("completed", "error", "cancelled", "timeout"),
    "approval": ("approved", "rejected", "expired", "changed"),
}


class NoPayload(BaseModel, extra="forbid"):
    """The payload of signals that carry none."""


@dataclass(frozen=True)
class Wait:
    """Returned by a step: its followers come once this is over."""

    kind: Kind
    name: str = ""  # of the signal
    until: float | None = None  # seconds since 1970
    after_s: float | None = None  # from the commit on: the sleep, or the timeout
    of: int | None = None  # the visit that has started the runs
    errors: bool = False  # a run in error ends it
    ask: Ask | None = None  # what people are asked
    look_at: float | None = None  # when somebody is to be reminded
    again: bool = False  # what was answered before does not count

    def due_at(self, now: float) -> float | None:
        """When it is over by itself."""
        return self.until if self.after_s is None else now + self.after_s

    @property
    def topic(self) -> str | None:
        """Of the messages that end it."""
        return self.name if self.kind == "message" else None

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps(
            {key: value for key, value in asdict(self).items() if value not in (None, "", False)}
        )

    @classmethod
    def from_json(cls, text: str) -> Wait:
        """As it was kept."""
        facts = json.loads(text)
        ask = facts.pop("ask", None)
        return cls(**facts, ask=Ask.from_dict(ask) if ask else None)

    def __str__(self) -> str:
        return {
            "time": "a time", "message": f"signal {self.name!r}", "runs": "the runs it has started",
            "approval": "an approval",
        }[self.kind]  # fmt: skip


@dataclass
class Ended:
    """How a wait has ended (no outcome: it has not), and what comes with that.

    Attributes:
        payload: what the next step is told, as JSON.
        statements: what becomes of messages and requests.
        wait: what it goes on waiting for, where that has changed.
        check: looks at files inside the commit that ends it; raises Conflict where they are other ones.
    """

    outcome: str | None = None
    payload: str | None = None
    statements: list[Statement] = field(default_factory=list)
    wait: Wait | None = None
    check: Callable[[FileTransaction], None] = lambda _files: None


def sleep(seconds: float | None = None, *, until: datetime | float | None = None) -> Wait:
    """See `Transaction.sleep`."""
    if (seconds is None) == (until is None):
        raise InputError("sleep", "", expected="seconds, or until=", found="both" if until else "neither")
    if seconds is not None:
        return Wait("time", after_s=checks.seconds("sleep", "", "seconds", seconds, error=InputError))
    if isinstance(until, datetime):
        if until.tzinfo is None:
            raise InputError(
                "sleep", until, expected="a datetime with a time zone", found="one without",
                hint="datetime.now(timezone.utc) + timedelta(…)",
            )  # fmt: skip
        return Wait("time", until=until.timestamp())
    return Wait("time", until=checks.seconds("sleep", "", "until", until, error=InputError))


def message(signal: object, timeout_s: float | None) -> Wait:
    """See `Transaction.wait_for`."""
    if not isinstance(signal, Signal):
        raise InputError(
            "wait", repr(signal), expected="a signal of the workflow", found=type(signal).__name__,
            hint='approve = flow.signal("approve", Approval)',
        )  # fmt: skip
    return Wait("message", signal.name, after_s=_timeout(timeout_s, signal.name))


def runs(timeout_s: float | None) -> Wait:
    """See `Transaction.wait_for_runs`."""
    return Wait("runs", after_s=_timeout(timeout_s, "wait_for_runs"))


def approval(ask: Ask) -> Wait:
    """See `Transaction.ask`."""
    return Wait("approval", after_s=ask.expires_s, ask=ask)


def _timeout(timeout_s: float | None, subject: str) -> float | None:
    if timeout_s is None:
        return None
    return checks.seconds("wait", subject, "timeout_s", timeout_s, above=True, error=InputError)


class Signal(Generic[M]):
    """A kind of message that a workflow's runs can wait for. Made by `Workflow.signal`."""

    def __init__(self, name: str, payload: type[M]) -> None:
        self.name = name
        self.payload = payload

    def parse(self, given: Any) -> M:
        """The validated payload; `given` is the model, a dict, or JSON text.

        Raises:
            InputRefused: the model does not take it.
        """
        return parsed(self.payload, given, operation="send", subject=self.name)


def parsed(model: type[M], given: Any, *, operation: str, subject: str) -> M:
    """What a caller gave, as a model takes it.

    Raises:
        InputRefused: it does not, and why for each field.
    """
    try:
        if isinstance(given, model):
            return model.model_validate(given.model_dump())
        if isinstance(given, str | bytes):
            return model.model_validate_json(given)
        return model.model_validate({} if given is None else given)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in p['loc']) or 'input'}: {p['msg']}" for p in error.errors()
        ]
        raise InputRefused(
            operation, subject, expected=f"input for {model.__name__}", found="; ".join(problems)
        ) from error
