"""From an exception to what a run keeps of it."""

from __future__ import annotations

import os
import sys
import traceback as tracebacks
from types import TracebackType

from surefoot_storage import SurefootError

from .machine import LapsExceeded
from .model import Failure

_TRACEBACK_CHARS_MAX = 20_000
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class StepTimedOut(Exception):
    """An attempt took longer than its step's `timeout_s`."""


class DeadlineExceeded(Exception):
    """A step or a run was not over when its deadline came."""


class StepCancelled(Exception):
    """The task that ran an attempt was cancelled."""


def describe(error: BaseException, step: str, attempt: int, at: float, *, part: str = "") -> Failure:
    """What a run keeps of an exception. Never fails, whatever the exception's own methods do."""
    try:
        message = error._message() if isinstance(error, SurefootError) else str(error)  # noqa: SLF001 - the message without its hint
        text = "".join(tracebacks.format_exception(error.with_traceback(_users_frames(error))))
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide that the step failed
        message, text = (
            "(its message could not be made)",
            "Traceback\n" + "".join(tracebacks.format_tb(_users_frames(error))),
        )
    return Failure(
        step=step,
        attempt=attempt,
        error=type(error).__name__,
        message=f"in part {part}: {message}" if part else message,
        at=at,
        hint=str(getattr(error, "hint", "")) if isinstance(error, SurefootError | LapsExceeded) else "",
        traceback=text[-_TRACEBACK_CHARS_MAX:],
    )


def _users_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the step's own code on; all of it where the error is in the engine."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace or error.__traceback__


def _is_ours(filename: str) -> bool:
    loaded = (sys.modules.get(name) for name in ("anyio", "asyncio", "concurrent.futures", "trio", "outcome"))
    folders = [os.path.dirname(str(module.__file__)) + os.sep for module in loaded if module is not None]
    return filename.startswith((_HERE, *folders))
