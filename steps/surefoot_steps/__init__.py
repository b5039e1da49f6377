"""Ready-made steps, written as a user would write them: only through `import surefoot`.

In Python: `Write(path="a.txt", text="…").declare(flow, "write")`; in a pipeline file: `use = "write"`.
"""

from .agents import RunAgent, RunCommand, TakeWork
from .command import CommandResult, run_command
from .files import Copy, Delete, Edit, Move, Render, Write
from .flowing import Approve, Command, Function, SubWorkflow, Wait
from .http import Http
from .ready import ReadyStep, Values

__all__ = [
    "Approve",
    "Command",
    "CommandResult",
    "Copy",
    "Delete",
    "Edit",
    "Function",
    "Http",
    "Move",
    "ReadyStep",
    "Render",
    "RunAgent",
    "RunCommand",
    "SubWorkflow",
    "TakeWork",
    "Values",
    "Wait",
    "Write",
    "run_command",
]
