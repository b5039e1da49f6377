"""The commit lock: one critical section at a time, over all threads and processes of this host.

`flock` on the `.surefoot` *directory*: a lock file can be deleted and replaced under its holders, a
directory in use cannot. It is opened anew for each section, so that a fork between two sections inherits
nothing, and the kernel gives it back when a process dies. In front of it stands a mutex of this process,
because flock grants a second descriptor of one process nothing and waits for ever.

The lock is never broken by time: a holder that is frozen could go on. Whoever waits is told whom for.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from . import processes
from .errors import WorkspaceBusy, WorkspacePoisoned
from .fsops import FsOps

WAIT_S = 30.0  # then the caller is told who holds the lock, and nothing has changed
_WARN_AFTER_S = 2.0
_SPIN_S = (0.0001, 0.0002, 0.0004, 0.0008, 0.0016)  # most sections are shorter than starting a thread
_FORK_WAIT_S = 5.0

Report = Callable[[str], None]


class Mutex:
    """This process's half of the lock: re-entrant, one for each directory, however often it is open."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.depth = 0
        self.fd = -1


_mutexes: weakref.WeakValueDictionary[tuple[int, int], Mutex] = weakref.WeakValueDictionary()
_registry = threading.Lock()


class CommitLock:
    """The commit lock of one control directory."""

    def __init__(
        self,
        fs: FsOps,
        open_directory: Callable[[], int],
        path: str,
        *,
        wait_s: float,
        report: Report = lambda _text: None,
    ) -> None:
        self._fs = fs
        self._open_directory = open_directory
        self._path = path
        self._wait_s = wait_s
        self._report = report
        self._waiter = _Waiter(fs)
        fd = open_directory()
        try:
            found = fs.fstat(fd)
        finally:
            fs.close(fd)
        with _registry:
            key = (found.st_dev, found.st_ino)
            self.mutex = _mutexes.get(key) or _mutexes.setdefault(key, Mutex())

    @contextlib.contextmanager
    def held(self, wait_s: float | None = None) -> Iterator[bool]:
        """The critical section; True at its outermost level.

        Raises:
            WorkspaceBusy: the lock was not given within `wait_s`; names its holder.
        """
        wait_s = self._wait_s if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        mutex = self.mutex
        if not mutex.lock.acquire(timeout=wait_s):
            raise self.busy("another thread of this process")
        try:
            outermost = mutex.depth == 0
            if outermost:
                mutex.fd = self._take(deadline)
            mutex.depth += 1
            try:
                yield outermost
            finally:
                mutex.depth -= 1
                if outermost:
                    fd, mutex.fd = mutex.fd, -1
                    self._fs.close(fd)
        finally:
            mutex.lock.release()

    @property
    def descriptor(self) -> int:
        """Of the locked directory, inside the section."""
        return self.mutex.fd

    def _take(self, deadline: float) -> int:
        try:
            fd = self._open_directory()
        except FileNotFoundError as error:
            raise WorkspacePoisoned(
                "enter the workspace",
                self._path,
                expected="the control directory that was opened",
                found="none: it was removed while it was open",
                hint="put it back from a backup, or open the workspace anew",
            ) from error
        try:
            for pause_s in (*_SPIN_S, 0.0):
                if self._fs.try_lock(fd):
                    return fd
                if time.monotonic() + pause_s >= deadline:
                    break
                time.sleep(pause_s)
            holder = self.holder(fd)
        except BaseException:
            self._fs.close(fd)
            raise
        return self._wait(fd, deadline, holder)

    def _wait(self, fd: int, deadline: float, holder: str) -> int:
        """`fd` is the waiter's from here on."""
        if time.monotonic() >= deadline:
            self._fs.close(fd)
            raise self.busy(holder)
        until = min(deadline, time.monotonic() + _WARN_AFTER_S)
        taken = self._waiter.wait(fd, until - time.monotonic())
        if taken is None and time.monotonic() < deadline:
            self._report(f"waiting for {self.describe_holder() or holder}")
            taken = self._waiter.wait(None, deadline - time.monotonic())
        if taken is None:
            found = self.describe_holder() or holder
            self._waiter.abandon()
            raise self.busy(found)
        return taken

    def too_late(self) -> WorkspaceBusy:
        """The error of somebody who was queued behind the one that waits."""
        return self.busy(self.describe_holder() or "another process")

    def describe_holder(self) -> str:
        """Who holds the lock, as far as this process can see."""
        with contextlib.suppress(OSError):
            fd = self._open_directory()
            try:
                return self.holder(fd)
            finally:
                self._fs.close(fd)
        return ""

    def holder(self, fd: int) -> str:
        """By the kernel's own list."""
        pid = processes.lock_holder(self._fs.fstat(fd))
        if pid is None:
            return "a process that cannot be seen from here (another container?)"
        return processes.describe(pid)

    def busy(self, found: str) -> WorkspaceBusy:
        """The error of somebody who has waited too long."""
        return WorkspaceBusy(
            "enter the workspace",
            self._path,
            expected=f"the commit lock within {self._wait_s:g} s",
            found=f"held by {found}",
            hint="a stopped process goes on with: kill -CONT PID; ending it frees the lock at once",
        )


class _Waiter:
    """Blocks in flock(2), which knows no timeout, on behalf of a caller that does."""

    def __init__(self, fs: FsOps) -> None:
        self._fs = fs
        self._changed = threading.Condition()
        self._pending = False
        self._abandoned = False
        self._taken: int | None = None

    def wait(self, fd: int | None, timeout_s: float) -> int | None:
        """The locked descriptor; None at the time-out, with the wait going on until `abandon`."""
        with self._changed:
            if self._pending:  # an abandoned wait is as good as a new one
                self._abandoned = False
                if fd is not None:
                    self._fs.close(fd)
            elif fd is not None and self._taken is None:
                self._pending, self._abandoned = True, False
                threading.Thread(target=self._block, args=(fd,), name="surefoot-lock", daemon=True).start()
            self._changed.wait_for(lambda: self._taken is not None, max(0.0, timeout_s))
            taken, self._taken = self._taken, None
            return taken

    def abandon(self) -> None:
        """Nobody waits any more: a lock that is still given is given back."""
        with self._changed:
            self._abandoned = True
            if self._taken is not None:
                self._fs.close(self._taken)
                self._taken = None

    def _block(self, fd: int) -> None:
        try:
            self._fs.lock(fd)
        except OSError:
            self._fs.close(fd)
            fd = -1
        with self._changed:
            self._pending = False
            if fd >= 0 and self._abandoned:
                self._fs.close(fd)
            elif fd >= 0:
                self._taken = fd
            self._changed.notify_all()


# --- forking: never inside a section, and the child gets nothing of the lock ---


_held_for_fork: list[Mutex] = []


def _before_fork() -> None:
    _held_for_fork.extend(
        mutex for mutex in list(_mutexes.values()) if mutex.lock.acquire(timeout=_FORK_WAIT_S)
    )


def _after_fork_in_parent() -> None:
    while _held_for_fork:
        _held_for_fork.pop().lock.release()


def _after_fork_in_child() -> None:
    _held_for_fork.clear()
    for mutex in list(_mutexes.values()):
        if mutex.fd >= 0:  # closing is not unlocking: the parent keeps it
            with contextlib.suppress(OSError):
                os.close(mutex.fd)
        mutex.lock, mutex.depth, mutex.fd = threading.RLock(), 0, -1


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
