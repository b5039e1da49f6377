"""One name for each operation, from async and from sync code."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """An operation that starts when it is awaited, or when `wait()` is called from sync code.

    `result = await engine.run(flow)` inside `async with Engine(…)`,
    `result = engine.run(flow).wait()` inside `with Engine(…)`.
    """

    def __init__(self, name: str, operation: Callable[[], Awaitable[T]], blocking: Callable[..., T]) -> None:
        self._name = name
        self._operation = operation
        self._blocking = blocking
        self._started = False

    def __await__(self) -> Generator[Any, Any, T]:
        self._started = True
        return self._operation().__await__()

    def wait(self) -> T:
        """Runs it to its end and returns its result. Only inside `with Engine(…)`."""
        self._started = True
        return self._blocking(self._operation)

    def __del__(self) -> None:
        if not self._started:
            warnings.warn(
                f"{self._name} was neither awaited nor waited for: nothing was done",
                RuntimeWarning,
                stacklevel=2,
            )


class Pender(Protocol):
    """Makes operations that can be awaited or waited for."""

    def __call__(self, name: str, operation: Callable[[], Awaitable[T]], **texts: str | None) -> Pending[T]:
        """One of them."""
