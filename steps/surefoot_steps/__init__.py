"""Ready-made steps, written as a user would write them: only through `import surefoot`."""

from .command import CommandResult, run_command

__all__ = ["CommandResult", "run_command"]
