"""Large contents in and out of a transaction, from sync and from async steps, under one name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from surefoot_storage import TransactionClosed

F = TypeVar("F", bound=Any)  # io.BufferedReader or io.BufferedWriter


class Stream(Generic[F]):
    """A file for one block.

    `with tx.create(path) as out: out.write(data)` in a sync step,
    `async with tx.create(path) as out: await out.write(data)` in an async one: an aiofiles handle on
    asyncio, AnyIO's (with the same methods) on trio. Leaving the block by an exception gives the stream up.
    """

    def __init__(self, open_: Callable[[], F]) -> None:
        self._open = open_
        self._file: F | None = None

    def __enter__(self) -> F:
        self._file = self._open()
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.__exit__(kind, error, trace)

    async def __aenter__(self) -> Any:
        from anyio import to_thread

        self._file = await to_thread.run_sync(self._open)
        return _async_handle(self._file)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import anyio

        with anyio.CancelScope(shield=True), contextlib.suppress(*([TransactionClosed] if kind else [])):
            await anyio.to_thread.run_sync(self.__exit__, kind, error, trace)


def _async_handle(file: Any) -> Any:
    """Of aiofiles, which works on asyncio's own threads only, or of AnyIO."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        import anyio

        return anyio.wrap_file(file)
    from aiofiles.threadpool import wrap

    return wrap(file)
