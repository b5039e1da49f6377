"""Every error of Surefoot, as one tree.

    SurefootError                     operation, subject, expected, found, hint
     ├─ InputError                    the caller's input; nothing was tried
     │   ├─ PathRefused               a path that may not be touched
     │   ├─ IncompatibleOperations    two operations on one path that exclude each other
     │   └─ UnreadableFile            missing, not UTF-8, corrupt JSON, too large
     ├─ WorkspaceError                the workspace as a whole
     │   ├─ WorkspaceUnusable         a file, read-only, full, another user's, a newer version
     │   ├─ WorkspaceBusy             another process holds it
     │   ├─ WorkspaceBlocked          a committed change cannot reach its files yet
     │   └─ WorkspacePoisoned         this handle must not be used any more
     ├─ Conflict                      somebody changed what was read; nothing was changed
     ├─ CopyRefused                   a working copy that cannot be made, sealed or removed
     ├─ UndoRefused                   something has happened since, or old contents are gone
     └─ CommitError
         ├─ StageFailed               before the commit point; nothing was changed
         ├─ CommitFailed              at the commit point; nothing was changed
         └─ CommitOutcomeUnknown      at the commit point; settled when the workspace is next opened

`TransactionClosed` stands outside: it derives from BaseException, because a step whose
attempt is over must not be able to catch it with `except Exception` and go on.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar


class SurefootError(Exception):
    """What was tried, on what, what was expected, what was found, and what to do about it."""

    code: str = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self, operation: str, subject: object, *, expected: str = "", found: str = "", hint: str = ""
    ) -> None:
        self.operation = operation
        self.subject = str(subject)
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [f"expected {self.expected}"] if self.expected else []
        parts += [f"found {self.found}"] if self.found else []
        text = f"{self.operation} {self.subject}".rstrip()
        return f"{text}: {', '.join(parts)}" if parts else text

    def __str__(self) -> str:
        return f"{self._message()}\nhint: {self.hint}" if self.hint else self._message()

    def as_dict(self) -> dict[str, str]:
        """The same facts for programs."""
        facts = {
            "error": type(self).__name__,
            "code": self.code,
            "operation": self.operation,
            "subject": self.subject,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }
        return {key: value for key, value in facts.items() if value}


class InputError(SurefootError):
    """The caller's input is wrong; nothing was tried."""

    code = "input"
    exit_code = 2


class UnknownId(InputError):
    """Something is named that is not there."""

    code = "unknown"


class PathRefused(InputError):
    """A path that a transaction may not touch."""

    code = "path_refused"


class IncompatibleOperations(InputError):
    """Two operations of one transaction on one path that exclude each other."""

    code = "incompatible_operations"


class UnreadableFile(InputError):
    """A file that a step reads is missing, not UTF-8, not JSON or too large."""

    code = "unreadable_file"


class WorkspaceError(SurefootError):
    """The workspace as a whole cannot do what was asked."""

    code = "workspace"
    exit_code = 5


class WorkspaceUnusable(WorkspaceError):
    """Not a directory, read-only, full, another user's, or made by a newer version."""

    code = "workspace_unusable"


class WorkspaceBusy(WorkspaceError):
    """Another process holds the workspace."""

    code = "workspace_busy"


class WorkspaceBlocked(WorkspaceError):
    """A committed transaction cannot be brought to its files yet; file commits wait for it."""

    code = "workspace_blocked"


class WorkspacePoisoned(WorkspaceError):
    """This handle is of no use any more: it was closed, forked, or its database failed."""

    code = "workspace_poisoned"


class Conflict(SurefootError):
    """Somebody changed what this transaction had read; nothing was changed."""

    code = "conflict"
    exit_code = 4


class CopyRefused(SurefootError):
    """A working copy cannot be made, sealed, committed or removed; the workspace's files are unchanged."""

    code = "copy_refused"
    exit_code = 4


class UndoRefused(SurefootError):
    """A transaction cannot be undone as things are; nothing was changed. `paths`: the files in the way."""

    code = "undo_refused"
    exit_code = 4
    paths: tuple[str, ...] = ()


class CommitError(SurefootError):
    """A commit did not go through."""

    code = "commit"
    exit_code = 6


class StageFailed(CommitError):
    """The new contents could not be staged: before the commit point, so nothing was changed."""

    code = "stage_failed"


class CommitFailed(CommitError):
    """The log refused the commit and is known not to hold it: nothing was changed."""

    code = "commit_failed"


class CommitOutcomeUnknown(CommitError):
    """The log failed while committing: the next open decides, once, whether it happened."""

    code = "commit_outcome_unknown"


class TransactionClosed(BaseException):
    """The attempt that owned this transaction is over: it can neither read, write nor commit."""


def os_error_text(error: OSError) -> str:
    """`ENOSPC (No space left on device)`: the name that people search for, and its meaning."""
    name = errno.errorcode.get(error.errno or 0, f"errno {error.errno}")
    return f"{name} ({error.strerror or os.strerror(error.errno or 0)})"
