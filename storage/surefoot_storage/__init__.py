"""Transactions over files and rows. Synchronous; knows nothing of workflows."""

from .conflicts import ForeignEdit
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
from .machinery import Recovered
from .named import NamedLock
from .policy import Policy
from .queueing import Commit
from .readonly import ReadOnlyWorkspace
from .retention import Pruned, Retention
from .schema import Schema
from .states import Absent, Directory, File, Op
from .transaction import FileTransaction
from .upkeep import Forgotten, Upkeep, restore
from .wants import Statement
from .workspace import Workspace

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
    "ForeignEdit",
    "Forgotten",
    "FsOps",
    "IncompatibleOperations",
    "InputError",
    "NamedLock",
    "Op",
    "PathRefused",
    "Policy",
    "Pruned",
    "ReadOnlyWorkspace",
    "Recovered",
    "Retention",
    "Schema",
    "StageFailed",
    "Statement",
    "SurefootError",
    "TransactionClosed",
    "UnreadableFile",
    "Upkeep",
    "Workspace",
    "WorkspaceBlocked",
    "WorkspaceBusy",
    "WorkspaceError",
    "WorkspacePoisoned",
    "WorkspaceUnusable",
    "restore",
]
