"""Surefoot: workflows whose steps land completely or not at all.

The one public door. `surefoot_storage` is the ground floor below it, `surefoot_steps` holds
ready-made steps; both may be imported, but what most programs need is here.
"""

from surefoot_storage import (
    CommitOutcomeUnknown,
    Conflict,
    FsOps,
    History,
    IncompatibleOperations,
    InputError,
    PathRefused,
    Policy,
    Recovered,
    Retention,
    SurefootError,
    TransactionClosed,
    UndoRefused,
    UnreadableFile,
    WorkspaceBlocked,
    WorkspaceBusy,
    WorkspaceError,
    WorkspacePoisoned,
    WorkspaceUnusable,
)

from .clock import Clock, SystemClock
from .declare import Workflow
from .diffs import FileChange
from .engine import Engine
from .errors import (
    CommandFailed,
    DeclarationError,
    GuardConflict,
    GuardDenied,
    InputRefused,
    LoadError,
    LockNotTaken,
    RunRefused,
    StepReturnRefused,
    TemplateRefused,
    TransitionFailed,
    UndeclaredRead,
    UnknownRun,
)
from .files import Files
from .model import Committed, Failure, Run, RunResult, RunState, TransitionResult
from .pending import Pending
from .preview import Preview
from .queues import Queue, Rate
from .retry import Retry
from .steps import Done, Effect, Next, Step
from .streams import Stream
from .transaction import Transaction
from .undo import Undone
from .waits import Signal, Wait

__version__ = "0.1.0"

__all__ = [
    "Clock",
    "CommandFailed",
    "CommitOutcomeUnknown",
    "Committed",
    "Conflict",
    "DeclarationError",
    "Done",
    "Effect",
    "Engine",
    "Failure",
    "FileChange",
    "Files",
    "FsOps",
    "GuardConflict",
    "GuardDenied",
    "History",
    "IncompatibleOperations",
    "InputError",
    "InputRefused",
    "LoadError",
    "LockNotTaken",
    "Next",
    "PathRefused",
    "Pending",
    "Policy",
    "Preview",
    "Queue",
    "Rate",
    "Recovered",
    "Retention",
    "Retry",
    "Run",
    "RunRefused",
    "RunResult",
    "RunState",
    "Signal",
    "Step",
    "StepReturnRefused",
    "Stream",
    "SurefootError",
    "SystemClock",
    "TemplateRefused",
    "Transaction",
    "TransactionClosed",
    "TransitionFailed",
    "TransitionResult",
    "UndeclaredRead",
    "UndoRefused",
    "Undone",
    "UnknownRun",
    "UnreadableFile",
    "Wait",
    "Workflow",
    "WorkspaceBlocked",
    "WorkspaceBusy",
    "WorkspaceError",
    "WorkspacePoisoned",
    "WorkspaceUnusable",
]
