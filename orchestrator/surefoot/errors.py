"""What can go wrong above the storage layer. The whole tree hangs below `SurefootError`.

SurefootError
 └─ InputError
     ├─ DeclarationError      a workflow that is declared wrongly
     │   └─ GuardConflict     guards that nothing can meet
     ├─ LoadError             FILE.py:WORKFLOW that cannot be loaded
     ├─ InputRefused          input that the workflow's model does not take
     ├─ UnknownRun            no run of that id
     ├─ RunRefused            a run that cannot be started or moved like this
     ├─ TemplateRefused       a template that is missing, broken or lacks a value
     ├─ StepReturnRefused     a step that returned something else than where to go
     ├─ UndeclaredRead        an async step that reads what was not loaded
     └─ CommandFailed         a command that a step ran did not succeed
SurefootError
 ├─ ApprovalRefused           an approval that cannot be answered like this
 ├─ ConfigConflict            an update of a configuration that has changed since
 ├─ NothingCached             a source that fails and has never answered
 ├─ RecordsFull               a record that the queue has no room for
 ├─ RecordsNotDurable         records that neither the store nor the disk takes
 ├─ GuardDenied               a transition that a guard does not allow
 ├─ LockNotTaken              a named lock that somebody else kept
 └─ TransitionFailed          what `result.or_raise()` raises
"""

from __future__ import annotations

from typing import Any

from surefoot_storage import InputError, SurefootError, UnknownId


class DeclarationError(InputError):
    """A workflow that is declared wrongly."""

    code = "declaration"


class GuardConflict(DeclarationError):
    """Guards that nothing can meet; `code` says how, `guards` which."""

    def __init__(
        self, code: str, subject: str, guards: tuple[str, ...], *, expected: str, found: str
    ) -> None:
        self.code = code
        self.guards = guards
        super().__init__(
            "declare guards", f"{subject} ({', '.join(guards)})", expected=expected, found=found, hint=code
        )


class LoadError(InputError):
    """FILE.py:WORKFLOW that cannot be loaded."""

    code = "load"


class InputRefused(InputError):
    """Input that the workflow's model does not take."""

    code = "input_refused"


class UnknownRun(UnknownId):
    """No run of that id in this workspace."""

    code = "unknown_run"


class RunRefused(InputError):
    """A run that cannot be started or moved like this."""

    code = "run_refused"


class TemplateRefused(InputError):
    """A template that is missing, broken, or lacks a value."""

    code = "template"


class StepReturnRefused(InputError):
    """A step that returned something else than where to go."""

    code = "step_return"


class UndeclaredRead(InputError):
    """An async step that reads what was neither declared nor loaded."""

    code = "undeclared_read"


class CommandFailed(InputError):
    """A command that a step ran did not succeed, or left no result."""

    code = "command_failed"
    exit_code = 1


class LaunchFailed(SurefootError):
    """An agent that could not be started; nothing of it has run."""

    code = "launch_failed"


class AgentFailed(SurefootError):
    """An agent's run ended otherwise than the step after it reckons with."""

    code = "agent_failed"


class ChangesRefused(SurefootError):
    """Sealed changes that cannot be committed like this; nothing was changed."""

    code = "changes_refused"
    exit_code = 4


class ApprovalRefused(SurefootError):
    """An approval that cannot be answered like this: unknown, over, answered before, or of other contents."""

    code = "approval_refused"


class UnknownApproval(ApprovalRefused):
    """No request of that id or token."""

    code = "unknown_approval"


class ConfigConflict(SurefootError):
    """An update that is based on an older revision; `difference` by field: what is there, what was wanted."""

    code = "config_conflict"

    def __init__(
        self, name: str, *, based_on: int, revision: int, difference: dict[str, tuple[Any, Any]]
    ) -> None:
        self.revision = revision
        self.difference = difference
        fields = "; ".join(
            f"{key} is {there!r} there, {mine!r} here" for key, (there, mine) in difference.items()
        )
        super().__init__(
            "update configuration", name, expected=f"an update of revision {revision}",
            found=f"one of revision {based_on} ({fields or 'with the same values'})",
            hint="read it again, look at the difference, and update that",
        )  # fmt: skip


class NothingCached(SurefootError):
    """A source that fails and has never answered: there is nothing to go on with."""

    code = "nothing_cached"


class RecordsFull(SurefootError):
    """There is no room for one more record; it was not taken."""

    code = "records_full"


class RecordsNotDurable(SurefootError):
    """Neither the store nor the disk takes them; they are still in memory."""

    code = "records_not_durable"


class GuardDenied(SurefootError):
    """A transition that a guard does not allow; nothing was changed. `code` says which kind of limit."""

    def __init__(self, guard: str, code: str, subject: str, *, expected: str, found: str) -> None:
        self.guard = guard
        self.code = code
        super().__init__("pass guard", f"{guard} of {subject}", expected=expected, found=found, hint=code)


class LockNotTaken(SurefootError):
    """A lock that a step names is held by another process; nothing was tried."""

    code = "lock_not_taken"


class TransitionFailed(SurefootError):
    """A transition or run did not succeed; `result` holds what is known."""

    code = "transition_failed"

    def __init__(self, operation: str, subject: object, *, found: str, hint: str, result: Any) -> None:
        self.result = result
        super().__init__(operation, subject, expected="it to succeed", found=found, hint=hint)
