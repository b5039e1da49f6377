"""Phases 1 and 2 of a transition: declared files are read, and the step's body builds what shall be.

Sync bodies run in a worker thread that cannot be stopped: on timeout or cancellation their transaction
is fenced, so that whatever they still do can never be committed, and they are counted until they end.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from surefoot_storage import SurefootError, Workspace

from .errors import StepReturnRefused
from .failures import DeadlineExceeded, StepTimedOut
from .pump import Pump
from .reading import Read, read_all
from .steps import Step
from .transaction import Transaction

T = TypeVar("T")

ABANDONED_BODIES_MAX = 8
ITEMS_MAX = 10_000


class Bodies:
    """Runs the bodies of one engine's steps."""

    def __init__(self, workspace: Workspace, tasks: TaskGroup, *, threads_max: int) -> None:
        self._workspace = workspace
        self._threads = CapacityLimiter(threads_max)
        self._abandoned: set[str] = set()
        self._reads: Pump[Read, None] = Pump(tasks, lambda reads: read_all(workspace, reads))

    async def run(self, read: Read) -> Any:
        """What the body returned; everything it wants is in its transaction, nothing has changed on disk.

        For the visit that fans out, the items.

        Raises:
            StepTimedOut, DeadlineExceeded: it took too long; and whatever it raises.
        """
        step, tx = read.step, read.tx
        limit_s, too_late = _limit(read)
        with anyio.move_on_after(limit_s) as scope:
            if step.is_async:
                await self._reads.run(read)
                return await _async_body(read)

            def read_and_prepare() -> Any:
                (error,) = read_all(self._workspace, [read])
                if error is not None:
                    raise error
                return _sync_body(read)

            return await self._in_thread(tx, read_and_prepare)
        assert scope.cancelled_caught
        tx._end()  # noqa: SLF001 - the engine's half of the class
        raise too_late

    async def _in_thread(self, tx: Transaction, body: Callable[[], T]) -> T:
        if len(self._abandoned) >= ABANDONED_BODIES_MAX:
            raise SurefootError(
                "start",
                tx.step,
                expected=f"fewer than {ABANDONED_BODIES_MAX} step bodies that run on after their timeout",
                found=str(len(self._abandoned)),
                hint="call tx.check() in long loops, so that a body ends when its attempt does",
            )
        finished = False

        def work() -> T:
            nonlocal finished
            try:
                return body()
            finally:
                finished = True
                self._abandoned.discard(tx.txid)

        try:
            return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
        except anyio.get_cancelled_exc_class():
            self._abandoned.add(tx.txid)
            if finished:
                self._abandoned.discard(tx.txid)
            raise


def _limit(read: Read) -> tuple[float, Exception]:
    """Seconds that the attempt has, and what it is when they are over."""
    timeout_s = math.inf if read.step.timeout_s is None else read.step.timeout_s
    for name, moment in (
        ("the step's deadline_s", read.visit.deadline_at),
        ("the run's deadline", read.run.deadline_at),
    ):
        if moment is not None and moment - read.tx.now < timeout_s:
            return moment - read.tx.now, DeadlineExceeded(f"{name} came during the attempt")
    return timeout_s, StepTimedOut(f"the attempt took longer than {timeout_s} s")


def _arguments(read: Read) -> tuple[Any, ...]:
    if read.item is None:
        return (read.tx, read.given)
    return (read.tx, read.given, read.item_value)


def _sync_body(read: Read) -> Any:
    if read.fans_out:
        return _items(read, _listed(read))
    returned = read.step.function(*_arguments(read))
    for part in read.step.parts:
        read.tx.part = part.name
        part.function(*_arguments(read))
    read.tx.part = ""
    return returned


async def _async_body(read: Read) -> Any:
    if read.fans_out:
        listed = _listed(read)
        return _items(read, await listed if inspect.isawaitable(listed) else listed)
    returned = await read.step.function(*_arguments(read))
    for part in read.step.parts:
        read.tx.part = part.name
        await part.function(*_arguments(read))
    read.tx.part = ""
    return returned


def _listed(read: Read) -> Any:
    """What the step fans out over: a file's content, or what a function says."""
    each = read.step.each
    if isinstance(each, str):
        return read.tx.read_json(read.place(each))
    assert each is not None
    return each(read.tx, read.given)


def _items(read: Read, listed: Any) -> list[Any]:
    """The items, checked: they are kept as JSON."""
    step: Step[..., Any] = read.step
    if not isinstance(listed, list | tuple):
        raise StepReturnRefused(
            "fan out", step.name, expected="a list of items", found=type(listed).__name__,
            hint="each= names a JSON file that holds a list, or a function that returns one",
        )  # fmt: skip
    if len(listed) > ITEMS_MAX:
        raise StepReturnRefused(
            "fan out", step.name, expected=f"at most {ITEMS_MAX} items", found=str(len(listed)),
            hint="let each item be a page of many, or start a run for each page",
        )  # fmt: skip
    return list(listed)
