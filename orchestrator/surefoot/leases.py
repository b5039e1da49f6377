"""Who is at work: a worker lives as long as its process holds its file, and works as long as it beats.

A worker counts a number up. Whoever waits for it watches that number by its own steady clock: a number that
stands still for the length of a lease belongs to a frozen process, whose runs may be taken. No clocks are
compared, so that setting one does not matter; what a frozen worker commits later is refused by the epoch.
"""

from __future__ import annotations

from collections.abc import Callable

from surefoot_storage import Workspace

from . import rows
from .clock import steady

LEASE_S = 30.0


class Leases:
    """As one engine sees the others."""

    def __init__(self, workspace: Workspace, lease_s: float, steady: Callable[[], float] = steady) -> None:
        self._workspace = workspace
        self._steady = steady
        self.lease_s = lease_s
        self._seen: dict[str, tuple[int, float]] = {}  # by worker: its number, and when that was first seen

    def beat(self) -> None:
        """This worker works. In a thread, three times in a lease."""
        self._workspace.write_rows([rows.beat(self._workspace.worker)], durable=False)

    def forget_dead(self) -> None:
        """Numbers of workers that are gone are of no use any more. In a thread."""
        dead = [worker for worker in rows.beats(self._workspace) if not self._workspace.is_alive(worker)]
        if dead:
            self._workspace.write_rows([rows.stop_beating(worker) for worker in dead], durable=False)

    def is_working(self, worker: str) -> bool:
        """Whether a worker lives, and is not known to be frozen."""
        if worker == self._workspace.worker:
            return True
        if worker == "" or not self._workspace.is_alive(worker):
            return False
        seen = self._seen.get(worker)
        return seen is None or self._steady() - seen[1] < self.lease_s

    def look(self) -> list[str]:
        """At the numbers of all workers that have runs; returns those workers. In a thread."""
        now = self._steady()
        beats = rows.beats(self._workspace)
        owners = rows.owners(self._workspace)
        seen: dict[str, tuple[int, float]] = {}
        for owner in owners:
            beat = beats.get(owner, 0)  # it has not beaten yet
            before = self._seen.get(owner)
            seen[owner] = before if before is not None and before[0] == beat else (beat, now)
        self._seen = seen
        return owners

    def gone(self) -> list[str]:
        """Owners of runs that do not work any more. In a thread."""
        return [owner for owner in self.look() if not self.is_working(owner)]
