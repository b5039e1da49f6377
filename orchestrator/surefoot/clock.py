"""Time as the engine sees it: passed in, so that tests decide what it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time, and waiting for it."""

    def now(self) -> float:
        """Seconds since 1970."""

    async def sleep_until(self, moment: float) -> None:
        """Returns once `now()` has reached `moment`."""


class SystemClock:
    """The computer's."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def sleep_until(self, moment: float) -> None:
        """Looks at the clock again at least every minute: it may be set in between."""
        import anyio

        while (left := moment - self.now()) > 0:  # noqa: ASYNC110 - no event tells of a clock that was set
            await anyio.sleep(min(left, 60.0))
