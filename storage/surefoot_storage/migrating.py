"""Before the first step of a migration: nobody else works here, and the store as it was is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from .database import Database
from .errors import WorkspaceBusy
from .fsops import FsOps
from .layout import DATABASE, Layout
from .workers import Workers

KEPT = f"{DATABASE}.before-"


class Migration:
    """What opening a store of an older version does first."""

    def __init__(
        self, fs: FsOps, layout: Layout, workers: Workers, tell: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._workers = workers
        self._tell = tell

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """How far it is."""
        self._tell(event, facts)

    def prepare(self, database: Database, versions: Mapping[str, int]) -> None:
        """Keeps a copy, durable when this returns, instead of the one from before the last migration.

        Raises:
            WorkspaceBusy: a process of the older version has the workspace open. Nothing was changed.
        """
        living = [worker for worker in self._workers.living() if worker != self._workers.id]
        if living:
            raise WorkspaceBusy(
                "migrate the store", os.path.dirname(database.path),
                expected="nobody else to have it open: older code does not know the new tables",
                found=self._workers.describe(min(living)), hint="end that process, then open it again",
            )  # fmt: skip
        control = self._layout.control
        name = KEPT + "-".join(f"{component}{version}" for component, version in sorted(versions.items()))
        temporary = f"{name}.new"
        self._fs.unlink(control, temporary)
        database.copy_into(os.path.join(os.path.dirname(database.path), temporary))
        fd = self._fs.open_file(control, temporary)
        try:
            self._fs.sync(fd)
        finally:
            self._fs.close(fd)
        self._fs.rename_over(control, temporary, control, name)
        self._fs.sync(control)
        for other in self._fs.names(control):
            if other.startswith(KEPT) and other != name:
                self._fs.unlink(control, other)
        self.tell("store_kept", {"as_it_was": name, **versions})
