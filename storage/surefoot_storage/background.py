"""Threads of an open workspace: checkpoints when it is quiet or enough has piled up, flushes of a window."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from .errors import WorkspacePoisoned
from .events import Events
from .hardening import Durability

IDLE_S = 2.0


class _Checkpoint(Protocol):
    def __call__(self, *, wait: bool) -> None: ...


class Background:
    """What goes on behind the callers; started by the first commit that needs it."""

    def __init__(
        self,
        durability: Durability,
        checkpoint: _Checkpoint,
        flush: Callable[[], None],
        events: Events,
        *,
        idle_s: float,
        window_s: float,
    ) -> None:
        self._durability = durability
        self._checkpoint = checkpoint
        self._flush = flush
        self._events = events
        self._checkpointer = Checkpointer(
            lambda: self._try("checkpoint_failed", lambda: checkpoint(wait=False)), idle_s=idle_s
        )
        self._hardener = Hardener(lambda: self._try("flush_failed", flush), window_s=window_s)
        self._started: list[Checkpointer | Hardener] = []
        self._starting = threading.Lock()
        self._stopped = False

    def note_commit(self, *, urgent: bool) -> None:
        """A commit happened; `urgent` when the backlog is long."""
        if self._durability == "batched":
            self._start(self._hardener)
            self._hardener.note()
        if self._durability != "none":
            self._start(self._checkpointer)
            self._checkpointer.note(urgent=urgent)

    def stop(self, *, checkpoint: bool) -> None:
        """Ends the threads; what is committed is flushed, by its durability."""
        with self._starting:
            self._stopped = True
        for thread in self._started:
            thread.stop()
        if checkpoint and self._durability != "none":
            self._try("checkpoint_failed", lambda: self._checkpoint(wait=True))

    def _start(self, thread: Checkpointer | Hardener) -> None:
        if thread in self._started:
            return
        with self._starting:
            if thread not in self._started and not self._stopped:
                thread.start()
                self._started.append(thread)

    def _try(self, event: str, work: Callable[[], None]) -> None:
        try:
            work()
        except WorkspacePoisoned:
            return  # everybody else is told by their own calls
        except Exception as error:  # noqa: BLE001 - the log still holds it; tried again with the next commit
            self._events.tell(event, error=f"{type(error).__name__}: {error}")


class Checkpointer(threading.Thread):
    """Runs checkpoints when enough has piled up, or when it has been quiet for a while."""

    def __init__(self, checkpoint: Callable[[], None], *, idle_s: float = IDLE_S) -> None:
        super().__init__(name="surefoot-checkpoint", daemon=True)
        self._checkpoint = checkpoint
        self._idle_s = idle_s
        self._wake = threading.Condition()
        self._commits = 0
        self._urgent = False
        self._stopping = False

    def note(self, *, urgent: bool) -> None:
        """A commit happened; `urgent` when the backlog has reached its limit."""
        with self._wake:
            self._commits += 1
            self._urgent |= urgent
            if self._urgent or self._commits == 1:
                self._wake.notify()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        """Until stopped."""
        while self._await_work():
            self._checkpoint()

    def _await_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._commits > 0 or self._stopping)
            while not (self._urgent or self._stopping):
                seen = self._commits
                self._wake.wait(self._idle_s)
                if self._commits == seen:
                    break
            self._commits, self._urgent = 0, False
            return not self._stopping


class Hardener(threading.Thread):
    """Flushes the log once for all commits of a window."""

    def __init__(self, harden: Callable[[], None], *, window_s: float) -> None:
        super().__init__(name="surefoot-harden", daemon=True)
        self._harden = harden
        self._window_s = window_s
        self._wake = threading.Condition()
        self._waiting = False
        self._stopping = False

    def note(self) -> None:
        """A commit is waiting for its flush."""
        with self._wake:
            self._waiting = True
            self._wake.notify()

    def stop(self) -> None:
        """Returns when the thread has ended; what waits is flushed first."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        """Until stopped."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._stopping)
                self._wake.wait_for(lambda: self._stopping, self._window_s)
                waiting, self._waiting = self._waiting, False
                stopping = self._stopping
            if waiting:
                self._harden()
            if stopping:
                return
