"""Work of many tasks, carried to its end in one thread at a time: what queues meanwhile goes together.

One hop to a thread for everything that is waiting, instead of one for each: with many runs at once the
switching between threads would cost more than the work. And whatever is cancelled, the thread and the
commit in it go on to their end; the cancellation is delivered after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

_WORTH_WAITING_S = 0.001
I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")


class Pump(Generic[I, R]):
    """Items from many tasks to one function, which answers for each of them with a result or an error."""

    def __init__(
        self,
        tasks: TaskGroup,
        carry_out: Callable[[list[I]], list[R | BaseException]],
        *,
        expected: Callable[[], int] = lambda: 0,
        patience_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._expected = expected
        self._patience_s = patience_s
        self._arrived = anyio.Event()
        self._tasks = tasks  # must outlive every caller
        self._carry_out = carry_out
        self._waiting: list[_Item[I, R]] = []
        self._running = False

    async def run(self, item: I) -> R:
        """The item's result.

        Raises:
            What was answered for it.
        """
        entry: _Item[I, R] = _Item(item)
        self._waiting.append(entry)
        self._arrived.set()
        if not self._running:
            self._running = True
            self._tasks.start_soon(self._drain)
        cancelled: BaseException | None = None
        while not entry.done.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await entry.done.wait()
            except anyio.get_cancelled_exc_class() as error:  # asyncio's own: a shield does not stop it
                cancelled = error
        if cancelled is not None:
            raise cancelled
        if isinstance(entry.result, BaseException):
            raise entry.result
        return entry.result  # type: ignore[no-any-return]

    async def _drain(self) -> None:
        with anyio.CancelScope(shield=True):
            while self._waiting:
                with contextlib.suppress(
                    BaseException
                ):  # a loop that ends cancels even this: nobody may wait on
                    await self._gather()
                batch, self._waiting = self._waiting, []
                try:
                    results: list[Any] = await to_thread.run_sync(self._work, batch)
                except BaseException as error:  # noqa: BLE001 - every caller is told
                    results = [error] * len(batch)
                for entry, result in zip(batch, results, strict=True):
                    entry.result = result
                    entry.done.set()
            self._running = False

    async def _gather(self) -> None:
        """On a slow disk those who are about to commit come along: it costs less than a flush of their own.

        PostgreSQL's commit_delay, with the number of siblings known and the disk's own time as the limit.
        """
        patience_s = self._patience_s()
        if patience_s < _WORTH_WAITING_S:
            return
        with anyio.move_on_after(patience_s):
            while len(self._waiting) < self._expected():
                self._arrived = anyio.Event()
                await self._arrived.wait()

    def _work(self, batch: list[_Item[I, R]]) -> list[R | BaseException]:
        return self._carry_out([entry.item for entry in batch])


class _Item(Generic[I, R]):
    def __init__(self, item: I) -> None:
        self.item = item
        self.done = anyio.Event()
        self.result: Any = None


def each(work: Callable[[I], R]) -> Callable[[list[I]], list[R | BaseException]]:
    """One after the other; an error is the answer for its own item only."""

    def all_of(items: list[I]) -> list[R | BaseException]:
        results: list[R | BaseException] = []
        for item in items:
            try:
                results.append(work(item))
            except BaseException as error:  # noqa: BLE001 - its own caller is told
                results.append(error)
        return results

    return all_of
