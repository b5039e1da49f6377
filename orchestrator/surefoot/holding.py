"""Which worker moves a run on: its row says so, and only that worker's commits change the run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from anyio import to_thread

from surefoot_storage import Conflict, Workspace

from . import rows
from .clock import Clock
from .committing import Commits
from .leases import Leases
from .live import Live
from .model import Run
from .queues import Queue


class Hold:
    """What one engine has of its workspace's runs."""

    def __init__(self, workspace: Workspace, clock: Clock, leases: Leases, commits: Commits) -> None:
        self.workspace = workspace
        self.clock = clock
        self.leases = leases
        self.commits = commits
        self.on_taken_over: Callable[[Run], Awaitable[None]]  # set by whoever counts interruptions

    async def take(self, run: Run, queues: Mapping[str, Queue] | None = None) -> Live | None:
        """The run belongs to this worker now; None where somebody was faster, or its queue is at a limit.

        What a dead worker was doing is counted as an interruption.
        """
        worker, before = self.workspace.worker, run.owner
        if before != worker:
            claim = [rows.claim_run(run, worker)]
            if queues is not None:
                queue = queues.get(run.queue)
                counted = queue is not None and queue.at_once is not None
                gone = await to_thread.run_sync(self.leases.gone) if counted else []
                claim = rows.take_run(run, worker, queue, self.clock.now(), gone)
            try:
                await self.commits.write_rows(claim)
            except Conflict:
                return None
            if before:
                await self.on_taken_over(rows.claimed(run, worker))
            run = await self._get(run.id) if before else rows.claimed(run, worker)
        return Live(run)

    async def release(self, run_id: str) -> Run:
        """Others may move it on now."""
        run = await self._get(run_id)
        if run.owner == self.workspace.worker:
            await self.give_back(run_id)
        return run

    async def give_back(self, run_id: str) -> None:
        """The row says that nobody moves the run on."""
        await self.commits.write_rows([rows.release_run(self.workspace.worker, run_id)])

    async def measure(self, run: Run, since: float) -> None:
        """How long a queue's run was worked on."""
        if run.queue:
            took_s = max(0.0, self.clock.now() - since)
            await self.commits.write_rows([rows.measure(run.queue, "run_s", took_s)])

    async def _get(self, run_id: str) -> Run:
        return await to_thread.run_sync(rows.get_run, self.workspace, run_id)
