"""Queues and schedules of a workspace, by the people who run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio import to_thread

from surefoot_storage import InputError

from . import checks, rows
from .dispatching import Dispatcher
from .names import checked_name
from .opened import OpenEngine
from .pending import Pender, Pending


class Control:
    """`engine.control`: pausing queues and schedules, and letting this engine run dry."""

    def __init__(
        self, engine: Callable[[], OpenEngine], dispatcher: Callable[[], Dispatcher | None], pender: Pender
    ) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._pending = pender

    def queues(self) -> Pending[list[dict[str, Any]]]:
        """For each queue: how many runs are ready, running, waiting, in error, and since when in seconds.

        With what was measured since the store was made: how long runs waited until they were taken and were
        worked on then, how often a lock was not to be had; and why the queue is paused.
        """

        def work() -> list[dict[str, Any]]:
            return rows.queues_shown(self._engine().workspace, self._engine().clock.now())

        return self._pending("control.queues", lambda: to_thread.run_sync(work))

    def pause_queue(self, name: str, reason: str = "") -> Pending[None]:
        """No worker takes anything from the queue any more (`*`: from any); what is taken is finished.

        Survives restarts: after an incident nothing goes on before somebody says so.

        Raises:
            InputError: it cannot be a queue's name.
        """
        _checked_queue(name)
        checks.text("pause queue", name, "reason", reason, empty=True, error=InputError)
        return self._write("pause_queue", lambda now: rows.pause_queue(name, reason, now))

    def resume_queue(self, name: str) -> Pending[None]:
        """Workers take from it again.

        Raises:
            InputError: it cannot be a queue's name.
        """
        _checked_queue(name)
        return self._write("resume_queue", lambda _now: rows.resume_queue(name))

    def schedules(self) -> Pending[list[dict[str, Any]]]:
        """All schedules that workers of this workspace have declared, and up to when they were started."""
        return self._pending(
            "control.schedules", lambda: to_thread.run_sync(rows.list_schedules, self._engine().workspace)
        )

    def pause_schedule(self, name: str) -> Pending[None]:
        """Starts nothing any more.

        Raises:
            InputError: there is none of that name.
        """
        return self._schedule("pause_schedule", name, lambda _now: rows.pause_schedule(name))

    def resume_schedule(self, name: str) -> Pending[None]:
        """Starts its slots again, from now on: what came meanwhile is not made up for.

        Raises:
            InputError: there is none of that name.
        """
        return self._schedule("resume_schedule", name, lambda now: rows.resume_schedule(name, now))

    def drain(self) -> Pending[None]:
        """This engine takes nothing new; returns when what it has taken is over, in error, or waits."""

        async def operation() -> None:
            dispatcher = self._dispatcher()
            if dispatcher is not None:
                await dispatcher.drain()

        return self._pending("control.drain", operation)

    def _schedule(self, operation: str, name: str, change: Callable[[float], Any]) -> Pending[None]:
        async def checked() -> None:
            known = await to_thread.run_sync(rows.list_schedules, self._engine().workspace)
            if name not in [schedule["name"] for schedule in known]:
                names = ", ".join(schedule["name"] for schedule in known) or "there is none"
                raise InputError(
                    operation.replace("_", " "),
                    checks.shown(name),
                    expected=f"a schedule: {names}",
                    found="another name",
                )
            await self._write(operation, change)

        return self._pending(f"control.{operation}", checked)

    def _write(self, operation: str, change: Callable[[float], Any]) -> Pending[None]:
        async def work() -> None:
            engine = self._engine()
            statement = change(engine.clock.now())
            await to_thread.run_sync(lambda: engine.workspace.write_rows([statement]))
            engine.on_due()

        return self._pending(f"control.{operation}", work)


def _checked_queue(name: str) -> None:
    if name != rows.EVERY:
        checked_name("queue", name)
