"""Time as the engine sees it: passed in, so that tests decide what it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from .log import logger

JUMP_S = 60.0
"""A clock that is set forward by more is believed when it is still there after as many seconds."""


class Clock(Protocol):
    """Wall-clock time, and waiting for it."""

    def now(self) -> float:
        """Seconds since 1970."""

    async def sleep_until(self, moment: float) -> None:
        """Returns once `now()` has reached `moment`."""


def steady() -> float:
    """Seconds since the computer was started: nobody sets it, and it goes on while the computer sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemClock:
    """The computer's, except that a jump forward is not believed at once.

    A clock that is set to next year by mistake would end every wait and every deadline. So time goes on
    steadily from where it was until the new one has lasted `JUMP_S`. A step back is believed: what was done
    is recorded, and is not done again.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = steady) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._believed = (wall(), steady())
        self._jumped_at: float | None = None

    def now(self) -> float:
        """Seconds since 1970."""
        with self._lock:
            wall, now = self._wall(), self._steady()
            expected = self._believed[0] + now - self._believed[1]
            if wall - expected <= JUMP_S:
                self._jumped_at = None
            elif self._jumped_at is None:
                self._jumped_at = now
                logger().warning("clock.jumped", by_s=round(wall - expected), believed_after_s=JUMP_S)
                return expected
            elif now - self._jumped_at < JUMP_S:
                return expected
            self._believed = (wall, now)
            return wall

    async def sleep_until(self, moment: float) -> None:
        """Looks at the clock again at least every minute: it may be set in between."""
        import anyio

        while (left := moment - self.now()) > 0:  # noqa: ASYNC110 - no event tells of a clock that was set
            await anyio.sleep(min(left, 60.0))
