"""Surefoot: workflows whose steps land completely or not at all.

The one public door. `surefoot_storage` is the ground floor below it, `surefoot_steps` holds
ready-made steps; both may be imported, but what most programs need is here.
"""

from typing import TYPE_CHECKING, Any

from surefoot_storage import (
    CommitOutcomeUnknown,
    Conflict,
    CopyRefused,
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
    UnknownId,
    UnreadableFile,
    WorkspaceBlocked,
    WorkspaceBusy,
    WorkspaceError,
    WorkspacePoisoned,
    WorkspaceUnusable,
)

from .agentspec import Agent, AgentRetry, Limits, Work
from .agentspec import Done as AgentDone
from .approvals import Approval, ApprovalState, Asked
from .clock import Clock, SystemClock
from .declare import Workflow
from .diffs import FileChange
from .dumping import Dump, Replayed
from .engine import Engine
from .errors import (
    AgentFailed,
    ApprovalRefused,
    ChangesRefused,
    CommandFailed,
    ConfigConflict,
    DeclarationError,
    GuardConflict,
    GuardDenied,
    InputRefused,
    LaunchFailed,
    LoadError,
    LockNotTaken,
    NothingCached,
    RecordsFull,
    RecordsNotDurable,
    RunRefused,
    StepReturnRefused,
    TemplateRefused,
    TransitionFailed,
    UndeclaredRead,
    UnknownApproval,
    UnknownRun,
)
from .files import Files
from .model import Committed, Failure, Run, RunResult, RunState, StatusChange, TransitionResult
from .pending import Pending
from .preview import Preview
from .queues import Queue, Rate
from .retry import Retry
from .rows import Record
from .statuses import Status
from .steps import Done, Effect, Next, Step
from .streams import Stream
from .transaction import Transaction
from .undo import Undone
from .waits import Signal, Wait

if TYPE_CHECKING:
    from .caching import Cache, Cached
    from .configuration import Configuration, Revised, Updated
    from .recording import Records

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentDone",
    "AgentFailed",
    "AgentRetry",
    "Approval",
    "ApprovalRefused",
    "ApprovalState",
    "Asked",
    "Cache",
    "Cached",
    "ChangesRefused",
    "Clock",
    "CommandFailed",
    "CommitOutcomeUnknown",
    "Committed",
    "ConfigConflict",
    "Configuration",
    "Conflict",
    "CopyRefused",
    "DeclarationError",
    "Done",
    "Dump",
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
    "LaunchFailed",
    "Limits",
    "LoadError",
    "LockNotTaken",
    "Next",
    "NothingCached",
    "PathRefused",
    "Pending",
    "Policy",
    "Preview",
    "Queue",
    "Rate",
    "Record",
    "Records",
    "RecordsFull",
    "RecordsNotDurable",
    "Recovered",
    "Replayed",
    "Retention",
    "Retry",
    "Revised",
    "Run",
    "RunRefused",
    "RunResult",
    "RunState",
    "Signal",
    "Status",
    "StatusChange",
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
    "UnknownApproval",
    "UnknownId",
    "UnknownRun",
    "UnreadableFile",
    "Updated",
    "Wait",
    "Work",
    "Workflow",
    "WorkspaceBlocked",
    "WorkspaceBusy",
    "WorkspaceError",
    "WorkspacePoisoned",
    "WorkspaceUnusable",
]

_LATER = {
    "Cache": "caching", "Cached": "caching", "Configuration": "configuration", "Records": "recording",
    "Revised": "configuration", "Updated": "configuration",
}  # fmt: skip
"""Names whose modules are imported when they are first used: a program without them starts faster."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
