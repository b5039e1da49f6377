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
 ├─ GuardDenied               a transition that a guard does not allow
 ├─ LockNotTaken              a named lock that somebody else kept
 └─ TransitionFailed          what `result.or_raise()` raises
"""

from __future__ import annotations

from typing import Any

from surefoot_storage import InputError, SurefootError


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


class UnknownRun(InputError):
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
