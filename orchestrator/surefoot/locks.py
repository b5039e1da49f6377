"""Named locks of steps: in this engine, and among the processes of this host."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import anyio
from anyio import to_thread

from surefoot_storage import NamedLock, Workspace

from .errors import LockNotTaken
from .log import logger

LOCK_ATTEMPTS = 10
LOCK_PAUSE_S = 0.05  # doubled after each attempt


class Locks:
    """All named locks of one engine."""

    def __init__(self, workspace: Workspace, random: Callable[[], float]) -> None:
        self._workspace = workspace
        self._random = random
        self._named_locks: dict[str, anyio.Lock] = {}

    @contextlib.asynccontextmanager
    async def holding(self, names: tuple[str, ...]) -> AsyncIterator[None]:
        """All of them, for a block.

        Raises:
            LockNotTaken: another process keeps one.
        """
        async with contextlib.AsyncExitStack() as stack:
            for name in sorted(set(names)):  # one order for all: no deadlock
                await stack.enter_async_context(self._named_locks.setdefault(name, anyio.Lock()))
                stack.callback((await self._named_lock(name)).release)
            yield

    async def _named_lock(self, name: str) -> NamedLock:
        """The lock among processes, asked for with growing pauses.

        Raises:
            LockNotTaken: after LOCK_ATTEMPTS.
        """
        for attempt in range(LOCK_ATTEMPTS):
            lock = await to_thread.run_sync(self._workspace.try_named_lock, name)
            if lock is not None:
                return lock
            pause_s = LOCK_PAUSE_S * 2**attempt
            logger(lock=name).debug("lock.taken_elsewhere", attempt=attempt + 1, retry_in_s=pause_s)
            await anyio.sleep(pause_s * (0.5 + self._random() / 2))
        holder = await to_thread.run_sync(self._workspace.named_lock_holder, name)
        raise LockNotTaken(
            "lock",
            name,
            expected=f"it to be free within {LOCK_ATTEMPTS} attempts",
            found=f"held by {holder}",
            hint="wait for the other step to end; a dead process holds no lock",
        )
