"""Transactions over files and rows. Synchronous; knows nothing of workflows."""

from .committing import Commit
from .errors import (
    CommitError,
    CommitFailed,
    CommitOutcomeUnknown,
    Conflict,
    IncompatibleOperations,
    InputError,
    PathRefused,
    StageFailed,
    SurefootError,
    TransactionClosed,
    UnreadableFile,
    WorkspaceBlocked,
    WorkspaceBusy,
    WorkspaceError,
    WorkspacePoisoned,
    WorkspaceUnusable,
)
from .fsops import FsOps
from .readonly import ReadOnlyWorkspace
from .schema import Schema
from .states import Absent, Directory, File, Op
from .transaction import FileTransaction, Statement
from .workspace import Recovered, Workspace

__all__ = [
    "Absent",
    "Commit",
    "CommitError",
    "CommitFailed",
    "CommitOutcomeUnknown",
    "Conflict",
    "Directory",
    "File",
    "FileTransaction",
    "FsOps",
    "IncompatibleOperations",
    "InputError",
    "Op",
    "PathRefused",
    "ReadOnlyWorkspace",
    "Recovered",
    "Schema",
    "StageFailed",
    "Statement",
    "SurefootError",
    "TransactionClosed",
    "UnreadableFile",
    "Workspace",
    "WorkspaceBlocked",
    "WorkspaceBusy",
    "WorkspaceError",
    "WorkspacePoisoned",
    "WorkspaceUnusable",
]
