"""Killing a real process at a named point of a transition."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from surefoot.declare import Workflow
from surefoot.engine import Engine
from surefoot.steps import Step
from surefoot_storage import FsOps
from surefoot_storage.log import Log
from surefoot_storage.records import Member

POINTS = ("read", "prepared", "committed", "half-applied", "applied")
"""`read`: before the body; `prepared`: after it, nothing committed; `committed`: past the commit point, no
file in its place yet; `half-applied`: the first file is; `applied`: all of them are, nobody has been told."""


def crash(
    root: str | os.PathLike[str],
    workflow: Workflow,
    given: Any = None,
    *,
    run_id: str,
    step: str | Step[..., Any],
    at: str = "committed",
) -> None:
    """Starts or goes on with a run in a process of its own, which kills itself (SIGKILL) at a point.

    Afterwards the workspace is what a crash leaves: open an engine on it and see. Not from a thread that
    holds locks: the process is a fork of this one.

    Raises:
        ValueError: an unknown point or step. AssertionError: the run never came there.
    """
    name = step if isinstance(step, str) else step.name
    if at not in POINTS:
        raise ValueError(f"crash: at= one of {', '.join(POINTS)}, not {at!r}")
    if name not in workflow.steps:
        raise ValueError(f"crash: step= one of {', '.join(workflow.steps)}, not {name!r}")
    child = os.fork()
    if child == 0:
        _die_there(root, workflow, given, run_id, workflow.steps[name], at)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise AssertionError(f"the run never came to {at!r} of step {name!r}")


def _die_there(
    root: str | os.PathLike[str], workflow: Workflow, given: Any, run_id: str, step: Step[..., Any], at: str
) -> None:
    """In the child. Never returns."""
    try:
        seam = _Seam(at)
        body = step.function
        step.function = seam.around_async(body) if step.is_async else seam.around(body)
        commit = Log.commit

        def commit_and_die(log: Log, members: Any, **options: Any) -> Any:
            results = commit(log, members, **options)
            seam.after_commit(members)
            return results

        Log.commit = commit_and_die  # type: ignore[method-assign, assignment]  # this process is about to die
        with Engine(root, [workflow], resume=False, fs=seam) as engine:
            engine.start(workflow, given, run_id=run_id).wait()
            engine.retry(run_id).wait()
    finally:
        os._exit(1)  # neither the parent's handlers nor its test runner run here


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Seam(FsOps):
    """The filesystem of a process that is going to die: it sees the step's files being put in place."""

    def __init__(self, at: str) -> None:
        self._at = at
        self._prepared = False
        self._committed = False

    # --- the body ---

    def around(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """A sync body that is killed before or after."""

        def watched(*arguments: Any) -> Any:
            self._before()
            returned = body(*arguments)
            self._after()
            return returned

        return watched

    def around_async(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """An async body that is killed before or after."""

        async def watched(*arguments: Any) -> Any:
            self._before()
            returned = await body(*arguments)
            self._after()
            return returned

        return watched

    def _before(self) -> None:
        if self._at == "read":
            _kill()

    def _after(self) -> None:
        if self._at == "prepared":
            _kill()
        self._prepared = True

    # --- its commit ---

    def after_commit(self, members: Sequence[Member]) -> None:
        """The log holds them."""
        if self._prepared and any(member.txid for member in members):
            self._committed = True
            if self._at == "committed":
                _kill()

    def exchange(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """A new version of a file goes into its place."""
        super().exchange(from_dir, from_name, to_dir, to_name)
        self._put()

    def rename_new(self, from_dir: int, from_name: str, to_dir: int, to_name: str) -> None:
        """A new file goes into its place."""
        super().rename_new(from_dir, from_name, to_dir, to_name)
        self._put()

    def _put(self) -> None:
        if self._committed and self._at == "half-applied":
            _kill()

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        """The mark says that all files are in place."""
        super().write_at(fd, data, offset)
        if self._committed and self._at == "applied":
            _kill()
