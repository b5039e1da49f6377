"""One thread of this process at a time works on files; the others wait without asking for the interpreter.

Every system call gives Python's interpreter lock away and takes it back. With many threads at it each call
becomes a switch of threads: sixteen at once were slower than one. While the one that has the turn waits for
the disk to flush, it lets the next one go ahead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turn:
    """A lock that can be lent out for the length of a wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Others may go ahead meanwhile."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
