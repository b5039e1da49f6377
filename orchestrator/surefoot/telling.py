"""Whom a workflow tells of its runs, after the commit and best effort: people who are asked, and views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from . import checks
from .errors import DeclarationError
from .names import checked_name
from .retry import EFFECT_RETRY
from .steps import EFFECT_TIMEOUT_S, Effect

F = TypeVar("F", bound=Callable[..., Any])


class Telling:
    """The part of a workflow's declaration that is about others."""

    name: str
    views: dict[str, Effect]
    _notifier: Callable[..., Any] | None

    def view(self, function: F) -> F:
        """Declares a view of its runs' statuses elsewhere, a task tracker say: `@flow.view`.

        Called with a `StatusChange` for every change, in order, after the commit, at least once, best effort:
        a failure is tried again a few times and then left. Nobody ever asks it what is true.

        Raises:
            DeclarationError: it cannot be called, or there is one of its name.
        """
        if not callable(function):
            raise DeclarationError(
                "declare view", self.name, expected="a function", found=checks.shown(function)
            )
        name = checked_name("view", getattr(function, "__name__", repr(function)), self.views)
        self.views[name] = Effect(name, function, EFFECT_TIMEOUT_S, EFFECT_RETRY)
        return function

    @property
    def tells_others(self) -> bool:
        """Whether there is anybody to be told."""
        return bool(self.views) or self._notifier is not None

    @property
    def tells(self) -> Callable[..., Any] | None:
        """Who tells people that they are asked; see `notifier`."""
        return self._notifier

    def notifier(self, function: F) -> F:
        """Declares who tells people that they are asked for an approval: `@flow.notifier`.

        Called with an `Asked` for each of them, after the commit, at least once, with retries, as effects
        are: when they are asked, reminded, or asked in somebody's place.

        Raises:
            DeclarationError: there is one already, or it cannot be called.
        """
        if self._notifier is not None or not callable(function):
            raise DeclarationError(
                "declare notifier", self.name, expected="one function", found=checks.shown(function)
            )
        self._notifier = function
        return function
