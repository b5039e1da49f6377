"""What happens outside any call is told to an observer, after the commit lock is given back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

Observer = Callable[[str, dict[str, Any]], None]


class Events:
    """Collected in the critical section, told outside it, and never to the harm of what is committed."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._waiting: list[tuple[str, dict[str, Any]]] = []

    def note(self, event: str, **facts: Any) -> None:
        """To be told soon."""
        self._waiting.append((event, facts))

    def tell(self, event: str = "", **facts: Any) -> None:
        """Everything that was noted, and this."""
        if event:
            self.note(event, **facts)
        while self._waiting:
            name, values = self._waiting.pop(0)
            try:
                self._observer(name, values)
            except Exception as error:  # noqa: BLE001 - said, and gone on
                warnings.warn(f"the observer failed at {name}: {error!r}", RuntimeWarning, stacklevel=2)
