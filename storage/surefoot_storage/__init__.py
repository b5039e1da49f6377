"""Transactions over files and rows. Synchronous; knows nothing of workflows."""

from .changes import ChangeSet, PathChange, Version
from .checkup import Checkup, Finding
from .conflicts import ForeignEdit
from .copies import Copies
from .dumps import Dumps
from .errors import (
    CommitError,
    CommitFailed,
    CommitOutcomeUnknown,
    Conflict,
    CopyRefused,
    IncompatibleOperations,
    InputError,
    PathRefused,
    StageFailed,
    SurefootError,
    TransactionClosed,
    UndoRefused,
    UnknownId,
    UnreadableFile,
    WorkspaceBlocked,
    WorkspaceBusy,
    WorkspaceError,
    WorkspacePoisoned,
    WorkspaceUnusable,
)
from .fsops import FsOps
from .history import Change, Difference, History, LogEntry, net
from .machinery import Recovered
from .named import NamedLock
from .policy import Policy
from .queueing import Commit
from .readonly import ReadOnlyWorkspace
from .retention import Pruned, Retention
from .reverting import WentBack
from .schema import Schema
from .sealing import Sealed
from .states import Absent, Directory, File, Op, Stamp
from .transaction import FileTransaction
from .upkeep import Forgotten, Upkeep, restore
from .wants import Statement
from .workspace import Workspace

__all__ = [
    "Absent",
    "Change",
    "ChangeSet",
    "Checkup",
    "Commit",
    "CommitError",
    "CommitFailed",
    "CommitOutcomeUnknown",
    "Conflict",
    "Copies",
    "CopyRefused",
    "Difference",
    "Directory",
    "Dumps",
    "File",
    "FileTransaction",
    "Finding",
    "ForeignEdit",
    "Forgotten",
    "FsOps",
    "History",
    "IncompatibleOperations",
    "InputError",
    "LogEntry",
    "NamedLock",
    "Op",
    "PathChange",
    "PathRefused",
    "Policy",
    "Pruned",
    "ReadOnlyWorkspace",
    "Recovered",
    "Retention",
    "Schema",
    "Sealed",
    "StageFailed",
    "Stamp",
    "Statement",
    "SurefootError",
    "TransactionClosed",
    "UndoRefused",
    "UnknownId",
    "UnreadableFile",
    "Upkeep",
    "Version",
    "WentBack",
    "Workspace",
    "WorkspaceBlocked",
    "WorkspaceBusy",
    "WorkspaceError",
    "WorkspacePoisoned",
    "WorkspaceUnusable",
    "net",
    "restore",
]
