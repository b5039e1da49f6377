"""A clock that a test holds in its hands."""

from __future__ import annotations

import threading

import anyio
import anyio.lowlevel


class FakeClock:
    """`Engine(root, clock=FakeClock())`.

    By default whoever sleeps until a moment finds it come: retries, sleeps, timeouts and schedules happen in
    their order, at once. With `auto=False` time stands still until the test calls `advance`.
    """

    def __init__(self, start: float = 1_800_000_000.0, *, auto: bool = True) -> None:
        self._time = start
        self._auto = auto
        self._lock = threading.Lock()
        self.slept: list[float] = []
        """Seconds of each sleep, in the order of their beginnings."""

    def now(self) -> float:
        """Seconds since 1970."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Time passes; what is due then happens as soon as the engine looks.

        Raises:
            ValueError: it would go back; see `set`.
        """
        if seconds < 0:
            raise ValueError("time does not go back by itself: set() does what an administrator would do")
        self.set(self._time + seconds)

    def set(self, moment: float) -> None:
        """Somebody sets the clock, forward or back."""
        with self._lock:
            self._time = moment

    async def sleep_until(self, moment: float) -> None:
        """Returns once `now()` has reached `moment`."""
        self.slept.append(round(moment - self._time, 3))
        if self._auto:
            with self._lock:
                self._time = max(self._time, moment)
            await anyio.lowlevel.checkpoint()
        while self._time < moment:  # noqa: ASYNC110 - the test sets it from any thread
            await anyio.sleep(0.005)
