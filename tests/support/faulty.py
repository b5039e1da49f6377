"""Seams that do something else at one call: fail, let an editor in, or write down what happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from surefoot_storage import FsOps

CALLS = [name for name in dir(FsOps) if not name.startswith("_")]


class Hooked(FsOps):
    """Before each call, `hook(name, arguments)` may raise, or change the world."""

    def __init__(self, hook: Callable[[str, tuple[Any, ...]], None] = lambda _n, _a: None) -> None:
        self.hook = hook

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in CALLS:
            return value

        def call(*arguments: Any, **options: Any) -> Any:
            self.hook(name, arguments)
            return value(*arguments, **options)

        return call


class Once:
    """A hook for the n-th call of a name (counting from 1) whose arguments contain a word."""

    def __init__(self, call: str, act: Callable[[], None], *, word: str = "", nth: int = 1) -> None:
        self._call, self._act, self._word, self._left = call, act, word, nth

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == self._call and (not self._word or any(self._word in str(a) for a in arguments)):
            self._left -= 1
            if self._left == 0:
                self._act()


def fails(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act
