"""When a failed attempt is repeated. Pure: the failures themselves are rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import checks
from .errors import DeclarationError

ATTEMPTS_MAX = 10_000
FACTOR_MAX = 1_000


@dataclass(frozen=True)
class Retry:
    """How often a step or effect is tried, and how long to wait in between.

    Attributes:
        attempts: tries in all; 1 means no retry.
        initial_s: seconds before the second try.
        factor: each later wait is this much longer.
        max_s: no wait is longer, jitter aside.
        jitter: up to this share of the wait is added at random, so that failures do not march in step.
        on: the exceptions worth another try.
    """

    attempts: int = 1
    initial_s: float = 1.0
    factor: float = 2.0
    max_s: float = 300.0
    jitter: float = 0.1
    on: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        what = "declare retry"
        checks.count(what, "Retry", "attempts", self.attempts, most=ATTEMPTS_MAX)
        checks.seconds(what, "Retry", "initial_s", self.initial_s)
        checks.seconds(what, "Retry", "max_s", self.max_s)
        for name, value, least in (("factor", self.factor, 1.0), ("jitter", self.jitter, 0.0)):
            given: object = value
            if not isinstance(given, int | float) or not least <= given <= FACTOR_MAX:
                raise DeclarationError(
                    what, "Retry", expected=f"{name} from {least:g} to {FACTOR_MAX}", found=repr(value)
                )
        kinds: object = self.on
        if not isinstance(kinds, tuple) or not kinds or not all(_is_exception(kind) for kind in kinds):
            raise DeclarationError(
                what, "Retry", expected="on=(kinds of Exception, …)", found=repr(self.on)[:80]
            )

    def delay_s(self, failures: int, random: Callable[[], float]) -> float:
        """Seconds to wait after the given number of failures (1 for the first)."""
        wait = self.initial_s
        for _ in range(failures - 1):  # not a power: that overflows after a thousand failures
            wait = min(wait * self.factor, self.max_s)
        return min(wait, self.max_s) * (1 + self.jitter * random())

    def allows(self, failures: int, error: BaseException) -> bool:
        """Whether one more try is due after this many failures, the last of them `error`."""
        return failures < self.attempts and isinstance(error, self.on)


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


NO_RETRY = Retry()
"""The default of steps: the run stops in error, and waits for somebody to look at it."""

EFFECT_RETRY = Retry(attempts=5, initial_s=1.0, factor=4.0)
"""The default of effects."""
