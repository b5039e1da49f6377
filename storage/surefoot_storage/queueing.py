"""Group commit: while one thread holds the commit lock, others queue; the next one takes them all along.

No timer and no thread of its own: whoever finds nobody leading leads, with everything that is queued by
the time it has the lock, and hands on to the first that came too late (as LevelDB's writers do).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from .errors import CommitOutcomeUnknown, SurefootError
from .staging import Staged
from .states import Op
from .transaction import FileTransaction
from .wants import Statement

BATCH_REQUESTS_MAX = 32  # so that the lock is held for milliseconds, not for as long as there is work
BATCH_BYTES_MAX = 4 << 20


@dataclass(frozen=True)
class Commit:
    """A transaction that happened."""

    txid: str
    seq: int
    ops: tuple[Op, ...]
    unapplied: tuple[tuple[str, str], ...] = ()  # (path, cause): in the log, not in their place yet
    foreign: tuple[str, ...] = ()  # paths where somebody else's version came out, and was kept

    @property
    def applied(self) -> bool:
        """Whether every file is in its place."""
        return not self.unapplied


@dataclass(slots=True, eq=False)
class Request:
    """What one caller wants logged: a staged transaction, or rows alone."""

    statements: Sequence[Statement]
    durable: bool = True
    tx: FileTransaction | None = None
    staged: Staged | None = None
    commit: Commit | None = None
    error: BaseException | None = None
    done: bool = False
    leads: bool = False
    wake: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size_bytes(self) -> int:
        """What it puts into the log."""
        if self.staged is None:
            return 0
        return sum(len(data) for _, data in self.staged.blobs.values() if data is not None)

    @property
    def outcome(self) -> Commit | BaseException:
        """What came of a transaction."""
        outcome = self.error or self.commit
        assert outcome is not None
        return outcome

    def finish(self, commit: Commit | None = None, error: BaseException | None = None) -> None:
        """It is settled, one way or the other."""
        self.commit, self.error, self.done = commit, error, True


def gone(request: Request, wrong: str) -> CommitOutcomeUnknown:
    """The error of a commit that went into a store which nobody will find again."""
    return CommitOutcomeUnknown(
        "commit",
        request.tx.txid if request.tx else "rows",
        expected="the workspace that was opened",
        found=wrong,
        hint="put it back, or open the workspace again",
    )


class CommitQueue:
    """Requests in their order, one leader at a time.

    Args:
        section: the critical section.
        carry_out: settles a batch inside it; what it leaves unsettled is taken with the next batch.
        too_late: the error for a request that nobody led within `wait_s`.
    """

    def __init__(
        self,
        section: Callable[[], AbstractContextManager[object]],
        carry_out: Callable[[list[Request]], None],
        too_late: Callable[[], SurefootError],
        *,
        wait_s: float,
    ) -> None:
        self._section = section
        self._carry_out = carry_out
        self._too_late = too_late
        self._wait_s = wait_s
        self._gate = threading.Lock()
        self._waiting: list[Request] = []
        self._taken: set[Request] = set()
        self._led = False

    def submit_all(self, requests: Sequence[Request]) -> None:
        """Returns when all are settled, by a commit or by an error: nothing of those was changed."""
        if not requests:
            return
        for request in requests:
            request.wake.acquire()
        with self._gate:
            self._waiting.extend(requests)
            requests[0].leads = not self._led
            self._led = True
        leading = False
        try:
            for request in requests:
                if not (request.leads or request.done):
                    self._follow(request)
                if not request.done:
                    leading = True
                    self._lead(request)
                    leading = False
        except BaseException as error:
            self._withdraw(requests, error, leading=leading)
            if not isinstance(error, Exception):
                raise

    def _withdraw(self, requests: Sequence[Request], error: BaseException, *, leading: bool) -> None:
        """Whoever cannot go on takes its own requests along; what another leader has taken is left to it."""
        with self._gate:
            mine = [r for r in requests if not r.done and (leading or r not in self._taken)]
            for request in mine:
                request.finish(error=error)
            leading = leading or any(request.leads for request in mine)
            if not leading:
                self._waiting = [request for request in self._waiting if request not in mine]
        if leading:
            self._hand_on(requests)

    def _follow(self, request: Request) -> None:
        """Until it is settled or told to lead."""
        if request.wake.acquire(timeout=self._wait_s):
            return
        with self._gate:
            if not (request.done or request.leads or request in self._taken):
                self._waiting.remove(request)
                request.finish(error=self._too_late())
                return
        request.wake.acquire()  # its leader is in the section: it will not be long

    def _lead(self, request: Request) -> None:
        with self._section():
            batch = self._take()
            self._carry_out(batch)
        self._hand_on([request])

    def _take(self) -> list[Request]:
        with self._gate:
            batch: list[Request] = []
            size_bytes = 0
            for request in self._waiting[:BATCH_REQUESTS_MAX]:
                size_bytes += request.size_bytes
                if batch and size_bytes > BATCH_BYTES_MAX:
                    break
                batch.append(request)
            self._taken = set(batch)
            return batch

    def _hand_on(self, mine: Sequence[Request]) -> None:
        with self._gate:
            settled = [request for request in self._waiting if request.done]
            self._waiting = [request for request in self._waiting if not request.done]
            self._taken = set()
            self._led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].leads = True
                settled.append(self._waiting[0])
        for request in settled:
            if request not in mine:
                request.wake.release()
