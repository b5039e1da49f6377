"""What is new: one reader of the audit log for everybody who listens.

The cursor is the number of a line of that log: whoever comes back with the last one that they have seen
misses nothing, whichever process wrote it, whether the server was restarted or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import anyio
from starlette.exceptions import HTTPException

from surefoot.engine import Engine

LOOK_S = 0.2
PIECE = 500


class Feed:
    """Tells those who wait that there may be something new. It looks only while somebody waits."""

    def __init__(self, engine: Engine, streams_max: int) -> None:
        self._engine = engine
        self._streams_max = streams_max
        self._streams = 0
        self._waiting = 0
        self._wanted = anyio.Event()
        self._news = anyio.Event()
        self._last = -1
        self.is_closed = False

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            if not self._waiting:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            last = await self._engine.facts.last_line()
            if last != self._last:
                self._last = last
                self._tell()
            await anyio.sleep(LOOK_S)

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def close(self) -> None:
        """The server ends: everybody is let go."""
        self.is_closed = True
        self._tell()

    async def wait(self, timeout_s: float) -> None:
        """Until there may be something new, or some time has passed."""
        if self.is_closed:
            return
        news = self._news
        self._waiting += 1
        self._wanted.set()
        try:
            with anyio.move_on_after(timeout_s):
                await news.wait()
        finally:
            self._waiting -= 1

    def refuse_more(self) -> None:
        """There is room for one more stream.

        Raises:
            HTTPException: there is none.
        """
        if self._streams >= self._streams_max:
            raise HTTPException(503, f"{self._streams_max} live connections are open", {"retry-after": "5"})

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """One more, for a block."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
